"""Show the card of a δ: the prompt, title and pictures that stand beside its file, as `svdiff push` writes them."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, Final

from PIL import Image

from svdiff_delta._util.file_state import State, state
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.hub_client.download import WEIGHTS
from svdiff_delta.publish.card import prompt_in
from svdiff_delta.publish.card_metadata import parse_card
from svdiff_train.data.picture_file import opened_picture

README: Final = "README.md"
LARGEST_CARD: Final = 1 << 20
"""Bytes of a card."""

LARGEST_PICTURE: Final = 32 << 20
"""Bytes of a picture's file."""

MOST: Final = 8
"""Pictures of a δ that are shown."""

SIDE: Final = 384
"""Pixels of the longer side of a picture as it is shown."""

CAPTION: Final = 500
"""Characters of a prompt or a caption that are shown."""

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
FORMATS: Final = frozenset({"PNG", "JPEG", "MPO", "WEBP"})
"""What Pillow calls the formats that are shown."""

KEPT: Final = 64 << 20
"""Bytes of pictures that are kept as they are shown."""


@dataclass(frozen=True)
class Picture:
    """A picture of a card.

    Attributes:
        path: its file.
        caption: the prompt that it was painted for; empty if that is not said.
    """

    path: Path
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """What stands beside the file of a δ.

    Attributes:
        prompt: that calls what it was trained on, if the card says it.
        pictures: those that are there, in order.
    """

    prompt: str | None = None
    pictures: tuple[Picture, ...] = ()


NONE: Final = Card()


def card_of(path: Path) -> Card:
    """Return the card of a file of δ; what is broken or leads out of the δ's folder is left out.

    `README.md` is the card of `svdiff.safetensors`, and of any δ that is alone in its folder. A picture beside the δ
    that has its name, such as `dog.png` beside `dog.safetensors`, is shown first.
    """
    pictures = [Picture(beside) for suffix in SUFFIXES if _is_file(beside := path.with_suffix(suffix))]
    if not _has_readme(path):
        return Card(None, tuple(pictures[:MOST]))
    try:
        text = read_bytes(path.parent / README, LARGEST_CARD).decode("utf-8", "replace")
        fields, prompt = parse_card(text).fields, prompt_in(text)
    except DeltaError:
        return Card(None, tuple(pictures[:MOST]))
    pictures += _gallery(fields, path.parent)
    return Card(prompt and prompt[:CAPTION], tuple(pictures[:MOST]))


def _has_readme(path: Path) -> bool:
    readme = path.parent / README
    if not _is_file(readme):
        return False
    return path.name == WEIGHTS or sum(1 for _ in path.parent.glob(f"*{path.suffix}")) == 1


def _gallery(fields: Mapping[str, Any], folder: Path) -> Iterator[Picture]:
    """Yield the pictures that a card's `widget` lists."""
    widget = fields.get("widget")
    for item in widget[: 4 * MOST] if isinstance(widget, list) else []:
        output = item.get("output") if isinstance(item, Mapping) else None
        place = output.get("url") if isinstance(output, Mapping) else None
        if isinstance(place, str) and (path := _within(folder, place)) is not None:
            text = item.get("text")
            yield Picture(path, text[:CAPTION] if isinstance(text, str) else "")


def _within(folder: Path, place: str) -> Path | None:
    """Return the picture that a relative path names; None if there is none, or it lies outside the folder."""
    inner = PurePosixPath(place)
    if inner.is_absolute() or ".." in inner.parts or inner.suffix.lower() not in SUFFIXES or "\0" in place:
        return None
    path = folder / inner
    try:
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            return None
    except (OSError, RuntimeError, ValueError):
        return None
    return path


def _is_file(path: Path) -> bool:
    """Tell whether a file stands here itself: a link may lead to whatever this program may read."""
    try:
        return path.is_file() and not path.is_symlink()
    except (OSError, ValueError):
        return False


class Thumbnails:
    """Pictures as they are shown: made anew of their pixels alone, so that nothing else of a file gets to the page."""

    def __init__(self, room: int = KEPT) -> None:
        self._room, self._lock, self._bytes = room, Lock(), 0
        self._kept: OrderedDict[tuple[str, State], tuple[str, bytes]] = OrderedDict()

    def show(self, path: Path) -> tuple[str, bytes]:
        """Return the media type and the bytes of a picture, at most `SIDE` pixels wide and high.

        Raises:
            InputError: it is no picture, of another format, or too large.
        """
        try:
            key = str(path), state(path.stat())
        except OSError:
            raise InputError("the picture is not there any more") from None
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if key[1].size > LARGEST_PICTURE:
            raise InputError(f"the picture has more than {LARGEST_PICTURE:,} bytes")
        made = _shown(path)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made[1])
            while self._bytes > self._room:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._bytes -= len(dropped)
        return made


def _shown(path: Path) -> tuple[str, bytes]:
    with opened_picture(path) as image:
        if image.format not in FORMATS:
            raise InputError("the picture is neither PNG, JPEG nor WebP")
        image.draft("RGB", (SIDE, SIDE))
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        plain = image.convert("RGBA" if clear else "RGB")
    stream = io.BytesIO()
    small = clear or max(plain.size) <= 128  # there JPEG saves little, and its blocks are seen
    fresh = Image.frombytes(plain.mode, plain.size, plain.tobytes())
    if small:
        fresh.save(stream, "PNG")
    else:
        fresh.save(stream, "JPEG", quality=88)
    return "image/png" if small else "image/jpeg", stream.getvalue()
