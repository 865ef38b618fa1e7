"""Writing a delta as an adapter: low-rank factors of every weight, in the keys of a dialect (spec, section 7.10)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from svdiff_delta import metadata as meta
from svdiff_delta._atomic import replace_file
from svdiff_delta._json import JSON
from svdiff_delta.basis import matricize
from svdiff_delta.codec import DTYPES, is_dtype
from svdiff_delta.combine import combine_metadata
from svdiff_delta.conversion import DECIMALS, Conversion, Energy, check_captured, check_left_out, total_energy
from svdiff_delta.delta import Delta
from svdiff_delta.errors import InputError
from svdiff_delta.lineage import Record
from svdiff_delta.modelspec import HASH, known_modelspec, portable_modelspec
from svdiff_delta.parameter import Parameter
from svdiff_delta.prepare import fit

from .adapter import FORMAT, KEY
from .architecture import MODELSPEC, looks_like
from .dialect import Job, Meter
from .energy import WELL
from .factors import Factors, factorize
from .names import Names
from .ranking import Ranking
from .spool import Spool


@dataclass(frozen=True)
class Keys:
    """Where the update of a weight stands.

    Attributes:
        up: (rows, r, 1, …).
        down: (r, columns), or (r, in, k, …).
        alpha: a number whose ratio to the rank is the scale; empty where the dialect keeps it elsewhere.
        whole: ΔW itself, for norms; then there is nothing else.
        transposed: whether `up` and `down` are stored transposed.
        file: the name of the file; empty for the only one.
    """

    up: str = ""
    down: str = ""
    alpha: str = ""
    whole: str = ""
    transposed: bool = False
    file: str = ""


class Target(ABC):
    """A dialect that adapters are written in."""

    name: str
    common_alpha: bool = False
    """Whether all weights get one alpha, and those of another rank factors that make up for it. Else each one's alpha
    is its rank, its scale 1. diffusers 0.42 loses those of attention where alphas differ within one kohya file."""

    @abstractmethod
    def prepare(self, names: Names) -> None:
        """Take the base's names; raise InputError if the dialect has no names for them."""

    @abstractmethod
    def place(self, name: str, parameter: Parameter) -> Keys | str:
        """Return where a parameter's update stands, or why it has no place."""

    @abstractmethod
    def strings(self, ranks: dict[str, int], alpha: int) -> dict[str, str]:
        """Return the metadata that the dialect's programs look for.

        Args:
            ranks: the rank of each parameter of a file.
            alpha: the common alpha.
        """

    def write(self, job: Job, files: Mapping[str, Spool], strings: Mapping[str, dict[str, str]]) -> int:
        """Write the files if there is an output; return their size in all.

        Raises:
            OutputError: the output exists, or the disk refused.
        """
        (spool,) = files.values()
        (texts,) = strings.values()
        header = spool.header(texts)
        if job.output is not None:
            with replace_file(job.output, overwrite=job.overwrite) as stream:
                stream.write(header)
                spool.copy(stream)
        return len(header) + spool.size


def adapter_writer(target: Callable[[], Target]) -> Callable[[Delta, Job], Conversion]:
    """Return the writer of a dialect."""

    def write(delta: Delta, job: Job) -> Conversion:
        made = target()
        if job.ranking is None:
            raise InputError(
                f"{made.name}: nothing says the rank", fix="give --rank, such as 32, or --energy, such as 0.95"
            )
        return _Work(delta, job, made, job.ranking).run()

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

    def run(self) -> Conversion:
        """Convert and write.

        Raises:
            InputError: no rank is given, or some weights have no place, or δ is 0 throughout.
            BaseMismatchError, BaseError, TensorError: the delta does not fit the base, or a number the format.
            OutputError: as `Target.write`.
        """
        self._check()
        meter = Meter(self.job, sum(prod(self._parameter(name).shape) for name in self.delta))
        with ExitStack() as stack:
            folder = None if self.job.output is None else self.job.output.absolute().parent
            files = {
                file: stack.enter_context(Spool(folder, self.job.dtype))
                for file in sorted({keys.file for keys in self.places.values()})
            }
            for name in self.delta:
                if name in self.places:
                    self._convert(name, files[self.places[name].file])
                else:
                    fit(self.job.base, name, self.delta, self.job.cache)
                meter.add(prod(self._parameter(name).shape))
            check_captured(self.layers.values(), self.job.min_energy)
            strings = {file: self._strings(file, spool) for file, spool in files.items()}
            size = self.target.write(self.job, files, strings)
        unchanged = len(self.delta) - len(self.places) - len(self.left_out)
        return Conversion(
            self.delta,
            self.layers,
            self.left_out,
            unchanged,
            self.job.output,
            size,
            self.ranks,
            tuple(self._remarks()),
        )

    def _parameter(self, name: str) -> Parameter:
        return self.delta.metadata.parameters[name]

    def _check(self) -> None:
        """Find the place of each parameter; δ = 0 needs none."""
        if not is_dtype(self.job.dtype):
            raise InputError(f"factors cannot be stored as {self.job.dtype}", fix=f"use --dtype {', '.join(DTYPES)}")
        self.target.prepare(Names(self.job.base))
        for name in self.delta:
            if not self.delta[name].any():
                continue
            place = self.target.place(name, self._parameter(name))
            if isinstance(place, str):
                self.left_out[name] = place
            else:
                self.places[name] = place
        check_left_out(self.left_out, "the delta", allow_unmatched=self.job.allow_unmatched)
        if not self.places:
            raise InputError(
                f"δ is 0 wherever {self.target.name} has a place: there is nothing to write",
                fix="convert a delta that shifts something else, or --to another dialect",
            )

    def _convert(self, name: str, spool: Spool) -> None:
        """Calculate the update of one parameter, and put it aside."""
        keys = self.places[name]
        prepared = fit(self.job.base, name, self.delta, self.job.cache)
        shift = self.delta[name].astype(np.float64)
        if prepared.basis is None:
            spool.add(keys.whole, shift, prepared.parameter.shape)
            self.layers[name] = Energy(float(shift @ shift), float(shift @ shift))
            return
        matrix = matricize(prepared.weight, prepared.parameter.axis)
        factors = factorize(prepared.basis, matrix, prepared.parameter.dtype, shift, self.ranking)
        self._add_factors(keys, factors, prepared.parameter.shape, spool)
        self.layers[name], self.ranks[name] = factors.energy, factors.rank

    def _add_factors(self, keys: Keys, factors: Factors, shape: tuple[int, ...], spool: Spool) -> None:
        rank = factors.rank
        if keys.transposed:
            spool.add(keys.up, factors.down.T, (shape[1], rank))
            spool.add(keys.down, factors.up.T, (rank, shape[0]))
            return
        alpha = self._common_alpha() if self.target.common_alpha and keys.alpha else rank
        gain = (rank / alpha) ** 0.5  # 1 where alpha is the rank
        rows, inner = factors.up.shape[0], shape[1:] if len(shape) > 2 else (factors.down.shape[1],)
        spool.add(keys.up, factors.up * gain, (rows, rank, *[1] * (len(shape) - 2)))
        spool.add(keys.down, factors.down * gain, (rank, *inner))
        if keys.alpha:
            spool.add(keys.alpha, np.array([alpha], dtype=np.float64), (), dtype="F32")

    def _common_alpha(self) -> int:
        """Return the rank that most weights have, as far as that is known before all are converted."""
        largest = max(self._parameter(name).size for name in self.places)
        return min(self.ranking.rank or self.ranking.max_rank or largest, largest)

    def _strings(self, file: str, spool: Spool) -> dict[str, str]:
        """Return the metadata of a file: what the delta says of itself, and the conversion."""
        names = [name for name in self.layers if self.places[name].file == file]
        arguments: dict[str, JSON] = {"to": self.target.name, **self.ranking.arguments()}
        if self.job.dtype != "F32":
            arguments["dtype"] = self.job.dtype
        if self.left_out:
            arguments["left_out"] = len(self.left_out)
        parameters = {name: self._parameter(name) for name in names}
        combined = combine_metadata([self.delta], parameters, Record("convert", arguments))
        retained = {
            "all": round(total_energy(self.layers.values()).captured, DECIMALS),
            "parameters": [round(self.layers[name].captured, DECIMALS) for name in names],
        }
        title = combined.title if self.job.title is None else self.job.title
        spec = {**portable_modelspec(self.delta.metadata.modelspec), **self._modelspec()}
        metadata = replace(
            combined,
            modelspec=spec if title is None else {**spec, "title": title},
            extra={**combined.extra, "names": names, "retained": retained},
        )
        metadata = metadata.with_modelspec(HASH, spool.digest())
        ranks = {name: self.ranks[name] for name in names if name in self.ranks}
        strings = meta.dump(metadata, key=KEY, form=FORMAT)
        return {**strings, "format": "pt", **self.target.strings(ranks, self._common_alpha())}

    def _modelspec(self) -> dict[str, str]:
        """Return the fields that are known of the file."""
        fields = known_modelspec(self.delta.metadata.base.components)
        widths = {name: (self._parameter(name).shape[1:] or (0,))[0] for name in self.delta}
        known = MODELSPEC.get(looks_like({name.removesuffix(".weight"): width for name, width in widths.items()}))
        if known or "architecture" in fields:
            fields["architecture"] = f"{known}/lora" if known else fields["architecture"].replace("/svdiff", "/lora")
        return fields

    def _remarks(self) -> list[str]:
        spectral = total_energy(self.layers[name] for name in self.ranks)
        if spectral.captured >= WELL:
            return []
        ranks = sorted(self.ranks.values())
        remark = (
            f"only {spectral.captured:.1%} of the change is retained at rank {ranks[-1]}: a shift has full rank by "
            "nature; give a higher --rank, --energy 0.9, or convert --to full"
        )
        return [remark]
