"""Claims about individually trained results in one model: (e) sums and ways, (f) styles, (g) correlation."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Final

from reproduce.paper.choices import Choices
from reproduce.paper.experiments.combined import ALPHAS, sum_cell, way_cell
from reproduce.paper.experiments.search_stitching import colour_gain, shape_gain
from reproduce.paper.experiments.shifts import cosine_cell, style_cell
from reproduce.paper.subjects import ADDED, SINGLES
from svdiff_train.settings.config import MethodName

from .claim import Claim, Numbers, Part
from .singles import EQUAL, GRAIN

Found = Mapping[str, Numbers]

INTERFERES: Final = 0.03
"""A difference of what image alignment loses in a sum that counts as none."""
STYLE: Final = 0.05
"""A difference of shares of a silhouette, or of colours, that counts as none."""
ALIKE: Final = 0.1
"""A difference of cosines between shifts that counts as none."""
IN_TURN: Final = tuple((name, SINGLES[(index + 3) % len(SINGLES)]) for index, name in enumerate(SINGLES))
"""Every subject once as the first of a pair, and once as the second."""
MIDDLE: Final = ALPHAS.index(0.5)


def lost(numbers: Numbers) -> float:
    """Return how much image alignment two subjects lose in the sum, as a mean."""
    return fmean(alone - both for alone, both in zip(numbers["alone"], numbers["together"], strict=True))


def kept(numbers: Numbers) -> float:
    """Return by how much the sum's pictures are nearer to the subjects than the base's of their classes, as a mean."""
    return fmean(both - before for both, before in zip(numbers["together"], numbers["class"], strict=True))


def leaning(numbers: Numbers, index: int) -> float:
    """Return how much more like the first subject than like the second a point of the way is."""
    first, second = numbers["like"][index]
    return float(first - second)


def _way(choices: Choices, method: MethodName, label: str) -> Claim:
    return Claim(
        f"interpolation-{method}", "e", "4.4, Fig. 11",
        f"Interpolating {label} gives intermediate concepts.",
        "same two trainings, prompts and noise at every α",
        (
            Part(
                "likeness to the first subject less that to the second, α = 0.5 less α = 0",
                lambda found: leaning(found["way"], MIDDLE) - leaning(found["way"], 0), EQUAL, grain=GRAIN,
            ),
            Part(
                "the same, α = 1 less α = 0.5",
                lambda found: leaning(found["way"], -1) - leaning(found["way"], MIDDLE), EQUAL, grain=GRAIN,
            ),
        ),
        ADDED, lambda group, seed: {"way": way_cell(choices, group, method, seed)}, (8, 12, 16), "whole",
    )  # fmt: skip


def claims(choices: Choices) -> tuple[Claim, ...]:
    """Return the claims of (e), (f) and (g)."""
    return (
        Claim(
            "sum", "e", "4.4, Fig. 8",
            "The sum keeps features of each subject, and adding shifts interferes more than adding full weights.",
            "same pair, training seed, prompts and noise",
            (
                Part(
                    "image alignment, sum of shifts less the base's pictures of the classes",
                    lambda found: kept(found["svdiff"]), EQUAL, grain=GRAIN,
                ),
                Part(
                    "image alignment lost in the sum, SVDiff less full",
                    lambda found: lost(found["svdiff"]) - lost(found["full"]), INTERFERES, grain=GRAIN,
                ),
            ),
            ADDED,
            lambda group, seed: {
                "svdiff": sum_cell(choices, group, "svdiff", seed), "full": sum_cell(choices, group, "full", seed),
            },
            (8, 12, 16), "whole",
        ),
        _way(choices, "svdiff", "SVDiff"),
        _way(choices, "full", "full weights"),
        Claim(
            "style-mixing", "f", "4.4, Fig. 10",
            "Geometry and appearance can be taken from different shifts by their layers.",
            "same two trainings and noise; the mix beside each of its parents",
            (
                Part(
                    "overlap of silhouettes, with the geometry's parent less with the appearance's",
                    lambda found: shape_gain(found["mix"]), STYLE, grain=GRAIN,
                ),
                Part(
                    "colours in common, mix and the appearance's parent less both parents",
                    lambda found: colour_gain(found["mix"]), STYLE, grain=GRAIN,
                ),
            ),
            ADDED, lambda group, seed: {"mix": style_cell(choices, group, seed)}, (8, 12, 16),
        ),
        Claim(
            "correlation", "g", "appendix, Fig. 9a",
            "Shifts of one subject are alike between runs; those of different subjects are less so.",
            "the same shift on both sides",
            (Part(
                "cosine between shifts, of one subject at two rates less of two subjects",
                lambda found: float(found["cosines"]["own"] - found["cosines"]["other"]), ALIKE, grain=GRAIN,
            ),),
            IN_TURN, lambda group, seed: {"cosines": cosine_cell(choices, *group)}, (8,),  # noqa: ARG005
        ),
    )  # fmt: skip
