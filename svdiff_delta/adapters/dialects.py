"""Tell the dialect of an adapter from its keys, as `svdiff convert` calls dialects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from svdiff_delta.format.adapter_keys import Spelled

COMFYUI: Final = ("diffusion_model.", "model.diffusion_model.", "text_encoders.")
FLAT: Final = "lora_"
LYCORIS: Final = "lycoris_"


def dialect_of(spelled: Iterable[Spelled]) -> str:
    """Return the dialect that most keys of a file are in; empty if there are none.

    Args:
        spelled: its keys, taken apart.
    """
    found, diffusers, peft = "", False, True
    for key in spelled:
        if key.prefix.startswith(LYCORIS):
            return "lycoris"
        if key.prefix.startswith(COMFYUI):
            found = "comfyui"
        elif key.flat:
            found = found or "kohya"
        else:
            diffusers = True
            peft = peft and key.prefix == "base_model.model."
    return found or ("" if not diffusers else "peft" if peft else "diffusers")
