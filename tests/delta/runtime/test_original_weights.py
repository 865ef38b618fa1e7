"""Live models whose weights were cast, offloaded or quantized: their original files are found, or asked for."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from huggingface_hub import constants
from support.hub import fill_cache, folder_files
from support.models import base_delta, live_zero, named, random_delta
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import AttachError, BaseMismatchError
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import attach
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.tiny import base_path, open_tiny

SELECTOR = "unet.*.transformer_blocks.0.*"


@pytest.fixture(scope="module")
def delta() -> Delta:
    return base_delta(open_tiny(), SELECTOR, size=0.5)


def unet(folder: Path | None = None, **options: Any) -> Any:
    folder = folder or base_path() / "unet"
    return diffusers.UNet2DConditionModel.from_pretrained(folder, **options).requires_grad_(False).eval()


def given(model: Any) -> tuple[Tensor, Tensor]:
    """A noisy picture and a text's states."""
    config = model.config
    return normal(1, config.in_channels, 8, 8), normal(1, 5, config.cross_attention_dim, seed=1)


def painted(model: Any) -> Tensor:
    """What a denoiser says about one noisy picture."""
    dtype = next(iter(model.parameters())).dtype
    noise, states = given(model)
    with torch.no_grad():
        sample = model(noise.to(dtype), 10, states.to(dtype)).sample
    return torch.as_tensor(sample).float()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def forget_place(model: nn.Module) -> Any:
    """Make a model forget where it was loaded from, as one that was put together by hand."""
    config: Any = model
    config.register_to_config(_name_or_path="")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cast_model_finds_its_files(delta: Delta, dtype: torch.dtype) -> None:
    model, whole = unet(torch_dtype=dtype), unet()
    before = painted(model)
    with attach(whole, delta), attach(model, delta):
        change = relative(painted(whole), before)
        assert relative(painted(model), painted(whole)) < 0.3 * change
    assert torch.equal(painted(model), before)


def test_a_model_that_was_cast_twice_finds_its_files(tmp_path: Path) -> None:
    unet().apply(unround).save_pretrained(tmp_path / "unet")
    base = open_base(tmp_path / "unet")
    delta = base_delta(base, SELECTOR)
    model = unet(tmp_path / "unet", torch_dtype=torch.float16).to(torch.bfloat16)
    with attach(model, delta) as handle:
        assert set(handle.kinds()) == set(delta)


def unround(module: nn.Module) -> None:
    """Give weights bits that no half precision holds."""
    for parameter in module.parameters(recurse=False):
        parameter.data *= 1.0003


def test_a_cast_pipeline_finds_its_files(delta: Delta) -> None:
    pipeline = load_pipeline(open_tiny(), dtype="BF16")
    with attach(pipeline, delta) as handle:
        assert set(handle.kinds()) == set(delta)


def test_a_component_from_elsewhere_is_found_where_it_came_from(tmp_path: Path, delta: Delta) -> None:
    shutil.copytree(base_path() / "unet", tmp_path / "mine")
    pipeline: Any = load_pipeline(open_tiny(), dtype="BF16")
    pipeline.unet = unet(tmp_path / "mine", torch_dtype=torch.bfloat16)
    both = base_delta(open_tiny(), SELECTOR, "text_encoder.*.layers.0.*")
    with attach(pipeline, both) as handle:
        assert set(handle.kinds()) == set(both)


def test_a_model_of_which_there_are_only_variants_finds_its_files(tmp_path: Path, delta: Delta) -> None:
    unet().half().save_pretrained(tmp_path, variant="fp16")
    with attach(unet(tmp_path, variant="fp16", torch_dtype=torch.bfloat16), delta) as handle:
        assert set(handle.kinds()) == set(delta)


def test_a_model_from_the_hub_finds_its_files_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delta: Delta
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    fill_cache(tmp_path, "owner/tiny", folder_files(base_path()))
    model = unet(torch_dtype=torch.bfloat16)
    model.register_to_config(_name_or_path="owner/tiny")
    with attach(model, delta) as handle:
        assert set(handle.kinds()) == set(delta)


def test_a_cast_model_whose_files_are_not_found_asks_for_them(delta: Delta) -> None:
    model = forget_place(unet(torch_dtype=torch.bfloat16))
    with pytest.raises(BaseMismatchError, match=r"name its base with `base=` if the model was cast"):
        attach(model, delta)
    with attach(model, delta, base=open_tiny()) as handle:
        assert set(handle.kinds()) == set(delta)


def test_a_model_whose_folder_is_gone_asks_for_its_files(tmp_path: Path, delta: Delta) -> None:
    shutil.copytree(base_path() / "unet", tmp_path / "unet")
    model = unet(tmp_path / "unet", torch_dtype=torch.bfloat16)
    shutil.rmtree(tmp_path / "unet")
    with pytest.raises(BaseMismatchError, match="base="):
        attach(model, delta)


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_an_offloaded_model_computes_with_the_shift_and_is_restored(delta: Delta, exact: bool, found: bool) -> None:
    whole, model = unet(), unet() if found else forget_place(unet())
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert model.conv_in.weight.device.type == "meta"
    before = painted_offloaded(model)
    with attach(whole, delta, exact=exact):
        expected = painted(whole)
    with attach(model, delta, exact=exact):
        assert relative(painted_offloaded(model), expected) < 1e-6
        assert relative(expected, before) > 1e-3
    assert torch.equal(painted_offloaded(model), before)


def painted_offloaded(model: Any) -> Tensor:
    noise, states = given(model)
    with torch.no_grad():
        return torch.as_tensor(model(noise, 10, states).sample)


def test_an_offloaded_model_that_was_cast_is_checked_against_its_files(delta: Delta) -> None:
    model = unet(torch_dtype=torch.bfloat16)
    model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.data += 1
    accelerate.cpu_offload(model, torch.device("cpu"))
    with pytest.raises(AttachError, match=r"attn1\.to_q\.weight: the live weight is not the one in the base's file"):
        attach(model, delta)


def test_weights_that_are_nowhere_are_asked_for() -> None:
    model = named(nn.Linear(12, 8))
    delta = random_delta(live_zero(model))
    with pytest.raises(AttachError, match=r"model\.layer\.weight: the live weight is offloaded.*base=open_base"):
        attach(copy.deepcopy(model).to("meta"), delta)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantized_layers_are_refused_by_dtype(dtype: torch.dtype) -> None:
    model = named(nn.Linear(12, 8))
    delta = random_delta(live_zero(model))
    model.layer.weight = nn.Parameter(torch.zeros(48, 1).to(dtype), requires_grad=False)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(AttachError, match=rf"model\.layer\.weight: the live weight is (quantized|stored).* \(?{name}"):
        attach(model, delta)


def test_a_wrong_model_is_told_with_all_that_differs() -> None:
    model = nn.Sequential(named(nn.Linear(12, 8)), named(nn.Linear(8, 6)), named(nn.Linear(6, 5)))
    delta = random_delta(live_zero(model))
    model[0].layer.weight.data += 1
    model[2].layer.weight.data += 1
    with pytest.raises(BaseMismatchError, match=r"2 of 3 parameters do not fit: model\.0\.layer\.weight, model\.2\."):
        attach(model, delta)


def test_the_base_that_is_given_is_the_one_that_is_read(tmp_path: Path, delta: Delta) -> None:
    other: Base = open_base(base_path())
    broken = unet()
    broken.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.data += 1
    broken.save_pretrained(tmp_path / "unet")
    with pytest.raises(BaseMismatchError, match="made for another base"):
        attach(unet(), delta, base=open_base(tmp_path / "unet"))
    with attach(unet(), delta, base=other) as handle:
        assert set(handle.kinds()) == set(delta)
