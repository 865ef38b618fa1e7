"""Denoisers that share out the timesteps, such as the two of Wan 2.2."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn


def experts_of(pipeline: Any) -> tuple[str, ...]:
    """Return the components of a pipeline that predict: `transformer`, and `transformer_2` where it is used.

    Without a boundary between their timesteps, the pipeline uses the first alone.
    """
    found = tuple(slot for slot in ("transformer", "transformer_2") if getattr(pipeline, slot, None) is not None)
    return found if pipeline.config.get("boundary_ratio") is not None else found[:1]


def draw_for(family: Any, trained: Collection[str]) -> None:
    """Let a family whose experts share out the timesteps draw those that the trained ones see.

    Args:
        family: of the live pipeline.
        trained: the components that something is trained of.
    """
    if len(family.slots) > 1:
        family.drawn = frozenset(family.slots) & frozenset(trained)


class Experts(nn.Module):
    """Several denoisers as one module, so that what is asked of a denoiser is asked of each.

    Args:
        experts: in the order of their components.
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    @property
    def config(self) -> Any:
        """The first one's configuration."""
        return self.experts[0].config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first one's weights."""
        found: torch.dtype = self.experts[0].dtype  # type: ignore[assignment]
        return found

    @property
    def _supports_gradient_checkpointing(self) -> bool:
        return all(getattr(expert, "_supports_gradient_checkpointing", False) for expert in self.experts)

    def enable_gradient_checkpointing(self) -> None:
        """Let each compute its activations again in the backward pass."""
        for expert in self.experts:
            expert.enable_gradient_checkpointing()  # type: ignore[operator]

    def forward(self, *, expert: int, **given: Any) -> Any:
        """Return what one of them gives.

        Args:
            expert: which.
            given: its arguments.
        """
        return self.experts[expert](**given)
