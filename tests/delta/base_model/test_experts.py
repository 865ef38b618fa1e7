"""Stacked experts in a base: their names, axes and bytes, in files that stack them and in files that do not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.experts import OWN, mixture
from support.models import base_delta

from svdiff_delta import bake, convert, open_base, select, zero_delta
from svdiff_delta.base_model import opened
from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.coverage import count_values, remarks
from svdiff_delta.base_model.experts import stacks
from svdiff_delta.base_model.kinds import base_kinds, shiftable
from svdiff_delta.errors import BaseError, InputError
from svdiff_delta.format.stacked import slice_of
from svdiff_delta.svd.build import build_basis
from svdiff_delta.svd.fingerprint import fingerprint, round_weight
from svdiff_delta.svd.fingerprint_cache import recall
from svdiff_delta.svd.prepare import identify_weight
from svdiff_delta.svd.verify import verify_base

STACK = "model.model.layers.0.mlp.experts.gate_up_proj"


def saved(folder: Path, name: str = "Qwen3Moe", *, stacked: bool = True) -> Base:
    mixture(name).save_pretrained(folder, save_original_format=not stacked)
    return open_base(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return saved(tmp_path_factory.mktemp("stacked"))


@pytest.mark.parametrize("name", OWN)
def test_the_axis_is_that_of_the_outputs_in_all_classes(name: str) -> None:
    """What leads out of an experts layer has the model's width on its side of outputs, what leads in on the other."""
    model = mixture(name)
    found = [(key, axis) for key, kind, axis in shiftable(model) if key.endswith("]") and kind == "spectral"]
    assert found
    for key, axis in found:
        shape = model.get_parameter(str(slice_of(key)).partition("[")[0]).shape[1:]
        outwards = "down" in key or "output_linear" in key
        assert (shape[axis] == 16) == outwards, key
        assert (shape[1 - axis] == 16) != outwards, key


def test_a_class_that_says_nothing_and_is_not_known_has_no_experts() -> None:
    layer = mixture("Mixtral").model.layers[0].mlp.experts
    del layer.__dict__["is_transposed"]
    assert [*stacks(layer)] == []


def test_a_slice_is_read_by_its_own_bytes(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    inner = opened.map_tensor
    monkeypatch.setattr(opened, "map_tensor", lambda *args: asked.append(args[2]) or inner(*args))
    whole = load_file(base.path / "model.safetensors")[STACK.partition(".")[2]]
    for number in (2, 0, 1):
        assert torch.equal(base.read(f"{STACK}[{number}]"), whole[number])
    assert [entry.stop - entry.start for entry in asked] == [whole[0].nbytes] * 3
    assert base.shape(f"{STACK}[1]") == (24, 16)
    assert base.stored_name(f"{STACK}[1]") == f"{STACK}[1]"
    assert torch.equal(base.read_bytes(f"{STACK}[1]").view(torch.float32), whole[1].flatten())


@pytest.mark.parametrize("name", [f"{STACK}[3]", f"{STACK}[03]", "model.lm_head.weight[0]", "model.norm.weight[0]"])
def test_what_is_no_slice_is_not_there(base: Base, name: str) -> None:
    with pytest.raises(BaseError, match="has no such parameter"):
        base.locate(name)


def test_the_fingerprint_is_that_of_the_slice_and_is_remembered(base: Base) -> None:
    known = identify_weight(base, f"{STACK}[1]", 0)
    alone = torch.nn.Linear(16, 24, bias=False)
    alone.weight.data = base.read(f"{STACK}[1]").clone()
    assert known.fingerprint == fingerprint(round_weight(alone.weight.detach(), known.dtype), 0)
    assert recall(base, f"{STACK}[1]", 0, None) in (known, None)
    assert identify_weight(base, f"{STACK}[0]", 0).fingerprint != known.fingerprint


def test_experts_are_shifted_by_default_and_by_their_word(base: Base) -> None:
    kinds = base_kinds(base)
    slices = [name for name in kinds if slice_of(name)]
    assert len(slices) == 6
    assert [*zero_delta(base, "experts")] == slices
    assert [*zero_delta(base)] == [*kinds]
    assert [*build_basis(base, f"{STACK}[1]")] == [f"{STACK}[1]"]
    assert not any(map(slice_of, zero_delta(base, "!experts")))
    assert verify_base(base, [zero_delta(base)]).found.keys() == kinds.keys()
    covered, whole = count_values(base, kinds)
    assert covered / whole > 0.75
    assert remarks(base, kinds) == []
    with pytest.raises(BaseError, match=r"its experts are parameters of their own: name them, as in `model.*\[0\]`"):
        zero_delta(base, STACK)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "GptOss"])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_bake_puts_slices_together_each_read_once(
    tmp_path: Path, name: str, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tmp_path / "base", name, stacked=stacked)
    delta = base_delta(base, size=0.3)
    some = select(delta, *[each for index, each in enumerate(delta) if index % 2])
    first = bake(base, [some], tmp_path / "first")
    reads: list[Any] = []
    inner = opened.map_tensor
    monkeypatch.setattr(opened, "map_tensor", lambda *args: reads.append(args[2]) or inner(*args))
    baked = bake(base, [some], tmp_path / "baked")
    counts = Counter((entry.start, entry.stop) for entry in reads)
    assert all(len(entry.shape) < 3 for entry in reads)
    wanted = {base.locate(each)[3][2:] for each in some}
    assert {counts[place] for place in wanted} == {2}  # its fingerprint, and the bake
    assert {count for place, count in counts.items() if place not in wanted} == {1}
    before, after = (load_file(path / "model.safetensors") for path in (base.path, baked.path))
    assert [*before] == [*after]
    assert (first.path / "model.safetensors").read_bytes() == (baked.path / "model.safetensors").read_bytes()
    for key, weight in before.items():
        for number in range(len(weight)) if f"model.{key}[0]" in base_kinds(base) else [None]:
            part = f"model.{key}" if number is None else f"model.{key}[{number}]"
            own, found = (each if number is None else each[number] for each in (weight, after[key]))
            if part not in some:
                assert torch.equal(own, found), part
                continue
            parameter = some.metadata.parameters[part]
            shift = torch.from_numpy(some[part].astype("f8"))
            if parameter.kind == "elementwise":
                assert torch.allclose(found.double(), own.double() + shift)
                continue
            moved = own.half().double().movedim(parameter.axis, 0)
            U, sigma, Vt = torch.linalg.svd(moved, full_matrices=False)
            change = (U * torch.maximum(shift, -sigma) @ Vt).movedim(0, parameter.axis)
            assert torch.allclose(found.double(), own.double() + change, atol=1e-6), part


@pytest.mark.parametrize("stacked", [True, False])
def test_a_tuned_mixture_of_experts_is_converted_expert_by_expert(tmp_path: Path, stacked: bool) -> None:
    base = saved(tmp_path / "base", stacked=stacked)
    delta = base_delta(base, "experts", size=0.3)
    some = select(delta, *[*delta][1::2])
    tuned = bake(base, [some], tmp_path / "tuned")
    found = convert(tuned.path, from_="full", base=base).delta
    assert [*found] == [*some]
    for name in some:
        sigma = torch.linalg.svdvals(base.read(name).double()).numpy()
        assert abs(found[name] - some[name].clip(-sigma)).max() < 1e-4


def test_experts_in_float8_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    key = STACK.partition(".")[2]
    save_file({**tensors, key: tensors[key].to(torch.float8_e4m3fn)}, path, {"format": "pt"})
    base = open_base(tmp_path)
    with pytest.raises(BaseError, match=r"gate_up_proj\[0\]: is quantized \(dtype F8_E4M3, float8"):
        build_basis(base, f"{STACK}[0]")


def test_only_peft_has_a_place_for_experts(tmp_path: Path) -> None:
    for stacked in (True, False):
        base = saved(tmp_path / str(stacked), stacked=stacked)
        delta = base_delta(base, "experts", "*q_proj*")
        with pytest.raises(
            InputError, match=r"is one of several experts whose weights are stacked, for which only peft has a place"
        ):
            convert(delta, to="lycoris", rank=2, base=base, output=tmp_path / "out")
        done = convert(delta, to="lycoris", rank=2, base=base, output=tmp_path / f"o{stacked}", allow_unmatched=True)
        assert len(done.left_out) == len(delta) - 1
