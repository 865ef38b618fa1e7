"""Baking: stream a base with δ in it to a full checkpoint, in the base's own layout (spec, section 6.6)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Final

import torch
from torch import Tensor

from ._atomic import check_output, replace_file, replace_folder
from .base import Base
from .cache import BasisCache
from .codec import Dtype
from .combine import combine_parameters
from .component import Component
from .container import header_bytes
from .delta import Delta
from .errors import BaseMismatchError, InputError, TensorError
from .identity import TORCH_DTYPE
from .layout import PICKLE_SUFFIXES, read_json
from .parameter import Parameter
from .prepare import Progress, fit
from .totals import weighted_total
from .weights import Weight

FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
WEIGHT_SUFFIXES: Final = PICKLE_SUFFIXES | {".safetensors", ".onnx", ".msgpack", ".h5", ".pb"}


@dataclass(frozen=True)
class _Plan:
    """What to add to which weights, checked; nothing is written before it stands."""

    base: Base
    deltas: Sequence[Delta]
    factors: Sequence[float]
    parameters: dict[str, Parameter]
    keys: dict[tuple[str, str], str]  # parameter name by component and the base's own key
    cache: BasisCache
    dtype: Dtype | None


def bake(
    base: Base,
    deltas: Sequence[Delta | tuple[Delta, float]],
    output: str | PathLike[str],
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a full checkpoint with W + U diag(max(Σ wᵢδᵢ, −σ)) Vᵀ for every shifted weight (Eq. 2 and 4).

    ΔW is computed in float32 or better, added to the base's unrounded weight, and rounded once to the output's dtype.

    Args:
        base: an opened base; a folder bakes to a folder, a single file to a file.
        deltas: deltas, or (delta, weight) pairs; they are summed first and clipped once.
        output: the folder or file to write, atomically.
        dtype: the dtype of all floating-point weights of the output; the base's own if not given.
        overwrite: whether an existing output may be replaced.
        cache: where bases are kept; the default cache if not given.
        progress: called with the numbers of bytes written and in all.

    Returns:
        The output's path.

    Raises:
        OutputError: the output exists, or the disk refused.
        BaseMismatchError: a delta was made for another base.
        BaseError: the base lacks a parameter, or a weight in it cannot be used.
        TensorError: a baked weight is too large for the output's dtype.
    """
    output = Path(output)
    check_output(output, overwrite=overwrite)
    pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in deltas]
    plan = _check(base, [pair[0] for pair in pairs], [float(pair[1]) for pair in pairs], cache or BasisCache(), dtype)
    meter = _Meter(progress, sum(path.stat().st_size for part in base.components.values() for path in part.files))
    if base.path.is_file():
        (component,) = base.components
        with replace_file(output, overwrite=overwrite) as stream:
            _write_weights(plan, component, base.path, stream, meter)
        return output
    with replace_folder(output, overwrite=overwrite) as folder:
        if base.pipeline:
            _copy_settings(base.path, folder)
        for name, component_ in base.components.items():
            _write_component(plan, name, component_, folder / name if base.pipeline else folder, meter)
    return output


def _check(
    base: Base, deltas: Sequence[Delta], factors: Sequence[float], cache: BasisCache, dtype: Dtype | None
) -> _Plan:
    """Check all deltas against the base, and see to it that every basis is in the cache."""
    if not deltas:
        raise InputError("there is nothing to bake", fix="give at least one delta")
    factors = [Weight(factor).default for factor in factors]
    parameters = combine_parameters(deltas)
    keys: dict[tuple[str, str], str] = {}
    for name in parameters:
        place = name.partition(".")[0], base.locate(name)[1]
        if place in keys:
            raise BaseMismatchError(f"{name}: shifts the same weight as {keys[place]}", fix="keep one of the two names")
        keys[place] = name
        for delta in deltas:
            if name in delta:
                fit(base, name, delta, cache)
    return _Plan(base, deltas, factors, parameters, keys, cache, dtype)


class _Meter:
    """Counts bytes for a progress display."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _copy_settings(source: Path, target: Path) -> None:
    """Copy what a pipeline has beside its models: the index, tokenizers, schedulers, and the licence."""
    shutil.copyfile(source / "model_index.json", target / "model_index.json")
    for path in sorted(source.glob("LICENSE*")):
        shutil.copyfile(path, target / path.name)
    for name in read_json(source / "model_index.json"):
        folder = source / name
        if folder.is_dir():
            _copy_all_but_weights(folder, target / name)


def _copy_all_but_weights(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in WEIGHT_SUFFIXES and not path.name.startswith("."):
            shutil.copyfile(path, target / path.name)


def _write_component(plan: _Plan, name: str, component: Component, target: Path, meter: _Meter) -> None:
    if component.folder is not None:
        _copy_all_but_weights(component.folder, target)
    shifted = any(slot == name for slot, _ in plan.keys)
    for path in component.files:
        if shifted or plan.dtype is not None:
            with (target / path.name).open("wb") as stream:
                _write_weights(plan, name, path, stream, meter)
        else:
            shutil.copyfile(path, target / path.name)
            meter.add(path.stat().st_size)


def _write_weights(plan: _Plan, slot: str, path: Path, stream: IO[bytes], meter: _Meter) -> None:
    """Write one weight file tensor by tensor, in the order of the base's file."""
    header = plan.base.components[slot].headers[path]
    dtypes = {
        key: plan.dtype if plan.dtype and entry.dtype in FLOATING else entry.dtype
        for key, entry in header.entries.items()
    }
    stream.write(header_bytes([(k, dtypes[k], entry.shape) for k, entry in header.entries.items()], header.metadata))
    for key, raw in _baked(plan, slot, dtypes):
        stream.write(raw)
        entry = header.entries[key]
        meter.add(entry.stop - entry.start)


def _baked(plan: _Plan, slot: str, dtypes: dict[str, str]) -> Iterator[tuple[str, memoryview]]:
    for key, dtype in dtypes.items():
        weight = plan.base.read(f"{slot}.{key}")
        if dtype in FLOATING:
            target = torch.float64 if dtype == "F64" else TORCH_DTYPE[dtype]  # type: ignore[index]
            name = plan.keys.get((slot, key))
            weight = weight.to(target) if name is None else _shifted(plan, name, weight).to(target)
            if name is not None and not torch.isfinite(weight).all():
                raise TensorError(f"{name}: the baked weight is too large for {dtype}", fix="use --dtype BF16 or F32")
        yield key, weight.contiguous().flatten().view(torch.uint8).numpy().data


def _shifted(plan: _Plan, name: str, weight: Tensor) -> Tensor:
    """Return W + ΔW in float32, or float64 for elementwise parameters and float64 bases; W itself where δ is 0."""
    shift = weighted_total(name, plan.parameters[name], plan.deltas, plan.factors)
    if not shift.any():
        return weight
    owner = next(delta for delta in plan.deltas if name in delta)
    prepared = fit(plan.base, name, owner, plan.cache)
    change = prepared.delta_weight(torch.from_numpy(shift))
    return weight.to(torch.promote_types(weight.dtype, change.dtype)) + change
