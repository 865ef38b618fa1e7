"""Lumina 2: time that runs from 0 to 1, and a negated velocity."""

from __future__ import annotations

from .recorded import Recorded


class Lumina2(Recorded):
    """The family of `Lumina2Pipeline`.

    The target is that of diffusers' train_dreambooth_lora_lumina2.py, z_0 − ε for the model's own sign. That script
    mixes latents and noise the other way round, so the scheduler's shift draws little noise where sampling goes through
    much; here the shift is sampling's.

    Args:
        pipeline: the live pipeline.
    """

    masks = {1: 0}  # noqa: RUF012
