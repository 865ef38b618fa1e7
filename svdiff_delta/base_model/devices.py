"""Choose the device on which torch computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from threading import Lock
from typing import Final, ParamSpec, TypeVar

import torch
from torch import Tensor

from svdiff_delta._util.device_errors import first_line
from svdiff_delta._util.warned import warn_once
from svdiff_delta.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_LOADING: Final = Lock()
_LOADED: Final[set[torch.device]] = set()

HALF_RATE: Final = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
"""Compute capabilities of NVIDIA's cards that do half as many operations in float64 as in float32: P100, V100, A100,
H100 and H200, B200. Others do 1/32 or 1/64.
"""


def find_device(name: str | torch.device, *, float64: bool = False) -> torch.device:
    """Return a device by its name, such as "cpu", "cuda:1" or "mps".

    Args:
        name: the device's.
        float64: whether it is to compute in float64, which MPS does not have.

    Raises:
        InputError: there is no such device here, or it has no float64.
    """
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"{name}: there is no such device here ({first_line(error)}); {seen()}", fix='use `device="cpu"`'
        ) from None
    if device.type == "meta":
        raise InputError("meta: is a device without numbers, on which nothing is computed", fix='use `device="cpu"`')
    if float64:
        _check_float64(device)
    return device


def _check_float64(device: torch.device) -> None:
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"{device}: has no float64, which bases are computed in ({first_line(error)})", fix='use `device="cpu"`'
        ) from None


def seen() -> str:
    """Return in words what torch sees here: what it is built for, and the devices that there are."""
    version: dict[str, object] = vars(torch.version)
    built = [f"{name} {version[key]}" for key, name in (("cuda", "CUDA"), ("hip", "ROCm")) if version.get(key)]
    built += ["MPS"] if torch.backends.mps.is_built() else []
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "" if hidden is None else f", where CUDA_VISIBLE_DEVICES is {hidden!r}"
    there = " and ".join(_gpus()) or "no GPU"
    return f"torch {torch.__version__} is built for {' and '.join(built) or 'the CPU alone'} and sees {there}{limit}"


def _gpus() -> Iterator[str]:
    for index in range(torch.cuda.device_count()):
        name = ""
        with suppress(RuntimeError, AssertionError):  # of a driver that does not work
            name = f" ({torch.cuda.get_device_name(index)})"
        yield f"cuda:{index}{name}"
    if torch.backends.mps.is_available():
        yield "mps"


def best_device(*, float64: bool = False) -> torch.device:
    """Return the GPU that torch takes by itself; the CPU where there is none, or none that works, which is said once.

    Args:
        float64: whether it is to be fast in float64; only cards for data centers are.
    """
    cpu, found = torch.device("cpu"), None
    if torch.cuda.is_available():
        found = torch.device("cuda")
    elif torch.backends.mps.is_available():
        found = torch.device("mps")
    if found is None or (float64 and not _fast_in_float64(found)):
        return cpu
    try:
        float(torch.ones(1, device=found) + 1)
    except RuntimeError as error:
        warn_once(f"computing on the CPU, since {found} does not work ({first_line(error)})", found)
        return cpu
    return found


def bases_beside(device: torch.device) -> torch.device:
    """Return where to compute bases for a model on a device: there if it is fast in float64, else on the CPU."""
    return device if _fast_in_float64(device) else torch.device("cpu")


def _fast_in_float64(device: torch.device) -> bool:
    """Tell it by the generation of the card; of AMD's, gfx9 are those for data centers (none of those was tried)."""
    if device.type != "cuda":
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return major == 9 if torch.version.hip else (major, minor) in HALF_RATE


def multiply(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Return left @ right, float32, in memory that may be given: products round once, not to TF32 (spec, section 6.6).

    A program may have let CUDA round what it multiplies, which makes a thousandth of a weight wrong. Its settings stay:
    the product is in float64 then. (That has not run on a card.)
    """
    if left.device.type == "cuda" and _rounds_products():
        exact = left.double() @ right.double()
        return exact.float() if out is None else out.copy_(exact)
    return left @ right if out is None else torch.mm(left, right, out=out)


def _rounds_products() -> bool:
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # it was set by `fp32_precision`, which this does not tell
        return True


def load_linear_algebra(device: torch.device) -> None:
    """Let torch load what decomposes matrices on a device, once and on one thread.

    It does so at the first decomposition, and fails where several threads call their first one at once ("lazy wrapper
    should be called at most once", torch 2.11 with CUDA).
    """
    with _LOADING:
        if device not in _LOADED:
            torch.linalg.eigh(torch.ones(1, 1, dtype=torch.float64, device=device))
            _LOADED.add(device)


def on_host(function: Callable[P, R]) -> Callable[P, R]:
    """Let the tensors that a function makes without naming a device be on the CPU.

    Callers may have set another default: `with torch.device("cuda"): attach(...)`. Where they have not, nothing is
    done: an interrupt within torch's own contexts leaves them half open.
    """

    @wraps(function)
    def inside(*args: P.args, **options: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":
            return function(*args, **options)
        with torch.device("cpu"):
            return function(*args, **options)

    return inside
