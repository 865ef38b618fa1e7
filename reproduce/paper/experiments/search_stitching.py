"""What is tried against stitching, and ways to mix styles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Final

from reproduce.paper.cell import Cell
from reproduce.paper.choices import NEGATIVES, STYLES, Choices
from reproduce.paper.recipe import NONE, Unmixing
from reproduce.paper.subjects import SEARCHED, SEARCHED_PAIR

from .pairs import pair_cell, recipe
from .shifts import style_cell
from .stage import Numbers, cell_name, label_of, mean_score, stitched

UNMIXINGS: Final = (
    NONE,
    Unmixing(10.0),
    Unmixing(1000.0),
    Unmixing(0.01, "share"),
    Unmixing(0.1, "share"),
    Unmixing(1.0, "share"),
    Unmixing(0.1, "share", (8,)),
    Unmixing(0.1, "share", (4,)),
)
"""Unmix regularizations that are tried: of the attention as it is, or of each token's share that is misplaced.

On the base alone, on a mixed sample, the attention as it is comes nearly all from two layers of side 8, which spread
the rare token's tint (A² of up to 0.08 on the wrong half, of 0.006 at most elsewhere): lessening it there forgets the
token. What lies where is decided at side 4, on the way up: of the class's words 3 to 26 % are misplaced there, of the
rare tokens 12 to 49 %, and at side 16 one half of both.
"""

UNMIX_SEEDS: Final = (0, 1)
LOSS: Final = 0.03
"""Of the score, up to which stitching may be lessened by a regularization or a negative prompt."""


# Stitching.


def unmixing_label(unmix: Unmixing) -> str:
    """Return what a regularization is called."""
    sides = f" of side {', '.join(map(str, unmix.sides))}" if unmix.sides else ""
    return "none" if unmix == NONE else f"{unmix.maps} {unmix.weight:g}{sides}"


def unmix_cells(choices: Choices) -> dict[str, Cell]:
    """Return every unmix regularization on the searched pair, twice."""
    return {
        label_of(unmixing_label(unmix), seed): pair_cell(
            "i",
            cell_name("unmix", unmixing_label(unmix), seed),
            recipe(choices, SEARCHED_PAIR, "svdiff", "mix", seed, unmix=unmix),
            shown=seed == 0,
        )
        for unmix in UNMIXINGS
        for seed in UNMIX_SEEDS
    }


def least_stitched(score: Mapping[str, float], jumps: Mapping[str, float], without: float) -> str:
    """Return what stitches least of all that keeps the score but for `LOSS`; if nothing does, the highest score."""
    kept = [label for label, value in score.items() if value >= without - LOSS]
    if not kept:
        return max(score, key=score.__getitem__)
    return min(kept, key=lambda label: (jumps[label], -score[label]))


def choose_unmix(choices: Choices, found: Mapping[str, Numbers]) -> Choices:
    """Return the choices with the regularization of `least_stitched`."""
    tried = {unmixing_label(unmix): unmix for unmix in UNMIXINGS}
    cells = {label: [found[label_of(label, seed)] for seed in UNMIX_SEEDS] for label in tried}
    score = {label: fmean(map(mean_score, some)) for label, some in cells.items()}
    jumps = {label: fmean(stitched(one["positive"]) for one in some) for label, some in cells.items()}
    without = score.pop("none")
    return replace(choices, unmix=tried[least_stitched(score, jumps, without)])


def negative_cells(choices: Choices) -> dict[str, Cell]:
    """Return every negative prompt with mixed samples on the searched pair, twice."""
    return {
        label_of(label, seed): pair_cell(
            "i",
            cell_name("negative", label, seed),
            recipe(choices, SEARCHED_PAIR, "svdiff", "mix", seed),
            negative=wording,
            shown=seed == 0,
        )
        for label, wording in NEGATIVES.items()
        for seed in UNMIX_SEEDS
    }


def choose_negative(choices: Choices, found: Mapping[str, Numbers]) -> Choices:
    """Return the choices with the negative prompt of `least_stitched`."""
    cells = {label: [found[label_of(label, seed)] for seed in UNMIX_SEEDS] for label in NEGATIVES}
    score = {label: fmean(fmean(one["negative"]["score"]) for one in some) for label, some in cells.items()}
    jumps = {label: fmean(stitched(one["negative"]) for one in some) for label, some in cells.items()}
    without = fmean(mean_score(one) for one in cells["as trained"])
    return replace(choices, negative=least_stitched(score, jumps, without))


# Styles.


def style_pairs() -> list[tuple[str, str]]:
    """Return each searched subject once as the first of a pair, and once as the second."""
    return [(name, SEARCHED[(index + 1) % len(SEARCHED)]) for index, name in enumerate(SEARCHED)]


def style_cells(choices: Choices) -> dict[str, Cell]:
    """Return every way to mix styles, of three pairs."""
    return {
        label_of(label, *names): style_cell(choices, names, 0, letter="i", label=label)
        for label in STYLES
        for names in style_pairs()
    }


def shape_gain(numbers: Numbers) -> float:
    """Return by how much the mix's silhouette is nearer to the geometry's parent."""
    return float(numbers["shape"]["geometry"] - numbers["shape"]["appearance"])


def colour_gain(numbers: Numbers) -> float:
    """Return by how much the mix's colours are nearer to the appearance's parent than the parents are to each other."""
    return float(numbers["colour"]["appearance"] - numbers["parents"])


def choose_style(choices: Choices, found: Mapping[str, Numbers]) -> Choices:
    """Return the choices with the way whose lesser gain is the highest."""

    def worse(label: str) -> float:
        cells = [found[label_of(label, *names)] for names in style_pairs()]
        return min(fmean(map(shape_gain, cells)), fmean(map(colour_gain, cells)))

    return replace(choices, style=max(STYLES, key=worse))
