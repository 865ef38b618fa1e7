"""Tell what a safetensors file is that is no adapter: a model, a checkpoint of several, an embedding, shifts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from svdiff_delta.format.adapter_families import family_of_modules

Shape = tuple[int, ...]

CHECKPOINT: Final = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
EMBEDDINGS: Final = frozenset({"emb_params", "clip_l", "clip_g", "t5xxl", "string_to_param"})
SHIFTS: Final = (
    (r"\.delta$", "svdiff-pytorch's shifts"),
    (r"\.eigenvalues_delta$", "shifts of the paper's author"),
)
QUANTIZED: Final = (
    (r"\.quant_state\.bitsandbytes__(nf4|fp4)$", "4 bits of bitsandbytes"),
    (r"\.scale_weight$|^scaled_fp8$", "scaled FP8"),
    (r"\.qweight$|\.qzeros$", "GPTQ or AWQ"),
)
PARTS: Final = (
    (r"^control_model\.|^controlnet_|^input_hint_block\.", "ControlNet"),
    (r"^image_proj\.|^ip_adapter\.", "IP-Adapter"),
    (r"^(first_stage_model\.)?(encoder|decoder)\.(down|up|mid|conv_in)", "VAE"),
    (r"^(text_model\.)?encoder\.layers\.\d+\.self_attn|^shared\.weight$|^encoder\.block\.", "text encoder"),
)
"""What keys tell of a model that is no denoiser."""


def other_kind(shapes: Mapping[str, Shape]) -> tuple[str, str, str]:
    """Return kind, sort and family of a file that is no adapter: the kinds are those of `Description`.

    Args:
        shapes: the shape of each tensor by key.
    """
    if not shapes:
        return "unknown", "no tensors", ""
    if _is_embedding(shapes):
        return "embedding", "textual inversion", _embedding_family(shapes)
    for pattern, name in SHIFTS:
        if any(re.search(pattern, key) for key in shapes):
            return "shifts", name, ""
    return _model(shapes)


def _is_embedding(shapes: Mapping[str, Shape]) -> bool:
    if len(shapes) <= len(EMBEDDINGS) and shapes.keys() <= EMBEDDINGS:
        return True
    return len(shapes) == 1 and all(re.fullmatch(r"<.*>", key) and len(shape) <= 2 for key, shape in shapes.items())


def _embedding_family(shapes: Mapping[str, Shape]) -> str:
    if "clip_g" in shapes:
        return "SDXL"
    widths = {shape[-1] for shape in shapes.values() if shape}
    return {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}.get(widths.pop(), "") if len(widths) == 1 else ""


def _model(shapes: Mapping[str, Shape]) -> tuple[str, str, str]:
    widths = {
        _bare(key.removesuffix(".weight")): shape[1]
        for key, shape in shapes.items()
        if key.endswith(".weight") and len(shape) > 1
    }
    if not widths:
        return "unknown", "no weights of a model", ""
    family = family_of_modules(widths)
    starts = {start for start in CHECKPOINT if any(key.startswith(start) for key in shapes)}
    scheme = next((name for pattern, name in QUANTIZED if any(re.search(pattern, key) for key in shapes)), "")
    if len(starts) > 1:
        sort = "single-file checkpoint: denoiser and more"
    elif part := next((name for pattern, name in PARTS if any(re.search(pattern, key) for key in shapes)), ""):
        sort = part
    else:
        sort = "a model's weights"
    return "model", f"{sort}, {scheme}" if scheme else sort, family


def _bare(name: str) -> str:
    return name.removeprefix("model.diffusion_model.").removeprefix("diffusion_model.")
