"""What rounding may have made of a weight, by scheme: never less than the libraries do, and little more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.quantized import QUANTIZE, gguf_linear, relative, values
from support.weights import normal
from torch import Tensor, nn

from svdiff_delta.errors import AttachError
from svdiff_delta.runtime.quantized import quantized_weight
from svdiff_delta.runtime.quantized.origin import check_origin

pytestmark = pytest.mark.quantized

SHAPE = (48, 256)


def heavy() -> Tensor:
    """A few values a hundred times the others."""
    return normal(*SHAPE) * torch.where(normal(*SHAPE, seed=1) > 2.5, 100.0, 1.0)


WEIGHTS = {
    "normal": normal(*SHAPE),
    "tiny": 1e-3 * normal(*SHAPE),
    "of one sign": normal(*SHAPE).abs(),
    "with outliers": heavy(),
    "with rows of zeros": normal(*SHAPE) * (torch.arange(48) % 3 > 0)[:, None],
    "constant rows": (torch.arange(1, 49.0)[:, None] / 16).expand(SHAPE).clone(),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def packed(weight: Tensor, scheme: str, dtype: torch.dtype) -> nn.Module:
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False)).requires_grad_(False)
    model[0].weight.data = weight.clone()
    QUANTIZE[scheme](model, dtype)
    return model[0]


def stored(module: nn.Module) -> Any:
    found = quantized_weight(module)
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", QUANTIZE)
def test_what_a_library_has_quantized_is_accepted(scheme: str, dtype: torch.dtype) -> None:
    for kind, weight in WEIGHTS.items():
        if kind == "with rows of zeros" and scheme in ("torchao float8", "quanto qfloat8_e4m3fn"):
            continue  # they divide by 0: see below
        module = packed(weight, scheme, dtype)
        check_origin("w", stored(module), weight)
        # Their own readers, or kernels, may round to the layer's dtype, and GGUF's to float16.
        close = 4 * torch.finfo(torch.bfloat16 if scheme.startswith("bits") else dtype).eps + 2e-3
        assert relative(stored(module).dequantize(), values(module)) < close


@pytest.mark.parametrize("scheme", ["torchao float8", "quanto qfloat8_e4m3fn"])
def test_weights_that_became_nan_are_refused(scheme: str) -> None:
    weight = WEIGHTS["with rows of zeros"]
    with pytest.raises(AttachError, match="is not the base's, quantized"):
        check_origin("w", stored(packed(weight, scheme, torch.float32)), weight)


@pytest.mark.parametrize("scheme", QUANTIZE)
def test_a_weight_that_moved_by_a_tenth_is_refused(scheme: str) -> None:
    weight = WEIGHTS["normal"]
    module = packed(weight + 0.1 * normal(*SHAPE, seed=3), scheme, torch.float32)
    with pytest.raises(AttachError, match=rf"^w: the live weight is not the base's, quantized \({scheme}\): .* times"):
        check_origin("w", stored(module), weight)


@pytest.mark.parametrize("scheme", [scheme for scheme in QUANTIZE if not scheme.endswith(("_1", "BF16"))])
def test_bounds_are_little_more_than_what_rounding_does(scheme: str) -> None:
    weight = WEIGHTS["normal"]
    found = stored(packed(weight, scheme, torch.float32))
    whole, rounded = found.dequantize(), found.rounded(weight)
    off = (whole - rounded).abs()
    if found.cast:
        assert not off.any()
    else:
        assert float((off / found.bound(whole).expand(SHAPE)).max()) > 0.9


def test_a_base_of_another_shape_is_refused() -> None:
    module = gguf_linear(nn.Linear(64, 32), "Q8_0", torch.float32)
    with pytest.raises(
        AttachError, match=r"^w: the live weight \(GGUF Q8_0\) has shape \[32, 64\], the base's has \[64"
    ):
        check_origin("w", stored(module), normal(64, 32))


def test_the_weight_is_compared_in_its_logical_shape() -> None:
    module = gguf_linear(nn.Linear(64, 32), "Q4_0", torch.float32)
    assert tuple(module.weight.shape) == (32, 36)
    assert stored(module).shape == (32, 64)
