"""Measure the inputs of layers while a live model runs (spec, section 7.12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.experts import ExpertWeight
from svdiff_delta.base_model.kinds import kind_of
from svdiff_delta.svd.calibration import Factors, Moments, Probe
from svdiff_delta.svd.decomposition import unmatricize

from .factored_ops import Conv, ConvTranspose, inner, is_grouped, spatial
from .modules import components, layer


def measure(
    target: object, probes: Mapping[str, Probe], run: Callable[[], object], *, budget: int = 4 << 30
) -> dict[str, Moments]:
    """Return the moments of the inputs that layers meet while a model runs, by parameter name.

    The model runs once, or several times if the factors of all layers together would not fit into the memory that they
    may take. It is not changed. Layers that no product can measure are left out: embeddings, grouped convolutions.

    Args:
        target: a diffusers pipeline, one of its models, or a transformers model.
        probes: the layers to measure, by parameter name.
        run: runs the model on what it is to be measured on, in the same way each time.
        budget: bytes of factors that are held at a time.

    Raises:
        AttachError: the model has no such component or layer.
    """
    models = components(target, (name.partition(".")[0] for name in probes))
    modules = {name: module for name in probes if measurable(module := layer(models, name))}
    found: dict[str, Moments] = {}
    for names in _groups(modules, probes, budget):
        meters = {name: _Meter(modules[name], probes[name].make()) for name in names}
        with ExitStack() as hooks, torch.no_grad():
            for name, meter in meters.items():
                hook = modules[name].register_forward_pre_hook(meter, with_kwargs=True)
                hooks.callback(hook.remove)
            run()
        found |= {name: meter.moments() for name, meter in meters.items() if meter.calls}
    return found


def measurable(module: nn.Module) -> bool:
    """Tell whether the inputs of a layer can be measured: linear layers and convolutions without groups."""
    kind = None if isinstance(module, ExpertWeight) else kind_of(module)  # nobody calls those
    return kind is not None and kind[0] == "spectral" and not is_grouped(module)


def _groups(modules: Mapping[str, nn.Module], probes: Mapping[str, Probe], budget: int) -> list[list[str]]:
    """Return names in order, in groups whose factors together take at most the budget; a single one may take more."""
    groups: list[list[str]] = []
    left = 0
    for name in modules:
        if not groups or probes[name].bytes > left:
            groups.append([])
            left = budget
        groups[-1].append(name)
        left -= probes[name].bytes
    return groups


class _Meter:
    """Sums up what one layer's inputs say, as a hook before its forward.

    The layer itself cuts its inputs into the vectors x: each of its products with Vᵀ, ΔW or ones in the place of the
    weight is one for every x, with its own strides and padding. Products are float32, sums float64.
    """

    def __init__(self, module: nn.Module, factors: Factors) -> None:
        device = next(module.parameters()).device
        self.calls = 0
        self.right, self.change = (_weight(factors, rows, device) for rows in (factors.right, factors.change))
        self.ones = _weight(factors, torch.ones(1, factors.right.shape[1]), device)
        self.left = factors.left.to(device)
        self.cross, self.square = torch.zeros(2, factors.right.shape[0], dtype=torch.float64, device=device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the inputs of one call."""
        given = args[0] if args else next(iter(kwargs.values()))
        with torch.autocast(given.device.type, enabled=False):
            x = given.detach().float()
            right = _channels_last(module, inner(module, self.right, x))
            change = _channels_last(module, inner(module, self.change, x))
            self.cross += ((change @ self.left).double() * right.double()).sum(0)
            self.square += right.double().square().sum(0)
            self.sums[0] += change.double().square().sum()
            self.sums[1] += inner(module, self.ones, x.square()).double().sum()
        self.calls += 1

    def moments(self) -> Moments:
        """Return the sums."""
        change, inputs = self.sums.tolist()
        return Moments(self.cross.cpu().numpy(), self.square.cpu().numpy(), change, inputs)


def _weight(factors: Factors, rows: Tensor, device: torch.device) -> Tensor:
    """Return rows of a matrix (R, columns) in the shape of a weight with R output channels."""
    shape, axis = list(factors.parameter.shape), factors.parameter.axis
    if len(shape) > 2:
        shape[axis] = rows.shape[0]
        rows = unmatricize(rows, tuple(shape), axis)
    return rows.contiguous().to(device)


def _channels_last(module: nn.Module, output: Tensor) -> Tensor:
    """Return a layer's output as (vectors, channels)."""
    if isinstance(module, Conv | ConvTranspose):
        output = output.movedim(-1 - spatial(module), -1)
    return output.reshape(-1, output.shape[-1])
