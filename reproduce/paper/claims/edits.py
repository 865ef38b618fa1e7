"""Claims about edits of a single picture: (c)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import Choices
from reproduce.paper.experiments.edits import cell
from reproduce.paper.subjects import SCENES
from svdiff_train.settings.config import MethodName

from .claim import Claim, Group, Numbers, Part

GOOD: Final = 0.1
"""A difference of shares of good edits that counts as none."""
CLOSER: Final = 0.02
"""A difference of cosines with the source that counts as none."""
FAITHFUL: Final = 0.03
"""The same of the source and what its own description gives."""
PICTURES: Final = tuple((scene.name,) for scene in SCENES)
LOOKS: Final = (10, 20, 30, 40)
SAME: Final = "same picture, training seed, targets, and noise of every edit"


def good(numbers: Numbers, way: str) -> float:
    """Return the share of edits that show what was asked for, and whose subject survived."""
    return fmean(
        done and kept
        for edit in numbers[way]
        for done, kept in zip(edit["succeeded"], edit["survived"] or [1] * len(edit["succeeded"]), strict=True)
    )


def like(numbers: Numbers, way: str) -> float:
    """Return the mean cosine of edits with the source."""
    return fmean(value for edit in numbers[way] for value in edit["like"])


def _unit(choices: Choices, *methods: MethodName) -> Callable[[Group, int], Mapping[str, Cell]]:
    return lambda group, seed: {method: cell(choices, group[0], method, seed) for method in methods}


def claims(choices: Choices) -> tuple[Claim, ...]:
    """Return the claims of (c)."""
    return (
        Claim(
            "edits", "c", "4.3, Fig. 7",
            "SVDiff performs edits, its subject kept, where full fine-tuning fails more often.",
            SAME,
            (Part(
                "share of good edits, SVDiff less full",
                lambda found: good(found["svdiff"], "plain") - good(found["full"], "plain"), GOOD, grain=1 / 9,
            ),),
            PICTURES, _unit(choices, "svdiff", "full"), LOOKS,
        ),
        Claim(
            "inversion", "c", "4.3, appendix",
            "DDIM inversion brings SVDiff's edits closer to the picture.",
            "same training and targets; the noise is random on one side, inverted on the other",
            (Part(
                "cosine of edits with the source, inverted less plain",
                lambda found: like(found["svdiff"], "inverted") - like(found["svdiff"], "plain"), CLOSER, grain=0.001,
            ),),
            PICTURES, _unit(choices, "svdiff"), LOOKS,
        ),
        Claim(
            "lora-underfits", "c", "4.5, appendix",
            "LoRA underfits the picture where SVDiff does not.",
            SAME,
            (Part(
                "cosine of the source and what its description gives, SVDiff less LoRA, each at its searched rate",
                lambda found: float(found["svdiff"]["faithful"] - found["lora"]["faithful"]), FAITHFUL, grain=0.001,
            ),),
            PICTURES, _unit(choices, "svdiff", "lora"), LOOKS,
        ),
    )  # fmt: skip
