"""What the search chooses, by rules that stand here before it runs: every later recipe is made of this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from svdiff_train.settings.config import MethodName

from .recipe import STEPS, Unmixing

MIX: Final = 0.6
"""The probability of Cut-Mix-Unmix, as in the paper."""

NEGATIVES: Final[Mapping[str, str]] = {
    "as trained": "photo of {0} on the left and {1} on the right",
    "both orders": "{0} on the left and {1} on the right, {1} on the left and {0} on the right",
    "above too": "photo of {0} on the left and {1} on the right, {0} above {1}, {1} above {0}",
    "halves": "on a red and blue background, on a green and yellow background",
}
"""Negative prompts that are tried against stitching: the wordings of mixed samples, or grounds in two colours."""


@dataclass(frozen=True)
class Style:
    """A way to mix styles.

    Attributes:
        shared: learn all subjects as the same rare token and "thing", so that one prompt speaks to both shifts.
        layers: which give the geometry; the others give the appearance.
        named: whose phrase the prompt has where it is not shared: of the geometry's subject, or the appearance's.
    """

    shared: bool
    layers: str
    named: str = "geometry"


STYLES: Final[Mapping[str, Style]] = {
    "own prompt, middle": Style(False, "(4,down,0)-(4,down,1)"),
    "own prompt, inner levels": Style(False, "(8,down,0)-(4,up,1)"),
    "appearance's prompt, inner levels": Style(False, "(8,down,0)-(4,up,1)", "appearance"),
    "shared prompt, middle": Style(True, "(4,down,0)-(4,down,1)"),
    "shared prompt, inner levels": Style(True, "(8,down,0)-(4,up,1)"),
}
"""Ways to mix styles that are tried."""


@dataclass(frozen=True)
class Choices:
    """What recipes are made of.

    Attributes:
        rates: the learning rate of each method on pictures of a subject, λ = 1.
        picture_rates: that on a single picture, λ = 0.
        factors: on the rate, where several subjects are learned together.
        pair_steps: how many steps two take.
        triple_steps: how many steps three take.
        triple_mix: the probability of mixed samples of three.
        unmix: the unmix regularization.
        negative: which of `NEGATIVES`.
        style: which of `STYLES`.
    """

    rates: Mapping[MethodName, float]
    picture_rates: Mapping[MethodName, float]
    factors: Mapping[MethodName, float]
    pair_steps: int
    triple_steps: int
    triple_mix: float
    unmix: Unmixing
    negative: str
    style: str


BEFORE: Final = Choices(
    rates={"svdiff": 2e-2, "full": 1e-4, "lora": 2e-3, "kv": 5e-4},
    picture_rates={"svdiff": 2e-2, "full": 1e-4, "lora": 2e-3},
    factors={"svdiff": 1.0, "full": 1.0},
    pair_steps=2 * STEPS,
    triple_steps=3 * STEPS,
    triple_mix=MIX,
    unmix=Unmixing(1.0, "share"),
    negative="as trained",
    style="own prompt, middle",
)
"""What the plan is counted with before the search has run; nothing is measured with it that the search may change."""
