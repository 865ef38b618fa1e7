"""Convert changes of weights to a LoRA or a full difference directly, without a δ in between.

A δ can only stretch what the base has, and captures little of what an adapter does. On this way nothing is projected:
the low-rank factors are the best ones of ΔW itself, and the full difference is ΔW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from os import PathLike
from pathlib import Path
from typing import IO, Final

import numpy as np
import torch
from torch import Tensor

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import JSON
from svdiff_delta._util.reading import system_errors
from svdiff_delta.base_model.devices import on_host
from svdiff_delta.base_model.matching import named_like
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import InputError
from svdiff_delta.format import metadata as meta
from svdiff_delta.format.container import header_bytes
from svdiff_delta.format.delta import check_range
from svdiff_delta.format.dtypes import StoredDtype, encode
from svdiff_delta.format.entry import ITEM_SIZE
from svdiff_delta.format.modelspec import HASH, known_modelspec
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.energy import Energy
from svdiff_delta.svd.prepare import Progress, prepare_weight
from svdiff_delta.svd.projection import check_same_weights, squared_norm

from .adapter_writer import add_factors, layers_of
from .comfyui import ComfyTarget
from .dialect import Changes, Job, Meter, WeightChange
from .diffusers import DiffusersTarget
from .full_difference import FORMAT, KEY
from .key_map import Names
from .kohya import KohyaTarget
from .low_rank_factors import Factors, split
from .lycoris import LycorisTarget
from .peft import PeftTarget
from .provenance import SPEC
from .rank_policy import Ranking, make_ranking
from .registry import DELTA
from .result import DirectConversion, check_left_out, check_retained
from .result_metadata import conversion_metadata
from .route import resolve_route
from .tensor_spool import Spool
from .update_factors import factors_of_change, factors_of_update
from .write_target import Keys, Part, Target, of_layer

FULL: Final = "full"
TARGETS: Final[Mapping[str, Callable[[Names], Target]]] = {
    target.name: target for target in (PeftTarget, LycorisTarget, KohyaTarget, ComfyTarget, DiffusersTarget)
}
"""Dialects of low-rank factors by name."""

NO_SHIFTS: Final = "leave the direct way: what the input holds are shifts already"


@on_host
def convert_directly(
    input: str | PathLike[str],  # noqa: A002 - what it is
    *,
    to: str,
    base: Base,
    from_: str | None = None,
    output: str | PathLike[str] | None = None,
    dtype: StoredDtype = "F32",
    min_energy: float = 0.0,
    allow_unmatched: bool = False,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    embeddings: bool = False,
    title: str | None = None,
    overwrite: bool = False,
    made_on: Base | None = None,
    cache: BasisCache | None = None,
    progress: Progress | None = None,
    component: str | None = None,
) -> DirectConversion:
    """Convert an adapter, a tuned checkpoint or a full difference to a LoRA or a full difference, without a δ.

    Of a LoRA, a LoHa and a LoKr the best factors are found without ΔW; of all else ΔW is made, one weight at a time,
    and decomposed in float64. Everything is checked before anything is written.

    Args:
        input: the path of a file or folder of changes.
        to: "full", or a dialect of low-rank factors.
        base: the base that they are changes of.
        from_: the input's dialect; found from it if not given.
        output: where to write, atomically; without it all is calculated and nothing is written.
        dtype: number format of what is written.
        min_energy: the least share of the whole change, in [0, 1], that the output must hold.
        allow_unmatched: whether what cannot be carried over may be left out; it is listed in the result.
        rank: the rank of a low-rank copy.
        energy: or the share of each weight's change, in (0, 1], that it must retain.
        max_rank: the most ranks for that.
        embeddings: whether changed embeddings may be converted too.
        title: a title for the result; that of the input if not given.
        overwrite: whether an existing output may be replaced.
        made_on: the base that the adapter was made on, as for `convert`.
        cache: where bases are kept; the default cache if not given. Only a full difference names weights by it.
        progress: called with how much is done and how much there is in all.
        component: the component that an adapter's keys mean which name none, as for `convert`.

    Raises:
        InputError: an unknown dialect, no rank where one is needed, weights that cannot be carried over, too little of
            the change, nothing that changes, an input of shifts, or an output that is the input.
        BaseMismatchError: nothing in it fits this base.
        BaseError, FormatError: the base or the input cannot be used.
        OutputError: the output exists, or the disk refused.
    """
    ranking = make_ranking(rank, energy, max_rank)
    if to == DELTA:
        raise InputError("a delta is what the direct way goes around", fix="leave the direct way, or name a dialect")
    route = resolve_route(
        input, to=to, from_=from_, dtype=dtype, min_energy=min_energy, ranking=ranking, base=base, same=True
    )
    if route.read is None or route.opened is None:
        raise InputError(f"{input}: is a delta, which has no direct way", fix=NO_SHIFTS)
    if to != FULL and to not in TARGETS:
        raise InputError(f"{to}: has no direct way", fix=f"use one of {', '.join([FULL, *TARGETS])}")
    job = Job(
        base=base,
        cache=cache or BasisCache(),
        dtype=dtype,
        output=None if output is None else Path(output),
        title=title,
        overwrite=overwrite,
        min_energy=min_energy,
        allow_unmatched=allow_unmatched,
        ranking=ranking,
        embeddings=embeddings,
        progress=progress,
        made_on=made_on,
        component=component,
    )
    job.check(input)
    with system_errors(route.opened.name, InputError):
        changes = route.read(route.opened, job)
    job = replace(job, base=named_like(base, changes.kinds))
    check_same_weights(job.base, changes.expected, route.opened.name)
    work = _Work(changes, job, route.source, route.opened.name)
    return work.full() if to == FULL else work.low_rank(TARGETS[to](Names(job.base)))


@dataclass
class _Work:
    """A direct conversion in progress."""

    changes: Changes
    job: Job
    source: str
    what: str
    layers: dict[str, Energy] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def low_rank(self, target: Target) -> DirectConversion:
        """Write the best low-rank factors of each change in a dialect."""
        ranking = self.job.ranking or Ranking()
        places = self._places(target, ranking)
        meter = Meter(self.job, sum(prod(self.job.base.shape(name)) for name in places))
        with ExitStack() as stack:
            folder = None if self.job.output is None else self.job.output.absolute().parent
            spools = {
                file: stack.enter_context(Spool(folder, self.job.dtype))
                for file in sorted({keys.file for keys in places.values()})
            }
            alpha = self._common_alpha(places, ranking) if target.common_alpha else 0
            for names in layers_of(places):
                self._add(names, places, spools[places[names[0]].file], ranking, alpha)
                meter.add(sum(prod(self.job.base.shape(name)) for name in names))
            if not self.layers:
                raise InputError(f"{self.what}: nothing changes", fix="convert what differs from the base")
            check_retained(self.layers.values(), self.job.min_energy)
            parts = {
                file: self._part(spool, [name for name in self.layers if places[name].file == file], target, alpha)
                for file, spool in spools.items()
            }
            return self._result(target.write(self.job, parts), target.remark)

    def full(self) -> DirectConversion:
        """Write ΔW of each weight, as `bake` would add it."""
        parameters: dict[str, Parameter] = {}
        check_left_out(
            self.changes.left_out, self.what, allow_unmatched=self.job.allow_unmatched, hint=self.changes.hint
        )
        for name, kind in self.changes.kinds.items():
            parameters[name] = prepare_weight(self.job.base, name, *kind, self.job.cache).parameter
        arguments: dict[str, JSON] = {"from": self.source, "to": FULL}
        if self.changes.left_out:
            arguments["left_out"] = len(self.changes.left_out)
        strings = meta.dump(conversion_metadata(self.changes, parameters, arguments, self.job), key=KEY, form=FORMAT)
        header = header_bytes([(name, self.job.dtype, parameters[name].shape) for name in parameters], strings)
        total = sum(prod(parameter.shape) for parameter in parameters.values())
        meter = Meter(self.job, total)
        target: AbstractContextManager[IO[bytes] | None] = nullcontext()
        if self.job.output is not None:
            target = replace_file(self.job.output, overwrite=self.job.overwrite)
        with target as stream:
            if stream is not None:
                stream.write(header)
            for name in parameters:
                data = self._encoded(name)
                if stream is not None:
                    stream.write(data)
                meter.add(prod(parameters[name].shape))
            check_retained(self.layers.values(), self.job.min_energy)
        return self._result(len(header) + total * ITEM_SIZE[self.job.dtype], "")

    def _encoded(self, name: str) -> memoryview | bytes:
        """Return the bytes of ΔW, and note its energy."""
        change = self._change(name)
        values = change.contiguous().flatten().numpy()
        check_range(name, values, self.job.dtype, what="ΔW ")
        stored = encode(values, self.job.dtype)
        self.layers[name] = Energy(squared_norm(change), squared_norm(torch.from_numpy(stored.decode())))
        return stored.data

    def _change(self, name: str) -> Tensor:
        """Return ΔW, float64.

        Raises:
            InputError: the input holds shifts, which are no changes of weights by themselves.
        """
        match self.changes.read(name):
            case WeightChange(values):
                return values.double()
            case _:
                raise InputError(f"{self.what}: holds shifts, which have no direct way", fix=NO_SHIFTS)

    def _places(self, target: Target, ranking: Ranking) -> dict[str, Keys]:
        """Return the place of each changed weight in the file, by parameter.

        Raises:
            InputError: one has none, and nobody allowed to leave it out, or none has one.
        """
        places: dict[str, Keys] = {}
        target.weights = frozenset(self.changes.kinds)
        target.changed = frozenset(name.partition(".")[0] for name in self.changes.kinds)
        for name, (kind, axis) in self.changes.kinds.items():
            parameter = Parameter(self.job.base.shape(name), kind, axis, "F32", "")
            place = target.find(name, parameter)
            if not isinstance(place, str) and not place.whole:
                place = target.group(place, name, parameter, ranking.most(parameter.size))
            if isinstance(place, str):
                self.left_out[name] = place
            else:
                places[name] = place
        check_left_out(
            {**self.changes.left_out, **self.left_out},
            self.what,
            allow_unmatched=self.job.allow_unmatched,
            hint=self.changes.hint,
        )
        if not places:
            raise InputError(
                f"{self.what}: {target.name} has a place for none of it", fix="name another dialect as `to`"
            )
        return places

    def _common_alpha(self, places: Mapping[str, Keys], ranking: Ranking) -> int:
        sizes = [min(shape[0], prod(shape[1:])) for shape in map(self.job.base.shape, places) if len(shape) > 1]
        largest = max(sizes, default=1)
        return min(ranking.rank or ranking.max_rank or largest, largest)

    def _add(self, names: list[str], places: Mapping[str, Keys], spool: Spool, ranking: Ranking, alpha: int) -> None:
        """Put the update of one layer aside, of those of its weights that change."""
        keys, shape = places[names[0]], self.job.base.shape(names[0])
        if keys.whole:
            (name,) = names
            change = self._change(name)
            if squared := squared_norm(change):
                spool.add(keys.whole, change.flatten().numpy(), shape)
                self.layers[name] = Energy(squared, squared)
            return
        every = {name: self._factors_in(name, keys, ranking) for name in names}
        found = {name: factors for name, factors in every.items() if factors.rank}
        if not found and keys.stack is None:
            return
        found = found or {names[0]: _nothing(every[names[0]])}
        factors, rank = of_layer(found, places)
        add_factors(spool, keys, factors, shape, alpha)
        self.layers |= {name: each.energy for name, each in found.items()}
        self.ranks |= {name: each.rank for name, each in found.items()}
        self.dims |= dict.fromkeys(found, rank)

    def _factors_in(self, name: str, keys: Keys, ranking: Ranking) -> Factors:
        """Return the factors of one weight's change, in as many groups as its layer has."""
        axis = self.changes.kinds[name][1]
        factors = self._factors(name, axis, ranking if keys.groups == 1 else Ranking(energy=1.0))
        return split(factors, keys.groups, ranking) if keys.groups > 1 and factors.rank else factors

    def _factors(self, name: str, axis: int, ranking: Ranking) -> Factors:
        update = self.changes.updates.get(name)
        found = factors_of_update(update, axis, ranking) if update is not None else None
        return factors_of_change(self._change(name), axis, ranking) if found is None else found

    def _part(self, spool: Spool, names: list[str], target: Target, alpha: int) -> Part:
        ranks = {name: self.dims[name] for name in names if name in self.dims}
        said, components = self.changes.metadata, self.job.base.info.components
        spec = known_modelspec({part: components[part] for part in sorted({name.partition(".")[0] for name in names})})
        if target.family is not None and target.family.architecture:
            spec["architecture"] = f"{target.family.architecture}/lora"
        elif "architecture" in spec:
            spec["architecture"] = spec["architecture"].replace("/svdiff", "/lora")
        spec = {**said.modelspec, **spec, HASH: spool.digest()}
        if self.job.title is not None:
            spec["title"] = self.job.title
        strings = {**said.foreign, **{f"{SPEC}{key}": value for key, value in spec.items()}}
        return Part(spool, {**strings, "format": "pt", **target.strings(ranks, alpha)}, ranks)

    def _result(self, size: int, remark: str) -> DirectConversion:
        left_out = dict(sorted({**self.changes.left_out, **self.left_out}.items()))
        unchanged = self.changes.unchanged + len(self.changes.kinds) - len(self.layers) - len(self.left_out)
        remarks = (*self.changes.remarks, remark) if remark else self.changes.remarks
        return DirectConversion(
            self.layers,
            size,
            left_out=left_out,
            unchanged=unchanged,
            output=self.job.output,
            ranks=self.ranks,
            remarks=remarks,
        )


def _nothing(factors: Factors) -> Factors:
    """Return factors of rank 1 of no change: of parameters that share a module PEFT must find all or none."""
    return Factors(np.zeros((len(factors.up), 1)), np.zeros((1, factors.down.shape[1])), factors.energy)
