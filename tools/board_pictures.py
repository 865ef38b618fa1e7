"""`python -m tools.board_pictures DELTAS [FOLDER]`: the pictures of the board in the docs, at both widths.

DELTAS is what `make demo` leaves (`demo-out`): two deltas that were trained on the embedded base. Others are made of
them, each is painted once for its card, and the board is opened on all of them in headless Chromium. Pictures are made
of what a new user would see after a few clicks; they are saved as PNG with as few colours as show no difference.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from svdiff_delta.format.file import save
from svdiff_delta.io import load
from svdiff_delta.ops.arithmetic import add, interpolate, scale
from svdiff_delta.ops.select import select
from svdiff_serve.http.app import ServerState
from svdiff_serve.http.server import Server, bind
from svdiff_serve.mixes import parse_mix
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults
from svdiff_serve.store.sources import FolderSource
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling
from svdiff_train.tiny import open_tiny

ROOT: Final = Path(__file__).parents[1]
PROMPT: Final = "p=a%20photo%20of%20a%20V1%20cat%20and%20a%20V2%20car;s=100"
SIZES: Final = {"wide": (1280, 800), "phone": (390, 844)}
LARGEST: Final = 150_000
"""Bytes of a picture."""

PAINTED: Final = """() => {
  const frames = [...document.querySelectorAll(".frame")].map((each) => each.classList);
  return frames.length > 0 && frames.every((each) => each.contains("final") && !each.contains("behind"));
}"""


def fill(deltas: Path, folder: Path) -> None:
    """Write the deltas of the pictures into a folder."""
    cat, car = (load(deltas / f"{name}.safetensors") for name in ("black_cat", "police_car"))
    made = {
        "black_cat": cat,
        "police_car": car,
        "both": add(scale(cat, 0.8), scale(car, 0.8)).with_title("A cat and a car"),
        "half/way": interpolate(cat, car, alpha=0.5).with_title("Half way from car to cat"),
        "parts/cat-up": select(cat, "up").with_title("The cat, in the blocks of the way up"),
        "parts/car-mid": select(car, "mid").with_title("The car, in the middle block"),
        "quiet-cat": scale(cat, 0.4).with_title("The cat, two fifths of it"),
    }
    for name, delta in made.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(delta, path)


def paint_cards(service: Service, folder: Path) -> None:
    """Paint a picture beside each delta, for its card."""
    for entry in service.store.entries():
        prompt = "a photo of a V2 car" if "car" in entry.name else "a photo of a V1 cat"
        picture = service.paint(prompt, 100, Sampling(steps=20, guidance=4.0), parse_mix(entry.name, service.name))
        picture.save(folder / f"{entry.name}.png")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder's deltas from this process: the address."""
    import threading

    base = open_tiny()
    service = Service(base, load_pipeline(base), "tiny", [FolderSource(folder)])
    try:
        service.store.refresh()
        paint_cards(service, folder)
        service.store.refresh()
        with bind("127.0.0.1", 0) as listening:
            server = Server(ServerState(service=service, defaults=Defaults(steps=20, guidance=4.0)), 10)
            thread = threading.Thread(target=server.run, args=([listening],))
            thread.start()
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()
    finally:
        service.close(10)


@contextmanager
def opened(browser: Browser, url: str, size: str, scheme: str, fragment: str) -> Iterator[Page]:
    """Open the board as somebody new does, and wait for its pictures."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(f"{url}/#{fragment}")
    page.wait_for_function(PAINTED)
    page.wait_for_timeout(500)
    yield page
    context.close()


def keep(page: Page, path: Path) -> None:
    """Save what is seen as a small picture.

    Raises:
        SystemExit: it has more than 150 kB.
    """
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"{path}: has {path.stat().st_size:,} bytes, {LARGEST:,} is the most")


def make(url: str, browser: Browser, out: Path) -> None:
    """Make all pictures."""
    with opened(browser, url, "wide", "light", f"1;a=black_cat:0.8+police_car:0.8;{PROMPT}") as page:
        page.get_by_text("Blocks and subsets").first.click()
        page.get_by_label("factor of kv in black_cat", exact=True).fill("0.9")
        page.wait_for_function(PAINTED)
        page.evaluate("document.querySelector('.mix').scrollTop = 0")
        keep(page, out / "board.png")
    with opened(browser, url, "wide", "dark", f"1;a=black_cat;b=police_car;{PROMPT};v=strip") as page:
        keep(page, out / "board-strip.png")
    with opened(browser, url, "wide", "light", "1;a=black_cat;p=a%20photo%20of%20a%20V1%20cat;s=100") as page:
        page.locator('.card[data-name="police_car"] button').click()
        page.get_by_role("img", name="Interference").wait_for()
        keep(page, out / "board-look.png")
    mixes = "a=black_cat:0.8+police_car:0.8;b=black_cat+police_car:0.5"
    with opened(browser, url, "phone", "dark", f"1;{mixes};{PROMPT};v=ab") as page:
        keep(page, out / "board-phone.png")


def main(arguments: list[str]) -> None:
    """Make the pictures of the docs."""
    if len(arguments) not in (1, 2):
        raise SystemExit("python -m tools.board_pictures DELTAS [FOLDER]: DELTAS is what `make demo` leaves")
    deltas, out = Path(arguments[0]), Path(arguments[1]) if len(arguments) == 2 else ROOT / "docs"
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise SystemExit("Chromium is not installed: name it by the variable CHROMIUM")
    with tempfile.TemporaryDirectory() as name:
        fill(deltas, Path(name))
        with served(Path(name)) as url, sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            make(url, browser, out)
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
