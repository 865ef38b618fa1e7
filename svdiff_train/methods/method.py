"""Define the protocol of a fine-tuning method: what is trained, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

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


class Place(NamedTuple):
    """The numbers that are trained of one weight.

    Attributes:
        parameter: the name of the parameter that they are in.
        part: where in it; None for all of it.
    """

    parameter: str
    part: slice | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the weight's own numbers of a tensor that is like the parameter."""
        return tensor if self.part is None else tensor[self.part]


def whole(parameters: Mapping[str, nn.Parameter]) -> dict[str, Place]:
    """Return the places of weights each of which is a parameter of its own."""
    return {name: Place(name) for name in parameters}


def without_gradient(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of parameters that have no gradient."""
    return [name for name, parameter in parameters.items() if parameter.grad is None]


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
        computes_in_half: whether it computes in half precision on a model that is, without autocast.
    """

    components: frozenset[str]
    computes_in_half: bool

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return what is trained, as the optimizer gets it, by names that are the same in every run."""

    def places(self) -> Mapping[str, Place]:
        """Return where what is trained of each weight is, by names that are the same in every run."""

    def untouched(self) -> Sequence[str]:
        """Return the names of weights that no gradient has reached in the last pass."""

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

    def check(self, job: Job) -> None:
        """Raise what `tune` would raise of settings, before a picture is painted; nothing on the model changes.

        Raises:
            SelectionError: a selector is unknown or matches nothing.
            TrainError: the method cannot train what is selected.
        """

    def tune(self, job: Job) -> AbstractContextManager[Tuned]:
        """Put on the model what is trained, and take it off at the end.

        Raises:
            SelectionError: a selector is unknown or matches nothing.
            TrainError: there is nothing to train.
        """
