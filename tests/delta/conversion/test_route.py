"""Which way a conversion goes: dialects are known by their keys, `from_` overrides, and arguments fit the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.rank_policy import Ranking
from svdiff_delta.conversion.route import resolve_route
from svdiff_delta.errors import InputError

ONE = torch.ones(2, 2)
MLP = "model.layers.0.mlp.up_proj.weight"
BLOCK = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

KEYS = {
    "kohya's UNet": ("kohya", f"lora_unet_{BLOCK}.lora_down.weight"),
    "kohya's text encoder": ("kohya", "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"),
    "LyCORIS' own prefix": ("lycoris", f"lycoris_{BLOCK}.lora_down.weight"),
    "LoHa under kohya's prefix": ("lycoris", f"lora_unet_{BLOCK}.hada_w1_a"),
    "LoKr under kohya's prefix": ("lycoris", f"lora_unet_{BLOCK}.lokr_w1"),
    "a full difference under kohya's prefix": ("lycoris", f"lora_unet_{BLOCK}.diff"),
    "a norm under kohya's prefix": ("lycoris", f"lora_unet_{BLOCK}.w_norm"),
    "diffusers": ("diffusers", "unet.mid_block.attentions.0.proj_in.lora_A.weight"),
    "an older diffusers": ("diffusers", "unet.mid_block.attentions.0.proj_in.lora.down.weight"),
    "its processors": ("diffusers", "down_blocks.0.attn1.processor.to_q_lora.up.weight"),
    "kohya's Flux": ("flux", "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"),
    "ComfyUI's Flux": ("flux", "diffusion_model.single_blocks.0.linear2.lora_A.weight"),
    "OneTrainer's Flux": ("kohya", "lora_transformer_transformer_blocks_0_attn_to_k.lora_down.weight"),
    "ComfyUI": ("comfyui", "diffusion_model.layers.0.attention.to_q.lora_A.weight"),
    "ComfyUI's text encoder": ("comfyui", "text_encoders.clip_l.transformer.a.lora_up.weight"),
    "a dotted LoKr": ("comfyui", "diffusion_model.blocks.0.attn.wq.lokr_w1"),
    "DiffSynth": ("diffusers", "pipe.dit.blocks.0.self_attn.q.lora_A.default.weight"),
    "bare names": ("diffusers", "blocks.0.self_attn.q.lora_down.weight"),
    "svdiff-pytorch": ("svdiff-pytorch", "mid_block.attentions.0.proj_in.delta"),
    "the paper's author": ("svdiff-author", "mid_block.attentions.0.proj_in.eigenvalues_delta"),
}


@pytest.mark.parametrize(("dialect", "key"), KEYS.values(), ids=KEYS)
def test_a_file_is_known_by_its_keys(tmp_path: Path, dialect: str, key: str) -> None:
    save_file({key: ONE}, tmp_path / "x.safetensors")
    assert resolve_route(tmp_path / "x.safetensors").source == dialect


def peft(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}")
    return folder


def peft_by_component(folder: Path) -> Path:
    (folder / "unet").mkdir()
    peft(folder / "unet")
    return folder


def model(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    return folder


def older(folder: Path) -> Path:
    save_file({"a.delta": ONE[0]}, folder / "spectral_shifts_te.safetensors")
    return folder


def diffusers(folder: Path) -> Path:
    save_file({"unet.a.lora_A.weight": ONE}, folder / "pytorch_lora_weights.safetensors")
    return folder


def logits(folder: Path) -> Path:
    save_file({MLP: torch.tensor([0.5, -0.5])}, folder / "x.safetensors")
    return folder / "x.safetensors"


def said(key: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file({"unet.a.weight": ONE}, folder / "x.safetensors", metadata={key: "{}"})
        return folder / "x.safetensors"

    return write


PLACES = {
    "PEFT's folder": ("peft", peft),
    "PEFT's folders": ("peft", peft_by_component),
    "a model's folder": ("full", model),
    "svdiff-pytorch's folder": ("svdiff-pytorch", older),
    "diffusers' folder": ("diffusers", diffusers),
    "vectors of MLPs, some negative": ("transformer2", logits),
    "a delta": ("delta", said("svdiff")),
    "a full difference": ("full", said("svdiff.difference")),
}


@pytest.mark.parametrize(("dialect", "write"), PLACES.values(), ids=PLACES)
def test_a_place_is_known_by_what_lies_there(tmp_path: Path, dialect: str, write: Callable[[Path], Path]) -> None:
    to = "full" if dialect == "delta" else "delta"
    assert resolve_route(write(tmp_path), to=to).source == dialect


def test_every_dialect_but_bare_factors_is_recognized() -> None:
    known = {dialect for dialect, _ in [*KEYS.values(), *PLACES.values()]}
    assert {*DIALECTS} - known == {"svf"}


@pytest.mark.parametrize("dialect", [name for name, dialect in DIALECTS.items() if dialect.read])
def test_from_overrides_what_the_keys_say(tmp_path: Path, dialect: str) -> None:
    save_file({f"lora_unet_{BLOCK}.lora_down.weight": ONE}, tmp_path / "x.safetensors")
    assert resolve_route(tmp_path / "x.safetensors", from_=dialect).source == dialect


# --- Arguments ---


@pytest.mark.parametrize("to", [name for name, dialect in DIALECTS.items() if dialect.low_rank])
def test_a_low_rank_copy_needs_a_rank_whatever_it_is_made_of(tmp_path: Path, to: str) -> None:
    with pytest.raises(InputError, match=f"^{to}: nothing says the rank: give `rank`"):
        resolve_route(said("svdiff")(tmp_path), to=to)
    with pytest.raises(InputError, match=f"^{to}: nothing says the rank"):
        resolve_route(older(tmp_path), to=to)
    assert resolve_route(older(tmp_path), to=to, ranking=Ranking(rank=2)).write is not None


@pytest.mark.parametrize("to", ["delta", "full"])
def test_a_rank_is_refused_where_nothing_has_one(tmp_path: Path, to: str) -> None:
    with pytest.raises(
        InputError, match=f"^{to}: has no rank: .* one of peft, lycoris, kohya, comfyui, diffusers as `to`"
    ):
        resolve_route(older(tmp_path), to=to, ranking=Ranking(rank=2))


@pytest.mark.parametrize("to", ["full", "kohya"])
def test_i8_is_for_deltas_alone(tmp_path: Path, to: str) -> None:
    with pytest.raises(
        InputError, match=f"^{to}: cannot be stored as I8, as deltas can: use `dtype=.F32.` or .* or `dtype=.BF16.`"
    ):
        resolve_route(said("svdiff")(tmp_path), to=to, dtype="I8")
    assert resolve_route(older(tmp_path), dtype="I8").write is None


def test_the_least_energy_is_that_of_the_input_s_dialect_unless_one_is_given(tmp_path: Path) -> None:
    assert resolve_route(diffusers(tmp_path)).min_energy == DIALECTS["diffusers"].min_energy > 0
    assert resolve_route(diffusers(tmp_path), min_energy=0.0).min_energy == 0
    (tmp_path / "model").mkdir()
    assert resolve_route(model(tmp_path / "model")).min_energy == 0


def test_a_document_of_another_kind_is_not_taken_for_a_delta(tmp_path: Path) -> None:
    save_file({"a": ONE}, tmp_path / "x.safetensors", metadata={"notes": json.dumps({"svdiff": 1})})
    with pytest.raises(InputError, match="does not say what it is"):
        resolve_route(tmp_path / "x.safetensors")
