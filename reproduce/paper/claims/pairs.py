"""Claims about several subjects in one picture: (b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import Choices
from reproduce.paper.experiments.pairs import PICTURES, Variant, cell, wins
from reproduce.paper.sight import SEAM
from reproduce.paper.subjects import APART, SIMILAR
from svdiff_train.settings.config import MethodName

from .claim import Claim, Group, Numbers, Part

Found = Mapping[str, Numbers]

EQUAL: Final = 0.1
"""A difference of shares of pictures that counts as none."""
PREFERRED: Final = 0.05
"""A share beyond one half that counts as none; the paper's raters reached 0.109."""
GRAIN: Final = 1 / PICTURES
"""One picture."""
LOOKS: Final = (12, 18, 24)
SAME: Final = "same pair, training seed, prompts, and noise of every picture"


def both(numbers: Numbers) -> float:
    """Return the share of pictures that show both subjects."""
    return fmean(numbers["positive"]["both"])


def stitched(numbers: Numbers, kind: str = "positive") -> float:
    """Return the share of pictures whose ground jumps in the middle."""
    return fmean(value >= SEAM for value in numbers[kind]["seam"])


def _unit(choices: Choices, *sides: tuple[MethodName, Variant]) -> Callable[[Group, int], Mapping[str, Cell]]:
    return lambda group, seed: {f"{side[0]} {side[1]}": cell(choices, group, *side, seed) for side in sides}


def _mixing(choices: Choices, method: MethodName, label: str) -> Claim:
    return Claim(
        f"cut-mix-{method}", "b", "3.3, 4.2, Fig. 6",
        f"Cut-Mix-Unmix lets {label} show both subjects of similar class more often.",
        SAME,
        (Part(
            "share of pictures with both subjects, with Cut-Mix-Unmix less without",
            lambda found: both(found[f"{method} mix"]) - both(found[f"{method} plain"]), EQUAL, grain=GRAIN,
        ),),
        SIMILAR, _unit(choices, (method, "mix"), (method, "plain")), LOOKS, "half",
    )  # fmt: skip


def _stitching(choices: Choices) -> tuple[Claim, Claim]:
    return (
        Claim(
            "negative-prompt", "b", "3.3, appendix",
            "A negative prompt can lessen stitching.",
            "same training, prompts, and noise of every picture",
            (Part(
                "share of stitched pictures, without a negative prompt less with one",
                lambda found: stitched(found["svdiff mix"]) - stitched(found["svdiff mix"], "negative"), EQUAL,
                grain=GRAIN,
            ),),
            SIMILAR, _unit(choices, ("svdiff", "mix")), LOOKS,
        ),
        Claim(
            "unmix", "b", "3.3, appendix",
            "The unmix regularization lessens stitching.",
            SAME,
            (Part(
                "share of stitched pictures, without the regularization less with it",
                lambda found: stitched(found["svdiff mix"]) - stitched(found["svdiff unmix"]), EQUAL, grain=GRAIN,
            ),),
            SIMILAR, _unit(choices, ("svdiff", "mix"), ("svdiff", "unmix")), LOOKS,
        ),
    )  # fmt: skip


def _separated(choices: Choices) -> Claim:
    """Return whether well separated concepts do without; of each pair the first subject is in both."""
    apart = dict(zip(SIMILAR, APART, strict=True))
    return Claim(
        "well-separated", "b", "4.2",
        "Without Cut-Mix-Unmix, well separated concepts succeed more often than similar ones.",
        "same first subject, training seed and seeds of pictures; the second subject is of a class far away, or near",
        (Part(
            "share of pictures with both subjects, well separated less similar",
            lambda found: both(found["apart"]) - both(found["similar"]), EQUAL, grain=GRAIN,
        ),),
        tuple((*pair, apart[pair][1]) for pair in SIMILAR),
        lambda group, seed: {
            "similar": cell(choices, group[:2], "svdiff", "plain", seed),
            "apart": cell(choices, (group[0], group[2]), "svdiff", "plain", seed),
        },
        LOOKS, "half",
    )  # fmt: skip


def claims(choices: Choices) -> tuple[Claim, ...]:
    """Return the claims of (b)."""
    return (
        _mixing(choices, "svdiff", "SVDiff"),
        _mixing(choices, "full", "full fine-tuning"),
        *_stitching(choices),
        Claim(
            "preferred", "b", "4.2",
            "With Cut-Mix-Unmix, SVD is preferred to full weights (by 60.9 % of the paper's raters).",
            SAME,
            (Part(
                "share of pictures in which SVD's is the better one, less one half",
                lambda found: fmean(wins(found["svdiff mix"]["positive"], found["full mix"]["positive"])) - 0.5,
                PREFERRED, grain=GRAIN,
            ),),
            SIMILAR, _unit(choices, ("svdiff", "mix"), ("full", "mix")), LOOKS, "half",
        ),
        _separated(choices),
    )  # fmt: skip
