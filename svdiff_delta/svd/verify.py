"""Verify that a base is the one a delta was made for: all parameters at once, each of them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from typing import Final, NamedTuple

import torch

from svdiff_delta._util.file_state import State, state
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseError, BaseMismatchError, DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.format.parameter import Parameter

from .cache import BasisCache
from .fingerprint_cache import Known
from .matching_base import advise, find_damage
from .prepare import (
    CPU,
    Prepared,
    Progress,
    Weights,
    check_projected,
    fingerprint_mismatch,
    fingerprint_weight,
    prepare_known,
    recall_weight,
    shape_mismatch,
    verify_weight,
)
from .side_by_side import try_weights, workers_for
from .together import Wanted, run_prepared

SHOWN: Final = 3
"""How many parameters an error names."""


@dataclass(frozen=True, eq=False)
class VerifiedBase:
    """A base whose weights are the ones that deltas were made for: `verify_base` makes it, and nothing else should.

    Who holds it need not verify again. A weight is verified anew only where its file is not in the state in which it
    was verified, or the weights are a live model's, whose state nothing tells.

    Attributes:
        weights: an opened base, or a live model's weights.
        deltas: the deltas that were verified against it.
        found: what each weight that they shift was identified as, by parameter name.
        projected: the parameters whose δ were found to be projected on the runs of their basis.
        device: where weights that it prepares multiply.
    """

    weights: Weights
    deltas: Sequence[Delta]
    found: Mapping[str, Verified]
    projected: set[str] = field(default_factory=set)
    device: torch.device = CPU

    def on(self, device: torch.device) -> VerifiedBase:
        """Return the same base, whose weights multiply on a device."""
        return replace(self, device=device)

    def prepare(self, name: str, cache: BasisCache) -> Prepared:
        """Prepare a weight that the deltas shift, with its basis.

        Raises:
            BaseMismatchError: the base's file was changed since it was verified.
            TensorError: a δ is not projected on the runs of its basis.
            BaseError: the weight cannot be read any more.
        """
        mine, verified = [delta for delta in self.deltas if name in delta], self.found[name]
        said, known, hashed = mine[0].metadata.parameters[name], verified.known, verified.hashed
        if verified.state is None or verified.state != _file_state(self.weights, name):
            known, hashed = verify_weight(self.weights, name, said), False
        prepared = prepare_known(self.weights, name, said, cache, known, hashed=hashed)
        if name not in self.projected:
            check_projected(name, mine, prepared)
            self.projected.add(name)
        return replace(prepared, device=self.device)

    def prepare_all(self, cache: BasisCache, progress: Progress | None = None) -> None:
        """See to it that the basis of every weight is in the cache, several at once.

        Args:
            cache: where bases are kept.
            progress: called with the work done and in all.

        Raises:
            BaseMismatchError, TensorError, BaseError: as `prepare`.
        """

        def work(name: str, wait: bool) -> None:
            self.prepare(name, cache if wait else cache.impatient())

        said = {name: item for delta in self.deltas for name, item in delta.metadata.parameters.items()}
        wanted = {name: Wanted.of(item) for name, item in said.items()}
        run_prepared(self.weights, wanted, cache, work, progress, workers_for(cache))


class Verified(NamedTuple):
    """The identity that a weight was found to have.

    Attributes:
        known: that.
        hashed: whether its values said so; else what is remembered of its file did.
        state: its file's, before it was read; None for a live model's weight, or where the system does not tell.
    """

    known: Known
    hashed: bool
    state: State | None


def verify_base(weights: Weights, deltas: Sequence[Delta], *, progress: Progress | None = None) -> VerifiedBase:
    """Check that every weight that deltas shift is the one it was made for; each is fingerprinted at most once.

    Args:
        weights: an opened base, or a live model's weights.
        deltas: the deltas.
        progress: called with the numbers of parameters checked and in all.

    Returns:
        The base and what its weights were identified as, for whoever goes on with them.

    Raises:
        BaseMismatchError: weights have another shape or other values. The message says which, how many, and which
            revision in the local Hub cache fits.
        BaseError: weights are missing, and all others fit; or one cannot be used.
    """
    asked = dict.fromkeys(Question.of(*item) for delta in deltas for item in delta.metadata.parameters.items())
    answers = _answers(weights, list(asked), progress)
    for delta in deltas:
        _check(weights, delta, answers)
    found = {asked.name: answer for asked, answer in reversed(answers.items()) if isinstance(answer, Verified)}
    return VerifiedBase(weights, tuple(deltas), found)


def prepare_base(
    weights: Weights, deltas: Sequence[Delta], cache: BasisCache, progress: Progress | None = None
) -> VerifiedBase:
    """Check every delta against a base, and see to it that every basis is in the cache: several at once.

    Args:
        weights: an opened base, or a live model's weights.
        deltas: the deltas.
        cache: where bases are kept.
        progress: called with the work done and in all, once the identity of all weights is known.

    Raises:
        BaseMismatchError, BaseError: as `verify_base`.
        TensorError: a δ is not projected on the runs of its basis.
    """
    verified = verify_base(weights, deltas)
    verified.prepare_all(cache, progress)
    return verified


class Question(NamedTuple):
    """A question about a weight: has it this shape, and which fingerprint with this axis and basis dtype?"""

    name: str
    axis: int
    dtype: Dtype
    shape: tuple[int, ...]

    @staticmethod
    def of(name: str, said: Parameter) -> Question:
        """Return what is asked where a delta says this of a parameter."""
        return Question(name, said.axis, said.dtype, said.shape)


class Mismatch(NamedTuple):
    """The reason why a weight is not the one that was asked for, and whether there is none at all."""

    why: str
    missing: bool


Answer = Verified | Mismatch | DeltaError
"""What was found: the weight's fingerprint, that there is no such weight, or why it cannot be used."""


def _answers(weights: Weights, asked: Sequence[Question], progress: Progress | None) -> dict[Question, Answer]:
    """Return what is found of each weight; those that nothing is remembered of are hashed, several at once.

    Errors are returned, not raised, so that the first in the order asked is told, whichever thread meets one first.
    """
    count = 0

    def done(*_: int) -> None:
        nonlocal count
        count += 1
        if progress is not None:
            progress(count, len(asked))

    found: dict[Question, Answer] = {}
    for each in asked:
        if answer := _remembered(weights, each):
            found[each] = answer
            done()
    left = {str(index): each for index, each in enumerate(asked) if each not in found}
    if left:
        costs = {key: prod(each.shape) for key, each in left.items()}
        hashed = try_weights(costs, lambda key: _hashed(weights, left[key]), done)
        found |= {left[key]: answer for key, answer in hashed.items()}
    return {each: found[each] for each in asked}


def _remembered(weights: Weights, asked: Question) -> Answer | None:
    """Return what can be found of a weight without reading it; None if it must be read."""
    if why := _absence(weights, asked.name):
        return Mismatch(why, missing=True)
    before = _file_state(weights, asked.name)
    try:
        if why := shape_mismatch(weights, asked.name, asked.shape):
            return Mismatch(why, missing=False)
        known = recall_weight(weights, asked.name, asked.axis, asked.dtype)
    except DeltaError as error:
        return error
    return None if known is None else Verified(known, False, before)


def _hashed(weights: Weights, asked: Question) -> Verified:
    """Return what a weight's values say."""
    before = _file_state(weights, asked.name)
    return Verified(fingerprint_weight(weights, asked.name, asked.axis, asked.dtype), True, before)


def _check(weights: Weights, delta: Delta, answers: Mapping[Question, Answer]) -> None:
    """Raise the error that says which weights are not those that a delta was made for, if any is not."""
    missing: dict[str, str] = {}
    different: dict[str, str] = {}
    for name, said in delta.metadata.parameters.items():
        answer = answers[Question.of(name, said)]
        if isinstance(answer, DeltaError):
            raise answer
        if isinstance(answer, Mismatch):
            (missing if answer.missing else different)[name] = answer.why
        elif why := fingerprint_mismatch(answer.known, said):
            different[name] = why
    if not missing and not different:
        return
    kind = BaseMismatchError if different else BaseError
    found = different | missing
    name, why = next(iter(found.items()))
    message = f"{name}: {why}"
    if len(found) > 1:
        more = ", …" if len(found) > SHOWN else ""
        what = "do not fit" if different else "are not there"
        message += f"; {len(found)} of {len(delta)} parameters {what}: {', '.join(list(found)[:SHOWN])}{more}"
    raise kind(message, fix=find_damage(weights, different) or advise(weights, delta))


def _file_state(weights: Weights, name: str) -> State | None:
    """Return the state of the file that holds a weight; None if there is none, or the system does not tell."""
    if not isinstance(weights, Base):
        return None
    with suppress(BaseError, OSError):
        return state(weights.locate(name)[2].stat())
    return None


def _absence(weights: Weights, name: str) -> str | None:
    """Return why a base has no weight of a name; None if it has one."""
    if isinstance(weights, Base):
        try:
            weights.locate(name)
        except BaseError as error:
            return error.message.removeprefix(f"{name}: ")
    return None
