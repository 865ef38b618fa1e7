"""What web UIs do with the keys and metadata of an adapter, told in this project's own words from their sources.

- AUTOMATIC1111 1.10, extensions-builtin/Lora/network.py: two strings of the metadata tell for which models a file is.
- AUTOMATIC1111 1.10, extensions-builtin/Lora/networks.py and network_norm.py: a norm needs `w_norm` and `b_norm`; a
  module that it knows, with tensors that it does not take, makes it refuse the file. It knows no `lycoris_`.
- ComfyUI, commit 41444b5, comfy/lora.py: of a block of a CLIP text model it knows six layers and no norm; of a UNet all
  that diffusers names, as `lora_unet_` or `lycoris_`. What it does not know it names in its log, and goes on.
- Forge, commit 5e1dcd3, packages_3rdparty/comfyui_lora_collection/lora.py: the same.
- Forge, commit b6cfd7f, extensions-builtin/sd_forge_lora/networks.py: with more than 12 unknown keys it takes none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

CLIP_LAYERS = ("mlp_fc1", "mlp_fc2", *(f"self_attn_{name}_proj" for name in ("k", "q", "v", "out")))

_CLIP = re.compile(rf"lora_te[12]?_text_model_encoder_layers_\d+_({'|'.join(CLIP_LAYERS)})")


def automatic1111_version(metadata: Mapping[str, str]) -> str:
    """Return the version for which AUTOMATIC1111 shows a file, and with no other."""
    if metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if metadata.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"


def unknown_to_comfyui(keys: Iterable[str]) -> list[str]:
    """Return the keys that ComfyUI names in its log and leaves, and Forge counts."""
    modules = ((key, key.partition(".")[0]) for key in keys)
    return [
        key
        for key, module in modules
        if not _CLIP.fullmatch(module) and not module.startswith(("lycoris_", "lora_unet_"))
    ]
