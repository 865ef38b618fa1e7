"""Section (i): what the recipes were chosen by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from statistics import mean
from typing import Final

from reproduce.paper.claim import table
from reproduce.paper.experiments.pairs import FASTER, STEPS_OF_PAIRS, UNMIX
from reproduce.paper.experiments.search import (
    GRID,
    LEARNED,
    PAIR_FACTORS,
    PRIORS,
    UNMIXES,
    factor_name,
    prior_name,
    rate_name,
    unmix_name,
)
from reproduce.paper.recipe import PRIOR, RATES
from reproduce.paper.sight import SEAM
from reproduce.paper.subjects import SEARCHED

from .results import Results, Section
from .single import LABELS

SCORES: Final = ("text", "image", "identity")
ABOUT: Final = """\
Two more subjects, {subjects}, one seed, everything else as in (a); no other experiment has the first, and one
interpolation alone the second. Means over both. Of each method the lowest learning rate was chosen with which both
subjects are learned, with an identity of {learned:g} or more; bold is what the report uses. The rule was changed once,
for all methods: at first the highest sum of both alignments counted, but what one gains the other loses, and the first
cells of (a) to (h) showed a black cat that was hardly learned. The rate of norm weights is a fifth of it.
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
        [
            LABELS[method],
            *_row(results, partial(rate_name, method=method, rate=rate), rate, chosen=rate == RATES[method]),
        ]
        for method, found in GRID.items()
        for rate in found
    ]
    priors = [_row(results, partial(prior_name, prior=prior), prior, chosen=prior == PRIOR) for prior in PRIORS]
    head = [*SCORES, *SEARCHED]
    body = [
        ABOUT.format(subjects=" and ".join(SEARCHED), learned=LEARNED),
        "",
        *table(["method", "rate", *head], rates),
        "",
        PRIORS_ABOUT,
        "",
        *table(["λ", *head], priors),
        "",
        PAIRS_ABOUT.format(pair=" and ".join(SEARCHED), steps=STEPS_OF_PAIRS),
        "",
        *table(["rate ×", "unmix", "score", "both appear", "stitched", "pictures"], _pairs(results)),
    ]
    return Section("(i) How the recipes were chosen", body, [])


def _row(results: Results, name: Callable[[str], str], value: float, *, chosen: bool) -> list[str]:
    """Return means over both subjects, and both subjects' pictures."""
    names = [name(subject) for subject in SEARCHED]
    found = [results.values("i", names, itemgetter(score)) for score in SCORES]
    shown = [f"{mean(values):.3f}" if len(values) == len(names) else "–" for values in found]
    pictures = [results.row("i", one, "painted", height=48) for one in names]
    return [_marked(f"{value:g}", chosen=chosen), *shown, *pictures]


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
