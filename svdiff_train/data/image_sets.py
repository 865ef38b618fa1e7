"""The sets of pictures that a run draws from: a folder of the subject's, and painted ones of its class."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

from svdiff_delta._util.limits import PICTURE
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import InputError
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig

from . import Counts, Cut, Found, Loaded, choose_buckets, count, find_images, load_image, make_buckets, to_tensor
from .buckets import Size, Sized
from .clips import FolderClips, find_clips
from .pairs import MASKS, find_companions, load_companion


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


class Captioned(Protocol):
    """Something that may have a caption."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def caption(self) -> str | None:
        """What its caption says."""


class Subject(Pictures, Protocol):
    """The pictures or clips of a subject, which can be counted and told apart from others."""

    def counts(self) -> Counts:
        """Return what was found."""

    def digest(self) -> str:
        """Return a digest of what is trained on."""


def open_pictures(
    folder: Path,
    config: TrainConfig,
    resolution: int,
    unit: int,
    *,
    skip_bad: bool,
    concept: Concept | None = None,
    frames: int | None = None,
    companion: str | None = None,
) -> Subject:
    """Find and check a subject's pictures, or its clips.

    Args:
        folder: where they are.
        config: of the run.
        resolution: side of the square in pixels.
        unit: sides are multiples of it.
        skip_bad: whether to go on without pictures, clips and pairs that cannot be used.
        concept: what they show; the config's only one if not given.
        frames: of each clip, for models of moving pictures; None for pictures.
        companion: the sub-folder of what belongs to each picture beside it; None if nothing does.

    Raises:
        InputError: there are none, one cannot be read, or a caption does not have the concept's token.
        MissingExtraError: a clip is an MP4, and nothing is installed that reads one.
    """
    (concept,) = config.subjects(folder) if concept is None else (concept,)
    if frames is not None:
        found = find_clips(folder, frames, skip_bad=skip_bad)
        _check_token(found.clips, concept)
        sizes = _sizes([clip.size for clip in found.clips], config, resolution, unit)
        return FolderClips(found, sizes, concept.prompt, frames)
    images = find_images(folder, skip_bad=skip_bad)
    beside: tuple[Path, ...] = ()
    if companion is not None:
        paired = find_companions(folder, companion, images, skip_bad=skip_bad)
        images, beside = paired.images, paired.beside
    _check_token(images.pictures, concept)
    sizes = _sizes(images.pictures, config, resolution, unit)
    return FolderPictures(images, sizes, concept.prompt, beside, masks=companion == MASKS)


def _check_token(shown: Sequence[Captioned], concept: Concept) -> None:
    """Raise InputError if a caption does not have the concept's token."""
    token = concept.find_token()
    for each in shown:
        if token is not None and each.caption is not None and token not in each.caption.split():
            raise InputError(
                f"{each.path}: its caption {each.caption!r} does not have the token {token!r}",
                fix="put it into the caption, or name another with `token`",
            )


def _sizes(shown: Sequence[Sized], config: TrainConfig, resolution: int, unit: int) -> tuple[Size, ...]:
    """Return height and width at which each is trained."""
    if config.buckets:
        return choose_buckets(shown, make_buckets(resolution, unit))
    return ((resolution, resolution),) * len(shown)


class FolderPictures:
    """Pictures of the subject, each with its caption, or with the run's prompt.

    Args:
        found: what is in the folder.
        sizes: height and width at which each is trained.
        text: what describes pictures without a caption.
        beside: what belongs to each of them, if something does.
        masks: whether that are masks.
    """

    def __init__(
        self, found: Found, sizes: tuple[Size, ...], text: str, beside: Sequence[Path] = (), *, masks: bool = False
    ) -> None:
        self.found, self.sizes, self.text = found, sizes, text
        self.beside, self.masks = tuple(beside), masks

    def prompt(self, index: int) -> str:
        """Return a picture's caption, or the run's prompt."""
        return self.found.pictures[index].caption or self.text

    def open(self, index: int, size: Size, cut: Cut) -> Loaded:
        """Return a picture, scaled and cut to a size."""
        loaded = load_image(self.found.pictures[index].path, *size, cut)
        if not self.beside:
            return loaded
        return replace(loaded, companion=load_companion(self.beside[index], *size, cut, mask=self.masks))

    def counts(self) -> Counts:
        """Return what was found."""
        return count(self.found, self.sizes)

    def digest(self) -> str:
        """Return a digest of what is trained on: the pictures' bytes and what describes them, in order."""
        pictures = enumerate(self.found.pictures)
        parts = [part for i, item in pictures for part in (read_bytes(item.path, PICTURE), self.prompt(i).encode())]
        return _digest([*parts, *(read_bytes(path, PICTURE) for path in self.beside)])


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
