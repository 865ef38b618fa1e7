"""Measure how familiar pictures are to a base: how well its autoencoder brings them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from svdiff_delta.base_model.base import Base
from svdiff_train.settings.base_advice import advice_of
from svdiff_train.training.setup import RunInputs

from . import CENTRE
from .image_sets import Pictures


def unfamiliar_lines(base: Base, opened: RunInputs) -> Iterator[str]:
    """Yield a line for each concept whose pictures a base has never seen the like of; a base that does not tell, none.

    They are that where half of them or more come back worse than `familiar_db` of the base's card. Half, not the mean:
    a plain or blurred picture comes back well whatever it shows, and one busy picture of the base's world does not.

    Raises:
        BaseError: the card's block is broken.
    """
    limit = advice_of(base).familiar_db
    if limit is None:
        return
    for concept, subject in zip(opened.concepts, opened.subjects, strict=True):
        found = sorted(decibels(opened.family.pipeline.vae, subject))
        median, worse = found[(len(found) - 1) // 2], sum(number < limit for number in found)
        if median < limit:
            whose = "" if len(opened.concepts) == 1 else f"{concept.noun}: "
            yield (
                f"{whose}this base has never seen anything like {worse} of {len(found)} pictures: its autoencoder "
                f"brings them back at {median:.1f} dB, where its own world has {limit:g} or more; training goes on, "
                f"but expect little"
            )


@torch.no_grad()
def decibels(vae: Any, pictures: Pictures) -> list[float]:
    """Return the peak signal-to-noise ratio in decibels of each picture, there and back, cut from its middle."""
    found = []
    for index, size in enumerate(pictures.sizes):
        given = pictures.open(index, size, CENTRE).pixels.unsqueeze(0).to(vae.device, vae.dtype)
        made: Tensor = vae.decode(vae.encode(given).latent_dist.mode()).sample.clamp(-1, 1)
        error = ((made - given).double() / 2).square().mean().clamp(min=1e-12)
        found.append(-10 * float(error.log10()))
    return found
