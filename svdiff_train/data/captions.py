"""Captions of pictures: text files beside them, or a metadata.jsonl as the `datasets` library's imagefolder has it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from svdiff_delta._util.json import JSON
from svdiff_delta._util.json_files import read_lines
from svdiff_delta._util.limits import CAPTION, CAPTION_LINES
from svdiff_delta._util.typed import build
from svdiff_delta.errors import InputError

from .text_file import text_lines

METADATA: Final = "metadata.jsonl"
OTHER_FORMS: Final = ("metadata.csv", "metadata.parquet")
"""What imagefolder reads too, and this does not."""


@dataclass(frozen=True)
class _Caption:
    """A caption and where it stands."""

    text: str
    source: str


def read_captions(folder: Path, pictures: Sequence[str], texts: Sequence[str]) -> dict[str, str]:
    """Return the captions of pictures by file name; a picture may have none.

    A file `a.txt` holds one line, the caption of every picture `a`. Each line of metadata.jsonl is an object with
    `file_name` and `text`; its other keys are not read. Both may be there if they say the same.

    Args:
        folder: where they are.
        pictures: names of the pictures in it.
        texts: names of the text files in it.

    Raises:
        InputError: a caption is empty, holds a control character, is for a picture that is not there, or disagrees
            with another; a line of metadata.jsonl is broken; metadata has another form.
    """
    for name in OTHER_FORMS:
        if (folder / name).exists():
            raise InputError(f"{folder / name}: captions are not read from it", fix=f"write them to {METADATA}")
    found = _from_metadata(folder, set(pictures))
    for picture, caption in _from_texts(folder, pictures, texts):
        if (other := found.setdefault(picture, caption)).text != caption.text:
            raise InputError(
                f"{folder / picture}: has two captions, {caption.text!r} in {caption.source} and "
                f"{other.text!r} in {other.source}",
                fix="keep one of them",
            )
    return {picture: found[picture].text for picture in sorted(found)}


def _from_texts(folder: Path, pictures: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[str, _Caption]]:
    for name in texts:
        path = folder / name
        named = [picture for picture in pictures if Path(picture).stem == path.stem]
        if not named:
            raise InputError(
                f"{path}: is the caption of a picture that is not there",
                fix="give it its picture's name, or take it out of the folder",
            )
        lines = text_lines(path, CAPTION)
        if len(lines) != 1:
            what = "is empty" if not lines else f"has {len(lines)} lines"
            raise InputError(f"{path}: {what}", fix="write the caption on one line, or remove the file")
        _check_characters(str(path), lines[0])
        for picture in named:
            yield picture, _Caption(lines[0], name)


def _check_characters(where: str, text: str) -> None:
    """Refuse control characters, which tokenizers drop or keep as each sees fit; a tab is a space to all of them."""
    strange = next((char for char in text if unicodedata.category(char) == "Cc" and char != "\t"), None)
    if strange is not None:
        raise InputError(f"{where}: the caption holds the control character {strange!r}", fix="take it out")


def _from_metadata(folder: Path, pictures: set[str]) -> dict[str, _Caption]:
    path, found = folder / METADATA, dict[str, _Caption]()
    if not path.exists():
        return found
    for number, given in read_lines(path, CAPTION_LINES, "write one JSON object per line"):
        where = f"{path}: line {number}"
        name, text = _fields(where, given)
        if name not in pictures:
            why = "lies in a sub-folder, and those are not read" if "/" in name else "is not there"
            raise InputError(f"{where}: {name} {why}", fix="mend the name, or remove the line")
        if name in found:
            raise InputError(f"{where}: {name} stands in {found[name].source} already", fix="keep one of the lines")
        found[name] = _Caption(text, f"line {number} of {METADATA}")
    return found


class _Line(msgspec.Struct):
    """A line of metadata."""

    file_name: str
    text: str


def _fields(where: str, given: JSON) -> tuple[str, str]:
    """Return `file_name` and `text` of one line of metadata."""
    example = 'write {"file_name": "a.png", "text": "a caption"}'
    try:
        line = build(_Line, given, where)
    except InputError as error:
        raise InputError(error.message, fix=example) from None
    for key, value in (("file_name", line.file_name), ("text", line.text)):
        if not value.strip():
            raise InputError(f"{where}: has no {key}", fix=example)
    _check_characters(where, line.text)
    return line.file_name.strip(), line.text.strip()
