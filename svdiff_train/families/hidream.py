"""HiDream: four text encoders, and a pipeline that always paints about a million pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .recorded import Recorded


class HiDream(Recorded):
    """The family of `HiDreamImagePipeline`, as diffusers' train_dreambooth_lora_hidream.py trains it.

    Args:
        pipeline: the live pipeline.
    """

    readers = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        for module in self.denoiser.modules():
            if type(module).__name__ == "MOEFeedForwardSwiGLU" and not hasattr(module, "met_gradients"):
                module._force_inference_output, module.met_gradients = False, True
                module.register_forward_pre_hook(_keep_gradients)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Let the pipeline paint something small: of its size nothing but the latents depends on it."""
        own = self.pipeline.default_sample_size
        self.pipeline.default_sample_size = 8
        try:
            yield
        finally:
            self.pipeline.default_sample_size = own


def _keep_gradients(module: nn.Module, _: Any) -> None:
    """Let chosen experts be computed so that gradients pass, where gradients are recorded.

    Outside of training, and with `force_inference_output`, which diffusers' script sets, diffusers 0.42 computes them
    under `no_grad`: they would not be trained, and what lies before them would have another gradient than the loss's.
    """
    module.training = torch.is_grad_enabled()
