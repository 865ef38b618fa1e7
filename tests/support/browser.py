"""The board in a headless Chromium: pages that note what goes wrong in them, and what a hand does there."""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, sync_playwright

ROOT: Final = Path(__file__).parents[2]
WIDE: Final = (1280, 800)
PHONE: Final = (390, 844)
STEPS: Final = 2
"""Of previews in tests, where they say nothing else: all at once, as there are fewer than a first preview has."""

PAINTED: Final = """() => {
  const frames = [...document.querySelectorAll(".frame")].map((each) => each.classList);
  return frames.length > 0 && frames.every((each) => each.contains("final") && !each.contains("behind"));
}"""
"""Whether all pictures that are shown are of the newest position of the hand, with all of their steps."""

WATCH: Final = """() => {
  window.seen = [];
  document.addEventListener("board:shown", ({ detail }) => window.seen.push({ ...detail, at: performance.now() }));
}"""
"""Notes each picture when it can be seen."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, or whichever `CHROMIUM` names."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "Chromium is not installed"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class BoardPage:
    """A page with the board.

    Args:
        page: of a browser.
        url: of the server.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url.rstrip("/")
        self.faults: list[str] = []
        self.elsewhere: list[str] = []
        page.set_default_timeout(20_000)
        page.on("console", lambda line: line.type in ("error", "warning") and self.faults.append(line.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._note)

    def _note(self, request: Request) -> None:
        found = urlsplit(request.url)
        if found.scheme not in ("data", "blob") and f"{found.scheme}://{found.netloc}" != self.url:
            self.elsewhere.append(request.url)

    def open(self, fragment: str = "", *, painted: bool = True) -> BoardPage:
        """Open the board with a mix, and wait until it can be used."""
        self.page.goto(f"{self.url}/{f'#{fragment}' if fragment else ''}")
        self.page.wait_for_selector("body[data-ready]")
        if painted:
            self.painted()
        return self

    def painted(self) -> None:
        """Wait until the pictures are those of the mix, with all of their steps."""
        self.page.wait_for_function(PAINTED, polling=50)  # at each frame it would keep a core busy

    def look_often(self) -> None:
        """Let the page look at the store as often as if somebody came back to it all the time."""
        again = "document.dispatchEvent(new Event('visibilitychange'))"
        self.page.evaluate(f"() => void setInterval(() => {again}, 200)")

    @property
    def state(self) -> str:
        """What the address says of the mix."""
        found: str = self.page.evaluate("location.hash.slice(1)")
        return found

    def card(self, name: str) -> Locator:
        """The card of a δ."""
        return self.page.locator(f'.card[data-name="{name}"] button')

    def look(self, name: str) -> Locator:
        """Open the card of a δ, and return the dialog."""
        self.card(name).click()
        return self.page.locator("#look[open]")

    def add(self, name: str) -> None:
        """Add a δ to the mix, by its card."""
        self.look(name).locator("button.primary").click()

    def term(self, name: str) -> Locator:
        """What stands for a δ in the mix."""
        return self.page.locator(f'.term[data-name="{name}"]')

    def weight(self, name: str) -> Locator:
        """The slider of a δ's weight."""
        return self.page.get_by_label(f"weight of {name}", exact=True)

    def drag(self, slider: Locator, *, to: float, moves: int = 8) -> None:
        """Drag a slider by its handle to a share of its length, with the mouse."""
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box is not None
        low, high, value = (float(slider.evaluate(f"each => Number(each.{key})")) for key in ("min", "max", "value"))
        handle = 18.0  # pixels that the handle is wide: its middle moves between both ends, half of it from each
        start = (value - low) / (high - low)
        along = [box["x"] + handle / 2 + share * (box["width"] - handle) for share in (start, to)]
        middle = box["y"] + box["height"] / 2
        self.page.mouse.move(along[0], middle)
        self.page.mouse.down()
        for step in range(1, moves + 1):
            self.page.mouse.move(along[0] + (along[1] - along[0]) * step / moves, middle)
        self.page.mouse.up()

    def pictures(self) -> list[np.ndarray]:
        """The pictures that are shown, as grey levels of three colours."""
        return [decoded(each.get_attribute("src") or "") for each in self.page.locator(".frame img").all()]

    def told(self) -> str:
        """What was said last in passing."""
        toast = self.page.locator("#toast:not([hidden])")
        toast.wait_for()
        return toast.inner_text()

    def problems(self, *, scheme: str) -> list[str]:
        """What axe finds wrong with the page as it is, a line for each; animations are over by then."""
        self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        self.page.evaluate(f"window.axe ?? void ({axe()})")
        found: list[dict[str, Any]] = self.page.evaluate("axe.run().then(({ violations }) => violations)")
        return [f"{each['id']}: {[node['target'] for node in each['nodes']]}: {each['help']}" for each in found]


@cache
def axe() -> str:
    """The text of axe-core, which `make js` installs."""
    return f"(() => {{ {(ROOT / 'js/node_modules/axe-core/axe.min.js').read_text('utf-8')} }})()"


def decoded(address: str) -> np.ndarray:
    """Return the picture of a `data:` address."""
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)
