"""Read shifts that other programs trained: find the weight of each, and make δ of it (spec, section 7.11)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.base_model.component import Component
from svdiff_delta.base_model.kinds import base_kinds
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseMismatchError, InputError
from svdiff_delta.format.parameter import Kind
from svdiff_delta.svd.prepare import Prepared

from .dialect import Changes, Job, ShiftReader
from .lazy_tensors import OpenedAdapter, Ref, Shape, TensorFile
from .provenance import foreign_facts, name_source
from .vector_files import length, open_vectors, read_vector

Shift = NDArray[np.float64]

KEYS_SHOWN: Final = 2
"""Keys of a file that fits no component that an error quotes."""


@dataclass(frozen=True)
class Format:
    """The form in which a program writes shifts, and their effect on a weight.

    Attributes:
        about: what errors call the program.
        weight: returns the state-dict key of the weight that a key of the file shifts; None if it shifts none.
        make: returns δ (size,) and ‖ΔW‖² from the numbers in the file and the base's weight.
        scalar_norms: whether one number may stand for a whole norm weight.
        shifts: tells from kind, axis and shape whether the program shifts such a weight.
    """

    about: str
    weight: Callable[[str], str | None]
    make: Callable[[Shift, Prepared], tuple[Shift, float]]
    scalar_norms: bool = False
    shifts: Callable[[Kind, int, tuple[int, ...]], bool] = lambda kind, axis, shape: True  # noqa: ARG005


@dataclass
class _Found:
    """Shifts by parameter name, where they stand; and what cannot be one."""

    kinds: dict[str, tuple[Kind, int]] = field(default_factory=dict)
    places: dict[str, Ref] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def read_shifts(source: OpenedAdapter, paths: Sequence[Path], form: Format, job: Job) -> Changes:
    """Return the shifts in files of one program, each file for one component of the base.

    Which component that is shows in the names and lengths. Embeddings are shifted where the file shifts them.

    Raises:
        InputError: a file cannot be read, is a pickle, or two shifts are for one weight.
        BaseMismatchError: nothing in a file fits the base.
        FormatError: a file is broken.
        BaseError: the base does not say which classes its models have.
    """
    found, files = _Found(), [open_vectors(source, path) for path in paths]
    for file in files:
        slot = _component(file, form, job.base)
        part = replace(job.base, components={slot: job.base.components[slot]})
        kinds = base_kinds(part, on_request=True)
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            _place(Ref(file, key), slot, form, part, kinds, found)

    return Changes(
        kinds=dict(sorted(found.kinds.items())),
        read=lambda name: ShiftReader(partial(_make, name, found.places[name], form)),
        sources=lambda: [name_source(file, foreign_facts([file.header])) for file in files],
        left_out=dict(sorted(found.left_out.items())),
        metadata=foreign_facts([file.header for file in files]),
        dtype="F32",  # they were trained on the unrounded weight
    )


def _make(name: str, ref: Ref, form: Format, prepared: Prepared) -> tuple[Shift, float]:
    try:
        return form.make(read_vector(ref), prepared)
    except InputError as error:
        raise InputError(f"{name}: {error.message} (in {ref.tensors.name})", fix=error.fix) from None


def weight_keys(keys: Iterable[str], form: Format) -> dict[str, str]:
    """Return the state-dict key of the weight by key of the file, of those that shift one."""
    return {key: weight for key in keys if (weight := form.weight(key)) is not None}


def _component(file: TensorFile, form: Format, base: Base) -> str:
    """Return the component of the base that most shifts of a file fit, by name and length."""
    weights = weight_keys(file.keys(), form)
    fitting = {
        slot: sum(_fits(file.shape(key), part.stored(weight), form, part) for key, weight in weights.items())
        for slot, part in base.components.items()
    }
    most = max(fitting.values(), default=0)
    best = [slot for slot, count in fitting.items() if count == most]
    if not most:
        keys = file.keys()
        shown = ", ".join(keys[:KEYS_SHOWN]) + (", …" if len(keys) > KEYS_SHOWN else "")
        raise BaseMismatchError(
            f"{file.path}: none of its {len(keys)} tensors ({shown}) is a shift of {form.about} for a weight of the "
            f"base {base.path}",
            fix="name the base that it was trained for, or give the right `from_`",
        )
    if len(best) > 1:
        raise InputError(
            f"{file.path}: fits the components {' and '.join(best)} alike", fix="name one of their folders as base"
        )
    return best[0]


def _fits(found: Shape, own: str | None, form: Format, part: Component) -> bool:
    if own is None:
        return False
    shape, count = part.location[own][1].shape, length(found)
    if len(shape) == 1:
        return count == shape[0] or (form.scalar_norms and count == 1)
    return any(count == min(side, prod(shape) // side) for side in shape)


def _place(ref: Ref, slot: str, form: Format, part: Base, kinds: Mapping[str, tuple[Kind, int]], found: _Found) -> None:
    """Put one tensor of a file where it belongs: to its parameter, or to those that are left out."""
    weight = form.weight(ref.key)
    if weight is None:
        found.left_out[ref.key] = f"is no shift of {form.about}"
        return
    own = part.components[slot].stored(weight)
    name = f"{slot}.{own}"
    if own is None:
        found.left_out[f"{slot}.{weight}"] = "is not in the base"
    elif name not in kinds:
        found.left_out[name] = "is of no kind that can be shifted"
    elif not form.shifts(*kinds[name], part.shape(name)):
        found.left_out[name] = f"is of a class that {form.about} does not shift"
    elif why := _misfit(length(ref.shape), *kinds[name], part.shape(name), form):
        found.left_out[name] = why
    elif name in found.places:
        raise InputError(f"{name}: {ref} shifts it, and {found.places[name].key} does as well", fix="keep one of them")
    else:
        found.kinds[name], found.places[name] = kinds[name], ref


def _misfit(count: int | None, kind: Kind, axis: int, shape: tuple[int, ...], form: Format) -> str:
    """Return why a vector of this length is no shift of a weight; empty if it is one."""
    if count is None:
        return "has a matrix in the place of a vector"
    if kind == "elementwise":
        size, what = prod(shape), "elements"
        if form.scalar_norms and count == 1:
            return ""
    else:
        size, what = min(shape[axis], prod(shape) // shape[axis]), "singular values"
    return "" if count == size else f"has {count} shifts, the base's weight has {size} {what}"
