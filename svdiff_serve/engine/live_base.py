"""Hold a live pipeline with all layers that deltas shift, and compute each call with the δ of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.parameter import Parameter, Table
from svdiff_delta.runtime import Handle, attach
from svdiff_delta.runtime.sample_gains import SampleGains
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.verify import prepare_base, verify_base
from svdiff_serve.errors import CancelledError

from .calls import Call, join, split


@dataclass(frozen=True, eq=False)
class MixGains:
    """The gains of one mix on all layers that were attached when it was computed; pictures share it.

    Attributes:
        parts: one for each attachment.
    """

    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that it takes on the device."""
        return sum(part.nbytes for part in self.parts)


class LiveBase:
    """A live pipeline whose rows have deltas of their own.

    Layers are attached once, with δ = 0, when the first δ that shifts them comes; what is there already stays as it is.

    Args:
        pipeline: the live pipeline.
        base: where its weights are from.
        cache: where bases are kept; the default cache if not given.
    """

    def __init__(self, pipeline: Any, base: Base, cache: BasisCache | None = None) -> None:
        self.pipeline, self.base, self.cache = pipeline, base, cache or BasisCache()
        self._handles: list[Handle] = []
        self._gains: list[SampleGains] = []
        self._sigmas: dict[SampleGains, dict[str, NDArray[np.float64]]] = {}
        self._wanted: Callable[[], bool] = lambda: True
        self._hooks = [block.register_forward_pre_hook(self._stop) for block in _blocks(pipeline)]

    def _stop(self, block: nn.Module, given: object) -> None:
        """End a forward that nobody waits for any more."""
        del block, given
        if not self._wanted():
            raise CancelledError("whoever asked has gone")

    def verify(self, delta: Delta) -> None:
        """Check that every weight that a δ shifts is one of the base, by its fingerprint.

        Raises:
            BaseMismatchError, BaseError: it is not; the message says which.
        """
        verify_base(self.base, [_zero(delta, delta.metadata.parameters)])

    def lacking(self, delta: Delta) -> Delta | None:
        """Return δ = 0 on those layers of a delta that are not attached yet; None if all are."""
        known = [gains.parameters for gains in self._gains]
        found = {
            name: parameter
            for name, parameter in delta.metadata.parameters.items()
            if not any(name in parameters for parameters in known)
        }
        return _zero(delta, found) if found else None

    def prepare(self, delta: Delta) -> None:
        """See to it that the decompositions of a delta's layers are in the cache, so that attaching is short.

        Raises:
            BaseMismatchError, BaseError: it was made for another base, or a weight cannot be used.
        """
        lacking = self.lacking(delta)
        if lacking is not None:
            prepare_base(self.base, [lacking], self.cache)

    def extend(self, delta: Delta) -> None:
        """Attach the layers of a delta that are not yet; called between two forwards.

        Raises:
            AttachError, BaseMismatchError, BaseError: a layer cannot take shifts; then nothing is changed.
        """
        lacking = self.lacking(delta)
        if lacking is not None:
            handle = attach(self.pipeline, lacking, base=self.base, cache=self.cache)
            self._handles.append(handle)
            self._gains.append(SampleGains(handle))

    def gains(self, terms: Sequence[tuple[Delta, float]]) -> MixGains:
        """Return the gains of a sum of deltas whose layers are attached; any thread may ask.

        Raises:
            TensorError: a value is not valid, or the sum is too large.
            BaseMismatchError: one was made for another base.
        """
        return MixGains(tuple(each.of(terms) for each in list(self._gains)))

    def sigmas(self) -> dict[str, NDArray[np.float64]]:
        """Return the singular values of all attached layers, descending, by parameter name; norms have none."""
        found: dict[str, NDArray[np.float64]] = {}
        for each in list(self._gains):
            if each not in self._sigmas:
                self._sigmas[each] = each.sigmas()
            found |= self._sigmas[each]
        return found

    @property
    def layers(self) -> int:
        """How many parameters are attached."""
        return sum(len(each.parameters) for each in list(self._gains))

    @torch.no_grad()
    def compute(
        self,
        calls: Sequence[Call],
        mixes: Sequence[MixGains | None],
        wanted: Callable[[], bool] = lambda: True,
    ) -> list[Any]:
        """Return the results of calls that one forward computes.

        Args:
            calls: as `group` has put them together.
            mixes: for each call its δ; None for the base.
            wanted: asked before each block of the model whether somebody waits for it still.

        Raises:
            CancelledError: nobody does.
        """
        counts = [call.rows for call in calls]
        model = getattr(self.pipeline, calls[0].component)
        with ExitStack() as stack:
            if any(mix is not None for mix in mixes):
                for index, each in enumerate(self._gains):
                    parts = [_part(mix, index, each) for mix in mixes]
                    rows = [part for part, count in zip(parts, counts, strict=True) for _ in range(count)]
                    stack.enter_context(each.rows(calls[0].component, rows))
            call = model if calls[0].method == "forward" else getattr(model, calls[0].method)
            stack.callback(setattr, self, "_wanted", self._wanted)
            self._wanted = wanted
            result = call(**join(calls))
        return split(result, counts)

    def close(self) -> None:
        """Take everything off the pipeline."""
        while self._handles:
            self._handles[-1].detach()
            self._handles.pop()
        self._gains.clear()
        self._sigmas.clear()
        while self._hooks:
            self._hooks.pop().remove()


def _part(mix: MixGains | None, index: int, gains: SampleGains) -> Tensor:
    return gains.none() if mix is None or index >= len(mix.parts) else mix.parts[index]


def _blocks(pipeline: Any) -> Iterator[nn.Module]:
    """Yield the blocks of all models of a pipeline: members of rows that have members of their own."""
    for model in pipeline.components.values():
        for row in model.modules() if isinstance(model, nn.Module) else ():
            if isinstance(row, nn.ModuleList):
                # Rows of diffusers may have None in places.
                yield from (block for block in row if block is not None and next(block.children(), None) is not None)


def _zero(delta: Delta, parameters: Mapping[str, Parameter]) -> Delta:
    """Return δ = 0 on some parameters of a delta."""
    zeros = {name: np.zeros(parameter.size, np.float32) for name, parameter in parameters.items()}
    metadata = replace(delta.metadata, parameters=Table(parameters))
    return Delta(zeros, metadata)
