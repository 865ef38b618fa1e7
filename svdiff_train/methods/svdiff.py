"""Spectral shifts (section 3.2 of the paper): δ of every selected weight, through `attach` with trainable δ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import TrainError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import save
from svdiff_delta.runtime import Handle, attach
from svdiff_delta.svd.build import zero_delta
from svdiff_train.families import Family
from svdiff_train.settings.config import TrainConfig

from .method import Job, Place


class Svdiff:
    """The method of this project."""

    def half(self) -> bool:
        """Return True: δ and its gains stay float32 on a model in half precision."""
        return True

    def selectors(self, family: Family) -> tuple[str, ...]:
        """Return all layers of the denoiser, or of all experts."""
        return tuple(family.slots)

    def check(self, job: Job) -> None:
        """Find the weights that selectors name."""
        selectors = job.config.selectors or self.selectors(job.family)
        choose_kinds(job.base, selectors, allow_missing=job.config.allow_missing)

    @contextmanager
    def tune(self, job: Job) -> Iterator[TunedShifts]:
        """Attach δ = 0."""
        config = job.config
        selectors = config.selectors or self.selectors(job.family)
        start = zero_delta(
            job.base, *selectors, allow_missing=config.allow_missing, cache=job.cache, progress=job.progress
        )
        pipeline = job.family.pipeline
        with attach(pipeline, start, base=job.base, trainable=True, cache=job.cache) as handle:
            if config.revive:
                handle.revive()
            yield TunedShifts(handle, config)


class TunedShifts:
    """δ on a live model: one flat parameter for each kind of weight, since their rates differ.

    A compiled model has one for each weight: its compiler puts their operations together by itself.
    """

    computes_in_half = True

    def __init__(self, handle: Handle, config: TrainConfig) -> None:
        self.handle, self.config = handle, config
        self.kinds = handle.kinds()
        self.components = frozenset(name.partition(".")[0] for name in self.kinds)
        names = handle.trained().keys()
        if not names:
            raise TrainError("nothing to train", fix="choose selectors that match a weight")
        if config.compile:
            self._parameters = dict(handle.parameters())
            self._places = {name: Place(name) for name in names}
        else:
            self._parameters = {str(kind): flat for kind, flat in handle.flat_parameters().items()}
            self._places = {name: Place(kind, part) for name, (kind, part) in handle.flat_places().items()}
        self.masks = self._masks(config.train_rank)

    def _masks(self, rank: int | None) -> dict[str, Tensor]:
        """Return 1 for the free numbers of the `rank` largest singular values of each weight, 0 for the others."""
        if rank is None:
            return {}
        masks = {name: torch.ones_like(parameter, requires_grad=False) for name, parameter in self._parameters.items()}
        for name, shift in self.handle.trained().items():
            if self.kinds[name] == "spectral":
                first = torch.zeros(shift.parameter.size)
                first[:rank] = 1
                place = self._places[name]
                place.of(masks[place.parameter]).copy_(shift.gather(first) > 0)
        return masks

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the free numbers of δ by kind; by parameter name if the model is compiled."""
        return self._parameters

    def places(self) -> Mapping[str, Place]:
        """Return where each weight's numbers are among them."""
        return self._places

    def untouched(self) -> list[str]:
        """Return the names of weights that no gradient has reached."""
        return self.handle.untouched()

    def groups(self) -> Sequence[dict[str, Any]]:
        """Return shifts of singular values, and those of norm weights with a rate of their own."""
        groups = []
        for kind, rate in (("spectral", self.config.rate), ("elementwise", self.config.rate_1d)):
            names = dict.fromkeys(place.parameter for name, place in self._places.items() if self.kinds[name] == kind)
            if names:
                groups.append({"params": [self._parameters[name] for name in names], "lr": rate})
        return groups

    def mask_gradients(self) -> None:
        """Let shifts beyond the rank that is trained stay 0."""
        for name, mask in self.masks.items():
            grad = self._parameters[name].grad
            if grad is not None:
                grad.mul_(mask)

    def clipped_count(self) -> int:
        """Return the number of singular values with σ + δ < 0."""
        return self.handle.clipped_count()

    def result(self, facts: Mapping[str, JSON]) -> TrainedDelta:
        """Return δ as it is now."""
        trained = self.handle.delta(training=dict(facts))
        side = facts.get("resolution")
        metadata = trained.metadata.with_modelspec("resolution", f"{side}x{side}")
        return TrainedDelta(Delta.from_stored(trained.stored, metadata))


class TrainedDelta:
    """A delta that training made."""

    def __init__(self, delta: Delta) -> None:
        self.delta = delta

    def titled(self, title: str | None) -> TrainedDelta:
        """Return the delta with a title."""
        return TrainedDelta(self.delta.with_title(title))

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write a delta file."""
        save(self.delta, path, overwrite=overwrite)
