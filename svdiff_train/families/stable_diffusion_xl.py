"""Stable Diffusion XL: two text encoders, and a UNet that is told the size and cut of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .family import Conditioning
from .stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """The family of `StableDiffusionXLPipeline`.

    Args:
        pipeline: the live pipeline.

    Raises:
        TrainError: its scheduler predicts neither epsilon nor v_prediction.
    """

    readers = ("text_encoder_2",)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return both encoders' `states` (batch, tokens, width) and the second one's `pooled` (batch, width)."""
        states, _, pooled, _ = self.pipeline.encode_prompt(
            [*prompts], device=self.text_device, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def added(self, conditioning: Conditioning, noised: Tensor) -> dict[str, Any]:
        """Return the pooled text and the six numbers of `sizes`, by default those of a picture that was not cut."""
        height, width = (side * self.factor for side in noised.shape[-2:])
        whole = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        sizes = conditioning.get("sizes", whole.expand(len(noised), -1))
        pooled = self.on_denoiser(conditioning["pooled"], noised)
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.to(noised.device, torch.float32)}}
