"""Read weights that diffusers' layerwise casting keeps in one byte between calls."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

from .weight import QuantizedWeight

REGISTRY: Final = "_diffusers_hook"
"""Where diffusers keeps a module's hooks."""

HOOK: Final = "layerwise_casting"
"""What it calls the one that casts."""


def find(module: nn.Module) -> QuantizedWeight | None:
    """Return how a layer's weight is stored between calls; None if no hook casts it to one byte."""
    registry: Any = module.__dict__.get(REGISTRY)
    hook = None if registry is None else registry.get_hook(HOOK)
    if hook is None or hook.storage_dtype.itemsize > 1 or not hook.storage_dtype.is_floating_point:
        return None
    weight: Any = module._parameters["weight"]
    storage = hook.storage_dtype

    def rounded(given: Tensor) -> Tensor:
        return given.to(storage).float()

    return QuantizedWeight(
        f"layerwise casting to {str(storage).removeprefix('torch.')}",
        tuple(weight.shape),
        hook.compute_dtype,
        weight.numel() * storage.itemsize,
        lambda: weight.data.float(),
        lambda found: found.new_zeros(()),
        rounded,
        cast=True,
    )
