"""A page of pictures: it holds all of them itself, says what they are, and takes nothing for markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from svdiff_delta.svd.cache import BasisCache
from svdiff_train.demo import rows
from svdiff_train.demo.page import Section, html_page, png_page
from svdiff_train.tiny import open_tiny

RED = Image.new("RGB", (8, 8), (255, 0, 0))


def test_a_page_holds_its_pictures_and_escapes_its_text() -> None:
    section = Section("<b>", '5 < 6 & "7"', ["echo '<x>'"], [('a "cat"', RED)], [("size", "1 & 2")])
    page = html_page("T<", "I>", [section])
    assert page.count('src="data:image/png;base64,') == 1
    assert 'alt="a &quot;cat&quot;"' in page
    assert "<b>" not in page
    assert "5 &lt; 6 &amp; &quot;7&quot;" in page
    assert "echo &#x27;&lt;x&gt;&#x27;" in page


def test_as_a_picture_it_has_as_many_rows_as_it_takes() -> None:
    def red_rows(across: int | None) -> int:
        image = png_page("T", "I", [Section("S", "t", (), [("c", RED)] * 6, across=across)], width=400)
        column = [image.getpixel((30, y)) == (255, 0, 0) for y in range(image.height)]
        return sum(now and not before for before, now in zip([False, *column], column, strict=False))

    assert red_rows(None) == 1
    assert red_rows(3) == 2
    assert red_rows(1) == 6


def test_long_text_and_a_long_page_stay_on_it() -> None:
    words = " ".join(["word"] * 400)
    image = png_page("T", words, [Section("S", words)] * 4, width=300)
    assert image.width == 300
    assert image.height > 4 * 600
    edge = {image.getpixel((image.width - 1, y)) for y in range(image.height)}
    assert edge == {(255, 255, 255)}


def test_a_picture_that_is_shown_twice_is_painted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def generate(pipeline: Any, wanted: list[tuple[str, int]], sampling: Any) -> list[Image.Image]:
        asked.extend(wanted)
        return [Image.new("RGB", (8, 8), (seed, 0, len(prompt))) for prompt, seed in wanted]

    monkeypatch.setattr(rows, "generate", generate)
    painter = rows.Painter(None, open_tiny(), {}, {}, str, tmp_path, BasisCache(tmp_path))
    painter.paint(None, ["a", "bb"], [3, 4])
    found = painter.paint(None, ["bb", "ccc"], [4, 5])
    assert asked == [("a", 3), ("a", 4), ("bb", 3), ("bb", 4), ("bb", 5), ("ccc", 4), ("ccc", 5)]
    assert [image.getpixel((0, 0)) for image in found] == [(4, 0, 2), (5, 0, 2), (4, 0, 3), (5, 0, 3)]
