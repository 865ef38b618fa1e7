"""Claims about single subjects: (a) methods and sizes, (h) ranks and scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import Choices
from reproduce.paper.experiments.shifts import SCALES, scale_cell, size_cell
from reproduce.paper.experiments.singles import RANKS, cell, rank_cell
from reproduce.paper.subjects import SINGLES
from svdiff_train.settings.config import MethodName

from .claim import Claim, Group, Numbers, Part

Found = Mapping[str, Numbers]

EQUAL: Final = 0.05
"""A difference of mean cosines that counts as none: an eighth of what a training gained on the former base (0.43)."""
GRAIN: Final = 0.001
SUBJECTS: Final = tuple((name,) for name in SINGLES)
SAME: Final = "same subject, training seed, prompts, and noise of every picture"
SMALLER: Final = 1000.0
"""How many times smaller is "thousands of times", from below."""


def less(first: str, second: str, key: str) -> Callable[[Found], float]:
    """Return a function of a unit: the first cell's number less the second's."""
    return lambda found: float(found[first][key] - found[second][key])


def against(choices: Choices, *methods: MethodName) -> Callable[[Group, int], Mapping[str, Cell]]:
    """Return what makes a unit of methods on one subject."""
    return lambda group, seed: {method: cell(choices, group[0], method, seed) for method in methods}


def _scaled(found: Found, scale: float) -> Numbers:
    scales: list[dict[str, Any]] = found["scales"]["scales"]
    return next(one for one in scales if one["scale"] == scale)


def claims(choices: Choices) -> tuple[Claim, ...]:
    """Return the claims of (a) and (h)."""
    largest = RANKS[0]
    return (
        Claim(
            "like-full", "a", "4.1, Fig. 9b",
            "SVDiff performs like full fine-tuning: similar text and image alignment.",
            SAME,
            (
                Part("text alignment, SVDiff less full", less("svdiff", "full", "text"), EQUAL, "similar", GRAIN),
                Part("image alignment, SVDiff less full", less("svdiff", "full", "image"), EQUAL, "similar", GRAIN),
            ),
            SUBJECTS, against(choices, "svdiff", "full"), (8, 16, 24, 32), "class",
        ),
        Claim(
            "custom-underfits", "a", "4.1, Fig. 9b",
            "Custom Diffusion underfits: lower image alignment than SVDiff, higher text alignment.",
            SAME,
            (
                Part("image alignment, SVDiff less Custom", less("svdiff", "kv", "image"), EQUAL, grain=GRAIN),
                Part("text alignment, Custom less SVDiff", less("kv", "svdiff", "text"), EQUAL, grain=GRAIN),
            ),
            SUBJECTS, against(choices, "svdiff", "kv"), (8, 16, 24, 32), "class",
        ),
        Claim(
            "sizes", "a", "1, 3.2",
            "A shift is thousands of times smaller than a fully tuned model (2,200 times on Stable Diffusion).",
            "nothing; it is counted, at the shapes of the paper's UNet",
            (Part(
                "numbers of the UNet for one of a shift of all its weights",
                lambda found: found["sizes"]["paper"]["weights"] / found["sizes"]["paper"]["shift"],
                SMALLER, "exact",
            ),),
            ((),), lambda group, seed: {"sizes": size_cell()}, (1,),  # noqa: ARG005
        ),
        Claim(
            "ranks", "h", "appendix, ranks",
            "Lower ranks capture less of the subject.",
            SAME,
            (Part(
                f"image alignment, all singular values less the {largest} largest", less("all", "one", "image"), EQUAL,
                grain=GRAIN,
            ),),
            SUBJECTS,
            lambda group, seed: {
                "all": cell(choices, group[0], "svdiff", seed), "one": rank_cell(choices, group[0], largest, seed),
            },
            (8, 16, 24), "class",
        ),
        Claim(
            "scales", "h", "appendix, scales",
            "A scale that is too large brings artefacts and loses the prompt.",
            "same result of a training, prompts and noise",
            (Part(
                f"text alignment, scale 1 less scale {SCALES[-1]:g}",
                lambda found: float(_scaled(found, 1.0)["text"] - _scaled(found, SCALES[-1])["text"]), EQUAL,
                grain=GRAIN,
            ),),
            SUBJECTS, lambda group, seed: {"scales": scale_cell(choices, group[0], seed)}, (8, 16, 24),
        ),
    )  # fmt: skip
