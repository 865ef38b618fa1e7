"""Z-Image: text as a list of one tensor for each prompt, time that runs from 0 to 1, and a negated velocity."""

from __future__ import annotations

from .recorded import Recorded


class ZImage(Recorded):
    """The family of `ZImagePipeline`, as diffusers' train_dreambooth_lora_z_image.py trains it.

    Args:
        pipeline: the live pipeline.
    """

    mode = True
