"""The component that a model on its own is called: the slot that its class has in the pipelines that take it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

UNNAMED: Final = "model"
"""What a model is called whose class has no slot, or is not known."""

SLOTS: Final[Mapping[str, str]] = {
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
    "T5EncoderModel": "text_encoder_3",
    "UMT5EncoderModel": "text_encoder",
}
"""Encoders of transformers that are parts of pipelines only; its language models are called `model`."""

RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern), slot)
    for pattern, slot in (
        (r"PriorTransformer", "prior"),
        (r"StableCascadeUNet", "decoder"),
        (r"VQModel", "movq"),
        (r"\w*Control[Nn]et(?!XS)\w*Model", "controlnet"),
        (r"\w*UNet\w*|UniDiffuserModel", "unet"),
        (r"\w*Transformer(?:[123]D)?(?:Model)?|\w*DiT(?:2D)?Model|UVit2DModel", "transformer"),
        (r"AutoencoderKLLTX2Audio|MMAudioVAE", "audio_vae"),
        (r"\w*Autoencoder\w*|\w*V(?:AE|ae)", "vae"),
    )
)
"""The slot of diffusers' models by their class, the first that fits."""

LONGEST: Final = 255
"""Characters of the longest class that a rule is tried on: the time of some grows with their square."""


def slot_of(class_name: str, library: str) -> str:
    """Return the component that a model on its own is called.

    Args:
        class_name: its class, "" where nothing says it.
        library: "diffusers", "transformers", or any other.
    """
    if library == "diffusers" and len(class_name) <= LONGEST:
        return next((slot for pattern, slot in RULES if pattern.fullmatch(class_name)), UNNAMED)
    return SLOTS.get(class_name, UNNAMED)
