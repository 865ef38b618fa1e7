"""Write a delta as an adapter: low-rank factors of every weight, in the keys of a dialect (spec, section 7.10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import cast

import numpy as np

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import InputError
from svdiff_delta.format import metadata as meta
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.modelspec import HASH, known_modelspec
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd.decomposition import Basis, matricize
from svdiff_delta.svd.energy import Energy, total_energy
from svdiff_delta.svd.verify import VerifiedBase, prepare_base

from .adapter_reader import FORMAT, KEY
from .dialect import Job, Meter
from .energy_limits import WELL
from .key_map import Names
from .low_rank_factors import Factors, factorize, split, spread
from .provenance import copied_facts
from .rank_policy import Ranking
from .result import DECIMALS, Conversion, check_left_out, check_retained
from .tensor_spool import Spool
from .write_target import Keys, Part, Target, of_layer


def adapter_writer(target: Callable[[Names], Target]) -> Callable[[Delta, Job], Conversion]:
    """Return the writer of a dialect."""

    def write(delta: Delta, job: Job) -> Conversion:
        ranking = cast("Ranking", job.ranking)  # `resolve_route` sees to it
        return _Work(delta, job, target(Names(job.base)), ranking).run()

    return write


@dataclass
class _Work:
    """A conversion in progress."""

    delta: Delta
    job: Job
    target: Target
    ranking: Ranking
    places: dict[str, Keys] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    layers: dict[str, Energy] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)

    def run(self) -> Conversion:
        """Convert and write.

        Raises:
            InputError: no rank is given, or some weights have no place, or δ is 0 throughout.
            BaseMismatchError, BaseError, TensorError: the delta does not fit the base, or a number the format.
            OutputError: as `Target.write`.
        """
        self._find_places()
        verified = prepare_base(self.job.base, [self.delta], self.job.cache, self.job.progress)
        meter = Meter(self.job, sum(prod(self._parameter(name).shape) for name in self.places))
        with ExitStack() as stack:
            folder = None if self.job.output is None else self.job.output.absolute().parent
            spools = {
                file: stack.enter_context(Spool(folder, self.job.dtype))
                for file in sorted({keys.file for keys in self.places.values()})
            }
            for layer in layers_of(self.places):
                self._convert_layer(verified, layer, spools[self.places[layer[0]].file])
                meter.add(sum(prod(self._parameter(name).shape) for name in layer))
            check_retained(self.layers.values(), self.job.min_energy)
            size = self.target.write(self.job, {file: self._part(file, spool) for file, spool in spools.items()})
        return Conversion(
            self.delta,
            dict(sorted(self.layers.items())),
            left_out=self.left_out,
            unchanged=len(self.delta) - len(self.places) - len(self.left_out),
            output=self.job.output,
            size=size,
            ranks=dict(sorted(self.ranks.items())),
            remarks=self._remarks(),
        )

    def _parameter(self, name: str) -> Parameter:
        return self.delta.metadata.parameters[name]

    def _find_places(self) -> None:
        """Find the place of each parameter; δ = 0 needs none."""
        changed = [name for name in self.delta if self.delta[name].any()]
        self.target.weights = frozenset(changed)
        self.target.changed = frozenset(name.partition(".")[0] for name in changed)
        for name in changed:
            parameter = self._parameter(name)
            place = self.target.find(name, parameter)
            if not isinstance(place, str) and not place.whole:
                place = self.target.group(place, name, parameter, self.ranking.most(parameter.size))
            if isinstance(place, str):
                self.left_out[name] = place
            else:
                self.places[name] = place
        check_left_out(self.left_out, "the delta", allow_unmatched=self.job.allow_unmatched)
        if not self.places:
            raise InputError(
                f"δ is 0 wherever {self.target.name} has a place: there is nothing to write",
                fix="convert a delta that shifts something else, or name another dialect as `to`",
            )

    def _convert_layer(self, verified: VerifiedBase, names: list[str], spool: Spool) -> None:
        """Calculate the update of one layer, and put it aside."""
        keys = self.places[names[0]]
        if keys.whole:
            (name,) = names
            shift = self.delta[name].astype(np.float64)
            spool.add(keys.whole, shift, self._parameter(name).shape)
            self.layers[name] = Energy(float(shift @ shift), float(shift @ shift))
            return
        factors = {name: self._factors(verified, name) for name in names}
        found, rank = of_layer(factors, self.places)
        self._add_factors(keys, found, self._parameter(names[0]).shape, spool)
        self.dims |= dict.fromkeys(names, rank)

    def _factors(self, verified: VerifiedBase, name: str) -> Factors:
        """Return the low-rank factors of one parameter's change, and note what of it they retain."""
        keys, prepared = self.places[name], verified.prepare(name, self.job.cache)
        basis = cast("Basis", prepared.basis)  # what is not whole is spectral
        shift = self.delta[name].astype(np.float64)
        matrix = matricize(prepared.weight, prepared.parameter.axis)
        ranking = self.ranking if keys.groups == 1 else Ranking(energy=1.0)
        factors = factorize(basis, matrix, prepared.parameter.dtype, shift, ranking)
        if keys.groups > 1:
            factors = split(factors, keys.groups, self.ranking)
        self.layers[name], self.ranks[name] = factors.energy, factors.rank
        return factors

    def _add_factors(self, keys: Keys, factors: Factors, shape: tuple[int, ...], spool: Spool) -> None:
        add_factors(spool, keys, factors, shape, self._common_alpha if self.target.common_alpha else 0)

    @cached_property
    def _common_alpha(self) -> int:
        """The rank that most weights have, as far as that is known before all are converted."""
        largest = max(self._parameter(name).size for name in self.places)
        return min(self.ranking.rank or self.ranking.max_rank or largest, largest)

    def _part(self, file: str, spool: Spool) -> Part:
        """Return a file with its metadata: that of the delta, the conversion, and the share that is retained."""
        names = sorted(name for name in self.layers if self.places[name].file == file)
        ranks = {name: self.dims[name] for name in names if name in self.dims}
        arguments: dict[str, JSON] = {"to": self.target.name, **self.ranking.arguments()}
        if self.left_out:
            arguments["left_out"] = len(self.left_out)
        facts = copied_facts(self.delta, {name: self._parameter(name) for name in names}, arguments, self.job)
        retained = {
            "all": round(total_energy(self.layers.values()).captured, DECIMALS),
            "parameters": [round(self.layers[name].captured, DECIMALS) for name in names],
        }
        metadata = replace(
            facts,
            modelspec={**facts.modelspec, **self._modelspec(), HASH: spool.digest()},
            extra={**facts.extra, "names": names, "retained": retained},
        )
        strings = meta.dump(metadata, key=KEY, form=FORMAT)
        return Part(spool, {**strings, "format": "pt", **self.target.strings(ranks, self._common_alpha)}, ranks)

    def _modelspec(self) -> dict[str, str]:
        """Return the fields that are known of the file."""
        fields = known_modelspec(self.delta.metadata.base.components)
        if self.target.family is not None and self.target.family.architecture:
            fields["architecture"] = f"{self.target.family.architecture}/lora"
        elif "architecture" in fields:
            fields["architecture"] = fields["architecture"].replace("/svdiff", "/lora")
        return fields

    def _remarks(self) -> tuple[str, ...]:
        remarks = []
        retained = total_energy(self.layers.values())
        if retained.captured < WELL:
            remarks.append(
                f"only {retained.captured:.2%} of the change is retained at rank {max(self.ranks.values())}: a shift "
                'has full rank by nature; give a higher `rank`, `energy=0.9`, or convert with `to="full"`'
            )
        return (*remarks, self.target.remark) if self.target.remark else tuple(remarks)


def layers_of(places: Mapping[str, Keys]) -> list[list[str]]:
    """Return the parameters of each layer of the files, one as a rule, by the place of each parameter."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name, keys in places.items():
        layers.setdefault((keys.file, keys.up or keys.whole), []).append(name)
    return [*layers.values()]


def add_factors(spool: Spool, keys: Keys, factors: Factors, shape: tuple[int, ...], common_alpha: int = 0) -> None:
    """Put the factors of a layer aside under its keys, in the shapes that its dialect has.

    Args:
        spool: where to put them.
        keys: the layer's.
        factors: of its matrix.
        shape: of one of its weights.
        common_alpha: the alpha that all layers of the file have; 0 where each has its rank.
    """
    rank = factors.rank
    if keys.stack is not None:
        spool.add(keys.up, factors.up, factors.up.shape)
        spool.add(keys.down, factors.down, factors.down.shape)
        return
    if keys.transposed:
        spool.add(keys.up, factors.down.T, (shape[1], rank))
        spool.add(keys.down, factors.up.T, (rank, shape[0]))
        return
    if keys.groups > 1:
        down = spread(factors.down, keys.groups, shape)
        spool.add(keys.up, factors.up, (shape[0], rank // keys.groups, *[1] * (len(shape) - 2)))
        spool.add(keys.down, down, (rank, shape[1] * keys.groups, *shape[2:]))
        return
    alpha = common_alpha if common_alpha and keys.alpha else rank
    gain = (rank / alpha) ** 0.5  # 1 where alpha is the rank
    rows, inner = factors.up.shape[0], shape[1:] if len(shape) > 2 else (factors.down.shape[1],)
    spool.add(keys.up, factors.up * gain, (rows, rank, *[1] * (len(shape) - 2)))
    spool.add(keys.down, factors.down * gain, (rank, *inner))
    if keys.alpha:
        spool.add(keys.alpha, np.array([alpha], dtype=np.float64), (), dtype="F32")
