"""Which weight a δ is for: the basis dtype, rounding to it, and the fingerprint (spec, sections 6.1 and 6.2)."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

import torch
from torch import Tensor

from .codec import Dtype
from .errors import BaseError

TORCH_DTYPE: Final[dict[Dtype, torch.dtype]] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

LARGEST_LOSS: Final = 0.01
"""Relative Frobenius loss up to which float16 serves as basis dtype."""


def choose_dtype(weight: Tensor, name: str) -> Dtype:
    """Return the basis dtype that a writer gives a weight, from its values alone (spec, section 6.1).

    Raises:
        BaseError: the weight is not floating-point of 16 bits or more, or holds NaN or infinity.
    """
    check_weight(weight, name)
    half = weight.to(torch.float16)
    if torch.equal(half.to(weight.dtype), weight):
        return "F16"
    if torch.equal(weight.to(torch.bfloat16).to(weight.dtype), weight):
        return "BF16"
    if not torch.isfinite(half).all():
        return "F32"
    wide = weight.double()
    loss = (half.double() - wide).norm() / wide.norm()
    return "F16" if loss <= LARGEST_LOSS else "F32"


def check_weight(weight: Tensor, name: str) -> None:
    """Raise BaseError unless a weight is floating-point of 16 bits or more, and finite."""
    if weight.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise BaseError(
            f"{name}: its dtype {str(weight.dtype).removeprefix('torch.')} has no singular values to shift",
            fix="use the unquantized base",
        )
    if not torch.isfinite(weight).all():
        raise BaseError(f"{name}: the base's weight holds NaN or infinity", fix="fetch the base again")


def round_weight(weight: Tensor, dtype: Dtype) -> Tensor:
    """Round to the basis dtype and return the values as contiguous float32; −0 becomes +0."""
    return weight.to(TORCH_DTYPE[dtype]).to(torch.float32).contiguous() + 0.0


def fingerprint(rounded: Tensor, axis: int) -> str:
    """Return 22 characters that identify a rounded weight (spec, section 6.2).

    SHA-256 cut to 128 bits, over shape, axis and the values in the narrowest of F16, BF16 and F32 that holds them all.
    """
    narrow, name = rounded, "F32"
    for dtype in ("F16", "BF16"):
        candidate = rounded.to(TORCH_DTYPE[dtype])
        if torch.equal(candidate.float(), rounded):
            narrow, name = candidate, dtype
            break
    shape = "x".join(map(str, rounded.shape))
    digest = hashlib.sha256(f"svdiff 1 {name} {shape} {axis}\n".encode())
    digest.update(narrow.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return base64.urlsafe_b64encode(digest.digest()[:16]).decode().rstrip("=")
