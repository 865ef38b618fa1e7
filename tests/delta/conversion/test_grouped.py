"""Grouped convolutions as LoRA: real clients load the file, and have the change, or the layer is listed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from peft import PeftModel
from safetensors.torch import save_file
from support.adapters import taken, true_changes
from support.checkpoints import delta_of
from support.models import base_delta
from support.weights import normal
from torch import Tensor, nn
from transformers import (
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    SqueezeBertConfig,
    SqueezeBertModel,
)

from svdiff_delta import Delta, convert, open_base, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion.low_rank_factors import Factors, split
from svdiff_delta.conversion.rank_policy import Ranking
from svdiff_delta.errors import InputError
from svdiff_delta.svd.energy import Energy

ALL = 100_000
SHAPE = {"num_attention_heads": 2, "num_cross_attention_heads": 2}
SANA: dict[str, Any] = {
    **SHAPE,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 4,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": 8,
    "mlp_ratio": 1.0,
    "sample_size": 4,
}
CASCADE: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "timestep_ratio_embedding_dim": 8,
    "conditioning_dim": 8,
    "block_out_channels": (8, 8),
    "num_attention_heads": (0, 2),
    "down_num_layers_per_block": (1, 1),
    "up_num_layers_per_block": (1, 1),
    "down_blocks_repeat_mappers": (1, 1),
    "up_blocks_repeat_mappers": (1, 1),
    "block_types_per_layer": (("SDCascadeResBlock",),) * 2,
    "clip_text_pooled_in_channels": 8,
    "switch_level": (False,),
    "kernel_size": 3,
}
QWEN: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "layer_types": ["linear_attention"],
    "mlp_only_layers": [0],
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}


def filled(model: Any) -> Any:
    """Return a model with random weights that are exact in float16."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.3).half())
    return model.eval()


def squeezebert(groups: int) -> Any:
    names = ("q", "k", "v", "post_attention", "intermediate", "output")
    settings: dict[str, Any] = {f"{name}_groups": groups for name in names}
    config = SqueezeBertConfig(
        vocab_size=20,
        hidden_size=16,
        embedding_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
        **settings,
    )
    return SqueezeBertModel(config)


def moved(model: nn.Module, changes: dict[str, Tensor]) -> Any:
    """Add ΔW to a model's weights, in float64."""
    weights = dict(model.double().named_parameters())
    with torch.no_grad():
        for name, change in changes.items():
            weights[name.partition(".")[2]].add_(change)
    return model


def with_peft(model: Any, folder: Path) -> Any:
    """Load an adapter with PEFT; what it warns of is no matter of the file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups > 1")  # it cannot merge them
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # transformers, to PEFT
        return PeftModel.from_pretrained(model, str(folder))


def grouped_names(delta: Delta, model: nn.Module) -> dict[str, int]:
    """Return the groups of each grouped convolution that a delta shifts."""
    found = {path: layer.groups for path, layer in model.named_modules() if isinstance(layer, nn.modules.conv._ConvNd)}
    names = {name: found.get(name.partition(".")[2].removesuffix(".weight"), 1) for name in delta}
    return {name: groups for name, groups in names.items() if groups > 1}


@pytest.fixture
def sana(tmp_path: Path) -> Base:
    filled(diffusers.SanaTransformer2DModel(**SANA)).save_pretrained(tmp_path / "sana")
    return open_base(tmp_path / "sana", component="transformer")


SANA_CONV = "transformer.transformer_blocks.0.ff.conv_depth.weight"


def sana_output(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(*size, generator=generator).double() for size in ((1, 4, 4, 4), (1, 3, 8)))
    with torch.no_grad():
        found: Tensor = model(latents, encoder_hidden_states=text, timestep=torch.tensor([5.0]).double()).sample
    return found


# --- Where the client takes it ---


@pytest.mark.parametrize("dialect", ["peft", "lycoris"])
def test_a_depthwise_convolution_has_its_whole_change_in_the_client(sana: Base, dialect: str, tmp_path: Path) -> None:
    delta = base_delta(sana, "2d", "4d", size=0.3)
    output = tmp_path / "x.safetensors"
    changes = true_changes(sana, delta)
    found = convert(delta, to=dialect, base=sana, rank=16, output=output)
    assert found.ranks[SANA_CONV] == (16 if dialect == "peft" else 9)
    assert found.layers[SANA_CONV].captured == pytest.approx(1)
    exact = convert(delta, to=dialect, base=sana, rank=ALL, output=output, overwrite=True)
    model: Any = diffusers.SanaTransformer2DModel.from_pretrained(sana.path)
    expected = sana_output(moved(diffusers.SanaTransformer2DModel.from_pretrained(sana.path), changes))
    plain = sana_output(diffusers.SanaTransformer2DModel.from_pretrained(sana.path).double())
    assert (plain - expected).norm() > 0.01 * expected.norm()
    if dialect == "peft":
        model = with_peft(model, output)
        assert taken(model) == len(delta) == len(exact.layers)
    else:
        from lycoris import create_lycoris_from_weights

        network, _ = create_lycoris_from_weights(1.0, str(output), model)
        assert len(network.loras) == len(delta) == len(exact.layers)
        network.merge_to(1.0)
    assert (sana_output(model.double()) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(("groups", "rank", "taken_rank"), [(2, ALL, 16), (2, 7, 6), (4, 9, 8), (4, 4, 4)])
def test_each_group_has_the_best_factors_of_its_share(groups: int, rank: int, taken_rank: int, tmp_path: Path) -> None:
    filled(squeezebert(groups)).save_pretrained(tmp_path / "bert")
    base = open_base(tmp_path / "bert")
    delta = base_delta(base, "*.attention.query.weight", "*.attention.key.weight", size=0.3)
    names = grouped_names(delta, squeezebert(groups))
    assert {*names} == {*delta}
    assert {*names.values()} == {groups}
    found = convert(delta, to="peft", base=base, rank=rank, output=tmp_path / "lora", min_energy=0)
    assert {*found.ranks.values()} == {taken_rank}
    model = with_peft(SqueezeBertModel.from_pretrained(base.path), tmp_path / "lora")
    assert taken(model) == len(delta)
    layers = dict(model.named_modules())
    for name, change in true_changes(base, delta).items():
        U, sigma, Vt = torch.linalg.svd(change.reshape(groups, -1, change[0].numel()), full_matrices=False)
        kept = taken_rank // groups
        best = ((U[..., :kept] * sigma[:, None, :kept]) @ Vt[:, :kept]).reshape(change.shape)
        path = name.partition(".")[2].removesuffix(".weight")
        layer = cast("Any", layers[f"base_model.model.{path}"]).double()
        inputs = normal(1, 16, 5).double()
        with torch.no_grad():
            added = layer(inputs) - layer.base_layer(inputs)
        assert torch.allclose(added, nn.functional.conv1d(inputs, best, groups=groups), rtol=0, atol=1e-6), name
        error = float((best - change).square().sum())
        assert found.layers[name].whole - found.layers[name].kept == pytest.approx(error, rel=1e-5, abs=1e-6)


def test_energy_takes_the_least_number_for_each_group_that_retains_it() -> None:
    up = torch.eye(4).double().numpy()
    down = torch.diag(torch.tensor([4.0, 1.0, 2.0, 2.0])).double().numpy()  # squares 16 and 1, 4 and 4
    factors = Factors(up, down, Energy(25.0, 25.0))
    assert split(factors, 2, Ranking(energy=0.8)).rank == 2
    assert split(factors, 2, Ranking(energy=0.81)).rank == 4
    assert split(factors, 2, Ranking(energy=0.81, max_rank=3)).rank == 2
    assert split(factors, 2, Ranking(rank=3)).energy.kept == pytest.approx(20.0)


# --- Where it does not ---


def cascade() -> Any:
    return StableCascadeUNet(**CASCADE)


@pytest.mark.parametrize(
    ("make", "convolutions"),
    [
        (lambda: diffusers.SanaTransformer2DModel(**SANA), 1),
        (cascade, 4),
        (lambda: Qwen3NextForCausalLM(Qwen3NextConfig(**QWEN)), 1),
        (lambda: squeezebert(4), 3),
    ],
)
def test_groups_above_the_rank_are_listed_and_the_rest_loads(make: Any, convolutions: int, tmp_path: Path) -> None:
    filled(make()).save_pretrained(tmp_path / "base")
    base = open_base(tmp_path / "base")
    delta = base_delta(base, size=0.1)
    spectral = [name for name, known in delta.metadata.parameters.items() if known.kind == "spectral"]
    delta = select(delta, *[name for name in spectral if ".mlp." not in name])  # PEFT takes Qwen's for experts
    names = grouped_names(delta, make())
    assert len(names) >= convolutions
    groups = max(names.values())
    with pytest.raises(InputError, match=rf"is a convolution of {groups} groups, and PEFT takes no rank below that"):
        convert(delta, to="peft", base=base, rank=3)
    found = convert(delta, to="peft", base=base, rank=3, output=tmp_path / "lora", allow_unmatched=True)
    assert found.left_out.keys() == names.keys()
    assert taken(with_peft(make(), tmp_path / "lora")) == len(found.layers) == len(delta) - len(names)


def test_diffusers_loads_the_rest_where_its_readers_do_not_agree(sana: Base, tmp_path: Path) -> None:
    delta = base_delta(sana, "2d", "4d")
    with pytest.raises(InputError, match=r"is a convolution of 16 groups, of which not all readers of diffusers"):
        convert(delta, to="diffusers", base=sana, rank=ALL)
    found = convert(delta, to="diffusers", base=sana, rank=ALL, output=tmp_path / "x.safetensors", allow_unmatched=True)
    assert [*found.left_out] == [SANA_CONV]
    for known in (True, None):  # with the file's metadata, and without
        model: Any = diffusers.SanaTransformer2DModel.from_pretrained(sana.path)
        model.load_lora_adapter(str(tmp_path / "x.safetensors"), prefix="transformer", use_safetensors=known)
        assert taken(model) == len(found.layers) == len(delta) - 1


def test_kohya_has_no_place_for_it(tmp_path: Path) -> None:
    filled(cascade()).save_pretrained(tmp_path / "base" / "unet")
    (tmp_path / "base" / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "StableCascadeUNet"]}))
    base = open_base(tmp_path / "base")
    delta = base_delta(base, "4d")
    found = convert(delta, to="kohya", base=base, rank=ALL, allow_unmatched=True)
    assert found.left_out.keys() == grouped_names(delta, cascade()).keys() != set()
    assert {*found.left_out.values()} == {
        "is a convolution of 8 groups, of which not all readers of kohya take the same shape"
    }


def test_without_a_class_what_may_be_depthwise_is_listed(tmp_path: Path) -> None:
    save_file({"a.weight": normal(6, 1, 3, 3), "b.weight": normal(6, 2, 3, 3)}, tmp_path / "x.safetensors")
    base = open_base(tmp_path / "x.safetensors")
    delta = delta_of(base, a=normal(6).double().numpy(), b=normal(6).double().numpy())
    found = convert(delta, to="peft", base=base, rank=ALL, allow_unmatched=True)
    assert found.left_out == {
        "model.a.weight": "may be a depthwise convolution, and no config.json beside the weights says it"
    }


@pytest.mark.parametrize("dialect", ["peft", "lycoris", "diffusers"])
def test_transposed_convolutions_have_no_place_whatever_their_groups(dialect: str, tmp_path: Path) -> None:
    save_file({"a.weight": normal(6, 2, 3, 3)}, tmp_path / "x.safetensors")
    base = open_base(tmp_path / "x.safetensors")
    delta = delta_of(base, axis=1, a=normal(2).double().numpy())
    with pytest.raises(InputError, match=r"1 weights? cannot be carried over.*transposed"):
        convert(delta, to=dialect, base=base, rank=1)
