"""The sets of pictures that a run draws from: a folder of the subject's, and painted ones of its class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

from svdiff_delta._util.limits import PICTURE
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import InputError
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig

from . import Counts, Cut, Found, Loaded, choose_buckets, count, find_images, load_image, make_buckets, to_tensor
from .buckets import Size


class Pictures(Protocol):
    """A set of pictures that can be opened one by one.

    Attributes:
        sizes: height and width at which each of them is best trained on.
    """

    sizes: tuple[Size, ...]

    def prompt(self, index: int) -> str:
        """Return what describes a picture."""

    def open(self, index: int, size: Size, cut: Cut) -> Loaded:
        """Return a picture, scaled and cut to a size."""


def open_pictures(
    folder: Path,
    config: TrainConfig,
    resolution: int,
    unit: int,
    *,
    skip_bad: bool,
    concept: Concept | None = None,
) -> FolderPictures:
    """Find and check a subject's pictures.

    Args:
        folder: where they are.
        config: of the run.
        resolution: side of the square in pixels.
        unit: sides are multiples of it.
        skip_bad: whether to go on without pictures that cannot be read.
        concept: what they show; the config's only one if not given.

    Raises:
        InputError: there are none, one cannot be read, or a caption does not have the concept's token.
    """
    found = find_images(folder, skip_bad=skip_bad)
    (concept,) = config.subjects(folder) if concept is None else (concept,)
    token = concept.find_token()
    for picture in found.pictures:
        if token is not None and picture.caption is not None and token not in picture.caption.split():
            raise InputError(
                f"{picture.path}: its caption {picture.caption!r} does not have the token {token!r}",
                fix="put it into the caption, or name another with `token`",
            )
    square = (resolution, resolution)
    sizes = (
        choose_buckets(found.pictures, make_buckets(resolution, unit))
        if config.buckets
        else (square,) * len(found.pictures)
    )
    return FolderPictures(found, sizes, concept.prompt)


class FolderPictures:
    """Pictures of the subject, each with its caption, or with the run's prompt.

    Args:
        found: what is in the folder.
        sizes: height and width at which each is trained.
        text: what describes pictures without a caption.
    """

    def __init__(self, found: Found, sizes: tuple[Size, ...], text: str) -> None:
        self.found, self.sizes, self.text = found, sizes, text

    def prompt(self, index: int) -> str:
        """Return a picture's caption, or the run's prompt."""
        return self.found.pictures[index].caption or self.text

    def open(self, index: int, size: Size, cut: Cut) -> Loaded:
        """Return a picture, scaled and cut to a size."""
        return load_image(self.found.pictures[index].path, *size, cut)

    def counts(self) -> Counts:
        """Return what was found."""
        return count(self.found, self.sizes)

    def digest(self) -> str:
        """Return a digest of what is trained on: the pictures' bytes and what describes them, in order."""
        pictures = enumerate(self.found.pictures)
        return _digest(
            part for i, item in pictures for part in (read_bytes(item.path, PICTURE), self.prompt(i).encode())
        )


def _digest(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 of the digests of parts, in order, in hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


class ClassPictures:
    """Pictures of the class, all with one prompt.

    Args:
        images: the pictures.
        text: what they show.
    """

    def __init__(self, images: Sequence[Image.Image], text: str) -> None:
        self.images, self.text = list(images), text
        self.sizes = tuple((image.height, image.width) for image in self.images)

    def prompt(self, index: int) -> str:  # noqa: ARG002
        """Return the prompt of the class."""
        return self.text

    def digest(self) -> str:
        """Return a digest of what they show, and of their prompt, in order."""
        return _digest((self.text.encode(), *(f"{image.size}".encode() + image.tobytes() for image in self.images)))

    def open(self, index: int, size: Size, cut: Cut) -> Loaded:
        """Return a picture, scaled and cut to a size."""
        height, width = size
        image = self.images[index]
        picture = ImageOps.mirror(image) if cut.flipped else image
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
        return Loaded(to_tensor(picture), (image.height, image.width, 0, 0, height, width))
