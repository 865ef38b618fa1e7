"""Section (i): what the recipes were chosen by."""

from __future__ import annotations

from typing import Final

from svdiff_train.paper.claim import table
from svdiff_train.paper.experiments.pairs import FASTER, STEPS_OF_PAIRS, UNMIX
from svdiff_train.paper.experiments.search import (
    GRID,
    PAIR_FACTORS,
    PRIORS,
    SEARCHED_PAIR,
    UNMIXES,
    factor_name,
    prior_name,
    rate_name,
    unmix_name,
)
from svdiff_train.paper.recipe import PRIOR, RATES
from svdiff_train.paper.sight import SEAM
from svdiff_train.paper.subjects import SEARCHED

from .results import Results, Section
from .single import LABELS

ABOUT: Final = """\
One more subject ({subject}), which no other experiment has, one seed, everything else as in (a). Of each method that
learning rate was chosen that gives the highest sum of both alignments; bold is what the report uses. The rate of norm
weights is a fifth of it.
"""
PRIORS_ABOUT: Final = """\
λ of prior preservation (Eq. 3), SVDiff. The embedded base's text encoder has never seen a rare token and all but
ignores it, so a subject and its class are one prompt to the UNet. The paper's λ = 1 then pulls against what is learned.
"""
PAIRS_ABOUT: Final = """\
Two subjects at once ({pair}), SVDiff, mixed samples, {steps} steps, one seed: the factor on the learning rate of single
subjects, and the weight of the unmix regularization at the chosen one. *Score*: the lesser likeness of the two to a
half of the picture each; what has the highest mean was chosen.
"""


def search(results: Results) -> Section:
    """Return section (i)."""
    rates = [
        [LABELS[method], *_row(results, rate_name(method, rate), f"{rate:g}", chosen=rate == RATES[method])]
        for method, found in GRID.items()
        for rate in found
    ]
    priors = [_row(results, prior_name(prior), f"{prior:g}", chosen=prior == PRIOR) for prior in PRIORS]
    head = ["text", "image", "sum", "pictures"]
    body = [
        ABOUT.format(subject=SEARCHED),
        "",
        *table(["method", "rate", *head], rates),
        "",
        PRIORS_ABOUT,
        "",
        *table(["λ", *head], priors),
        "",
        PAIRS_ABOUT.format(pair=" and ".join(SEARCHED_PAIR), steps=STEPS_OF_PAIRS),
        "",
        *table(["rate ×", "unmix", "score", "both appear", "stitched", "pictures"], _pairs(results)),
    ]
    return Section("(i) How the recipes were chosen", body, [])


def _row(results: Results, name: str, value: str, *, chosen: bool) -> list[str]:
    numbers = results.numbers("i", name)
    shown = _marked(value, chosen=chosen)
    if numbers is None:
        return [shown, "–", "–", "–", "–"]
    text, image = numbers["text"], numbers["image"]
    pictures = results.row("i", name, "painted", height=48)
    return [shown, f"{text:.3f}", f"{image:.3f}", f"{text + image:.3f}", pictures]


def _pairs(results: Results) -> list[list[str]]:
    factors = [
        _pair(results, factor_name(factor), _marked(f"{factor:g}", chosen=factor == FASTER), "0")
        for factor in PAIR_FACTORS
    ]
    weights = [
        _pair(results, unmix_name(weight), f"{FASTER:g}", _marked(f"{weight:g}", chosen=weight == UNMIX))
        for weight in UNMIXES
    ]
    return factors + weights


def _pair(results: Results, name: str, *values: str) -> list[str]:
    numbers = results.numbers("i", name)
    if numbers is None:
        return [*values, "–", "–", "–", "–"]
    found = numbers["positive"]
    scores, both, stitched = found["score"], found["both"], [seam >= SEAM for seam in found["seam"]]
    means = (f"{sum(column) / len(column):.{digits}f}" for column, digits in ((scores, 3), (both, 2), (stitched, 2)))
    return [*values, *means, results.row("i", name, "painted", height=48)]


def _marked(value: str, *, chosen: bool) -> str:
    return f"**{value}**" if chosen else value
