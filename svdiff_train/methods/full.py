"""DreamBooth: every weight of the selected layers is trained. The paper's first baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import TrainError
from svdiff_train.families import Family

from .checkpoint import TunedPipeline, copied
from .method import Job, Place, whole, without_gradient


class Full:
    """Full fine-tuning."""

    def half(self) -> bool:
        """Return False: a small step is lost in a weight in half precision."""
        return False

    def selectors(self, family: Family) -> tuple[str, ...]:
        """Return the denoiser, or all experts, biases and all."""
        return tuple(family.slots)

    def check(self, job: Job) -> None:
        """Find the components, and what is copied beside them."""
        copied(job.base, frozenset(self._models(job)))

    def _models(self, job: Job) -> dict[str, Any]:
        slots = job.config.selectors or self.selectors(job.family)
        models: dict[str, Any] = {slot: getattr(job.family.pipeline, slot, None) for slot in slots}
        if wrong := [slot for slot, model in models.items() if not isinstance(model, nn.Module)]:
            raise TrainError(
                f"{wrong[0]!r} is not a component, and full fine-tuning takes whole ones",
                fix=f"select {', '.join((job.family.slot, *job.family.text_slots))}",
            )
        return models

    @contextmanager
    def tune(self, job: Job) -> Iterator[TunedWeights]:
        """Let whole components take gradients."""
        models = self._models(job)
        weights = {f"{slot}.{key}": weight for slot in models for key, weight in models[slot].named_parameters()}
        yield TunedWeights(job, frozenset(models), weights)


class TunedWeights:
    """Weights of a live pipeline that take gradients; they stay on it.

    Args:
        job: where they are trained.
        components: which components they belong to.
        weights: what is trained, by parameter name.
        rows: for an embedding of which only some rows are trained, by parameter name, their numbers.
    """

    computes_in_half = False

    def __init__(
        self,
        job: Job,
        components: frozenset[str],
        weights: Mapping[str, nn.Parameter],
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.job, self.components, self.weights, self.rows = job, components, dict(weights), dict(rows or {})
        copied(job.base, self.components)  # what cannot be written in the end is refused now
        for weight in self.weights.values():
            weight.requires_grad_(True)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the weights."""
        return self.weights

    def places(self) -> Mapping[str, Place]:
        """Return the weights, each a parameter of its own."""
        return whole(self.weights)

    def untouched(self) -> list[str]:
        """Return the names of those that have no gradient."""
        return without_gradient(self.weights)

    def groups(self) -> Sequence[dict[str, Any]]:
        """Return the weights with one rate; embeddings of which a row is trained do not decay."""
        rate = self.job.config.rate
        whole = [weight for name, weight in self.weights.items() if name not in self.rows]
        groups: list[dict[str, Any]] = [{"params": whole, "lr": rate}]
        if self.rows:
            groups.append({"params": [self.weights[name] for name in self.rows], "lr": rate, "weight_decay": 0.0})
        return groups

    def mask_gradients(self) -> None:
        """Let the other rows of embeddings stay as they are."""
        for name, rows in self.rows.items():
            grad = self.weights[name].grad
            if grad is not None:
                kept = grad[list(rows)].clone()
                grad.zero_()
                grad[list(rows)] = kept

    def clipped_count(self) -> None:
        """Return None: there are no shifts."""
        return

    def result(self, facts: Mapping[str, JSON]) -> TunedPipeline:
        """Return the pipeline with its weights as they are now."""
        return TunedPipeline(self.job.base, self.job.family.pipeline, self.components, facts)
