"""How results of single subjects are measured: text and image alignment, as in Fig. 9b, and identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from PIL import Image

from reproduce.paper.lab import Job, Lab, Trained
from reproduce.paper.sight import Sight
from reproduce.paper.subjects import SUBJECTS, Subject

TEMPLATES: Final = (
    "a photo of {}",
    "{} on the left on a red background",
    "a picture of {} in the snow",
    "{} on a purple background",
)
SEEDS: Final = (0, 1)


def jobs(phrase: str) -> list[Job]:
    """Return every prompt with every seed."""
    return [(template.format(phrase), seed) for template in TEMPLATES for seed in SEEDS]


def scores(lab: Lab, sight: Sight, pictures: Sequence[Image.Image], subject: Subject, noun: str) -> dict[str, float]:
    """Return what pictures of `jobs` reach, as means.

    `text` is the cosine with the prompt, its token left out; `image` that with the subject's pictures; `identity` the
    share of pictures nearer to those than to the base's pictures of the class.
    """
    prompts = [prompt for prompt, _ in jobs(f"a {noun}")]
    references = sight.references(subject)
    _, means = sight.nearest(pictures, [references, sight.seen(lab.class_images(subject.noun))])
    return {
        "text": _rounded(sight.text_alignment(pictures, prompts).mean()),
        "image": _rounded(sight.image_alignment(pictures, references).mean()),
        "identity": _rounded((means[:, 0] > means[:, 1]).mean()),
    }


def measured(lab: Lab, sight: Sight, trained: Trained) -> tuple[dict[str, float], list[Image.Image]]:
    """Return scores and pictures of what a training gave."""
    recipe = trained.recipe
    subject = SUBJECTS[recipe.subjects[0]]
    with lab.with_result(trained) as pipeline:
        pictures = lab.paint(pipeline, jobs(subject.phrase(recipe.noun, recipe.token)))
    return scores(lab, sight, pictures, subject, subject.noun), pictures


def _rounded(value: Any) -> float:
    return round(float(value), 5)
