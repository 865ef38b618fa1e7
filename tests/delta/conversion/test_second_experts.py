"""A pipeline with two denoisers: an adapter is for one of them, and comes back to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from support.adapters import save_tensors
from support.models import base_delta
from support.weights import normal
from support.zoo.registry import DENOISERS
from support.zoo.trial import build

from svdiff_delta import Delta, convert, open_base, select
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import InputError

from .test_spellings import FAMILIES


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Delta]:
    """Wan 2.2's two transformers, and a δ on the first block of both."""
    folder, kind = tmp_path_factory.mktemp("experts"), FAMILIES["Wan"]
    for slot in ("transformer", "transformer_2"):
        build(kind, DENOISERS[kind]).save_pretrained(folder / slot)
    parts = {slot: ["diffusers", kind] for slot in ("transformer", "transformer_2")}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", **parts}))
    base = open_base(folder)
    delta = base_delta(base, *(f"{slot}.blocks.0.attn1.to_*" for slot in parts), size=0.1)
    return base, Delta({name: abs(shift) for name, shift in delta.items()}, delta.metadata)


@pytest.mark.parametrize("dialect", ["diffusers", "comfyui", "kohya", "lycoris"])
def test_a_file_is_for_one_expert(tmp_path: Path, experts: tuple[Base, Delta], dialect: str) -> None:
    base, delta = experts
    with pytest.raises(InputError, match=r"is of transformer_2, for which programs take a file of its own"):
        convert(delta, to=dialect, base=base, rank=100)
    for slot in base.components:
        some, path = select(delta, f"{slot}.*"), tmp_path / f"{slot}.safetensors"
        done = convert(some, to=dialect, base=base, rank=100, output=path)
        assert not done.left_out
        with safe_open(path, "pt") as file:
            assert not any("transformer_2" in key for key in file.keys())  # noqa: SIM118 - it is no mapping
        assert convert(path, base=base).delta.keys() == some.keys()
        tensors = load_file(path)  # as another program would have written it
        save_tensors(path, tensors)
        assert convert(path, base=base, component=slot).delta.keys() == some.keys()
        told = convert(path, base=base, min_energy=0.0)
        assert {name.partition(".")[0] for name in told.delta} == {"transformer"}
        assert any("its keys name no expert: taken for transformer" in remark for remark in told.remarks)


@pytest.mark.parametrize("method", ["Lora", "HRA", "LoHa"])
def test_a_folder_of_peft_is_for_one_expert(tmp_path: Path, experts: tuple[Base, Delta], method: str) -> None:
    base, _ = experts
    kind = FAMILIES["Wan"]
    config = getattr(peft, f"{method}Config")(r=2, target_modules=["attn1.to_q"])
    model = peft.get_peft_model(build(kind, DENOISERS[kind]), config)
    for parameter in model.parameters():
        parameter.data += 0.01 * normal(*parameter.shape) if parameter.requires_grad else 0
    model.save_pretrained(tmp_path / "x")
    for slot in base.components:
        told = convert(tmp_path / "x", base=base, component=slot, min_energy=0.0)
        assert [*told.delta] == [f"{slot}.blocks.0.attn1.to_q.weight"]
        assert not any("name no expert" in remark for remark in told.remarks)
    guessed = convert(tmp_path / "x", base=base, min_energy=0.0)
    assert [*guessed.delta] == ["transformer.blocks.0.attn1.to_q.weight"]
    assert "its keys name no expert: taken for transformer; `component` names the other" in guessed.remarks
    shutil.copytree(tmp_path / "x", tmp_path / "both/transformer_2")  # what a folder is called counts
    called = convert(tmp_path / "both", base=base, min_energy=0.0)
    assert [*called.delta] == ["transformer_2.blocks.0.attn1.to_q.weight"]


def test_a_folder_that_says_its_expert_comes_back_to_it(tmp_path: Path, experts: tuple[Base, Delta]) -> None:
    base, delta = experts
    for index, slot in enumerate(base.components):
        some = select(delta, f"{slot}.*")
        convert(some, to="peft", base=base, rank=100, output=tmp_path / f"{index}")
        assert convert(tmp_path / f"{index}", base=base).delta.keys() == some.keys()


def test_a_component_that_the_base_lacks_is_refused(tmp_path: Path, experts: tuple[Base, Delta]) -> None:
    base, delta = experts
    with pytest.raises(InputError, match="the base has no component 'unet': name one of transformer, transformer_2"):
        convert(delta, to="kohya", base=base, rank=1, component="unet")


def test_a_folder_with_a_file_for_each_is_converted_one_by_one(tmp_path: Path, experts: tuple[Base, Delta]) -> None:
    """As `train --method lora` writes it."""
    base, delta = experts
    name = "pytorch_lora_weights.safetensors"
    for slot, place in (("transformer", tmp_path), ("transformer_2", tmp_path / "transformer_2")):
        place.mkdir(exist_ok=True)
        convert(select(delta, f"{slot}.*"), to="diffusers", base=base, rank=100, output=place / name)
    with pytest.raises(InputError, match=rf"holds a file for each of two experts: convert {name} and transformer_2 o"):
        convert(tmp_path, base=base)
    for slot, path in (("transformer", tmp_path / name), ("transformer_2", tmp_path / "transformer_2")):
        assert {key.partition(".")[0] for key in convert(path, base=base).delta} == {slot}
