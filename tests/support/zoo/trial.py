"""Building a member of the zoo, running it, and its truth in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from support.live import double_copy
from support.models import random_delta
from support.weights import normal
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.runtime.original_weights import LiveWeights
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import prepare_weight

from .member import Member


def class_of(name: str) -> type[nn.Module]:
    """Return the class that a member's name begins with."""
    word = name.split()[0]
    owner = diffusers if hasattr(diffusers, word) else transformers
    found: type[nn.Module] = getattr(owner, word)
    return found


def build(name: str, member: Member) -> nn.Module:
    """Return a model with random weights that float16 holds, no bias of which is 0."""
    torch.manual_seed(0)
    cls = class_of(name)
    if hasattr(cls, "config_class") and cls.config_class is not None:
        model = cls(cls.config_class(**copy.deepcopy(dict(member.config))))
    else:
        model = cls(**copy.deepcopy(dict(member.config)))
    model = model.float().requires_grad_(False).eval()
    for index, parameter in enumerate(model.parameters()):
        if not parameter.isfinite().all() or parameter.abs().max() > 100:
            parameter.data.zero_()  # some classes leave memory as it was found, to be loaded into
        parameter.data += 0.05 * normal(*parameter.shape, seed=index)
        parameter.data = parameter.data.half().float()
    return model


def refused(model: nn.Module) -> list[str]:
    """Return the weights of a model that are no parameters, by parameter name."""
    return [
        f"model.{key}"
        for key, _, _ in shiftable(model)
        if not key.endswith("]") and "weight" not in model.get_submodule(key.removesuffix(".weight"))._parameters
    ]


def delta_of(model: nn.Module, member: Member, *, size: float = 0.1, on_request: bool = False) -> Delta:
    """Return a random δ on all weights of a model that its forward reaches and that can be shifted."""
    left_out = {*refused(model)}
    owners = {id(parameter): key for key, parameter in model.named_parameters()}  # of tied weights, the first
    weights, cache = LiveWeights({"model": model}), BasisCache()
    parameters = {
        f"model.{key}": prepare_weight(weights, f"model.{key}", kind, axis, cache).parameter
        for key, kind, axis in shiftable(model, on_request=on_request)
        if f"model.{key}" not in left_out
        and (key.endswith("]") or owners[id(model.get_parameter(key))] == key)
        and not any(fnmatchcase(key, pattern) for pattern in member.unreached)
    }
    zeros = {name: np.zeros(parameter.size) for name, parameter in parameters.items()}
    return random_delta(Delta(zeros, Metadata(BaseInfo({"model": type(model).__name__}), parameters)), size=size)


def run(model: nn.Module, member: Member) -> Tensor:
    """Return all numbers that a model computes, in one row; gradients flow if something takes them."""
    dtype = next(model.parameters()).dtype
    torch.manual_seed(3)  # some decoders add noise

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else copy.deepcopy(value)

    return torch.cat([found.flatten() for found in _numbers(model(**tree_map(cast, dict(member.inputs))))])


def _numbers(output: Any) -> Iterator[Tensor]:
    for found in tree_leaves(output):
        found = found.mode() if hasattr(found, "mode") and not isinstance(found, Tensor) else found
        if isinstance(found, Tensor) and found.is_floating_point():
            yield found


def truth(model: nn.Module, member: Member, delta: Delta) -> Tensor:
    """Return what W + ΔW computes, by an SVD of its own: in float64, unless the class cannot."""
    return run_wide(double_copy(model, delta), member)


def run_wide(moved: nn.Module, member: Member) -> Tensor:
    """Return what a copy in float64 computes: in float64, unless the class cannot, and then the copy is cast."""
    return run(moved if member.wide else moved.float(), member)


def off(found: Tensor, expected: Tensor, before: Tensor) -> float:
    """Return ‖found − expected‖ relative to what the delta changes."""
    change = (expected.double() - before.double()).norm()
    return float((found.double() - expected.double()).norm() / change)
