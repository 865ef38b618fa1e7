"""Single files in an original layout: the error names the family, and the call that makes a folder of it."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES
from safetensors.numpy import save_file
from support.zoo.member import Member
from support.zoo.registry import DENOISERS
from support.zoo.trial import class_of

from svdiff_delta.base_model.base import open_base
from svdiff_delta.base_model.original_files import FAMILIES, original_family
from svdiff_delta.errors import BaseError

SIGNS = {  # diffusers' own name of a kind of checkpoint, of which it has keys that tell it
    "flux": "FluxTransformer2DModel",
    "flux2": "Flux2Transformer2DModel",
    "chroma": "ChromaTransformer2DModel",
    "sd3": "SD3Transformer2DModel",
    "z-image-turbo": "ZImageTransformer2DModel",
    "hunyuan-video": "HunyuanVideoTransformer3DModel",
    "mochi-1-preview": "MochiTransformer3DModel",
    "krea2": "Krea2Transformer2DModel",
    "hidream": "HiDreamImageTransformer2DModel",
    "v1": "UNet2DConditionModel",
}
COMFY = "model.diffusion_model."


def sign(kind: str) -> str:
    found = CHECKPOINT_KEY_NAMES[kind]
    return str(found if isinstance(found, str) else found[0]).removeprefix(COMFY).replace("context_block", "x_block")


def saved(path: Path, *keys: str) -> Path:
    save_file({key: np.ones((2, 2), np.float32) for key in keys}, path)
    return path


@pytest.mark.parametrize("kind", SIGNS)
def test_the_class_that_reads_it_is_named_for_a_comfyui_file(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.safetensors", COMFY + sign(kind), COMFY + "final.weight")
    with pytest.raises(BaseError, match=r"is a single file in the original layout of \w+") as caught:
        open_base(path)
    assert f"`{SIGNS[kind]}.from_single_file(FILE).save_pretrained(FOLDER)`" in caught.value.fix


@pytest.mark.parametrize("kind", sorted(SIGNS.keys() - {"v1", "z-image-turbo", "hidream", "chroma"}))
def test_so_it_is_for_a_file_of_the_makers_with_bare_names(kind: str, tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="original layout"):
        open_base(saved(tmp_path / "x.safetensors", sign(kind)))


@pytest.mark.parametrize(
    ("keys", "reader"),
    [
        ((COMFY + "input_blocks.0.0.weight", "cond_stage_model.a", "first_stage_model.a"), "StableDiffusionPipeline"),
        (
            (COMFY + "input_blocks.0.0.weight", COMFY + "label_emb.0.0.weight", "conditioner.a"),
            "StableDiffusionXLPipeline",
        ),
        ((COMFY + "input_blocks.0.0.weight", COMFY + "label_emb.0.0.weight"), "UNet2DConditionModel"),
        ((COMFY + "joint_blocks.0.x_block.a", "text_encoders.a", "first_stage_model.a"), "StableDiffusion3Pipeline"),
        (("blocks.0.self_attn.o.weight", "head.modulation", "patch_embedding.weight"), "WanTransformer3DModel"),
        ((COMFY + "blocks.0.self_attn.o.weight", COMFY + "vace_blocks.0.after_proj.bias"), "WanVACETransformer3DModel"),
        (("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.norms.0.scale"), "ChromaTransformer2DModel"),
        (
            ("double_blocks.0.img_attn.qkv.weight", "txt_in.individual_token_refiner.a"),
            "HunyuanVideoTransformer3DModel",
        ),
    ],
)
def test_what_else_is_in_the_file_decides_which_class_reads_it(keys: tuple[str, ...], reader: str) -> None:
    found = original_family(keys)
    assert found is not None
    assert found[1] == reader


def test_the_readers_are_classes_of_diffusers_that_read_such_files() -> None:
    for each in FAMILIES:
        for name in filter(None, (each.model, each.pipeline)):
            assert callable(getattr(diffusers, name).from_single_file)


def test_an_unknown_layout_says_so(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="of a family that is not known here") as caught:
        open_base(saved(tmp_path / "x.safetensors", COMFY + "odd.weight"))
    assert "script of its makers" in caught.value.fix


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # in diffusers' own Chroma
@pytest.mark.parametrize("name", DENOISERS)
def test_no_file_in_diffusers_layout_is_taken_for_an_original(name: str) -> None:
    member: Member = DENOISERS[name]
    with torch.device("meta"):
        model = class_of(name)(**dict(member.config))
    assert original_family(model.state_dict()) is None
