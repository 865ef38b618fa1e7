"""Combine the inputs of an operation: their parameters and their metadata (spec, sections 7.1 to 7.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import BaseMismatchError, DeltaError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import file_digest
from svdiff_delta.format.lineage import Lineage, Record, Source, bounded
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.modelspec import combine_modelspec
from svdiff_delta.format.parameter import Parameter

K = TypeVar("K")


def combine_parameters(deltas: Sequence[Delta]) -> dict[str, Parameter]:
    """Return the union of the inputs' parameters; tied runs and null counts that differ are widened to cover both.

    Raises:
        BaseMismatchError: two inputs disagree about a weight's fingerprint, kind or axis.
    """
    result: Mapping[str, Parameter] = {}
    for delta in deltas:
        result = unite(result, delta.metadata.parameters)
    return dict(result)


def note_weight(taken: dict[K, str], weight: K, name: str, error: type[DeltaError] = BaseMismatchError) -> None:
    """Note the name of a weight; raise `error` if another name of it was noted before.

    Args:
        taken: the names so far, by what tells weights apart.
        weight: the weight.
        name: the parameter's name.
        error: the class of the error.
    """
    if (other := taken.setdefault(weight, name)) != name:
        raise error(f"{name}: shifts the same weight as {other}", fix="keep one of the two names")


def unite(known: Mapping[str, Parameter], more: Mapping[str, Parameter]) -> Mapping[str, Parameter]:
    """Return the union of two tables of parameters, as `combine_parameters`."""
    if not known:
        return more
    result = {**known, **more}
    for name in known.keys() & more.keys():
        result[name] = known[name] if known[name] == more[name] else _reconcile(name, known[name], more[name])
    return dict(sorted(result.items()))


def _reconcile(name: str, a: Parameter, b: Parameter) -> Parameter:
    if a.fingerprint != b.fingerprint:
        raise BaseMismatchError(
            f"{name}: the inputs were made for different bases (fingerprints {a.fingerprint} and {b.fingerprint})",
            fix="combine only deltas of one base, or slices that do not overlap",
        )
    for key in ("shape", "kind", "axis"):
        if getattr(a, key) != getattr(b, key):
            raise BaseMismatchError(
                f"{name}: the inputs disagree about its {key} ({getattr(a, key)}, {getattr(b, key)})"
            )
    null = max(a.null, b.null)
    runs = widen_runs([*a.tied, *b.tied])
    # A run that reaches into the null part is null as a whole.
    null = max([null, *(a.size - first for first, last in runs if last >= a.size - null)])
    return replace(a, tied=tuple(run for run in runs if run[1] < a.size - null), null=null)


def widen_runs(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the fewest runs that cover all of these, joining those that share an index."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(runs):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def combine_metadata(deltas: Sequence[Delta], parameters: Mapping[str, Parameter], record: Record) -> Metadata:
    """Return the metadata of a result: what all inputs agree on, with `record` and every input in the lineage."""
    combined = Combined()
    for delta in deltas:
        combined.add(delta, partial(file_digest, delta))
    return combined.metadata(parameters, record)


class Combined:
    """What the inputs of an operation say about themselves, taken together one by one (spec, section 7.4)."""

    def __init__(self) -> None:
        self._first: Metadata | None = None
        self._identities: list[Callable[[], tuple[str, Source]]] = []
        self._files: dict[str, Source] = {}
        self._modelspecs: list[Mapping[str, str]] = []
        self._named: BaseInfo | None = None
        self._unions: dict[str, dict[str, JSON]] = {key: {} for key in ("components", "base", "extra", "foreign")}

    def add(self, delta: Delta, identity: Callable[[], tuple[str, Source]]) -> None:
        """Take one more input, and what returns its SHA-256 and lineage entry, which may still be on their way."""
        metadata = delta.metadata
        if self._first is None:
            self._first = metadata
        if self._named is None and metadata.base.repository is not None:
            self._named = metadata.base
        self._identities.append(identity)
        self._files |= metadata.lineage.files if metadata.lineage else {}
        self._modelspecs.append(metadata.modelspec)
        base = {"sample_size": metadata.base.sample_size, "attentions": metadata.base.attentions, **metadata.base.extra}
        for key, mapping in (
            ("components", metadata.base.components),
            ("base", base),
            ("extra", metadata.extra),
            ("foreign", metadata.foreign),
        ):
            for field, value in mapping.items():
                if value is not None:
                    self._unions[key].setdefault(field, value)

    def metadata(self, parameters: Mapping[str, Parameter], record: Record) -> Metadata:
        """Return the result's metadata; where inputs disagree, the first one's stands."""
        if self._first is None:
            raise InputError("there is nothing to combine", fix="give at least one delta")
        identities = [identity() for identity in self._identities]
        inputs = tuple(sha256 for sha256, _ in identities)
        single = len(set(inputs)) == 1
        named = self._named or self._first.base
        base = dict(self._unions["base"])
        info = BaseInfo(
            self._unions["components"],
            named.repository,
            named.revision,
            base.pop("sample_size", None),
            base.pop("attentions", None),
            base,
        )
        return Metadata(
            base=info,
            parameters=parameters,
            lineage=bounded(Lineage(replace(record, inputs=inputs), self._files | dict(identities))),
            training=self._first.training if single else None,
            modelspec=combine_modelspec(self._modelspecs, single=single),
            extra=self._unions["extra"],
            foreign=self._unions["foreign"],
        )
