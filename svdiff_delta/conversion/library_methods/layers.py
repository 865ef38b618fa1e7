"""Build layers that hold a weight of the base, in containers where the libraries find them by their paths."""

from __future__ import annotations

import copy
import importlib
import logging
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.component import Component, aliases
from svdiff_delta.base_model.opened import Base
from svdiff_delta.conversion.lazy_tensors import Ref, Tensors
from svdiff_delta.errors import InputError, MissingExtraError
from svdiff_delta.svd.decomposition import one_thread

FAILURES: Final = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(RuntimeError, TypeError, ValueError),
)
"""What libraries raise where a file does not fit them; NotImplementedError is a RuntimeError."""


def library(name: str, extra: str) -> Any:
    """Import a module of a library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(name.partition(".")[0], extra) from None


@contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Run a library's code on one thread, from a seed, without its lines and warnings; random states stay as they were.

    Args:
        seed: where all random numbers of the block begin.
    """
    state, logger = random.getstate(), logging.getLogger("LyCORIS")
    silent, logger.disabled = logger.disabled, True  # it prints to stdout
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad(), one_thread():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            random.seed(seed)
            yield
    finally:
        logger.disabled = silent
        random.setstate(state)


def owner(component: Component, key: str) -> tuple[str, nn.Module]:
    """Return path and module of the class that has a weight of the files, on the meta device.

    Raises:
        InputError: the class has no such weight.
        BaseError, MissingExtraError: as `Component.skeleton`.
    """
    for name in aliases(key):
        path, _, leaf = name.rpartition(".")
        try:
            module = component.skeleton.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(getattr(module, leaf, None), Tensor):
            return path, module
    raise InputError(f"{key}: {component.class_name} has no such weight", fix="name the base that it was made for")


def hold(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a copy of a layer without values that holds these; its bias is 0 if none is given."""
    made = copy.deepcopy(layer)
    made._parameters["weight"] = nn.Parameter(weight.clone(), requires_grad=False)
    for name, value in [*made._parameters.items()]:
        if value is not None and name != "weight":
            given = bias if name == "bias" and bias is not None else torch.zeros(value.shape)
            made._parameters[name] = nn.Parameter(given.to(weight.dtype, copy=True), requires_grad=False)
    return made.eval()


def hollow(layer: nn.Module, dtype: torch.dtype, value: float) -> nn.Module:
    """Return a copy of a layer whose weight and bias are one number throughout, which takes no memory."""
    made = copy.deepcopy(layer)
    for name, old in [*made._parameters.items()]:
        if old is not None:
            empty = torch.full((), value, dtype=dtype).expand(old.shape)
            made._parameters[name] = nn.Parameter(empty, requires_grad=False)
    return made.eval()


def container(layers: Mapping[str, nn.Module]) -> nn.Module:
    """Return a module in which each layer stands at its path, in the order given."""
    root = nn.Module()
    for path, layer in layers.items():
        place = root
        *parents, name = path.split(".")
        for parent in parents:
            place = place._modules.setdefault(parent, nn.Module())  # type: ignore[assignment]
        place._modules[name] = layer
    return root


def bias_of(base: Base, name: str) -> tuple[str, Tensor] | None:
    """Return name and values of the bias beside a weight of the base; None if the base has none."""
    slot, _, key = name.partition(".")
    bias = f"{key.rpartition('.')[0]}.bias"
    if bias not in base.components[slot].location:
        return None
    return f"{slot}.{bias}", base.read(f"{slot}.{bias}")


def adapter_tensor(tensors: Tensors, key: str) -> Tensor:
    """Return a tensor of an adapter as it is, such as indices; those of float8 in float32.

    Raises:
        TensorError: it holds NaN or infinity.
    """
    value = tensors.load(key)
    return Ref(tensors, key).load() if value.is_floating_point() else value
