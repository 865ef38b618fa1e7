"""What the report measures in pictures, by the embedded base's own CLIP and by plain pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svdiff_train.data.picture_file import opened_picture
from svdiff_train.evaluate import Clip
from svdiff_train.tiny import base_path
from tools.build_tiny.clip import CROP, name_prompts
from tools.build_tiny.grounds import SIDE
from tools.build_tiny.judge import BORDER, border_colour
from tools.build_tiny.subjects import TRAINED

from .subjects import Subject

Floats = NDArray[np.float64]
Pictures = Sequence[Image.Image]

CENTRES: Final = {"left": 16, "right": 48}
SEAM_ROWS: Final = 3
"""Rows at the upper and lower edge, in which nothing but ground is expected."""
SEAM: Final = 24.0
"""A jump of the ground's colour at the middle, in units of 255, from which a picture counts as stitched."""


class Sight:
    """The measures; features of references are computed once."""

    def __init__(self) -> None:
        self._known: dict[str, Floats] = {}

    @cached_property
    def clip(self) -> Clip:
        """The base's own CLIP."""
        return Clip.load(base_path() / "clip")

    def seen(self, pictures: Pictures) -> Floats:
        """Return unit vectors of pictures (n, width)."""
        return np.asarray(self.clip.image_features(list(pictures)), np.float64)

    def told(self, prompts: Sequence[str]) -> Floats:
        """Return unit vectors of texts (n, width)."""
        return np.asarray(self.clip.text_features(list(prompts)), np.float64)

    def pictures(self, subject: Subject) -> list[Image.Image]:
        """Return a subject's pictures."""
        return [_open(path) for path in sorted(subject.folder.glob("*.png"))]

    def references(self, subject: Subject) -> Floats:
        """Return unit vectors of a subject's pictures."""
        if subject.name not in self._known:
            self._known[subject.name] = self.seen(self.pictures(subject))
        return self._known[subject.name]

    def small_references(self, subject: Subject) -> Floats:
        """Return unit vectors of a subject's pictures as they look in one half of a picture of two."""
        key = f"small {subject.name}"
        if key not in self._known:
            self._known[key] = self.seen([_shrunk(picture) for picture in self.pictures(subject)])
        return self._known[key]

    def text_alignment(self, pictures: Pictures, prompts: Sequence[str]) -> Floats:
        """Return cos(x̃, c) of each picture with its prompt (n,)."""
        return np.asarray((self.seen(pictures) * self.told(prompts)).sum(1))

    def image_alignment(self, pictures: Pictures, references: Floats) -> Floats:
        """Return each picture's mean cosine with reference pictures (n,)."""
        return np.asarray((self.seen(pictures) @ references.T).mean(1))

    def nearest(self, pictures: Pictures, kinds: Sequence[Floats]) -> tuple[NDArray[np.int64], Floats]:
        """Return to which of some sets of pictures each picture is nearest (n,), and its mean cosine with each."""
        seen = self.seen(pictures)
        means = np.stack([(seen @ kind.T).mean(1) for kind in kinds], 1)
        return means.argmax(1), means

    def named(self, pictures: Pictures) -> list[str]:
        """Return the name that fits each picture best, among all that the base knows."""
        if "names" not in self._known:
            self._known["names"] = self.told(name_prompts())
        best = (self.seen(pictures) @ self._known["names"].T).argmax(1)
        return [TRAINED[int(index)].name for index in best]


def half(picture: Image.Image, side: str) -> Image.Image:
    """Return the square around the middle of a half, as the base's CLIP was taught to look at one of two subjects."""
    pixels = np.pad(np.asarray(picture), ((SIDE, SIDE), (SIDE, SIDE), (0, 0)), "edge")
    padded, centre = Image.fromarray(pixels), CENTRES[side] + SIDE
    box = (centre - CROP // 2, SIDE + SIDE // 2 - CROP // 2, centre + CROP // 2, SIDE + SIDE // 2 + CROP // 2)
    return padded.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def ground(picture: Image.Image) -> str:
    """Return the colour word that most of the border is nearest to."""
    return border_colour(np.asarray(picture))


def seam(picture: Image.Image) -> float:
    """Return how far the ground's colour jumps at the middle, beyond what it does elsewhere, in units of 255.

    A horizon at the middle counts too: the prompts that are judged by this ask for plain grounds.
    """
    pixels = np.asarray(picture, np.float64)
    jumps = []
    for turned in (pixels, pixels.transpose(1, 0, 2)):
        edge = np.concatenate([turned[:SEAM_ROWS], turned[-SEAM_ROWS:]])
        steps = np.abs(edge[:, 4:] - edge[:, :-4]).mean((0, 2))  # across 4 pixels: the autoencoder blurs an edge
        middle = slice(SIDE // 2 - 5, SIDE // 2 + 2)
        jumps.append(steps[middle].max() - np.median(np.delete(steps, np.r_[middle])))
    return float(max(jumps))


def silhouette(picture: Image.Image) -> NDArray[np.bool_]:
    """Return where a picture differs from its ground (side, side)."""
    return _distance(picture) > 40


def middle(picture: Image.Image) -> float:
    """Return how far right what is not ground is centred, from −1 to 1."""
    mask = silhouette(picture)
    if not mask.any():
        return 0.0
    return float(np.nonzero(mask)[1].mean() / (SIDE / 2) - 1)


def colours(picture: Image.Image) -> Floats:
    """Return the share of each of 64 colours in what is not ground (64,)."""
    mask = silhouette(picture)
    bins = (np.asarray(picture) // 64).astype(np.int64) @ np.array([16, 4, 1])
    found = np.bincount(bins[mask], minlength=64).astype(np.float64)
    return np.asarray(found / max(1.0, found.sum()))


def _distance(picture: Image.Image) -> Floats:
    pixels = np.asarray(picture, np.float64)
    inside = np.zeros(pixels.shape[:2], np.bool_)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return np.asarray(np.sqrt(((pixels - np.median(pixels[~inside], axis=0)) ** 2).sum(-1)))


def _open(path: Path) -> Image.Image:
    with opened_picture(path) as picture:
        return picture.convert("RGB")


def _shrunk(picture: Image.Image) -> Image.Image:
    """Return a picture at the size of one of two, seen through `half`'s square."""
    small = picture.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS)
    pixels = np.pad(np.asarray(small), (((CROP - SIDE // 2) // 2,) * 2, ((CROP - SIDE // 2) // 2,) * 2, (0, 0)), "edge")
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
