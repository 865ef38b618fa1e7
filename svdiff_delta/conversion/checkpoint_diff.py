"""Compare a tuned checkpoint with its base: what full fine-tuning changed in the weights (spec, section 7.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from typing import Final

import torch

from svdiff_delta._text.printable import counted
from svdiff_delta.base_model.base import open_base
from svdiff_delta.base_model.component import Component, aliases
from svdiff_delta.base_model.coverage import misnamed
from svdiff_delta.base_model.kinds import base_kinds
from svdiff_delta.base_model.matching import paired
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseError, DeltaError, InputError
from svdiff_delta.format.dtypes import FLOATING
from svdiff_delta.format.entry import Entry
from svdiff_delta.format.stacked import Slice, entry_of, slice_of

from .dialect import Changes, Job, Meter, WeightChange
from .lazy_tensors import open_tensors
from .provenance import foreign_facts, name_source

WHOLE: Final = frozenset({"BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})
"""Dtypes of whole numbers: indices, masks and counters, or weights that are packed, which no name is left without."""


NONE: Final[Mapping[str, Sequence[str]]] = {}


@dataclass
class Comparison:
    """The differences between a tuned model and its base.

    Attributes:
        changed: the parameters that differ, of whatever kind, by the base's names.
        left_out: what cannot be compared, with the reason.
        unchanged: how many are the base's own.
        one_sided: tensors of whole numbers, such as indices of positions, that only one of the two models has.
    """

    changed: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unchanged: int = 0
    one_sided: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the comparison."""
        if not self.one_sided:
            return ()
        what = counted(len(self.one_sided), "tensor")
        return (
            f"{what} of whole numbers, which are no weights, in only one of the models, such as {self.one_sided[0]}",
        )


def read_tuned(source: str, job: Job) -> Changes:
    """Return what a tuned checkpoint changes in the base.

    A weight counts as unchanged if it is the base's own, rounded to the checkpoint's number format. Components that
    the checkpoint lacks are left alone.

    Args:
        source: anything that `open_base` opens.
        job: with the base, and whether embeddings may be shifted.

    Raises:
        BaseError: the checkpoint cannot be opened, has nothing in common with the base, or holds NaN or infinity.
        InputError: the two are equal.
    """
    tuned = paired(open_base(source), job.base)
    found = compare(tuned, job, slices=_slices(job.base))
    kinds = base_kinds(replace(job.base, components=_common(tuned, job.base)), on_request=job.embeddings)
    other = [name for name in found.changed if name not in kinds]
    reasons = misnamed(job.base) if other else {}
    for name in other:
        found.left_out[name] = f"differs, and {reasons.get(name, 'is of no kind that can be shifted')}"
    shifted = {name: kinds[name] for name in sorted(found.changed) if name in kinds}
    if not shifted and not found.left_out:
        raise InputError(f"{source}: has the same weights as the base", fix="name the tuned checkpoint first")
    slots = sorted({name.partition(".")[0] for name in shifted})
    headers = {file: tuned.components[slot].headers[file] for slot in slots for file in tuned.components[slot].files}
    return Changes(
        kinds=shifted,
        read=lambda name: WeightChange(tuned.read(name).double() - job.base.read(name).double()),
        sources=lambda: [name_source(open_tensors(file), foreign_facts([header])) for file, header in headers.items()],
        left_out=dict(sorted(found.left_out.items())),
        unchanged=found.unchanged,
        remarks=found.remarks,
        metadata=foreign_facts([*headers.values()]),
    )


def _common(tuned: Base, base: Base) -> dict[str, Component]:
    return {name: part for name, part in base.components.items() if name in tuned.components}


def compare(tuned: Base, job: Job, *, slices: Mapping[str, Sequence[str]] = NONE) -> Comparison:
    """Compare every weight of the components that a tuned model has in common with the base.

    Args:
        tuned: the model, its components named as those of the base.
        job: with the base.
        slices: the names of experts by that of the stacked tensor that holds them; they are compared one by one.

    Raises:
        BaseError: a weight of the tuned model is quantized, or holds NaN or infinity.
    """
    base, common, found, seen = job.base, _common(tuned, job.base), Comparison(), set()
    whole = [name for name in base.names() if name.partition(".")[0] in common]
    names = [each for name in whole for each in slices.get(name, [name])]
    meter = Meter(job, sum(prod(base.shape(name)) for name in names))
    for name in names:
        place = _place(tuned, base, name)
        if place is None:
            _one_sided(name, base.locate(name)[3], "is not in the checkpoint", found)
        else:
            part = slice_of(place[0])
            seen.add(part.stack if part else place[0])
            _compare_one(name, tuned, base, place[1], found)
        meter.add(prod(base.shape(name)))
    for name in tuned.names():
        if name not in seen:
            _one_sided(name, tuned.locate(name)[3], "is not in the base", found)
    return found


def _slices(base: Base) -> dict[str, list[str]]:
    """Return the names of experts by that of the stacked tensor that holds them; none where no class is known."""
    slices: dict[str, list[str]] = {}
    with suppress(DeltaError):
        for name in base_kinds(base):
            if (part := slice_of(name)) is not None:
                slices.setdefault(part.stack, []).append(name)
    return slices


def _one_sided(name: str, entry: Entry, reason: str, found: Comparison) -> None:
    """Note a tensor that only one of the models has; whole numbers are no weights, and nothing is lost with them."""
    if entry.dtype in WHOLE:
        found.one_sided.append(name)
    else:
        found.left_out[name] = reason


def _place(model: Base, base: Base, name: str) -> tuple[str, Entry] | None:
    """Return the name under which a model has a parameter of the base, and its header entry.

    The library of the two may have saved them under different names: what loads as one weight is one.
    """
    slot, _, key = name.partition(".")
    part = model.components[slot]
    if (expert := slice_of(key)) is not None:
        whole = _place(model, base, f"{slot}.{expert.stack}")
        entry = entry_of({expert.stack: whole[1]}, key) if whole else None
        return (str(Slice(whole[0], expert.number)), entry) if whole and entry else None
    same = next((candidate for candidate in aliases(key) if candidate in part.location), None)
    found = same or part.in_class(base.components[slot].live(key))
    return (f"{slot}.{found}", part.location[found][1]) if found else None


def _compare_one(name: str, tuned: Base, base: Base, there: Entry, found: Comparison) -> None:
    here = base.locate(name)[3]
    if there.shape != here.shape:
        found.left_out[name] = f"has shape {list(there.shape)}, the base has {list(here.shape)}"
        return
    if there.dtype not in FLOATING:
        _compare_bytes(name, tuned, base, (there, here), found)
        return
    new = tuned.read(name)
    if not torch.isfinite(new).all():
        raise BaseError(f"{name}: {tuned.path} holds NaN or infinity", fix="fetch the checkpoint again")
    if here.dtype not in FLOATING:
        found.left_out[name] = f"differs, and is {there.dtype} where the base has {here.dtype}"
    elif torch.equal(base.read(name).to(new.dtype), new):
        found.unchanged += 1
    else:
        found.changed.append(name)


def _compare_bytes(name: str, tuned: Base, base: Base, entries: tuple[Entry, Entry], found: Comparison) -> None:
    """Compare a tensor that is no weight to be subtracted; what is quantized or packed must be the base's own."""
    there, here = entries
    if there.dtype == here.dtype and torch.equal(tuned.read_bytes(name), base.read_bytes(name)):
        found.unchanged += 1
    elif there.dtype.startswith("F"):
        raise BaseError(f"{name}: {tuned.path} has it as {there.dtype}", fix="use the unquantized checkpoint")
    elif there.dtype == here.dtype:
        found.left_out[name] = f"differs, and {there.dtype} is no number format of weights"
    else:
        found.left_out[name] = f"differs, and is {there.dtype} where the base has {here.dtype}"
