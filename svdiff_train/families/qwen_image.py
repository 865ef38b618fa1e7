"""Qwen-Image: patches of latents as tokens, text of any length."""

from __future__ import annotations

from .packed import Packed


class QwenImage(Packed):
    """The family of `QwenImagePipeline`, as diffusers' train_dreambooth_lora_qwen_image.py trains it.

    Args:
        pipeline: the live pipeline.
    """

    masks = {1: 0}  # noqa: RUF012 - the class says it is one
