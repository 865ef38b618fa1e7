"""Cut a picture at its centre, or at a repeatable random place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from . import seeded_random


@dataclass(frozen=True)
class Cut:
    """What is taken of a picture that is longer than needed along one side.

    Attributes:
        down: where the cut lies along the height, from 0 at the upper edge to 1 at the lower one.
        across: where it lies along the width, from 0 at the left edge to 1 at the right one.
        flipped: whether the picture is mirrored, left to right, before it is cut.
    """

    down: float = 0.5
    across: float = 0.5
    flipped: bool = False


CENTRE: Final = Cut()
"""The middle of the picture as it is."""


def draw_cut(seed: int, step: int, sample: int, *, crop: bool, flip: bool, purpose: str = "cut") -> Cut:
    """Return a cut drawn from (seed, step, sample), the same in any process and after a resume.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        sample: the sample's index in the whole batch, over all processes.
        crop: whether it lies anywhere, each place equally likely, or at the centre.
        flip: whether every second picture is mirrored.
        purpose: what else sets this draw apart from others of the sample.
    """
    generator = seeded_random.generator(seed, step, sample, purpose)
    down, across, mirror = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    return Cut(down if crop else 0.5, across if crop else 0.5, flip and mirror < 0.5)
