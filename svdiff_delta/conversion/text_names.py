"""Names that kohya's scripts give the layers of text encoders."""

from __future__ import annotations

from typing import Final

from .key_map import Names

ENCODERS: Final = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"}
"""What kohya's scripts call text encoders where there are several; one alone is `lora_te`."""


def text_module(names: Names, component: str, path: str) -> str | None:
    """Return the flat name of a module of a text encoder; None if it has none."""
    classes = {name: names.base.components[name].class_name for name in ENCODERS if name in names.base.components}
    prefix = "lora_te" if [*classes] == ["text_encoder"] else ENCODERS.get(component)
    if component not in classes or path == "text_projection":
        return None  # kohya does not train that, and diffusers takes it at one rank only
    if classes[component].startswith("T5") and len(classes) > 1:
        prefix = "lora_te3"  # whatever number it has in diffusers
    return f"{prefix}_{names.long(component, path).replace('.', '_')}"
