"""Basis dtype and fingerprint of weights in every format, against the specification's formula written out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

import pytest
import torch
from support.weights import normal
from torch import Tensor

from svdiff_delta.base_model.mapped_tensor import TORCH_DTYPES
from svdiff_delta.errors import BaseError
from svdiff_delta.format.dtypes import Dtype
from svdiff_delta.svd import fingerprint as fingerprint_module
from svdiff_delta.svd.fingerprint import (
    PIECE,
    check_weight,
    choose_dtype,
    fingerprint,
    fingerprint_stored,
    round_weight,
)

LONG = PIECE + 7  # more than one piece


def with_last(weight: Tensor, value: float) -> Tensor:
    """The same weight with another last element, which no search of the first piece finds."""
    weight = weight.clone()
    weight.flatten()[-1] = value
    return weight


F16_EXACT = normal(1, LONG).half().float()
BF16_EXACT = (normal(1, LONG) * 1e-3).bfloat16().float()
WEIGHTS = {
    "normal": normal(3, LONG // 3),
    "F16": F16_EXACT.half(),
    "BF16": BF16_EXACT.bfloat16(),
    "F64": normal(20, 30).double() / 3,
    "exact in F16": F16_EXACT,
    "exact in BF16": BF16_EXACT,
    "exact in F16 but for the last": with_last(F16_EXACT, 1 / 3),
    "exact in BF16 but for the last": with_last(BF16_EXACT, 1 / 3),
    "BF16 that is exact in F16": torch.ones(4, 5).bfloat16(),
    "too large for F16 at the last": with_last(normal(1, LONG), 1e6),
    "too small for F16": normal(40, 50) * 1e-7,
    "very small": normal(40, 50) * 1e-30,
    "very large": normal(40, 50) * 1e30,
    "loss just below": torch.full((64, 64), 2.0**-24 * 100 * 1.0099),
    "loss just above": torch.full((64, 64), 2.0**-24 * 40 * 1.0123),
    "worst rounding where the mean square just suffices": torch.full((64, 64), 128.5 * 2.0**-24),
    "a mean square that just does not suffice": normal(40, 50) * 7.5e-6,
    "zero but for the last": with_last(torch.zeros(1, LONG), 1 / 3),
    "little at first": torch.cat([torch.full((PIECE,), 1e-9), normal(1, 7)[0]]),
    "little at first, much in the second piece": torch.cat([torch.full((PIECE,), 1e-7), normal(1, PIECE)[0]]),
    "exact in both": torch.ones(1, LONG),
    "exact in both but too small for F16 at the last": with_last(torch.ones(1, LONG), 2.0**-30),
    "just below infinity in F16 at the last": with_last(normal(1, LONG), 65519.0),
    "just infinite in F16 at the last": with_last(normal(1, LONG), -65520.0),
    "F64 that is infinite in F16 at the last": with_last(normal(1, LONG).double() / 3, -7e4),
    "F64 that is rounded twice": torch.full((3, 4), 1 + 2.0**-11 + 2.0**-40, dtype=torch.float64),
    "negative zero in F32": with_last(normal(1, LONG) * 1e9, -0.0),
    "no elements": torch.zeros(0, 4),
    "zero": torch.zeros(3, 4),
    "negative zero": torch.tensor([[-0.0, 0.0, -0.0], [1.0, -1.0, -0.0]]),
    "negative zero in F16": torch.tensor([[-0.0, 0.0, 65504.0, -65504.0]]).half(),
    "negative zero in BF16": torch.tensor([[-0.0, 1e-20, -1e-20, 3e38]]).bfloat16(),
    "half of it negative zero": torch.where(normal(1, LONG) < 0, -0.0, normal(1, LONG)),
    "half of it negative zero in F16": torch.where(normal(1, LONG) < 0, -0.0, normal(1, LONG)).half(),
    "negative zero by rounding": with_last(normal(1, LONG), -1e-12),
    "denormal": torch.tensor([[1e-40, -1e-40, 1.0]]),
    "one number": torch.tensor(2.5),
    "a transposed view": normal(30, 40).T,
    "every second": normal(30, 40)[:, ::2],
}


def plain_choice(weight: Tensor) -> Dtype:
    """Section 6.1 as it is written."""
    half, short = weight.float().half(), weight.float().bfloat16()
    if torch.equal(half.double(), weight.double()):
        return "F16"
    if torch.equal(short.double(), weight.double()):
        return "BF16"
    if not torch.isfinite(half).all():
        return "F32"
    loss = (half.double() - weight.double()).norm() / weight.double().norm()  # never of zero: that is exact
    return "F16" if loss <= 0.01 else "F32"


def plain_fingerprint(weight: Tensor, dtype: Dtype, axis: int) -> str:
    """Section 6.2 as it is written."""
    rounded = weight.float().to(TORCH_DTYPES[dtype]).float() + 0.0
    name, values = "F32", rounded
    for candidate in ("F16", "BF16"):
        narrow = rounded.to(TORCH_DTYPES[candidate])  # type: ignore[index]
        if torch.equal(narrow.float(), rounded):
            name, values = candidate, narrow
            break
    raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    line = f"svdiff 1 {name} {'x'.join(map(str, weight.shape))} {axis}\n".encode()
    return base64.urlsafe_b64encode(hashlib.sha256(line + raw).digest()[:16]).decode().rstrip("=")


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_basis_dtype_is_the_specification_s(name: str) -> None:
    assert choose_dtype(WEIGHTS[name], name) == plain_choice(WEIGHTS[name])


def test_the_weights_here_are_of_every_basis_dtype() -> None:
    assert {plain_choice(weight) for weight in WEIGHTS.values()} == {"F16", "BF16", "F32"}
    choices = [plain_choice(WEIGHTS[f"loss just {side}"]) for side in ("below", "above")]
    assert choices == ["F16", "F32"]


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", None])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_fingerprint_is_the_specification_s(name: str, dtype: Dtype | None) -> None:
    weight = WEIGHTS[name]
    found = fingerprint_stored(weight, name, 0, dtype)
    assert found.dtype == (dtype or plain_choice(weight))
    assert found.fingerprint == plain_fingerprint(weight, found.dtype, 0)
    assert found.fingerprint == fingerprint(round_weight(weight, found.dtype), 0)


def test_the_axis_is_part_of_the_fingerprint() -> None:
    assert fingerprint_stored(normal(4, 4), "w", 0).fingerprint != fingerprint_stored(normal(4, 4), "w", 1).fingerprint


def test_identifying_leaves_the_weight_as_it_is() -> None:
    weight = torch.tensor([[-0.0, 1.0]]).half()
    fingerprint_stored(weight, "w", 0)
    assert weight.view(torch.int16).tolist() == [[-32768, 15360]]


@pytest.mark.parametrize("dtype", [None, "F16", "BF16", "F32"])
@pytest.mark.parametrize("format_", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float, format_: torch.dtype, dtype: Dtype | None) -> None:
    weight = with_last(normal(1, LONG), bad).to(format_)
    with pytest.raises(BaseError, match=r"unet\.x\.weight: the base's weight holds NaN or infinity"):
        fingerprint_stored(weight, "unet.x.weight", 0, dtype)


def test_a_number_that_no_basis_dtype_holds_is_refused() -> None:
    with pytest.raises(BaseError, match="NaN or infinity"):
        fingerprint_stored(torch.tensor([[1e300]], dtype=torch.float64), "w", 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_finite_is_told_from_what_is_not_at_any_place(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    sound = torch.tensor([0.0, -0.0, largest, -largest, torch.finfo(dtype).tiny], dtype=dtype)
    check_weight(sound, "w")
    for bad in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        for place in range(5):
            weight = sound.clone()
            weight[place] = bad
            with pytest.raises(BaseError, match="NaN or infinity"):
                check_weight(weight, "w")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.bool])
def test_what_is_not_floating_point_of_16_bits_is_refused_by_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(BaseError, match=str(dtype).removeprefix("torch.")):
        fingerprint_stored(torch.zeros(2, 2).to(dtype), "w", 0)


def test_a_weight_that_a_given_dtype_cannot_hold_has_a_fingerprint_of_its_own() -> None:
    large = torch.tensor([[1e6, 1.0]])
    assert fingerprint_stored(large, "w", 0, "F16").fingerprint != fingerprint_stored(large, "w", 0).fingerprint


def test_large_weights_are_gone_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fingerprint_stored(normal(50, 60), "w", 0)
    monkeypatch.setattr("svdiff_delta.svd.fingerprint.PIECE", 7)
    assert fingerprint_stored(normal(50, 60), "w", 0) == whole


def test_most_weights_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their first elements show what basis dtype they get; the pass that hashes finds the rest."""
    seen, weight = 0, normal(1, 50_000)
    rounded = fingerprint_module._rounded

    def counted(values: Tensor, *dtypes: torch.dtype) -> Iterator[Tensor]:
        nonlocal seen
        for piece in rounded(values, *dtypes):
            seen += piece.numel()
            yield piece

    monkeypatch.setattr(fingerprint_module, "PIECE", 1000)
    monkeypatch.setattr(fingerprint_module, "PROBE", 1000)
    monkeypatch.setattr(fingerprint_module, "_rounded", counted)
    for given in (None, "F16", "F32"):
        seen = 0
        fingerprint_stored(weight, "w", 0, given)
        assert 50_000 <= seen < 56_000
