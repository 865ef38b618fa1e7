"""Real clients load what is written, take every layer of it, and compute what the attached delta computes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import TestCase

import diffusers
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from support.adapters import apart, paint, taken, true_changes
from support.models import base_delta
from support.weights import relative

from svdiff_delta import Delta, attach, convert, select
from svdiff_delta.base_model.base import Base
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import open_tiny

ALL = 100_000
"""More than any rank: what is written is full-rank."""


def layers(model: torch.nn.Module) -> int:
    """Return how many layers of a live model LoRA has a form for."""
    return sum(isinstance(module, torch.nn.Linear | torch.nn.Conv2d) for module in model.modules())


PARTS: Any = load_pipeline(open_tiny())
DENOISER, TEXT = layers(PARTS.unet), layers(PARTS.text_encoder)


@pytest.fixture(scope="module")
def base() -> Base:
    return open_tiny()


@pytest.fixture(scope="module")
def whole(base: Base) -> Delta:
    return base_delta(base, "unet", "text_encoder.*", size=0.05)


@pytest.fixture(scope="module")
def delta(whole: Delta) -> Delta:
    """δ without norms."""
    return select(whole, "2d", "4d")


@pytest.fixture(scope="module")
def changes(base: Base, whole: Delta) -> dict[str, torch.Tensor]:
    """ΔW of every weight, in float64."""
    return true_changes(base, whole)


@pytest.fixture(scope="module")
def pictures(base: Base, delta: Delta) -> list[Image.Image]:
    """What the attached delta paints."""
    pipeline = load_pipeline(base)
    plain = paint(pipeline)
    with attach(pipeline, delta, base=base):
        painted = paint(pipeline)
    assert apart(plain, painted) > 20
    return painted


def unwarned(pipeline: Any, path: Path) -> Any:
    """Load an adapter, and see to it that diffusers says nothing of keys that it does not know."""
    diffusers.utils.logging.enable_propagation()
    with TestCase().assertNoLogs(level="WARNING"):
        pipeline.load_lora_weights(str(path))
    return pipeline


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
def test_diffusers_paints_with_the_file_what_the_attached_delta_paints(
    base: Base,
    delta: Delta,
    pictures: list[Image.Image],
    dialect: str,
    tmp_path: Path,
) -> None:
    found = convert(delta, to=dialect, base=base, rank=ALL, output=tmp_path / "lora.safetensors")
    assert len(found.ranks) == DENOISER + TEXT == len(delta)
    assert found.captured == 1
    pipeline = unwarned(load_pipeline(base), tmp_path / "lora.safetensors")
    assert (taken(pipeline.unet), taken(pipeline.text_encoder)) == (DENOISER, TEXT)
    assert apart(pictures, paint(pipeline)) <= 2


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize("how", [{"rank": 4}, pytest.param({"energy": 0.8, "max_rank": 24}, marks=pytest.mark.slow)])
def test_at_lower_ranks_diffusers_has_the_error_that_the_report_states(
    base: Base, delta: Delta, changes: dict[str, torch.Tensor], dialect: str, how: dict[str, Any], tmp_path: Path
) -> None:
    delta = select(delta, "mid", "up", "text_encoder.*")
    found = convert(delta, to=dialect, base=base, output=tmp_path / "lora.safetensors", **how)
    pipeline: Any = load_pipeline(base)
    before = {"unet": pipeline.unet.state_dict(), "text_encoder": pipeline.text_encoder.state_dict()}
    before = {part: {key: value.clone() for key, value in weights.items()} for part, weights in before.items()}
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    assert taken(pipeline.unet, pipeline.text_encoder) == len(delta)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for name in delta:
        part, _, key = name.partition(".")
        weight = getattr(pipeline, part).state_dict()[key]
        error = relative(weight.double() - before[part][key].double(), changes[name])
        assert error == pytest.approx((1 - found.layers[name].captured) ** 0.5, abs=1e-4), name


def test_peft_computes_what_the_attached_delta_computes(
    base: Base, delta: Delta, pictures: list[Image.Image], tmp_path: Path
) -> None:
    deprecated = pytest.warns(FutureWarning, match="is_gradient_checkpointing")  # PEFT asks transformers for it
    convert(delta, to="peft", base=base, rank=ALL, output=tmp_path / "lora")
    pipeline: Any = load_pipeline(base)
    for part, count in (("unet", DENOISER), ("text_encoder", TEXT)):
        with deprecated if part == "text_encoder" else nullcontext():
            model = PeftModel.from_pretrained(getattr(pipeline, part), str(tmp_path / "lora" / part))
        assert taken(model) == count
        with safe_open(tmp_path / "lora" / part / "adapter_model.safetensors", "pt") as file:
            assert len(file.keys()) == 2 * count
        setattr(pipeline, part, model.merge_and_unload())
    assert apart(pictures, paint(pipeline)) <= 2


def test_peft_takes_mixed_ranks_at_a_scale_of_one(base: Base, delta: Delta, tmp_path: Path) -> None:
    found = convert(select(delta, "unet"), to="peft", base=base, energy=0.9, output=tmp_path / "lora")
    assert len(set(found.ranks.values())) > 10
    model = PeftModel.from_pretrained(load_pipeline(base).unet, str(tmp_path / "lora"))  # type: ignore[attr-defined]
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert len(layers) == DENOISER
    assert {layer.scaling["default"] for layer in layers} == {1.0}
    assert sorted(layer.r["default"] for layer in layers) == sorted(found.ranks.values())


def lycoris(model: torch.nn.Module, path: Path, prefix: str = "lycoris") -> Any:
    """Return LyCORIS' network of a file on a model."""
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    LycorisNetwork.apply_preset({"lora_prefix": prefix})
    try:
        network, _ = create_lycoris_from_weights(1.0, str(path), model)
    finally:
        LycorisNetwork.apply_preset({"lora_prefix": "lycoris"})
    return network


@pytest.mark.parametrize(("part", "prefix"), [("unet", "lycoris"), ("text_encoder", "lora_te_text_model")])
def test_lycoris_changes_every_weight_as_the_delta_does_the_unet_s_norms_included(
    base: Base, whole: Delta, changes: dict[str, torch.Tensor], tmp_path: Path, part: str, prefix: str
) -> None:
    output = tmp_path / "lyco.safetensors"
    found = convert(whole, to="lycoris", base=base, rank=ALL, output=output, allow_unmatched=True)
    text_norms = {name for name, change in changes.items() if change.dim() == 1 and name.startswith("text_encoder.")}
    assert {*found.left_out} == text_norms != set()
    model = getattr(load_pipeline(base), part)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = lycoris(model, output, prefix)
    expected = {name: change for name, change in changes.items() if name.startswith(f"{part}.")}
    expected = {name: change for name, change in expected.items() if name not in text_norms}
    assert len(network.loras) == len(expected)
    assert network.algo_table.get("NormModule", 0) == sum(change.dim() == 1 for change in expected.values())
    network.merge_to(1.0)
    after = model.state_dict()
    for name, change in expected.items():
        key = name.partition(".")[2]
        moved = before[key].double() + change
        assert relative(after[key], moved) < 1e-6, name
    assert all(torch.equal(before[key], after[key]) for key in before if key.endswith(".bias"))


def test_lycoris_takes_none_of_kohya_s_keys_for_a_model_of_its_own(base: Base, delta: Delta, tmp_path: Path) -> None:
    convert(delta, to="kohya", base=base, rank=1, output=tmp_path / "kohya.safetensors")
    unet = load_pipeline(base).unet  # type: ignore[attr-defined]
    assert len(lycoris(unet, tmp_path / "kohya.safetensors").loras) == 0
    assert len(lycoris(unet, tmp_path / "kohya.safetensors", "lora_unet").loras) == DENOISER
