"""HiDream: four text encoders, and a pipeline that always paints about a million pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .recorded import Recorded


class HiDream(Recorded):
    """The family of `HiDreamImagePipeline`, as diffusers' train_dreambooth_lora_hidream.py trains it.

    Args:
        pipeline: the live pipeline.
    """

    readers = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Let the pipeline paint something small: of its size nothing but the latents depends on it."""
        own = self.pipeline.default_sample_size
        self.pipeline.default_sample_size = 8
        try:
            yield
        finally:
            self.pipeline.default_sample_size = own
