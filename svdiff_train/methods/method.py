"""Define the protocol of a fine-tuning method: what is trained, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.base import Base
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import Progress
from svdiff_train.families import Family
from svdiff_train.settings.config import TrainConfig


@dataclass(frozen=True)
class Job:
    """Where a method does its work.

    Attributes:
        base: the opened base.
        family: of its live pipeline, all of whose weights are frozen.
        config: what to train and how.
        cache: where bases are kept.
        progress: told about bases that are computed.
    """

    base: Base
    family: Family
    config: TrainConfig
    cache: BasisCache
    progress: Progress | None = None


class Result(Protocol):
    """What a run gives."""

    def titled(self, title: str | None) -> Result:
        """Return the same with a title, where there is a place for one."""

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write it, atomically.

        Raises:
            OutputError: the path exists, or cannot be written.
        """


class Tuned(Protocol):
    """A model with something on it that can be trained.

    Attributes:
        components: those that have something to train.
    """

    components: frozenset[str]

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return what is trained, by names that are the same in every run."""

    def groups(self) -> Sequence[dict[str, Any]]:
        """Return the optimizer's groups, with learning rates."""

    def mask_gradients(self) -> None:
        """Let the gradients of what is not trained after all be zero, after a backward pass."""

    def clipped_count(self) -> int | None:
        """Return how many shifts have made a singular value negative; None where there are no shifts."""

    def result(self, facts: Mapping[str, JSON]) -> Result:
        """Return what was trained so far; the facts are recorded where there is a place for them."""


class Method(Protocol):
    """A way to fine-tune."""

    def half(self) -> bool:
        """Tell whether frozen weights may be cast to the dtype of mixed precision."""

    def selectors(self, family: Family) -> tuple[str, ...]:
        """Return what is trained where no selectors are given."""

    def tune(self, job: Job) -> AbstractContextManager[Tuned]:
        """Put on the model what is trained, and take it off at the end.

        Raises:
            SelectionError: a selector is unknown or matches nothing.
            TrainError: there is nothing to train.
        """
