"""AuraFlow: latents as they are, text of one length."""

from __future__ import annotations

from .recorded import Recorded


class AuraFlow(Recorded):
    """The family of `AuraFlowPipeline`. diffusers has no training example of it; the velocity is the target.

    Args:
        pipeline: the live pipeline.
    """
