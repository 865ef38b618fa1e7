"""The board in headless Chromium, against the painting alone, measured in one run on this machine.

    python benchmarks/board.py [--only first many blocks hour] [--moves 30] [--minutes 60] [--graph FILE] [--json FILE]

first: from the end of a slider's move until the first preview can be seen, over the time of painting that preview by
itself in the server's process, without server or browser (64×64, 4 steps; each move is followed by its own painting, so
both meet the same machine). Moves are jumps of a hand that has rested, and drags, whose end meets pictures of the
hand's earlier positions that are being painted; none of those may be shown after it.
many: 200 δ in the store, until the board can be used, and how long a move takes without painting: from the event until
the page has been drawn anew.
blocks: until the picture of where a δ acts is there, for Stable Diffusion 1.5's 282 matrices and 109 norms.
hour: random clicks and moves for some minutes; no error in the console, memory of page and server level after the
first quarter (`common/board_hour.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from common.board_hour import run_hour
from playwright.sync_api import Browser, Route
from support.board import varied
from support.browser import PHONE, WIDE, BoardPage, chromium
from support.sd15 import sd15_delta
from support.served import server, service, shifted

from svdiff_delta import save
from svdiff_serve.engine.job import Job
from svdiff_serve.mixes import parse_mix
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults
from svdiff_train.sampling.sample import Sampling

STEPS, MANY = 4, 200
LIMITS: dict[str, dict[str, float]] = {
    "first": {"jumps against painting": 1.15, "drags against painting": 1.15, "older after newer": 0},
    "many": {"seconds until usable": 2.0, "milliseconds of the longest move": 100.0},
    "blocks": {"seconds until the picture is there": 2.0},
    "hour": {"errors": 0, "growth of the page": 0.1, "growth of the server": 0.05},
}
"""The most that each figure may be."""

MEASURE = """() => {
  window.measured = { order: [], ended: 0, first: null, newest: 0 };
  document.addEventListener("change", (event) => {
    if (event.target.type !== "range") return;
    Object.assign(window.measured, { ended: event.timeStamp, first: null, before: window.measured.newest });
  }, true);
  document.addEventListener("board:shown", ({ detail }) => {
    const { measured } = window;
    measured.order.push(detail.move * 10 + detail.stage);
    measured.newest = Math.max(measured.newest, detail.move);
    measured.first ??= { took: performance.now() - measured.ended, move: detail.move };
  });
}"""
"""Notes when a slider's move ends, and when the first picture after it can be seen."""

MOVES = """async (count) => {
  const slider = document.querySelector(".term input[type=range]");
  const frame = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(null);  // after the page has been drawn
  }));
  const took = [];
  for (let number = 0; number < count; number++) {
    await frame();
    const begun = performance.now();
    slider.value = String(-1 + (2 * number) / count);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await frame();
    took.push(performance.now() - begun);
  }
  return took;
}"""


@contextmanager
def board(browser: Browser, url: str, *, phone: bool = False) -> Iterator[BoardPage]:
    """A page of a new user."""
    width, height = PHONE if phone else WIDE
    context = browser.new_context(viewport={"width": width, "height": height})
    try:
        yield BoardPage(context.new_page(), url)
    finally:
        context.close()


PAINTER = """
import sys
from pathlib import Path
from board import STEPS, painted_alone
from support.served import server, service
from svdiff_serve.settings import Defaults
import torch
torch.set_num_threads(1)
with service(Path(sys.argv[1])) as served, server(served, defaults=Defaults(steps=STEPS)) as (url, _, _):
    print(url, flush=True)
    for line in sys.stdin:
        print(painted_alone(served, float(line)), flush=True)
"""
"""Serves, and paints by itself when it is told a weight: a process of its own, in which no browser is driven."""


@contextmanager
def painter(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start what serves and paints: its address, and the process."""
    root = Path(__file__).parents[1]
    paths = [str(root / name) for name in ("benchmarks", "tests", ".", "cli")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PAINTER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
        process.stdin.close()


def first(folder: Path, browser: Browser, moves: int) -> dict[str, Any]:
    """Move the slider of one δ, and paint each time by itself what the page has shown."""
    save(shifted(0.3, "unet-ca"), folder / "dog.safetensors")
    draw = random.Random(0)
    shown: dict[str, list[float]] = {"jumps": [], "drags": []}
    alone: dict[str, list[float]] = {"jumps": [], "drags": []}
    with painter(folder) as (url, process), board(browser, url) as page:
        assert process.stdin is not None
        assert process.stdout is not None
        page.open(f"1;a=dog;t={STEPS}")
        page.page.evaluate(MEASURE)
        slider = page.weight("dog")
        for _ in range(moves):
            for way in shown:
                if way == "jumps":
                    slider.fill(f"{draw.uniform(-1, 1):.2f}")
                else:
                    page.drag(slider, to=draw.uniform(0.1, 0.9), moves=20)
                page.page.wait_for_function("() => window.measured.first !== null", polling=20)  # not at each frame
                page.painted()
                shown[way].append(page.page.evaluate("window.measured.first.took") / 1000)
                print(slider.input_value(), file=process.stdin, flush=True)
                alone[way].append(float(process.stdout.readline()))
        order: list[int] = page.page.evaluate("window.measured.order")
    older = sum(later < former for former, later in pairwise(order))
    figures: dict[str, Any] = {}
    for way in shown:
        figures[f"milliseconds of {way}"] = 1000 * statistics.median(shown[way])
        figures[f"milliseconds alone after {way}"] = 1000 * statistics.median(alone[way])
        ratios = [own / other for own, other in zip(shown[way], alone[way], strict=True)]
        figures[f"{way} against painting"] = statistics.median(ratios)
    return {**figures, "older after newer": older, "pictures": len(order)}


def painted_alone(served: Service, weight: float) -> float:
    """Return the seconds of painting a picture of a mix from its weights, without a server, a browser or a file."""
    begun = time.perf_counter()
    gains, _ = served.gains(parse_mix(f"dog:{weight!r}", served.name))
    job = Job("", 0, Sampling(steps=STEPS, batch_size=1), gains, "", time.monotonic() + 60, at_once=True)
    (ticket,) = served.engine.submit([job])
    ticket.answer.result()
    return time.perf_counter() - begun


def many(folder: Path, browser: Browser) -> dict[str, Any]:
    """Open the board with many δ, each of another content, and move a slider among them."""
    for number in range(MANY):
        save(varied("unet-ca", number), folder / f"d{number:03d}.safetensors")
    figures: dict[str, Any] = {}
    with service(folder) as served, server(served, defaults=Defaults(steps=STEPS)) as (url, _, _):
        usable, longest, middle = [], [], []
        for phone in (False, True):
            for _ in range(3):
                with board(browser, url, phone=phone) as page:
                    page.page.goto(f"{url}/#1;a=d000+d001+d002+d003")
                    page.page.wait_for_selector("body[data-ready] .card")
                    usable.append(page.page.evaluate("performance.now()") / 1000)
                    page.painted()
                    page.page.route("**/board/preview", unpainted)  # nothing is painted from here on
                    took = page.page.evaluate(MOVES, 60)
                    longest.append(max(took))
                    middle.append(statistics.median(took))
        figures["seconds until usable"] = max(usable)
        figures["milliseconds of the longest move"] = max(longest)
        figures["milliseconds of a move"] = statistics.median(middle)
    return figures


def unpainted(route: Route) -> None:
    """Answer a request for pictures as if a newer one had come."""
    route.fulfill(status=200, body=json.dumps({"kind": "replaced", "move": 0}))


def blocks(folder: Path, browser: Browser) -> dict[str, Any]:
    """Open the card of a δ with Stable Diffusion 1.5's layout, which is grey here, and look at its picture."""
    save(sd15_delta(), folder / "sd15.safetensors")
    with service(folder) as served, server(served, defaults=Defaults(steps=STEPS)) as (url, _, _):
        took = []
        for _ in range(5):
            with board(browser, url) as page:
                page.open()
                begun = time.perf_counter()
                look = page.look("sd15")
                picture = look.get_by_role("img", name="Where sd15 acts")
                picture.wait_for()
                took.append(time.perf_counter() - begun)
                bars = picture.locator("path.bar").all()
                drawn = sum((each.get_attribute("d") or "").count("M") for each in bars)
    return {"layers drawn": drawn, "seconds until the picture is there": max(took)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*LIMITS], default=["first", "many", "blocks"])
    parser.add_argument("--moves", type=int, default=30, help="Of each kind.")
    parser.add_argument("--minutes", type=float, default=60.0, help="Of random clicks and moves, for `--only hour`.")
    parser.add_argument("--graph", type=Path, help="Where to draw the memory of those minutes.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with chromium() as browser:
        for section in given.only:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                if section == "first":
                    found[section] = first(folder, browser, given.moves)
                elif section == "many":
                    found[section] = many(folder, browser)
                elif section == "blocks":
                    found[section] = blocks(folder, browser)
                else:
                    found[section] = run_hour(folder, browser, given.minutes, given.graph)
            print(json.dumps({section: found[section]}, indent=2), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    sys.exit(1 if [key for section in given.only for key in missed(section, found[section])] else 0)


def missed(section: str, figures: dict[str, Any]) -> list[str]:
    """Print figures beside their limits, and return those that are missed."""
    over = [key for key, limit in LIMITS[section].items() if figures[key] > limit]
    for key, limit in LIMITS[section].items():
        print(f"{section}, {key}: {figures[key]:.4g}, at most {limit:g}{': MISSED' if key in over else ''}", flush=True)
    return over


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
