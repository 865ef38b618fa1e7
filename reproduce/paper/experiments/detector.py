"""(s) Whether the judge can tell the subjects apart, on their own pictures, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, Final

import numpy as np
from PIL import Image

from reproduce.paper.cell import Cell, Measured
from reproduce.paper.claims.claim import Detector, Group
from reproduce.paper.lab import Lab
from reproduce.paper.sight import CENTRES, Floats, Sight, half
from reproduce.paper.subjects import SUBJECTS, Subject

BOUND: Final = 0.1
"""The share of mistakes from which two subjects, or a subject and its class, are not told apart."""


def detector_cell() -> Cell:
    """Return the only cell of (s); it trains nothing."""
    return Cell("s", "detector", _measure, ())


def _measure(lab: Lab, sight: Sight) -> Measured:
    """Sort every held-out picture, whole and as one half of two; it is never compared with itself."""
    subjects = list(SUBJECTS.values())
    pictures = [sight.pictures(subject) for subject in subjects]
    return Measured({
        "subjects": [subject.name for subject in subjects],
        "whole": sorted_whole([sight.references(subject) for subject in subjects]),
        "half": _sorted_halves(sight, subjects, pictures),
        "class": {subject.name: _beside_class(lab, sight, subject) for subject in subjects},
    })  # fmt: skip


def sorted_whole(kinds: Sequence[Floats]) -> list[list[int]]:
    """Return how many pictures of each subject (a row) are nearest to those of each (a column), as unit vectors."""
    counts = np.zeros((len(kinds), len(kinds)), np.int64)
    for row, kind in enumerate(kinds):
        for number, seen in enumerate(kind):
            others = [np.delete(own, number, 0) if column == row else own for column, own in enumerate(kinds)]
            counts[row, int(np.argmax([(own @ seen).mean() for own in others]))] += 1
    return [[int(count) for count in row] for row in counts]


def _sorted_halves(sight: Sight, subjects: Sequence[Subject], pictures: Sequence[list[Image.Image]]) -> list[list[int]]:
    """Do the same with the halves of pictures that show two of the subjects, as pictures of pairs are judged."""
    kinds = [sight.small_references(subject) for subject in subjects]
    counts = np.zeros((len(subjects), len(subjects)), np.int64)
    for first, second in permutations(range(len(subjects)), 2):
        for number, (left, right) in enumerate(zip(pictures[first], pictures[second], strict=True)):
            canvas = _side_by_side(left, right)
            seen = sight.seen([half(canvas, side) for side in CENTRES])
            for row, vector in zip((first, second), seen, strict=True):
                others = [np.delete(own, number, 0) if column == row else own for column, own in enumerate(kinds)]
                counts[row, int(np.argmax([(own @ vector).mean() for own in others]))] += 1
    return [[int(count) for count in row] for row in counts]


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return a picture of two: each at half its size, on its own ground."""
    side = left.width
    canvas = Image.new("RGB", (side, side))
    for place, picture in enumerate((left, right)):
        canvas.paste(Image.new("RGB", (side // 2, side), picture.getpixel((0, 0))), (place * side // 2, 0))
        small = picture.resize((side // 2, side // 2), Image.Resampling.LANCZOS)
        canvas.paste(small, (place * side // 2, side // 4))
    return canvas


def _beside_class(lab: Lab, sight: Sight, subject: Subject) -> float:
    """Return the share of a subject's pictures, and of the base's of its class, that are nearer to their own kind."""
    own, others = sight.references(subject), sight.seen(lab.class_images(subject.noun))
    right = [
        (np.delete(ours, number, 0) @ seen).mean() > (theirs @ seen).mean()
        for ours, theirs in ((own, others), (others, own))
        for number, seen in enumerate(ours)
    ]
    return round(float(np.mean(right)), 5)


@dataclass(frozen=True)
class Checked:
    """What the judge can tell apart.

    Attributes:
        numbers: of the cell; None if it has not been measured, and then nothing is left out yet.
    """

    numbers: Mapping[str, Any] | None

    def tells(self, group: Group, detector: Detector | None) -> bool:
        """Return whether a claim's judge can be trusted with the subjects of a unit."""
        if self.numbers is None or detector is None:
            return True
        if detector == "class":
            return all(self.numbers["class"][name] > 1 - BOUND for name in group)
        return all(self.mistakes(a, b, detector) < BOUND for a, b in combinations(group, 2))

    def mistakes(self, first: str, second: str, detector: Detector) -> float:
        """Return the share of two subjects' pictures that are taken for the other one."""
        numbers = self.numbers or {}
        a, b = (numbers["subjects"].index(name) for name in (first, second))
        matrix = numbers[detector]
        return float((matrix[a][b] + matrix[b][a]) / (sum(matrix[a]) + sum(matrix[b])))
