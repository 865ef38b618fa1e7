"""The rows and columns of the table of families by name; nothing here needs torch."""

from __future__ import annotations

from typing import Final

FAMILIES: Final = (
    "SD 1",
    "SD 1 inpainting",
    "SD 2",
    "SDXL",
    "SDXL inpainting",
    "SD 3",
    "SD 3.5 medium",
    "SD 3.5 large",
    "Flux.1 dev",
    "Flux.1 schnell",
    "Flux.1 Kontext",
    "Flux.1 Fill",
    "Flux.2 dev",
    "Flux.2 klein",
    "Qwen-Image",
    "Qwen-Image-Edit",
    "Z-Image",
    "Chroma",
    "Lumina 2",
    "SANA",
    "Krea 2",
    "HiDream",
    "AuraFlow",
    "Wan 2.1",
    "Wan 2.1 from a picture",
    "Wan 2.2",
    "LTX",
)
DIALECTS: Final = ("diffusers", "peft", "kohya", "comfyui", "lycoris")
MODELS: Final = "Models"
SUBSETS: Final = "Subsets"
RUNS: Final = "Training and painting"
OUT: Final = "A delta as a LoRA"
BACK: Final = "A LoRA as a delta"
GROUPS: Final = {
    MODELS: ("open", "basis", "attach", "bake"),
    SUBSETS: ("attn", "ca", "kv", "mlp", "block"),
    RUNS: ("train", "generate"),
    OUT: DIALECTS,
    BACK: DIALECTS,
}
"""The columns of each part of the table."""

COLUMNS: Final = tuple((group, column) for group, columns in GROUPS.items() for column in columns)
