"""One page of pictures with what they show and which command made them: as HTML that needs nothing else, and as PNG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from svdiff_train.sampling.sample import wrap

ZOOM: Final = 2
"""How many times pictures are enlarged."""

GAP, MARGIN, LINE = 8, 24, 1.35
TITLE, HEAD, TEXT, SMALL = 30, 21, 16, 13

STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.9rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .3rem; } p { margin: .3rem 0; max-width: 46rem; }
pre { background: color-mix(in srgb, currentColor 8%, transparent); padding: .5rem .7rem; border-radius: .4rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; }
figure { margin: 0; width: 128px; } img { width: 128px; height: 128px; border-radius: .3rem; display: block; }
figcaption { font-size: .8rem; line-height: 1.25; margin-top: .2rem; }
table { border-collapse: collapse; } td { padding: .15rem .9rem .15rem 0; } td:nth-child(2) { text-align: right; }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: what it is, in a few words.
        text: what one sees, for someone who knows nothing of it.
        commands: what made it; each is a line of a shell.
        pictures: pictures of one size, each with a caption.
        table: rows of a name and a value below the pictures.
        across: how many pictures stand side by side at most; as many as fit if not given.
    """

    title: str
    text: str
    commands: Sequence[str] = ()
    pictures: Sequence[tuple[str, Image.Image]] = ()
    table: Sequence[tuple[str, str]] = ()
    across: int | None = None


def html_page(title: str, text: str, sections: Sequence[Section]) -> str:
    """Return a page that holds all its pictures.

    Args:
        title: of the page.
        text: what comes first.
        sections: its parts, in order.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_safe(title)}</title>'
    parts = [f"<h1>{_safe(title)}</h1>", f"<p>{_safe(text)}</p>", *map(_section, sections)]
    body = "".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n'
    )


def _section(section: Section) -> str:
    figures = "".join(
        f'<figure><img src="{_data(image)}" alt="{_safe(caption)}"><figcaption>{_safe(caption)}</figcaption></figure>'
        for caption, image in section.pictures
    )
    rows = "".join(f"<tr><td>{_safe(name)}</td><td>{_safe(value)}</td></tr>" for name, value in section.table)
    parts = [f"<h2>{_safe(section.title)}</h2>\n<p>{_safe(section.text)}</p>\n"]
    width = f' style="max-width: {138 * section.across}px"' if section.across else ""  # 128 and the gap
    parts += [f'<div class="row"{width}>{figures}</div>\n'] if figures else []
    parts += [f"<table>{rows}</table>\n"] if rows else []
    parts += [f"<pre>{_safe(chr(10).join(section.commands))}</pre>\n"] if section.commands else []
    return "".join(parts)


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


def _data(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def png_page(title: str, text: str, sections: Sequence[Section], *, width: int = 960) -> Image.Image:
    """Return the same page as a picture.

    Args:
        title: of the page.
        text: what comes first.
        sections: its parts, in order.
        width: in pixels.
    """
    pen = _Pen(width)
    pen.write(title, TITLE)
    pen.write(text, TEXT)
    for section in sections:
        pen.skip(MARGIN)
        pen.write(section.title, HEAD)
        pen.write(section.text, TEXT)
        pen.lay(section.pictures, section.across)
        for name, value in section.table:
            pen.write(f"{name}: {value}", TEXT)
        for command in section.commands:
            pen.write(f"$ {command}", SMALL, "#555")
    return pen.done()


class _Pen:
    """Writes and lays pictures from top to bottom, on a canvas that grows."""

    def __init__(self, width: int) -> None:
        self.width, self.y = width, MARGIN
        self.canvas = Image.new("RGB", (width, 256), "white")

    def _room(self, height: int) -> ImageDraw.ImageDraw:
        if self.y + height > self.canvas.height:
            grown = Image.new("RGB", (self.width, 2 * self.canvas.height + height), "white")
            grown.paste(self.canvas, (0, 0))
            self.canvas = grown
        return ImageDraw.Draw(self.canvas)

    def skip(self, height: int) -> None:
        """Leave room."""
        self._room(height)
        self.y += height

    def write(self, text: str, size: int, colour: str = "black") -> None:
        """Write text, broken into lines."""
        font = ImageFont.load_default(size)
        for line in wrap(text, font, self.width - 2 * MARGIN):
            self._room(2 * size).text((MARGIN, self.y), line, colour, font)
            self.y += int(size * LINE)

    def lay(self, pictures: Sequence[tuple[str, Image.Image]], across: int | None = None) -> None:
        """Lay pictures side by side with their captions, in as many rows as it takes."""
        if not pictures:
            return
        font = ImageFont.load_default(SMALL)
        side, height = (ZOOM * length for length in pictures[0][1].size)
        fitting = max(1, (self.width - 2 * MARGIN + GAP) // (side + GAP))
        count = min(across or fitting, fitting)
        for start in range(0, len(pictures), count):
            row = pictures[start : start + count]
            captions = [wrap(caption, font, side) for caption, _ in row]
            below = int(SMALL * LINE) * max(map(len, captions))
            draw = self._room(height + below + 2 * GAP)
            self.y += GAP
            for index, (_, image) in enumerate(row):
                x = MARGIN + index * (side + GAP)
                self.canvas.paste(image.convert("RGB").resize((side, height), Image.Resampling.BICUBIC), (x, self.y))
                for number, line in enumerate(captions[index]):
                    draw.text((x, self.y + height + 2 + number * int(SMALL * LINE)), line, "black", font)
            self.y += height + below + GAP

    def done(self) -> Image.Image:
        """Return the canvas, cut to what is on it."""
        return self.canvas.crop((0, 0, self.width, self.y + MARGIN))
