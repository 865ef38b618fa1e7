"""For which models a file is: AUTOMATIC1111 shows it with those, kohya's scripts and ModelSpec call them so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from support.models import base_delta
from support.pipelines import small_flux, small_sd3
from support.web import automatic1111_version, unknown_to_comfyui

from svdiff_delta import Delta, convert, open_base
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.model_family import Family, find_family
from svdiff_delta.errors import InputError

SMALL = {"sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1, "attention_head_dim": 8}
BLOCKS = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}
LAYER = "unet.conv_in.weight"


def unet(folder: Path, width: int, said: str | None = None, **config: Any) -> Base:
    """Return a pipeline's folder with a small UNet for texts of this width, and what its scheduler predicts."""
    torch.manual_seed(0)
    settings = {**SMALL, **BLOCKS, "cross_attention_dim": width, "norm_num_groups": 4, **config}
    diffusers.UNet2DConditionModel(**settings).save_pretrained(folder / "unet")
    (folder / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    if said is not None:
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": said}))
    return open_base(folder)


def strings(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


CASES = [
    (768, None, {}, "SD1", "sd_v1", None, "stable-diffusion-v1"),
    (768, "epsilon", {}, "SD1", "sd_v1", "False", "stable-diffusion-v1"),
    (768, "v_prediction", {}, "SD1", "sd_v1_v", "True", "stable-diffusion-v1"),
    (1024, "v_prediction", {}, "SD2", "sd_v2_v", "True", "stable-diffusion-v2-768-v"),
    (1024, "epsilon", {}, "SD2", "sd_v2", "False", "stable-diffusion-v2-512"),
    (1024, None, {}, "SD2", "sd_v2", None, "UNet2DConditionModel"),
    (2048, "epsilon", XL, "SDXL", "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base"),
    (2048, "v_prediction", XL, "SDXL", "sdxl_base_v1-0", "True", "stable-diffusion-xl-v1-base"),
    (1280, "epsilon", XL, "SDXL", "sdxl_refiner_v1-0", "False", "stable-diffusion-xl-v1-refiner"),
]


@pytest.mark.parametrize("dialect", ["kohya", "lycoris"])
@pytest.mark.parametrize(("width", "said", "config", "shown", "version", "velocity", "architecture"), CASES)
def test_a_file_is_shown_with_the_models_that_it_is_for(
    width: int,
    said: str | None,
    config: dict[str, Any],
    shown: str,
    version: str,
    velocity: str | None,
    architecture: str,
    dialect: str,
    tmp_path: Path,
) -> None:
    base = unet(tmp_path / "base", width, said, **config)
    convert(base_delta(base, LAYER), to=dialect, base=base, rank=2, output=tmp_path / "x.safetensors", min_energy=0)
    told = strings(tmp_path / "x.safetensors")
    assert automatic1111_version(told) == shown
    assert (told["ss_base_model_version"], told["ss_v2"]) == (version, str(shown == "SD2"))
    assert told.get("ss_v_parameterization") == velocity
    assert told["modelspec.architecture"] == f"{architecture}/lora"


@pytest.mark.parametrize(
    ("width", "config"),
    [
        (32, {}),  # a width that none of them has
        (1024, {"num_class_embeds": 8}),  # the upscaler, whose version no tool has a word for
        (768, {"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"}),  # texts of another kind
        (2048, {**XL, "encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"}),  # Kolors
    ],
)
def test_what_the_structure_does_not_tell_is_not_guessed(width: int, config: dict[str, Any], tmp_path: Path) -> None:
    base = unet(tmp_path / "base", width, "epsilon", **config)
    convert(base_delta(base, LAYER), to="kohya", base=base, rank=8, output=tmp_path / "x.safetensors")
    told = strings(tmp_path / "x.safetensors")
    assert {key for key in told if key.startswith("ss_")} == {f"ss_network_{key}" for key in ("module", "dim", "alpha")}
    assert told["modelspec.architecture"] == "UNet2DConditionModel/lora"


def test_a_single_file_tells_as_much_as_its_names_do(tmp_path: Path) -> None:
    folder = unet(tmp_path / "base", 2048, **XL)
    (path,) = folder.components["unet"].files
    assert find_family(open_base(path, component="unet")) == Family("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")


@pytest.mark.parametrize(
    ("make", "version", "architecture"),
    [
        (small_sd3, "3-medium", "stable-diffusion-3"),
        (lambda: small_sd3(qk_norm="rms_norm", dual_attention_layers=(0,)), "3-5-medium", "stable-diffusion-3"),
        (lambda: small_sd3(qk_norm="rms_norm"), "3-5-large", "stable-diffusion-3"),
        (small_flux, "flux1", "flux-1-dev"),
        (lambda: small_flux(guided=False), "flux1", "flux-1-schnell"),
    ],
)
def test_transformers_are_called_as_kohya_s_scripts_call_them(
    make: Any, version: str, architecture: str, tmp_path: Path
) -> None:
    make().transformer.save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    layer = next(name for name in base.names() if name.endswith("attn.to_q.weight"))
    convert(base_delta(base, layer), to="lycoris", base=base, rank=16, output=tmp_path / "x.safetensors")
    told = strings(tmp_path / "x.safetensors")
    assert (told["ss_base_model_version"], told["ss_v2"]) == (version, "False")
    assert told["modelspec.architecture"] == f"{architecture}/lora"


def test_what_the_file_said_before_gives_way_to_what_the_base_is(tmp_path: Path) -> None:
    base = unet(tmp_path / "base", 2048, "epsilon", **XL)
    delta = base_delta(base, LAYER)
    convert(delta, to="kohya", base=base, rank=8, output=tmp_path / "x.safetensors")
    back = convert(tmp_path / "x.safetensors", base=base).delta
    convert(back, to="kohya", base=base, rank=8, output=tmp_path / "y.safetensors")
    assert strings(tmp_path / "y.safetensors")["ss_base_model_version"] == "sdxl_base_v1-0"


# --- Which keys web UIs take ---


def test_web_uis_know_every_key_of_a_lycoris_file(tiny: Base, tmp_path: Path) -> None:
    delta = base_delta(tiny, "unet", "text_encoder.*", size=0.05)
    norms = {name for name, found in delta.metadata.parameters.items() if found.kind == "elementwise"}
    text = {name for name in norms if name.startswith("text_encoder.")}
    assert len(text) > 0
    with pytest.raises(InputError, match=rf"{len(text)} weights cannot .* \(is a norm of a text encoder, .* ComfyUI"):
        convert(delta, to="lycoris", base=tiny, rank=2)
    output = tmp_path / "x.safetensors"
    found = convert(delta, to="lycoris", base=tiny, rank=2, output=output, allow_unmatched=True)
    assert {*found.left_out} == text
    with safe_open(output, "pt") as file:
        keys = [*file.keys()]
    assert unknown_to_comfyui(keys) == []
    assert sum(key.endswith(".w_norm") for key in keys) == len(norms - text)
    # As the fixture tells it, what was written before would have been refused.
    before = [f"lora_te_text_model_{n.split('.', 1)[1].removesuffix('.weight').replace('.', '_')}.w_norm" for n in text]
    assert len(unknown_to_comfyui(before)) == len(text)


def test_a_sole_text_encoder_keeps_its_norms(tiny: Base) -> None:
    base = open_base(tiny.path / "text_encoder", component="text_encoder")
    delta = base_delta(base)
    assert convert(delta, to="lycoris", base=base, rank=1).left_out == {}


@pytest.mark.parametrize(
    ("dialect", "who"),
    [
        ("diffusers", "web UIs (AUTOMATIC1111, Forge, ComfyUI)"),
        ("lycoris", "AUTOMATIC1111"),
        ("kohya", ""),
        ("peft", ""),
    ],
)
def test_the_report_says_who_does_not_read_the_file(tiny: Base, delta: Delta, dialect: str, who: str) -> None:
    remarks = convert(delta, to=dialect, base=tiny, rank=100_000).remarks
    assert [remark.startswith(who) and '`to="kohya"`' in remark for remark in remarks] == [True] * bool(who)
