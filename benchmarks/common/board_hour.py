"""Random clicks and moves on the board for some minutes, and the memory of page and server meanwhile."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError
from support.board import fill_board
from support.browser import WIDE, BoardPage

EVERY = 5.0
"""Seconds between two looks at the memory."""

PATIENCE = 120_000
"""Milliseconds that the last mix may take to be painted: it may be a strip of many pictures."""

Look = tuple[float, int, int]
"""Seconds since the beginning, bytes of the page's heap, bytes of the server."""


def run_hour(folder: Path, browser: Browser, minutes: float, graph: Path | None) -> dict[str, Any]:
    """Click and move at random, and return what went wrong, and how memory went."""
    fill_board(folder / "deltas")
    with served(folder / "deltas") as (url, process):
        context = browser.new_context(viewport={"width": WIDE[0], "height": WIDE[1]}, accept_downloads=True)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        board = BoardPage(context.new_page(), url)
        board.open("1;a=dog")
        session = context.new_cdp_session(board.page)
        hand, looks = Hand(board), list[Look]()
        begun = time.monotonic()
        following = begun
        while time.monotonic() < begun + 60 * minutes:
            hand.move()
            if time.monotonic() >= following:
                following += EVERY
                session.send("HeapProfiler.collectGarbage")
                heap = session.send("Runtime.getHeapUsage")["usedSize"]
                looks.append((time.monotonic() - begun, int(heap), own_memory(process.pid)))
        faults = [*board.faults, *board.elsewhere]
        try:
            board.page.set_default_timeout(PATIENCE)
            board.painted()
        except PlaywrightTimeoutError as error:  # the hour's figures are not lost with it
            faults.append(f"the last mix was not painted: {error}")
        nodes = session.send("Memory.getDOMCounters")["nodes"]
        context.close()
        alive = process.poll() is None
    if graph is not None:
        draw(looks, graph)
    quarter = len(looks) // 4
    figures: dict[str, Any] = {"minutes": minutes, "done": dict(sorted(hand.done.items())), "nodes of the page": nodes}
    for number, who in ((1, "page"), (2, "server")):
        early = max(each[number] for each in looks[quarter : 2 * quarter])
        late = max(each[number] for each in looks[-quarter:])
        figures |= {f"bytes of the {who}": late, f"growth of the {who}": late / early - 1}
    for fault in faults[:20]:
        print(f"fault: {fault}", flush=True)
    return {**figures, "errors": len(faults) + (not alive)}


@contextmanager
def served(deltas: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command that people start, in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "svdiff_cli", "board", "tiny", str(deltas), "--no-browser", "--port", "0"]
    log = deltas.parent / "log"
    with log.open("w") as lines:
        process = subprocess.Popen(
            [*command, "--steps", "6"], stderr=lines, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        while not (found := re.search(r"board on (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found[1].rstrip("/"), process
    finally:
        process.terminate()
        process.wait(60)


def own_memory(pid: int) -> int:
    """Return the bytes of a process's own pages."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])


class Hand:
    """Whoever does anything that can be done on the board, at random.

    Args:
        board: the page.
    """

    def __init__(self, board: BoardPage) -> None:
        self._board, self._page, self._draw = board, board.page, random.Random(0)
        self.done: Counter[str] = Counter()

    def move(self) -> None:
        """Do one thing; wait for the picture now and then, as people do."""
        ways: list[Callable[[], None]] = [self.slide] * 8 + [self.part] * 3 + [self.add] * 2 + [self.take_out]
        ways += [self.undo, self.redo, self.undo, self.look, self.view, self.side, self.seeds, self.words]
        ways += [self.search, self.save, self.copy, self.rest, self.rest]
        way = self._draw.choice(ways)
        way()
        self.done[way.__name__] += 1

    def _any(self, selector: str) -> Any:
        found = [each for each in self._page.locator(selector).all() if each.is_visible() and each.is_enabled()]
        return self._draw.choice(found) if found else None

    def slide(self) -> None:
        """Drag a weight's slider."""
        slider = self._any(".term .main input[type=range]")
        if slider is not None:
            self._board.drag(slider, to=self._draw.uniform(0.1, 0.9), moves=self._draw.randint(1, 20))

    def part(self) -> None:
        """Move the slider of a block or subset, or open them."""
        slider = self._any(".part input[type=range]")
        if slider is not None:
            slider.fill(f"{self._draw.uniform(-1, 2):.1f}")
        elif (box := self._any(".term summary")) is not None:
            box.click()

    def add(self) -> None:
        """Add a δ by its card."""
        card = self._any(".card:not(.grey):not(.used) button")
        if card is None or self._page.locator(".term").count() >= 4:
            return
        card.click()
        self._page.locator("#look-actions .primary").click()

    def take_out(self) -> None:
        """Take a δ out."""
        if (button := self._any(".term .icon[title='Take it out']")) is not None:
            button.click()

    def undo(self) -> None:
        """Undo."""
        if self._page.locator("#undo").is_enabled():
            self._page.locator("#undo").click()

    def redo(self) -> None:
        """Redo."""
        if self._page.locator("#redo").is_enabled():
            self._page.locator("#redo").click()

    def look(self) -> None:
        """Look at a δ, and at one of its tables."""
        self._any(".card:not([data-name=broken]) button").click()
        self._page.wait_for_timeout(200)
        if (table := self._any("#look summary")) is not None:
            table.click()
        self._page.keyboard.press("Escape")

    def view(self) -> None:
        """Choose a view."""
        self._page.locator(f"#view-{self._draw.choice(['one', 'one', 'ab', 'strip'])}").check(force=True)

    def side(self) -> None:
        """Choose the mix that sliders move."""
        self._page.locator(f"#edit-{self._draw.choice('ab')}").check(force=True)

    def seeds(self) -> None:
        """Choose seeds."""
        if self._page.locator("#seeds").input_value().count(",") >= 2:
            self._page.locator("#seeds").fill("0")
            self._page.locator("#seeds").press("Enter")
        else:
            self._page.locator(self._draw.choice(["#dice", "#more-seeds"])).click()

    def words(self) -> None:
        """Choose a prompt."""
        self._page.locator("#prompt").fill(self._draw.choice(["a photo of a dog", "a red car", "", "a cat"]))
        self._page.locator("#prompt").blur()

    def search(self) -> None:
        """Search the shelf."""
        self._page.locator("#search").fill(self._draw.choice(["", "", "d", "bird"]))

    def save(self) -> None:
        """Save the mix as a file."""
        if (button := self._any("[data-form=delta], [data-form=recipe]")) is not None:
            with self._page.expect_download():
                button.click()

    def copy(self) -> None:
        """Copy the mix."""
        if (button := self._any("[data-form=command], [data-form=python], #copy-link")) is not None:
            button.click()

    def rest(self) -> None:
        """Wait."""
        self._page.wait_for_timeout(self._draw.randint(0, 1500))


def draw(looks: list[Look], graph: Path) -> None:
    """Draw the memory of page and server over the minutes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 4), layout="constrained", sharex=True)
    minutes = [seconds / 60 for seconds, _, _ in looks]
    above.plot(minutes, [page / 2**20 for _, page, _ in looks])
    above.set(ylabel="MB of the page", ylim=(0, None))
    below.plot(minutes, [server / 2**20 for _, _, server in looks])
    below.set(xlabel="minutes of random clicks and moves", ylabel="MB of the server", ylim=(0, None))
    figure.savefig(graph)
