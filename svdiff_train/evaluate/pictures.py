"""Pictures that are measured, and those that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from svdiff_delta.errors import InputError
from svdiff_train.data import Found, Picture, find_images, open_image
from svdiff_train.data.picture_file import opened_picture

KEY: Final = "prompt"
"""The text chunk of a PNG that holds its prompt."""


@dataclass(frozen=True)
class Prompted:
    """A picture and what it was made from.

    Attributes:
        name: of its file.
        image: in RGB, upright.
        prompt: what it should show.
    """

    name: str
    image: Image.Image
    prompt: str


def read_references(folders: Sequence[Path], *, skip_bad: bool = False) -> tuple[list[Image.Image], list[str]]:
    """Return the pictures of folders, RGB and upright, and remarks on those that were passed over.

    Raises:
        InputError: as `find_images`.
    """
    images, remarks = list[Image.Image](), list[str]()
    for folder in folders:
        found = find_images(folder, skip_bad=skip_bad)
        images += [open_image(picture.path) for picture in found.pictures]
        remarks += _remarks(found)
    return images, remarks


def read_prompted(folder: Path, *, skip_bad: bool = False) -> tuple[list[Prompted], list[str]]:
    """Return the pictures of a folder with their prompts, sorted by name, and remarks on those passed over.

    A picture's prompt is its caption in `metadata.jsonl` or in a text file beside it, or the text chunk `prompt` of a
    PNG.

    Raises:
        InputError: as `find_images`; or a picture has no prompt, or two that differ.
    """
    found = find_images(folder, skip_bad=skip_bad)
    pictures = [Prompted(each.path.name, open_image(each.path), _prompt(each)) for each in found.pictures]
    return pictures, [*_remarks(found)]


def _prompt(picture: Picture) -> str:
    with opened_picture(picture.path) as image:
        if image.format == "PNG":
            image.load()  # text may stand behind the pixels
        inside = image.info.get(KEY)
    inside = inside.strip() if isinstance(inside, str) else ""
    if picture.caption and inside and picture.caption != inside:
        raise InputError(
            f"{picture.path}: has two prompts, {inside!r} in itself and {picture.caption!r} beside it",
            fix="keep one of them",
        )
    if prompt := picture.caption or inside:
        return prompt
    raise InputError(
        f"{picture.path}: has no prompt",
        fix='write {"file_name": …, "text": its prompt} to metadata.jsonl, or paint it with `svdiff generate`',
    )


def _remarks(found: Found) -> Iterator[str]:
    yield from (f"skipped: {why}" for why in found.skipped.values())
    if found.folders:
        yield f"sub-folders, not read: {', '.join(found.folders)}"
