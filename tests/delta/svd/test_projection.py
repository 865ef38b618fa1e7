"""Projection: of all valid δ the one whose ΔW is nearest, by formulas of NumPy alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.weights import hadamard, normal, with_spectrum
from torch import Tensor

from svdiff_delta.errors import TensorError
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.svd.decomposition import Basis, compute_basis, find_runs
from svdiff_delta.svd.prepare import Prepared
from svdiff_delta.svd.projection import PIECE, coordinates, project_change

ROWS, COLUMNS = 24, 40

SPECTRA = {
    "even": torch.linspace(3, 1, ROWS, dtype=torch.float64),
    "steep": torch.logspace(0, -6, ROWS, dtype=torch.float64),
    "one outlier": torch.cat([torch.tensor([1e3]), torch.linspace(1, 0.5, ROWS - 1)]).double(),
    "rank deficient": torch.cat([torch.linspace(2, 1, ROWS // 2), torch.zeros(ROWS // 2)]).double(),
}


def prepared(weight: Tensor, axis: int = 0) -> Prepared:
    basis = compute_basis(weight, axis)
    runs = find_runs(basis.sigma)
    parameter = Parameter(tuple(weight.shape), "spectral", axis, "F32", "A" * 22, runs.tied, runs.null)
    return Prepared(parameter, basis, lambda: weight)


def dots(matrix: Tensor, change: Tensor, null: int) -> np.ndarray:
    """uᵢᵀ ΔW vᵢ by NumPy's SVD, 0 where σ is null."""
    U, sigma, Vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    found = np.einsum("mi,mn,in->i", U, change.double().numpy(), Vt)
    found[sigma.size - null :] = 0
    return found


@pytest.mark.parametrize("transposed", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("sigma", SPECTRA.values(), ids=SPECTRA)
def test_coordinates_are_those_of_a_float64_svd(sigma: Tensor, transposed: bool) -> None:
    weight = with_spectrum(sigma, ROWS, COLUMNS)
    weight = weight.T.contiguous() if transposed else weight
    basis = compute_basis(weight, 0)
    change = normal(*weight.shape, seed=5)
    found = coordinates(basis, weight, change).numpy()
    # The factor is float32: an entry errs by up to 6e-8, and most of it averages out.
    assert np.linalg.norm(found - dots(weight, change, basis.null)) <= 1e-7 * float(change.norm())


def test_a_two_sided_basis_gives_the_same_coordinates() -> None:
    weight, change = normal(ROWS, COLUMNS), normal(ROWS, COLUMNS, seed=5)
    two_sided = compute_basis(weight, 0, two_sided=True)
    assert two_sided.split == (0, ROWS)
    found = coordinates(two_sided, weight, change).numpy()
    assert np.linalg.norm(found - dots(weight, change, 0)) <= 2e-7 * float(change.norm())


def test_a_weight_of_several_pieces_gives_the_same_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, change = normal(ROWS, COLUMNS), normal(ROWS, COLUMNS, seed=5)
    basis = compute_basis(weight, 0)
    whole = coordinates(basis, weight, change)
    monkeypatch.setattr("svdiff_delta.svd.projection.PIECE", 7 * ROWS)
    assert weight.numel() < PIECE
    assert torch.allclose(coordinates(basis, weight, change), whole, rtol=0, atol=1e-13)


def test_a_convolution_is_projected_on_its_own_axis() -> None:
    weight, change = normal(6, 5, 3), normal(6, 5, 3, seed=5)
    values, _ = project_change(prepared(weight, axis=1), change)
    matrices = [tensor.movedim(1, 0).reshape(5, -1) for tensor in (weight, change)]
    sigma = np.linalg.svd(matrices[0].double().numpy(), compute_uv=False)
    assert np.allclose(values, np.maximum(dots(matrices[0], matrices[1], 0), -sigma), rtol=0, atol=1e-6)


def test_a_shift_below_minus_sigma_becomes_minus_sigma() -> None:
    weight = with_spectrum(torch.tensor([3.0, 2.0, 1.0]), 3, 5)
    values, energy = project_change(prepared(weight), -1.5 * weight)
    assert np.allclose(values, [-3, -2, -1], atol=1e-6)
    assert energy.captured == pytest.approx(1 / 1.5**2, abs=1e-6)


def test_a_tied_run_gets_its_mean_before_it_is_clipped() -> None:
    weight = torch.eye(3)
    values, _ = project_change(prepared(weight), torch.diag(torch.tensor([-5.0, 5.0, 3.0])))
    assert np.allclose(values, 1.0, atol=1e-7)
    assert (values == values[0]).all()


def test_a_clipped_tied_run_is_minus_sigma_throughout() -> None:
    weight = hadamard(4)
    values, _ = project_change(prepared(weight), -3 * weight)
    assert (values == values[0]).all()
    assert values[0] == pytest.approx(-2.0, abs=1e-7)


def test_nothing_is_shifted_where_sigma_is_null() -> None:
    weight = with_spectrum(SPECTRA["rank deficient"], ROWS, COLUMNS)
    values, energy = project_change(prepared(weight), normal(ROWS, COLUMNS, seed=5))
    assert not values[ROWS // 2 :].any()
    assert 0 < energy.captured < 1


def test_no_other_valid_shift_is_nearer() -> None:
    weight, change = normal(8, 12), normal(8, 12, seed=5) * 3
    ready = prepared(weight)
    values, _ = project_change(ready, change)
    assert (values == -ready.basis.sigma.numpy()).any()  # type: ignore[union-attr]

    def distance(shift: np.ndarray) -> float:
        basis = ready.basis
        assert isinstance(basis, Basis)
        return float((change - basis.delta_weight(weight, torch.from_numpy(shift))).double().norm())

    draw = np.random.default_rng(0)
    best = distance(values)
    assert all(distance(values + step) > best - 1e-6 for step in draw.standard_normal((50, 8)) * 0.1)


def test_of_a_random_change_one_in_the_longer_side_is_captured() -> None:
    weight = normal(60, 90)
    ready = prepared(weight)
    shares = [project_change(ready, normal(60, 90, seed=seed) * 1e-3)[1].captured for seed in range(1, 9)]
    # 8 means of 60 squares vary by about 6 %.
    assert np.mean(shares) == pytest.approx(1 / 90, rel=0.25)


def test_an_elementwise_change_is_its_own_shift() -> None:
    weight, change = normal(5), normal(5, seed=5)
    ready = Prepared(Parameter((5,), "elementwise", 0, "F32", "A" * 22), None, lambda: weight)
    values, energy = project_change(ready, change)
    assert np.array_equal(values, change.double().numpy())
    assert energy.captured == 1


@pytest.mark.parametrize("size", [1e200, float("nan")])
def test_a_change_whose_size_is_no_number_is_refused_by_name(size: float) -> None:
    change = torch.full((ROWS, COLUMNS), size, dtype=torch.float64)
    with pytest.raises(TensorError, match=r"^a: the sum of the squares of its change is no finite number"):
        project_change(prepared(normal(ROWS, COLUMNS, seed=1)), change, name="a")
