"""Fused weights: written several at once, to the same bits, in little memory, and only where something changes."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.live import delta_of, double_copy, relative, run, tiny
from support.models import live_zero, named, random_delta
from torch import Tensor, nn

from svdiff_delta import select
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.errors import AttachError
from svdiff_delta.format.delta import Delta
from svdiff_delta.runtime import attach
from svdiff_delta.runtime.fused import FusedPatch
from svdiff_delta.svd import shifted_weight
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.decomposition import Basis


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stack(count: int, side: int, folder: Path) -> tuple[Any, Base, Delta]:
    """Layers of one size with their file, and a δ on all of them."""
    model: Any = nn.Sequential(*(nn.Linear(side, 2 * side) for _ in range(count))).requires_grad_(False)
    save_file(model.state_dict(), folder / "model.safetensors")
    base = open_base(folder / "model.safetensors")
    return model, base, random_delta(live_zero(model), size=0.3)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the weights that are written."""
    names: list[str] = []
    change = FusedPatch._change

    def noted(site: FusedPatch, *args: Any) -> None:
        names.append(site.name)
        change(site, *args)

    monkeypatch.setattr(FusedPatch, "_change", noted)
    return names


def only(delta: Delta, number: int) -> Delta:
    """The δ of one layer, and 0 on all others."""
    values = {name: shift if f".{number}." in name else np.zeros(shift.size) for name, shift in delta.items()}
    return Delta(values, delta.metadata)


@pytest.mark.parametrize("name", ["UNet", "Stable Diffusion 3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shifted_weight, "BLOCK", 300)
    save_file({key: value.clone() for key, value in tiny(name).state_dict().items()}, tmp_path / "m.safetensors")
    base, delta, found = open_base(tmp_path / "m.safetensors"), delta_of(name), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        model = tiny(name).to(dtype)
        with attach(model, delta, base=base, mode="fused") as handle:
            handle.set_scale(0.5)
            assert torch.get_num_threads() == threads
            found.append({key: value.clone() for key, value in model.state_dict().items()})
    assert all(torch.equal(value, other[key]) for other in found[1:] for key, value in found[0].items())
    torch.set_num_threads(1)
    plain = tiny(name).to(dtype).state_dict()
    assert not all(torch.equal(value, plain[key]) for key, value in found[0].items())


def owned() -> int:
    """Bytes of all tensors that Python has made since it was told to freeze what there was, each storage once."""
    gc.collect()  # who lists objects while a thread ends a function lets what that held live on until here
    storages = (each.untyped_storage() for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.fixture
def _frozen() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_change_of_scale_takes_at_most_a_third_of_the_model_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Counted while products are computed, pages of the files included: some weights at a time, no second copy."""
    monkeypatch.setattr(shifted_weight, "BLOCK", 1 << 12)
    torch.set_num_threads(threads)
    model, base, delta = stack(24, 96, tmp_path)
    calls, seen = itertools.count(), list[int]()
    write = Basis.write_change

    def watched(self: Basis, *args: Any) -> None:
        write(self, *args)
        if next(calls) % 13 == 0:  # to count takes a while
            seen.append(owned() - before)

    with attach(model, delta, base=base, mode="fused") as handle:
        size = sum(parameter.nbytes for parameter in model.parameters())
        before = owned()
        monkeypatch.setattr(Basis, "write_change", watched)
        handle.set_scale(0.5)
    assert len(seen) >= 9
    assert 0 < max(seen) <= 0.35 * size


def test_only_a_weight_whose_shift_changes_is_written(tmp_path: Path, written: list[str]) -> None:
    model, base, delta = stack(3, 8, tmp_path)
    handle = attach(model, only(delta, 1), base=base, mode="fused")
    handle.set_scale(1.0)
    handle.swap(only(delta, 1))
    assert written == ["model.1.weight"]
    handle.swap(delta)
    assert sorted(written[1:]) == ["model.0.weight", "model.2.weight"]
    handle.disable()
    handle.disable()
    assert sorted(written[3:]) == [f"model.{index}.weight" for index in range(3)]
    handle.detach()


def test_a_slice_of_a_model_costs_what_it_shifts(tmp_path: Path, written: list[str]) -> None:
    model, base, delta = stack(4, 8, tmp_path)
    deltas = {"all": delta, "one": select(delta, "model.2.*")}
    with attach(model, deltas, base=base, mode="fused") as handle:
        written.clear()
        handle.set_adapters(["all"])
        handle.set_adapters(["all", "one"], [1.0, 0.5])
    assert written == ["model.2.weight", "model.2.weight"]


def test_detaching_leaves_alone_what_was_not_changed(tmp_path: Path) -> None:
    model, base, delta = stack(2, 8, tmp_path)
    before = [layer.weight.clone() for layer in model]
    handle = attach(model, only(delta, 1), base=base, mode="fused")
    model[0].weight.data += 1  # by a LoRA perhaps
    handle.set_scale(0.5)
    handle.detach()
    assert torch.equal(model[0].weight, before[0] + 1)
    assert torch.equal(model[1].weight, before[1])


@pytest.mark.parametrize("shifted", [0, 1])
def test_what_others_change_is_noticed_before_anything_is_written(tmp_path: Path, shifted: int) -> None:
    model, base, delta = stack(2, 8, tmp_path)
    handle = attach(model, only(delta, shifted), base=base, mode="fused")
    model[0].weight.data[0, 0] += 1e-3
    now = [layer.weight.clone() for layer in model]
    with pytest.raises(AttachError, match=r"model\.0\.weight: the weight was changed after the delta was fused"):
        handle.swap(delta)
    assert all(torch.equal(layer.weight, kept) for layer, kept in zip(model, now, strict=True))
    handle.detach(force=True)


@pytest.mark.parametrize("wrong", ["0", "1", "2"])
def test_the_first_wrong_weight_by_name_is_told_whichever_thread_meets_one_first(tmp_path: Path, wrong: str) -> None:
    model, base, delta = stack(3, 8, tmp_path)
    for layer in model[int(wrong) :]:
        layer.weight.data += 1
    for _ in range(4):
        with pytest.raises(AttachError, match=rf"model\.{wrong}\.weight: the live weight is not the one"):
            attach(model, delta, base=base)


def test_a_model_may_change_its_strides_while_a_delta_is_fused_into_it() -> None:
    model, delta = tiny("UNet"), delta_of("UNet")
    plain = run(model, "UNet")
    handle = attach(model, delta, mode="fused")
    model.to(memory_format=torch.channels_last)
    handle.set_scale(0.5)
    half = double_copy(tiny("UNet"), Delta({name: 0.5 * value for name, value in delta.items()}, delta.metadata))
    assert relative(run(model, "UNet"), run(half, "UNet")) < 1e-5
    handle.detach()
    assert relative(run(model, "UNet"), plain) < 1e-5  # torch sums in another order there
    kept = tiny("UNet").state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as the file": lambda weight: weight,
    "cast": lambda weight: weight.bfloat16(),
    "cast twice": lambda weight: weight.half().bfloat16(),
    "in other strides": lambda weight: weight.t().contiguous().t(),
    "with other signs of 0": lambda weight: torch.where(weight == 0, -weight, weight),
}


@pytest.mark.parametrize("way", CASTS)
def test_a_live_weight_is_found_to_be_the_file_s(tmp_path: Path, way: str) -> None:
    model: Any = named(nn.Linear(700, 500, bias=False))  # more than one piece
    model.layer.weight.data[3, :5] = 0
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    delta = live_zero(model)
    model.layer.weight.data = CASTS[way](model.layer.weight.data)
    kept = model.layer.weight.clone()
    attach(model, delta, base=open_base(tmp_path / "m.safetensors"), exact=True).detach()
    model.layer.weight.data[-1, -1] += 1
    with pytest.raises(AttachError, match=r"the live weight is not the one in the base's file"):
        attach(model, delta, base=open_base(tmp_path / "m.safetensors"), exact=True)
    model.layer.weight.data[-1, -1] = kept[-1, -1]
    assert torch.equal(model.layer.weight, kept)


def test_a_basis_that_is_pruned_meanwhile_is_that_of_w_not_of_the_fused_weight(tmp_path: Path) -> None:
    model: Any = nn.Sequential(named(nn.Linear(12, 8)), named(nn.Conv1d(6, 5, 1)))
    cache, delta, found = BasisCache(tmp_path), random_delta(live_zero(model), size=0.3), []
    for pruned in (False, True):
        with attach(model, delta, mode="fused", cache=cache) as handle:
            if pruned:
                cache.prune(0)
            handle.set_scale(0.5)
            found.append([parameter.clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
