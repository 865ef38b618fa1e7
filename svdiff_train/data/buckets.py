"""Resolution buckets: sizes of one area and several aspect ratios, so that little of a picture is cut away."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final, Protocol, TypeAlias

from svdiff_delta.errors import InputError

from . import seeded_random

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""


class Sized(Protocol):
    """Something with a height and a width in pixels."""

    @property
    def height(self) -> int:
        """In pixels, upright."""

    @property
    def width(self) -> int:
        """In pixels, upright."""


LONGEST: Final = 2.5
"""Longest side over shortest that a bucket has."""


def make_buckets(resolution: int, unit: int) -> tuple[Size, ...]:
    """Return sizes of at most resolution² pixels: for each height the widest, sides in whole units, sorted.

    The square is always among them, and with a size its transposed one.

    Args:
        resolution: side of the square in pixels.
        unit: sides are multiples of it, as `Family.unit` says.

    Raises:
        InputError: the resolution is not a multiple of the unit.
    """
    if resolution < unit or resolution % unit:
        raise InputError(f"the model cannot take {resolution} pixels", fix=f"use a multiple of {unit}")
    found = set[Size]()
    for short in range(unit, resolution + 1, unit):
        long = resolution * resolution // short // unit * unit
        if long <= LONGEST * short:
            found |= {(short, long), (long, short)}
    return tuple(sorted(found))


def choose_buckets(pictures: Sequence[Sized], buckets: Sequence[Size]) -> tuple[Size, ...]:
    """Return for each picture the bucket of the nearest aspect ratio, on a logarithmic scale; of equals the first."""
    return tuple(min(buckets, key=lambda size: (_distance(picture, size), size)) for picture in pictures)


def _distance(picture: Sized, size: Size) -> float:
    # Rounded, so that a picture and its transposed one are as far from their buckets.
    return round(abs(log(picture.height * size[1] / (picture.width * size[0]))), 9)


def draw_pictures(sizes: Sequence[Size], seed: int, step: int, samples: Sequence[int], purpose: str) -> list[int]:
    """Return which picture each sample of a step takes; all are in one bucket, and each picture is equally likely.

    The bucket depends on seed and step alone, so that all processes of a run take the same.

    Args:
        sizes: the bucket of each picture.
        seed: the run's seed.
        step: the optimizer step.
        samples: indices of the samples in the whole batch, over all processes.
        purpose: what sets these draws apart from others, such as "picture".
    """
    bucket = sizes[seeded_random.integer(len(sizes), seed, step, 0, f"{purpose}: bucket")]
    inside = [index for index, size in enumerate(sizes) if size == bucket]
    return [inside[seeded_random.integer(len(inside), seed, step, sample, purpose)] for sample in samples]
