"""Deltas and full-weight differences on one live pipeline, each with a weight that changes from picture to picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import file_digest
from svdiff_delta.runtime import Handle, attach
from svdiff_delta.svd.cache import BasisCache

from .weight_difference import Difference, tuned_weights

Part = Delta | Difference
"""What changes a base: shifts of singular values, or weights."""


class AdapterStack:
    """A live pipeline that shows the base with any sum of the parts it was given (Eq. 4, Fig. 8).

    Deltas are put on when one is first shown, all of them at once, and weighed from then on. Beside differences they
    are fused into the weights, and differences are added to those: then a weight is rounded twice. As a context manager
    it takes all of them off at the end.

    Args:
        pipeline: the live pipeline.
        base: where its weights are from.
        parts: what may be shown.
        cache: where bases are kept; the default cache if not given.
    """

    def __init__(self, pipeline: Any, base: Base, parts: Sequence[Part], *, cache: BasisCache | None = None) -> None:
        self.pipeline, self.base, self.parts, self.cache = pipeline, base, tuple(parts), cache
        self._deltas = {str(index): part for index, part in enumerate(parts) if isinstance(part, Delta)}
        self._handle: Handle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take all deltas off."""
        if self._handle is not None:
            self._handle.detach()
            self._handle = None

    @contextmanager
    def active(self, weights: Sequence[float]) -> Iterator[None]:
        """Let the pipeline have the sum of the parts with these weights while the block runs.

        Args:
            weights: one for each part; with zeros only it is the base.

        Raises:
            InputError: they are not as many as the parts, or not finite.
            AttachError, BaseError, BaseMismatchError: a part does not fit the pipeline.
        """
        if len(weights) != len(self.parts):
            raise InputError(f"{len(self.parts)} parts need as many weights, {len(weights)} were given")
        self._weigh({name: weights[int(name)] for name in self._deltas if weights[int(name)] != 0})
        pairs = zip(self.parts, weights, strict=True)
        with tuned_weights(self.pipeline, [(part, w) for part, w in pairs if isinstance(part, Difference)]):
            yield

    def _weigh(self, active: dict[str, float]) -> None:
        if not active:
            if self._handle is not None:
                self._handle.disable()
            return
        if self._handle is None:
            mixed = len(self._deltas) < len(self.parts)
            self._handle = attach(
                self.pipeline, self._deltas, base=self.base, cache=self.cache, mode="fused" if mixed else "live"
            )
        self._handle.set_adapters(list(active), list(active.values()))
        if not self._handle.enabled:
            self._handle.enable()


def part_facts(part: Part, weight: float) -> dict[str, JSON]:
    """Return what a picture says of a part: its content by SHA-256, as lineages name it, and its weight."""
    if isinstance(part, Delta):
        return {"kind": "delta", "sha256": file_digest(part)[0], "weight": weight}
    return {"kind": "difference", "sha256": part.identify(), "weight": weight}
