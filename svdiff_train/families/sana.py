"""SANA: an autoencoder of 32 pixels a side, without a spread of latents."""

from __future__ import annotations

from typing import Any

from .recorded import Recorded


class Sana(Recorded):
    """The family of `SanaPipeline`, as diffusers' train_dreambooth_lora_sana.py trains it, with its scheduler's shift.

    Args:
        pipeline: the live pipeline.
    """

    patch = 1
    masks = {1: 0}  # noqa: RUF012

    def arguments(self, height: int, width: int) -> dict[str, Any]:
        """Return what keeps the size as it is asked for."""
        del height, width
        return {"use_resolution_binning": False}
