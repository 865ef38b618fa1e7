"""Score how well pictures follow their prompts, and how much they look like reference pictures (paper, Fig. 9b)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from svdiff_delta.errors import InputError

from .clip import Clip
from .vision import Vectors


class ImageScorer(Protocol):
    """What compares pictures with references: `Clip`, `Dino`, `Lpips`."""

    name: str

    def alignment(self, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Vectors:
        """Return (pictures, references), float32; 1 is the same picture."""


def text_alignment(clip: Clip, images: Sequence[Image.Image], prompts: Sequence[str]) -> Vectors:
    """Return the cosine of each picture with its prompt, cos(x̃, c), (n,), float32.

    Raises:
        InputError: there is not one prompt for each picture, or there are no pictures.
    """
    if len(images) != len(prompts):
        raise InputError(f"{len(images)} pictures have {len(prompts)} prompts", fix="give one prompt per picture")
    found: Vectors = (clip.image_features(images) * clip.text_features(prompts)).sum(1)
    return found


def image_alignment(scorer: ImageScorer, images: Sequence[Image.Image], references: Sequence[Image.Image]) -> Vectors:
    """Return for each picture its mean alignment with all references, (n,), float32.

    That is 1 − LPIPS(x̃, x*) with `Lpips`, as the paper has it, and the cosine of features with `Clip` and `Dino`. The
    mean of the result is the mean over all pairs.

    Raises:
        InputError: there are no pictures or no references.
    """
    found: Vectors = scorer.alignment(images, references).mean(1)
    return found


def without_tokens(prompt: str, tokens: Sequence[str]) -> str:
    """Return a prompt without rare tokens, whole words in any case: "a photo of a sks dog" is "a photo of a dog"."""
    for token in tokens:
        prompt = re.sub(rf"(?<!\S){re.escape(token)}(?!\w)\s*", "", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())
