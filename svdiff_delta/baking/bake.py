"""Baking: stream a base with δ in it to a full checkpoint, in the base's own layout (spec, section 6.6)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from svdiff_delta._util.atomic import replace_file, replace_folder
from svdiff_delta.base_model.devices import find_device, on_host
from svdiff_delta.base_model.layout import is_index, read_json
from svdiff_delta.base_model.mapped_tensor import TORCH_DTYPES
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import InputError, OutputError, TensorError
from svdiff_delta.format.container import header_bytes
from svdiff_delta.format.dtypes import FLOATING, Dtype
from svdiff_delta.format.entry import ITEM_SIZE
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.format.stacked import Slice, slice_of
from svdiff_delta.ops.totals import weighted_total
from svdiff_delta.ops.weights import WeightedDelta
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import Progress
from svdiff_delta.svd.shifted_weight import shifted_parts, total_of
from svdiff_delta.svd.verify import VerifiedBase
from svdiff_delta.svd.workspace import Workspace

from .plan import TORCH_NAMES, Item, Plan, Unchanged, layout_of, plan_bake
from .workers import Workers
from .write_queue import WriteQueue


class Loss(NamedTuple):
    """Squared Frobenius norms of a ΔW, and of what rounding the baked weight lost of it."""

    change: float
    lost: float

    @property
    def share(self) -> float:
        """‖lost‖ / ‖ΔW‖."""
        return sqrt(self.lost / self.change) if self.change else 0.0


@dataclass(frozen=True)
class Baked:
    """What was baked.

    Attributes:
        path: the folder or file.
        losses: what rounding to F16 or BF16 lost of each ΔW, by parameter; nothing stands here for wider dtypes.
        loading: the call that loads it, where that takes more than the folder's name: a variant, half precision.
        remarks: what a person would take wrongly.
    """

    path: Path
    losses: Mapping[str, Loss]
    loading: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def loss(self) -> Loss:
        """The losses of all parameters together."""
        return Loss(sum(loss.change for loss in self.losses.values()), sum(loss.lost for loss in self.losses.values()))


@on_host
def bake(
    base: Base,
    deltas: Sequence[WeightedDelta],
    output: str | PathLike[str],
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    unchanged: Unchanged = "copy",
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    building: Progress | None = None,
    device: str | torch.device = "cpu",
) -> Baked:
    """Write a full checkpoint with W + U diag(max(Σ wᵢδᵢ, −σ)) Vᵀ for every shifted weight (Eq. 2 and 4).

    ΔW is computed in float32 or better, added to the base's unrounded weight, and rounded once to the output's dtype.
    Everything is checked before the first byte is written; what a crash leaves is not called `output`.

    Args:
        base: an opened base; a folder bakes to a folder, a single file to a file.
        deltas: deltas, or pairs (delta, weight) as `add` takes them; they are summed first and clipped once.
        output: the folder or file to write, atomically.
        dtype: the dtype of all floating-point weights of the output; the base's own if not given.
        overwrite: whether an existing output may be replaced.
        unchanged: "copy", "hardlink" or "symlink" for files that are as in the base.
        cache: where bases are kept; the default cache if not given.
        progress: called with the numbers of bytes written and in all.
        building: called while bases that are not in the cache are computed, with the work done and in all.
        device: where ΔW is computed: a GPU is faster on large weights, and the last bits differ from a CPU's.

    Raises:
        OutputError: the output exists, the disk has too little space, or refused.
        InputError: `base` is no opened base, there is no delta or no such device, or a weight is not finite.
        SelectionError: a selector of a weight is unknown or matches nothing.
        BaseMismatchError: a delta was made for another base.
        BaseError: the base lacks a parameter, or a weight in it cannot be used.
        TensorError: a baked weight is too large for the output's dtype.
    """
    given: object = base  # which a program without type checks may have swapped with `deltas`
    if not isinstance(given, Base):
        what = type(given).__name__
        raise InputError(f"`base` is a {what}, not an opened base", fix="pass `open_base(path)` first, then the deltas")
    output, place = Path(output), find_device(device)
    plan = plan_bake(base, deltas, output, dtype=dtype, overwrite=overwrite, unchanged=unchanged, cache=cache)
    verified = plan.check_weights(building).on(place)
    return write_bake(plan, verified, overwrite=overwrite, progress=progress)


@on_host
def write_bake(
    plan: Plan, verified: VerifiedBase, *, overwrite: bool = False, progress: Progress | None = None
) -> Baked:
    """Write what was planned.

    Args:
        plan: the bake.
        verified: the plan's base, as `plan.check_weights` returns it; its weights are not verified again.
        overwrite: whether an existing output may be replaced.
        progress: called with the numbers of bytes written and in all.

    Raises:
        OutputError, BaseMismatchError, BaseError, TensorError: as `bake`.
    """
    writer = _Writer(plan, verified, progress)
    if plan.base.path.is_file():
        with replace_file(plan.output, overwrite=overwrite) as stream:
            writer.weights(plan.items[0], stream)
    else:
        with replace_folder(plan.output, overwrite=overwrite) as folder:
            for item in plan.items:
                target = folder / item.target
                target.parent.mkdir(exist_ok=True)
                writer.file(item, target)
    return Baked(plan.output, dict(sorted(writer.losses.items())), plan.loading, plan.remarks)


class _Writer:
    """Writes the files of a plan, counts bytes, and notes what rounding loses."""

    def __init__(self, plan: Plan, verified: VerifiedBase, progress: Progress | None) -> None:
        self.plan, self.verified, self.progress = plan, verified, progress
        self.done, self.total = 0, sum(item.bytes for item in plan.items)
        self.losses: dict[str, Loss] = {}
        parts = ((slot, slice_of(key)) for slot, key in plan.keys)
        self.stacks = {(slot, part.stack) for slot, part in parts if part is not None}

    def count(self, size: int) -> None:
        self.done += size
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)

    def file(self, item: Item, target: Path) -> None:
        if item.slot is not None:
            with target.open("wb") as stream:
                self.weights(item, stream)
            return
        if item.settings and self.plan.dtype is not None:
            settings = _with_dtype(item, self.plan.items, self.plan.dtype)
            target.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
        else:
            _bring(item.source, target, self.plan.unchanged)
        self.count(item.bytes)

    def weights(self, item: Item, stream: IO[bytes]) -> None:
        """Write a weight file in the order of the base's file; what is made is written while the next is made."""
        slot = item.slot or ""
        if self.plan.base.components[slot].original is not None:
            self.original(item, stream)
            return
        layout, metadata, sizes = layout_of(self.plan.base.components[slot], item.source, self.plan.dtype)
        stream.write(header_bytes(layout, metadata, sizes))
        with WriteQueue(stream, self.count) as queue, Workers(queue) as workers:
            for key, dtype, shape in layout:
                for part in self.parts(slot, key, shape):
                    if shifted := self.spectral(slot, part):
                        workers.compute(partial(self.raw, slot, part, dtype), prod(shifted.shape))
                    else:
                        workers.pass_on(partial(self.raw, slot, part, dtype))

    def parts(self, slot: str, key: str, shape: tuple[int, ...]) -> list[str]:
        """Return the keys of what is read, computed and written at a time of a tensor.

        That is the tensor, or each slice of one that experts are shifted of: their bytes stand one after another.
        """
        return [str(Slice(key, number)) for number in range(shape[0])] if (slot, key) in self.stacks else [key]

    def original(self, item: Item, stream: IO[bytes]) -> None:
        """Write a single file of another layout: every tensor of the base's file, with the weights that it holds."""
        slot, held = item.slot or "", held_weights(self.plan.base, self.plan.keys)
        layout, metadata, sizes = layout_of(self.plan.base.components[slot], item.source, self.plan.dtype)
        stream.write(header_bytes(layout, metadata, sizes))
        with WriteQueue(stream, self.count) as queue, Workers(queue) as workers:
            for key, dtype, shape in layout:
                if dtype in FLOATING and key in held:
                    workers.compute(partial(self.merged, slot, key, dtype, held[key]), prod(shape))
                else:
                    workers.pass_on(partial(self.stored, slot, key, dtype))

    def stored(self, slot: str, key: str, dtype: str) -> Tensor:
        """Return the bytes of a tensor of a single file that no δ changes."""
        if dtype not in FLOATING:
            return self.plan.base.read_stored(slot, key, raw=True)
        values = self.plan.base.read_stored(slot, key).to(TORCH_DTYPES[dtype])
        return values.contiguous().flatten().view(torch.uint8)

    def merged(self, slot: str, key: str, dtype: str, held: Sequence[tuple[str, str]], space: Workspace) -> Tensor:
        """Return the bytes of a tensor of a single file with the baked weights that it holds: (component, key)."""
        target = self.plan.base.read_stored(slot, key).to(TORCH_DTYPES[dtype], copy=True).contiguous()
        for part, weight in held:
            if layout := self.plan.base.components[part].original:
                layout.put(weight, key, self.baked(part, weight, dtype, space), target)
        return target.flatten().view(torch.uint8)

    def spectral(self, slot: str, key: str) -> Parameter | None:
        """Return the parameter of a weight whose singular values are shifted; None if a tensor is no such weight."""
        name = self.plan.keys.get((slot, key))
        parameter = None if name is None else self.plan.parameters[name]
        return parameter if parameter and parameter.kind == "spectral" else None

    def raw(self, slot: str, key: str, dtype: str, space: Workspace | None = None) -> Tensor:
        """Return the bytes of a tensor as they stand in the output: those of the base where it is no weight."""
        if dtype not in FLOATING:
            return self.plan.base.read_bytes(f"{slot}.{key}")
        return self.baked(slot, key, dtype, space or Workspace()).contiguous().flatten().view(torch.uint8)

    def baked(self, slot: str, key: str, dtype: str, space: Workspace) -> Tensor:
        """Return a weight as it stands in the output; W itself where δ is 0."""
        plan, name = self.plan, self.plan.keys.get((slot, key))
        target = TORCH_DTYPES[dtype]
        shift = None
        if name is not None:
            shift = weighted_total(name, plan.parameters[name], plan.deltas, [of.get(name, 0.0) for of in plan.factors])
        if name is None or shift is None or not shift.any():
            return plan.base.read(f"{slot}.{key}").to(target)
        prepared, half = self.verified.prepare(name, plan.cache), ITEM_SIZE[dtype] == 2
        weight, extremes, losses = prepared.weight, list[Tensor](), list[Loss]()
        found = space.take("baked", tuple(weight.shape), dtype=target)
        for part in shifted_parts(prepared, torch.from_numpy(shift), weight, found, space, prepared.device):
            own, change = part.own.cpu(), part.change.cpu()
            total = own + change if half else total_of(own, change)
            extremes += torch.aminmax(total)
            part.place.copy_(total)
            if half:
                losses.append(_loss(own.to(target), part.place, change))
        _check_finite(name, torch.stack(extremes).to(target), dtype)
        if half:
            self.losses[name] = Loss(sum(loss.change for loss in losses), sum(loss.lost for loss in losses))
        return found


def held_weights(base: Base, keys: Mapping[tuple[str, str], str]) -> dict[str, list[tuple[str, str]]]:
    """Return which of some weights, by component and key, each tensor of a base's single file holds."""
    held: dict[str, list[tuple[str, str]]] = {}
    for slot, key in sorted(keys):
        layout = base.components[slot].original
        for source in sorted(layout.sources(key)) if layout else ():
            held.setdefault(source, []).append((slot, key))
    return held


def _check_finite(name: str, extremes: Tensor, dtype: str) -> None:
    """Raise TensorError unless the least and largest numbers of a baked weight are finite when they are rounded."""
    if not extremes.isfinite().all():
        raise TensorError(
            f"{name}: the baked weight is too large for {dtype}", fix='use `dtype="BF16"` or `dtype="F32"`'
        )


def _loss(before: Tensor, after: Tensor, change: Tensor) -> Loss:
    """Return what of a change is not found in the difference of the two rounded weights."""
    lost = after.to(change.dtype).sub_(before).sub_(change)
    return Loss(float(change.square().sum(dtype=torch.float64)), float(lost.square_().sum(dtype=torch.float64)))


def _with_dtype(item: Item, items: Sequence[Item], dtype: Dtype) -> dict[str, Any]:
    """Return a configuration that says the output's dtype, or an index of shards with their new size."""
    settings = read_json(item.source)
    if not is_index(item.source.name):
        return _said_dtype(settings, TORCH_NAMES[dtype])
    if isinstance(settings.get("metadata"), dict) and "total_size" in settings["metadata"]:
        beside = [other for other in items if other.slot and other.target.parent == item.target.parent]
        settings["metadata"]["total_size"] = sum(other.body for other in beside)
    return settings


def _said_dtype(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration, and those in it such as `text_config`, with this dtype wherever it says one.

    transformers 5 says `dtype`, older versions `torch_dtype`. What says none, or null, goes by the weights.
    """
    changed = dict(settings)
    for key, value in settings.items():
        if key in ("dtype", "torch_dtype") and isinstance(value, str):
            changed[key] = name
        elif key.endswith("_config") and isinstance(value, dict):
            changed[key] = _said_dtype(value, name)
    return changed


def _bring(source: Path, target: Path, how: Unchanged) -> None:
    source = source.resolve()  # files in the Hub's cache are links themselves
    if how == "copy":
        shutil.copyfile(source, target)
    elif how == "symlink":
        target.symlink_to(source)
    else:
        try:
            os.link(source, target)
        except OSError as error:
            raise OutputError(
                f"{target.name}: no hard link could be made ({error.strerror})",
                fix='use `unchanged="symlink"` or `unchanged="copy"`',
            ) from None
