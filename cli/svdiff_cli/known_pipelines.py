"""The pipelines that can be trained, by class name, and what people call them; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

KNOWN: Final[Mapping[str, str]] = {
    "StableDiffusionPipeline": "Stable Diffusion 1 and 2",
    "StableDiffusionXLPipeline": "SDXL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3 and 3.5",
    "FluxPipeline": "Flux.1 dev and schnell",
    "ZImagePipeline": "Z-Image",
    "QwenImagePipeline": "Qwen-Image",
    "Flux2Pipeline": "Flux.2 dev",
    "Flux2KleinPipeline": "Flux.2 klein",
    "WanPipeline": "Wan 2.1 and 2.2 (clips)",
    "WanImageToVideoPipeline": "Wan from a picture (clips)",
    "Krea2Pipeline": "Krea 2",
    "ChromaPipeline": "Chroma",
    "Lumina2Pipeline": "Lumina 2",
    "SanaPipeline": "SANA",
    "LTXPipeline": "LTX (clips)",
    "AuraFlowPipeline": "AuraFlow",
    "HiDreamImagePipeline": "HiDream",
    "StableDiffusionInpaintPipeline": "Stable Diffusion inpainting (masks)",
    "StableDiffusionXLInpaintPipeline": "SDXL inpainting (masks)",
    "FluxKontextPipeline": "Flux.1 Kontext (pairs)",
    "FluxFillPipeline": "Flux.1 Fill (masks)",
    "QwenImageEditPipeline": "Qwen-Image-Edit (pairs)",
}
"""Pipelines in the order in which they are listed."""


def listed() -> str:
    """Return all of them on one line, for a help text."""
    return ", ".join(KNOWN.values())
