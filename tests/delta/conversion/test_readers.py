"""What each dialect's keys mean: ΔW equals the full-weight formula in float64, written down here once more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import save_peft, save_tensors, taken
from support.checkpoints import true_shift
from support.readers import GROWN, TEXT, TEXT_WIDE, WIDE, Q, change_of, changes, factors, module, only
from support.weights import normal, relative
from torch import Tensor

from svdiff_delta import convert
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.dialect import Job
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.svd.cache import BasisCache

QUERY = "encoder.layer.0.attention.self.query"  # 16 x 16
GROW = "encoder.layer.0.intermediate.dense"  # 24 x 16
SHRINK = "encoder.layer.0.output.dense"  # 16 x 24


def lora(path: str, up: Tensor, down: Tensor) -> dict[str, Tensor]:
    return {f"{path}.lora_B.weight": up, f"{path}.lora_A.weight": down}


# --- PEFT ---


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 1}, 0.25),
        ({"r": 4, "lora_alpha": -6}, -1.5),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"query": 4}}, 2.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attention.self.query": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"^query": 2, "self.quer.": 16, "query": 3}}, 4.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"query": 3}}, 1.5),
        ({"r": 4, "lora_alpha": 8, "fan_in_fan_out": True}, 2.0),  # of a Linear layer PEFT ignores it
    ],
)
def test_peft_s_scale(model: Base, tmp_path: Path, config: Mapping[str, Any], scale: float) -> None:
    up, down = factors(16, 4, 16)
    path = save_peft(tmp_path / "lora", lora(QUERY, up, down), **config)
    expected = scale * up.double() @ down.double()
    assert relative(only(path, "peft", model, f"model.{QUERY}.weight"), expected) < 1e-14


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_any_rank_even_one_above_k(model: Base, tmp_path: Path, rank: int) -> None:
    up, down = factors(24, rank, 16)
    path = save_peft(tmp_path / "lora", lora(GROW, up, down), r=rank, lora_alpha=rank)
    assert relative(only(path, "peft", model, f"model.{GROW}.weight"), up.double() @ down.double()) < 1e-14


KINDS: dict[str, Callable[[Path, Tensor, Tensor, float], Path]] = {
    "peft": lambda path, up, down, alpha: save_peft(path, lora(Q, up, down), r=len(down), lora_alpha=alpha),
    "diffusers": lambda path, up, down, alpha: save_tensors(
        path,
        {f"unet.{Q}.lora.up.weight": up, f"unet.{Q}.lora.down.weight": down, f"unet.{Q}.alpha": torch.tensor(alpha)},
    ),
    "kohya": lambda path, up, down, alpha: save_tensors(
        path, module(Q, lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(alpha))
    ),
    "lycoris": lambda path, up, down, alpha: save_tensors(
        path, module(Q, "lycoris", lora_up__weight=up, lora_down__weight=down, alpha=torch.tensor(alpha))
    ),
}


@pytest.mark.parametrize("dialect", KINDS)
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (3, 1.5), (4, -6.0), (WIDE + 8, 5.0)])
def test_the_weight_that_comes_out_is_w_plus_alpha_by_rank_times_b_a(
    tiny: Base, tmp_path: Path, dialect: str, rank: int, alpha: float
) -> None:
    up, down = factors(WIDE, rank, WIDE)
    name, W = f"unet.{Q}.weight", tiny.read(f"unet.{Q}.weight").double()
    change = only(KINDS[dialect](tmp_path / "x", up, down, alpha), dialect, tiny, name)
    whole = W + alpha / rank * (up.double() @ down.double())
    assert relative(W + change, whole) < 1e-14


def test_mixed_ranks_each_have_their_own_scale(model: Base, tmp_path: Path) -> None:
    a, b = factors(16, 2, 16), factors(16, 5, 24, seed=2)
    tensors = lora(QUERY, *a) | lora(SHRINK, *b)
    found = changes(save_peft(tmp_path / "lora", tensors, r=2, rank_pattern={SHRINK: 5}, lora_alpha=4), "peft", model)
    assert relative(change_of(found, f"model.{QUERY}.weight"), 2.0 * a[0].double() @ a[1].double()) < 1e-14
    assert relative(change_of(found, f"model.{SHRINK}.weight"), 0.8 * b[0].double() @ b[1].double()) < 1e-14


def test_peft_s_dora(model: Base, tmp_path: Path) -> None:
    up, down = factors(24, 4, 16)
    magnitude = normal(24, seed=9).abs() + 1
    tensors = {**lora(GROW, up, down), f"{GROW}.lora_magnitude_vector": magnitude}
    path = save_peft(tmp_path / "lora", tensors, r=4, lora_alpha=2, use_dora=True)
    W = model.read(f"model.{GROW}.weight").double()
    moved = W + 0.5 * up.double() @ down.double()
    expected = magnitude.double()[:, None] * moved / moved.norm(dim=1, keepdim=True) - W
    assert relative(only(path, "peft", model, f"model.{GROW}.weight"), expected) < 1e-14


def test_peft_s_embedding(model: Base, tmp_path: Path) -> None:
    path = "embeddings.word_embeddings"
    a, b = normal(3, 40), normal(16, 3, seed=1)
    tensors = {f"{path}.lora_embedding_A": a, f"{path}.lora_embedding_B": b}
    folder = save_peft(tmp_path / "lora", tensors | lora(QUERY, *factors(16, 3, 16)), r=3, lora_alpha=6)
    found = changes(folder, "peft", model)
    assert found.left_out == {f"model.{path}.weight": "changes, and is of no kind that can be shifted"}
    read = DIALECTS["peft"].read
    assert read is not None
    change = change_of(read(OpenedAdapter(folder), Job(model, BasisCache(), embeddings=True)), f"model.{path}.weight")
    assert relative(change, 2 * (b.double() @ a.double()).T) < 1e-14


def test_gpt2_s_layers_are_stored_transposed(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from svdiff_delta import open_base

    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    gpt.save_pretrained(tmp_path / "gpt2")
    base = open_base(tmp_path / "gpt2")
    key = "transformer.h.0.attn.c_attn"
    up, down = factors(24, 3, 8)
    path = save_peft(tmp_path / "lora", lora(key, up, down), r=3, lora_alpha=3, fan_in_fan_out=True)
    found = changes(path, "peft", base)
    (name,) = found.kinds
    assert base.shape(name) == (8, 24)
    assert relative(change_of(found, name), (up.double() @ down.double()).T) < 1e-14


def test_a_module_that_was_saved_whole_replaces_the_base_s(model: Base, tmp_path: Path) -> None:
    new = normal(16, 16, seed=4)
    path = save_peft(tmp_path / "lora", {f"{QUERY}.weight": new}, modules_to_save=["query"], r=4, lora_alpha=4)
    W = model.read(f"model.{QUERY}.weight")
    assert torch.equal(only(path, "peft", model, f"model.{QUERY}.weight"), new.double() - W.double())


def test_biases_are_listed_where_they_differ_from_the_base_s(model: Base, tmp_path: Path) -> None:
    same = model.read(f"model.{QUERY}.bias")
    tensors = lora(QUERY, *factors(16, 2, 16)) | {f"{QUERY}.bias": same, f"{GROW}.bias": normal(24)}
    tensors |= {f"{QUERY}.lora_B.bias": normal(16)}
    found = changes(save_peft(tmp_path / "lora", tensors, r=2, lora_alpha=2, bias="lora_only"), "peft", model)
    prefix = "base_model.model."
    assert found.left_out == {f"{prefix}{GROW}.bias": "is a bias", f"{prefix}{QUERY}.lora_B.bias": "is a bias"}
    a, b = (tensors[f"{QUERY}.lora_{side}.weight"].double() for side in "BA")
    assert relative(change_of(found, f"model.{QUERY}.weight"), a @ b) < 1e-14


def test_a_config_without_alpha_has_peft_s_default_and_says_so(model: Base, tmp_path: Path) -> None:
    up, down = factors(16, 4, 16)
    found = changes(save_peft(tmp_path / "lora", lora(QUERY, up, down), r=4), "peft", model)
    assert relative(change_of(found, f"model.{QUERY}.weight"), 2 * up.double() @ down.double()) < 1e-14
    assert found.remarks == ("adapter_config.json gives no lora_alpha: taken to be 8, as PEFT does",)


def test_folders_for_each_component_are_read_together(tiny: Base, tmp_path: Path) -> None:
    a, b = factors(WIDE, 2, WIDE), factors(GROWN, 2, TEXT_WIDE)
    (tmp_path / "lora").mkdir()
    save_peft(tmp_path / "lora" / "unet", lora(Q, *a), r=2, lora_alpha=2)
    save_peft(tmp_path / "lora" / "text_encoder", lora(f"text_model.{TEXT}", *b), r=2, lora_alpha=4)
    found = changes(tmp_path / "lora", "peft", tiny)
    assert [*found.kinds] == [f"text_encoder.{TEXT}.weight", f"unet.{Q}.weight"]
    assert relative(change_of(found, f"text_encoder.{TEXT}.weight"), 2 * b[0].double() @ b[1].double()) < 1e-14
    assert len(found.sources()) == 2


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"intermediate.dense": 2}},
        {"r": 4, "lora_alpha": 6, "use_dora": True, "alpha_pattern": {"query": 1, "0.output.dense": 12}},
        {"r": 1, "lora_alpha": -2},
        {"r": 20, "lora_alpha": 5},
    ],
)
def test_peft_itself_makes_the_same_of_what_it_wrote(model: Base, tmp_path: Path, config: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    live: Any = AutoModel.from_pretrained(model.path).double()
    before = {key: value.clone() for key, value in live.state_dict().items()}
    targets = ["query", "intermediate.dense", "0.output.dense"]
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # PEFT asks transformers for it
        wrapped: Any = get_peft_model(live, LoraConfig(target_modules=targets, init_lora_weights=False, **config))
    assert taken(wrapped) == len(targets)
    wrapped.save_pretrained(tmp_path / "lora")
    found = changes(tmp_path / "lora", "peft", model)
    assert [*found.kinds] == sorted(f"model.{path}.weight" for path in (QUERY, GROW, SHRINK))
    assert found.left_out == {}
    merged = wrapped.merge_and_unload().state_dict()
    for name in found.kinds:
        key = name.removeprefix("model.")
        assert relative(change_of(found, name), merged[key] - before[key]) < 1e-6, name  # PEFT keeps factors in float32


# --- diffusers ---

SPELLINGS = {
    "today's": (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight"),
    "diffusers 0.2x": (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight"),
    "processors": tuple(f"unet.{Q.replace('.to_q', '.processor.to_q_lora')}.{side}.weight" for side in ("down", "up")),
    "no component": (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_diffusers(tiny: Base, tmp_path: Path, spelling: str) -> None:
    up, down = factors(WIDE, 3, WIDE)
    a, b = SPELLINGS[spelling]
    path = save_tensors(tmp_path / "x.safetensors", {a: down, b: up})
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), up.double() @ down.double()) < 1e-14
    (remark,) = changes(path, "diffusers", tiny).remarks
    assert remark.startswith("no alpha in 1 module (")
    assert remark.endswith("taken to be the rank, a scale of 1")


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        ("text_model.encoder.layers.1.self_attn.to_q_lora.{}.weight", "encoder.layers.1.self_attn.q_proj"),
        ("text_model.encoder.layers.1.self_attn.to_out_lora.{}.weight", "encoder.layers.1.self_attn.out_proj"),
        ("text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.{}.weight", TEXT),
    ],
)
def test_old_spellings_of_text_encoders(tiny: Base, tmp_path: Path, inner: str, name: str) -> None:
    up, down = factors(tiny.shape(f"text_encoder.{name}.weight")[0], 3, TEXT_WIDE)
    tensors = {f"text_encoder.{inner}".format("up"): up, f"text_encoder.{inner}".format("down"): down}
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    found = only(path, "diffusers", tiny, f"text_encoder.{name}.weight")
    assert relative(found, up.double() @ down.double()) < 1e-14


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"unet.r": 3, "unet.lora_alpha": 6}, 2.0),
        ({"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 9}}, 3.0),
        ({"text_encoder.lora_alpha": 6}, 1.0),
    ],
)
def test_diffusers_metadata_gives_the_scale(tiny: Base, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    up, down = factors(WIDE, 3, WIDE)
    tensors = {f"unet.{Q}.lora_A.weight": down, f"unet.{Q}.lora_B.weight": up}
    path = save_tensors(tmp_path / "x.safetensors", tensors, lora_adapter_metadata=json.dumps(config))
    expected = scale * up.double() @ down.double()
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), expected) < 1e-14


def test_a_key_with_alpha_gives_the_scale_too(tiny: Base, tmp_path: Path) -> None:
    up, down = factors(WIDE, 4, WIDE)
    tensors = {f"unet.{Q}.lora.down.weight": down, f"unet.{Q}.lora.up.weight": up, f"unet.{Q}.alpha": torch.tensor(1.0)}
    path = save_tensors(tmp_path / "x.safetensors", tensors)
    assert relative(only(path, "diffusers", tiny, f"unet.{Q}.weight"), 0.25 * up.double() @ down.double()) < 1e-14


# --- All of it together ---


def test_the_delta_is_the_projection_of_the_change(model: Base, tmp_path: Path) -> None:
    up, down = factors(16, 4, 16)
    path = save_peft(tmp_path / "lora", lora(QUERY, up, down), r=4, lora_alpha=8)
    name = f"model.{QUERY}.weight"
    found = convert(path, base=model, min_energy=0.0)
    expected = true_shift(model.read(name), 2 * up.double() @ down.double())
    assert found.delta[name] == pytest.approx(expected, abs=1e-5 * abs(expected).max())
    assert found.layers[name].whole == pytest.approx(float((2 * up.double() @ down.double()).square().sum()))
