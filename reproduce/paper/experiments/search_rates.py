"""Learning rates and steps that are tried: of one subject, of a picture, of two and three subjects at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import fmean
from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import Choices
from reproduce.paper.recipe import STEPS, Recipe
from reproduce.paper.subjects import SEARCHED, SEARCHED_PAIR, SEARCHED_SCENES
from svdiff_train.settings.config import MethodName

from .edits import faithful_cell
from .pairs import METHODS, Variant, pair_cell, recipe
from .singles import single_cell
from .stage import Numbers, cell_name, label_of, mean_score

RATES: Final[Mapping[MethodName, tuple[float, ...]]] = {
    "svdiff": (5e-3, 1e-2, 2e-2, 4e-2),
    "full": (5e-5, 1e-4, 2e-4, 4e-4),
    "lora": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
    "kv": (2e-4, 5e-4, 1e-3, 2e-3),
}
"""Learning rates that are tried on subjects with λ = 1.

The two lowest of LoRA were added when 1e-3, the lowest until then, had learned all three subjects: the rule asks for
the lowest that does. No claim's cell had been measured then.
"""

PICTURE_RATES: Final[Mapping[MethodName, tuple[float, ...]]] = {
    "svdiff": (5e-3, 1e-2, 2e-2, 4e-2),
    "full": (1e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4),
    "lora": (1e-3, 2e-3, 5e-3, 1e-2),
}
"""Learning rates that are tried on single pictures with λ = 0.

The two lowest of full fine-tuning were added for the same reason.
"""

LEARNED: Final = 0.9
"""The share of pictures nearer to the subject's own than to the base's of its class, from which it is learned; and the
cosine of a picture with what its description gives, from which that is."""

FACTORS: Final = (0.5, 1.0)
PAIR_STEPS: Final = (2 * STEPS, 3 * STEPS)
VARIANTS: Final[tuple[Variant, ...]] = ("mix", "plain")
TRIPLES: Final = ((3 * STEPS, 0.6), (3 * STEPS, 0.3), (5 * STEPS, 0.6), (5 * STEPS, 0.3))
"""Steps and probabilities of mixed samples that are tried on three subjects at once."""

GAIN: Final = 0.02
"""Of the score, from which more steps are worth it."""

# Learning rates.


def rate_cells(choices: Choices) -> dict[str, Cell]:  # noqa: ARG001
    """Return every learning rate of every method on every searched subject."""
    return {
        label_of(method, rate, subject): single_cell(
            "i", cell_name(subject, method, rate), Recipe(rate=rate, method=method, subjects=(subject,)), shown=True
        )
        for method, rates in RATES.items()
        for rate in rates
        for subject in SEARCHED
    }


def picture_cells(choices: Choices) -> dict[str, Cell]:  # noqa: ARG001
    """Return every learning rate of every method that edits, on every searched picture."""
    return {
        label_of(method, rate, scene.name): faithful_cell(
            "i", cell_name(scene.name, method, rate), Recipe(rate=rate, method=method, scene=scene.name, prior=0.0)
        )
        for method, rates in PICTURE_RATES.items()
        for rate in rates
        for scene in SEARCHED_SCENES
    }


def lowest(reached: Mapping[float, float]) -> float:
    """Return the lowest rate with which what was asked for is learned; if none does it, the one that comes nearest."""
    enough = [rate for rate, share in reached.items() if share >= LEARNED]
    return min(enough) if enough else max(sorted(reached), key=reached.__getitem__)


def choose_rates(choices: Choices, found: Mapping[str, Numbers]) -> Choices:
    """Return the choices with the learning rates of subjects, by `lowest`."""
    chosen = {
        method: lowest({
            rate: fmean(found[label_of(method, rate, subject)]["identity"] for subject in SEARCHED) for rate in rates
        })
        for method, rates in RATES.items()
    }  # fmt: skip
    return replace(choices, rates=chosen)


def choose_picture_rates(choices: Choices, found: Mapping[str, Numbers]) -> Choices:
    """Return the choices with the learning rates of single pictures, by `lowest`."""
    chosen = {
        method: lowest({
            rate: fmean(found[label_of(method, rate, scene.name)]["faithful"] for scene in SEARCHED_SCENES)
            for rate in rates
        })
        for method, rates in PICTURE_RATES.items()
    }  # fmt: skip
    return replace(choices, picture_rates=chosen)


# Two and three subjects at once.


def pair_cells(choices: Choices) -> dict[str, Cell]:
    """Return every factor on the rate and number of steps on the searched pair, by both methods, mixed and plain."""
    found = {}
    for method, steps, factor, variant in product(METHODS, PAIR_STEPS, FACTORS, VARIANTS):
        rate = round(choices.rates[method] * factor, 9)
        made = recipe(choices, SEARCHED_PAIR, method, variant, 0, rate=rate, steps=steps)
        label = label_of(method, steps, factor, variant)
        found[label] = pair_cell("i", cell_name("pair", label), made, shown=True)
    return found


def choose_pairs(choices: Choices, found: Mapping[str, Numbers]) -> Choices:
    """Return the choices with the steps and the factors of the highest mean score, the same for mixed and plain."""

    def score(method: MethodName, steps: int, factor: float) -> float:
        return fmean(mean_score(found[label_of(method, steps, factor, variant)]) for variant in VARIANTS)

    best = {
        (method, steps): max(FACTORS, key=partial(score, method, steps)) for method in METHODS for steps in PAIR_STEPS
    }

    def reached(steps: int) -> float:
        return fmean(score(method, steps, best[method, steps]) for method in METHODS)

    few, many = PAIR_STEPS
    steps = many if reached(many) > reached(few) + GAIN else few
    return replace(choices, pair_steps=steps, factors={method: best[method, steps] for method in METHODS})


def triple_cells(choices: Choices) -> dict[str, Cell]:
    """Return what is tried on three subjects at once."""
    return {
        label_of(steps, mix): pair_cell(
            "i",
            cell_name("triple", steps, mix),
            recipe(choices, SEARCHED, "svdiff", "mix", 0, steps=steps, mix=mix),
            shown=True,
        )
        for steps, mix in TRIPLES
    }


def choose_triple(choices: Choices, found: Mapping[str, Numbers]) -> Choices:
    """Return the choices with what has the highest mean score of three subjects."""
    steps, mix = max(TRIPLES, key=lambda pair: mean_score(found[label_of(*pair)]))
    return replace(choices, triple_steps=steps, triple_mix=mix)
