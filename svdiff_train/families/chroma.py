"""Chroma: Flux without pooled text, with a mask over text and picture."""

from __future__ import annotations

from typing import Any

import torch

from .packed import Packed
from .recording import Texts


class Chroma(Packed):
    """The family of `ChromaPipeline`. diffusers has no training example of it; the velocity is the target, as of Flux.

    Args:
        pipeline: the live pipeline.
    """

    masks = {2: 0}  # noqa: RUF012

    def derived(self, name: str, recorded: Any, texts: Texts) -> Any:
        """Return the mask of the text, and behind it as many tokens as the picture has."""
        if name != "attention_mask":
            return super().derived(name, recorded, texts)
        if recorded is None:
            return None
        mask = texts[2]
        behind = recorded.shape[1] - mask.shape[1]
        return torch.cat([mask, mask.new_ones(len(mask), behind)], 1).to(recorded.dtype)
