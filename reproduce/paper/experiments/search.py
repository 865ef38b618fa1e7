"""(i) What recipes are chosen by, on subjects apart, by rules that stand here before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reproduce.paper.choices import NEGATIVES, STYLES
from reproduce.paper.subjects import SEARCHED, SEARCHED_SCENES

from .search_rates import (
    FACTORS,
    GAIN,
    LEARNED,
    PAIR_STEPS,
    PICTURE_RATES,
    RATES,
    TRIPLES,
    VARIANTS,
    choose_pairs,
    choose_picture_rates,
    choose_rates,
    choose_triple,
    pair_cells,
    picture_cells,
    rate_cells,
    triple_cells,
)
from .search_stitching import (
    LOSS,
    UNMIX_SEEDS,
    UNMIXINGS,
    choose_negative,
    choose_style,
    choose_unmix,
    negative_cells,
    style_cells,
    style_pairs,
    unmix_cells,
    unmixing_label,
)
from .stage import Stage, label_of

STAGES: Final[Sequence[Stage]] = (
    Stage(
        "learning rates of subjects, λ = 1",
        tuple(f"{method}: {', '.join(f'{rate:g}' for rate in rates)}" for method, rates in RATES.items()),
        f"of each method the lowest with which {LEARNED:g} or more of the pictures are nearer to the subject's own "
        "than to the base's of its class, as a mean over the subjects; if none reaches that, the nearest to it",
        rate_cells,
        choose_rates,
        SEARCHED,
    ),
    Stage(
        "learning rates of single pictures, λ = 0",
        tuple(f"{method}: {', '.join(f'{rate:g}' for rate in rates)}" for method, rates in PICTURE_RATES.items()),
        f"of each method the lowest with which the picture's description gives a cosine of {LEARNED:g} or more with "
        "it, as a mean over the pictures; if none reaches that, the nearest to it",
        picture_cells,
        choose_picture_rates,
        tuple(scene.name for scene in SEARCHED_SCENES),
    ),
    Stage(
        "steps and factors on the rate of two subjects",
        tuple(f"{steps} steps, {factor:g} times the rate of one subject" for steps in PAIR_STEPS for factor in FACTORS),
        "of each method the factor with the highest mean score (the lesser likeness of the two to a half of the "
        f"picture each) over a training with mixed samples and one without; more steps only if they raise that by more "
        f"than {GAIN:g} as a mean over the methods",
        pair_cells,
        choose_pairs,
        VARIANTS,
    ),
    Stage(
        "steps and mixed samples of three subjects",
        tuple(f"{steps} steps, {mix:g} of the samples mixed" for steps, mix in TRIPLES),
        "the highest mean score",
        triple_cells,
        choose_triple,
    ),
    Stage(
        "the unmix regularization",
        tuple(unmixing_label(unmix) for unmix in UNMIXINGS),
        f"of all whose mean score is not lower than without by more than {LOSS:g}, the least stitched",
        unmix_cells,
        choose_unmix,
        tuple(map(str, UNMIX_SEEDS)),
    ),
    Stage(
        "the negative prompt",
        tuple(f"{label}: {wording}" for label, wording in NEGATIVES.items()),
        f"of all whose mean score is not lower than without by more than {LOSS:g}, the least stitched",
        negative_cells,
        choose_negative,
        tuple(map(str, UNMIX_SEEDS)),
    ),
    Stage(
        "how styles are mixed",
        tuple(f"{label}: {style.layers} give the geometry" for label, style in STYLES.items()),
        "the highest of the lesser of both gains, of shape and of colours, as means over three pairs",
        style_cells,
        choose_style,
        tuple(label_of(*names) for names in style_pairs()),
    ),
)
