"""Single files in a model's original layout, as its makers and ComfyUI have them: which family, and what opens it.

They are not read as bases. A key that no file in diffusers' layout has tells the family, and with it the class of
diffusers that converts the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

WRAPPED: Final = ("model.diffusion_model.", "diffusion_model.", "net.")
"""What stands in front of a denoiser's keys where other parts may be in the file."""

WHOLE: Final = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")
"""How the keys of the other parts of a whole pipeline begin."""


class Original(NamedTuple):
    """A family of models whose original layout is known.

    Attributes:
        family: what people call it.
        keys: a pattern that keys of its denoiser match, without what stands in front of them, and no others.
        model: the class of diffusers that reads its denoiser from a file.
        pipeline: the class that reads the whole, where diffusers has one.
        wrapped: whether diffusers' own layout has such keys too, so that only wrapped ones tell.
    """

    family: str
    keys: str
    model: str
    pipeline: str = ""
    wrapped: bool = False

    def has(self, keys: Iterable[str], *, bare: bool) -> bool:
        """Tell whether keys are of this family; `bare` if nothing stood in front of them."""
        return not (bare and self.wrapped) and any(re.match(self.keys, key) for key in keys)


FAMILIES: Final = (
    Original("Flux.2", r"single_stream_modulation\.lin\.", "Flux2Transformer2DModel"),
    Original("Chroma", r"distilled_guidance_layer\.norms\.\d+\.scale", "ChromaTransformer2DModel"),
    Original("Chroma", r"distilled_guidance_layer\.", "ChromaTransformer2DModel", wrapped=True),
    Original("HunyuanVideo", r"txt_in\.individual_token_refiner\.", "HunyuanVideoTransformer3DModel"),
    Original("Flux.1", r"double_blocks\.\d+\.img_attn\.", "FluxTransformer2DModel"),
    Original(
        "Stable Diffusion 3", r"joint_blocks\.\d+\.x_block\.", "SD3Transformer2DModel", "StableDiffusion3Pipeline"
    ),
    Original("AuraFlow", r"double_layers\.\d+\.attn\.w1q\.", "AuraFlowTransformer2DModel"),
    Original("HiDream", r"double_stream_blocks\.\d+\.block\.", "HiDreamImageTransformer2DModel", wrapped=True),
    Original("Qwen-Image", r"transformer_blocks\.\d+\.img_mod\.", "QwenImageTransformer2DModel", wrapped=True),
    Original("Krea 2", r"txtfusion\.", "Krea2Transformer2DModel"),
    Original("Z-Image", r"layers\.\d+\.adaLN_modulation\.0\.", "ZImageTransformer2DModel", wrapped=True),
    Original("Lumina 2", r"layers\.\d+\.adaLN_modulation\.1\.", "Lumina2Transformer2DModel", wrapped=True),
    Original("Wan Animate", r"motion_encoder\.dec\.direction\.", "WanAnimateTransformer3DModel"),
    Original("Wan VACE", r"vace_blocks\.\d+\.after_proj\.", "WanVACETransformer3DModel"),
    Original("Wan", r"blocks\.\d+\.self_attn\.o\.", "WanTransformer3DModel"),
    Original("LTX-2", r"av_ca_a2v_gate_adaln_single\.", "LTX2VideoTransformer3DModel"),
    Original("LTX-Video", r"patchify_proj\.", "LTXVideoTransformer3DModel"),
    Original("Mochi", r"blocks\.\d+\.attn\.qkv_x\.", "MochiTransformer3DModel"),
    Original("SANA", r"blocks\.\d+\.cross_attn\.kv_linear\.", "SanaTransformer2DModel", wrapped=True),
    Original("Cosmos", r"blocks\.(?:\d+\.self_attn|block\d+)\.", "CosmosTransformer3DModel", wrapped=True),
    Original("Stable Diffusion XL", r"label_emb\.", "UNet2DConditionModel", "StableDiffusionXLPipeline"),
    Original("Stable Diffusion", r"(?:input|output|middle)_block", "UNet2DConditionModel", "StableDiffusionPipeline"),
)
"""The families, the first that fits; what is written for one model stands before what others share."""


def original_family(keys: Iterable[str]) -> tuple[str, str] | None:
    """Return the family of a file in original layout and the class of diffusers that reads it; None if it is in none.

    Args:
        keys: the keys of the file.
    """
    given = [*keys]
    whole = any(key.startswith(WHOLE) for key in given)
    for front in WRAPPED:
        if inner := [key.removeprefix(front) for key in given if key.startswith(front)]:
            return _find(inner, bare=False, whole=whole) or ("", "")
    if found := _find(given, bare=True, whole=False):
        return found
    return ("Stable Diffusion", "AutoencoderKL") if any(key.startswith("first_stage_model.") for key in given) else None


def _find(keys: list[str], *, bare: bool, whole: bool) -> tuple[str, str] | None:
    for each in FAMILIES:
        if each.has(keys, bare=bare):
            return each.family, each.pipeline if whole and each.pipeline else each.model
    return None


def how_to_convert(reader: str) -> str:
    """Return the call that makes a folder of a file in original layout.

    Args:
        reader: the class of diffusers that reads it; "" where none is known.
    """
    if not reader:
        return (
            "convert it once to diffusers' layout with the script of its makers, or with `CLASS.from_single_file(FILE)"
            ".save_pretrained(FOLDER)` where diffusers has its class, and name FOLDER"
        )
    return f"convert it once with `{reader}.from_single_file(FILE).save_pretrained(FOLDER)` and name FOLDER"
