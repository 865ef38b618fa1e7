"""Calibration: δ is the explicit least-squares solution on the inputs that a layer meets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from support.models import named
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from svdiff_delta.base_model.kinds import kind_of
from svdiff_delta.errors import InputError
from svdiff_delta.runtime import measure
from svdiff_delta.runtime.input_moments import measurable
from svdiff_delta.runtime.original_weights import LiveWeights
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.calibration import Probe, bytes_of, calibrate_change, factors_of
from svdiff_delta.svd.decomposition import matricize
from svdiff_delta.svd.energy import Energy, OutputEnergy
from svdiff_delta.svd.prepare import Prepared, prepare_weight
from svdiff_delta.svd.projection import project_change

NAME = "model.layer.weight"
Array = NDArray[np.float64]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(count: int, size: int, seed: int = 3) -> Tensor:
    """Vectors that hardly leave a few directions."""
    return normal(count, size, seed=seed) * torch.logspace(0, -2, size) @ normal(size, size, seed=seed + 1)


def prepared_of(model: nn.Sequential) -> Prepared:
    kind = kind_of(model[0])
    assert kind is not None
    return prepare_weight(LiveWeights({"model": model}), NAME, *kind, BasisCache())


def calibrated(
    model: nn.Sequential, change: Tensor, inputs: list[Tensor], **options: int
) -> tuple[Array, Energy, OutputEnergy]:
    prepared = prepared_of(model)
    probe = Probe(bytes_of(prepared.parameter.shape, prepared.parameter.axis), lambda: factors_of(prepared, change))
    moments = measure(model, {NAME: probe}, lambda: [model(x) for x in inputs], **options)
    return calibrate_change(prepared, change, moments[NAME])


def vectors(layer: nn.Module, inputs: list[Tensor]) -> Array:
    """Every x that a layer multiplies its matrix with, as columns, cut out by torch's own unfold."""
    if isinstance(layer, nn.Conv2d):
        found = [
            F.unfold(x.double(), layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
            .transpose(0, 1)
            .flatten(1)
            for x in inputs
        ]
    else:
        found = [x.double().reshape(-1, x.shape[-1]).T for x in inputs]
    return torch.cat(found, 1).numpy()


def least_squares(prepared: Prepared, change: Tensor, x: Array) -> tuple[Array, Array, Array]:
    """Return the δ with the smallest ‖ΔWx − U diag(δ) Vᵀx‖, and its U and V, by NumPy alone."""
    axis = prepared.parameter.axis
    matrix, dense = (matricize(values, axis).double().numpy() for values in (prepared.rounded, change))
    U, _, Vt = np.linalg.svd(matrix, full_matrices=False)
    design = np.stack([np.outer(U[:, i], Vt[i] @ x).ravel() for i in range(len(Vt))], axis=1)
    return np.linalg.lstsq(design, (dense @ x).ravel(), rcond=None)[0], U, Vt


LAYERS = {
    "Linear, more columns": (nn.Linear(10, 6), lambda: [correlated(40, 10), correlated(3, 10, 8).reshape(1, 3, 10)]),
    "Linear, more rows": (nn.Linear(6, 10), lambda: [correlated(40, 6)]),
    "Conv2d": (nn.Conv2d(3, 8, 3, padding=1), lambda: [normal(2, 3, 6, 5, seed=4)]),
    "Conv2d with strides": (
        nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        lambda: [normal(2, 2, 7, 6, seed=5), normal(1, 2, 8, 6, seed=6)],
    ),
    "1x1 Conv2d": (nn.Conv2d(6, 4, 1), lambda: [correlated(25, 6).T.reshape(1, 6, 5, 5)]),
    "GPT-2's Conv1D": (Conv1D(6, 9), lambda: [correlated(30, 9)]),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_calibrated_shifts_are_the_least_squares_solution(layer: str) -> None:
    module, inputs = LAYERS[layer]
    model, given = named(module), inputs()
    change = 0.05 * normal(*module.weight.shape, seed=7)
    found, energy, output = calibrated(model, change, given)
    prepared, x = prepared_of(model), vectors(module, given)
    expected, U, Vt = least_squares(prepared, change, x)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    dense = matricize(change, prepared.parameter.axis).double().numpy()
    whole, left = (np.linalg.norm(part @ x) ** 2 for part in (dense, dense - U * expected @ Vt))
    assert output.whole == pytest.approx(whole, rel=1e-5)
    assert output.shares[1] == pytest.approx(1 - left / whole, abs=1e-5)
    assert energy.captured == pytest.approx(
        max(0, 1 - np.linalg.norm(dense - U * expected @ Vt) ** 2 / np.linalg.norm(dense) ** 2), abs=1e-5
    )


def test_on_correlated_inputs_calibration_beats_the_projection() -> None:
    model, change = named(nn.Linear(10, 10)), 0.05 * normal(10, 10, seed=7)
    given = [correlated(200, 10)]
    found, energy, output = calibrated(model, change, given)
    prepared, x = prepared_of(model), vectors(model[0], given)
    plain, plain_energy = project_change(prepared, change)
    _, U, Vt = least_squares(prepared, change, x)
    errors = [np.linalg.norm((change.double().numpy() - U * shift @ Vt) @ x) for shift in (found, plain)]
    assert errors[0] < 0.9 * errors[1]
    whole = np.linalg.norm(change.double().numpy() @ x) ** 2
    assert output.shares == pytest.approx((1 - errors[1] ** 2 / whole, 1 - errors[0] ** 2 / whole), abs=1e-5)
    assert energy.captured < plain_energy.captured


def test_on_isotropic_inputs_both_agree() -> None:
    model, change = named(nn.Linear(6, 8)), 0.05 * normal(8, 6, seed=7)
    found, _, output = calibrated(model, change, [6**0.5 * torch.eye(6)])
    plain, _ = project_change(prepared_of(model), change)
    assert np.linalg.norm(found - plain) <= 1e-6 * np.linalg.norm(plain)
    assert output.shares[0] == pytest.approx(output.shares[1])


def test_what_the_inputs_say_nothing_of_is_projected() -> None:
    layer = nn.Linear(3, 3)
    model = named(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    change = torch.diag(torch.tensor([0.5, 0.25, 0.125])) + 0.5 * torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 0.0]])
    found, _, _ = calibrated(model, change, [torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0]])])
    assert found == pytest.approx([0.5 + 0.5 * 2 / 2, 0.25, 0.125])
    nothing, _, output = calibrated(model, change, [torch.zeros(1, 3)])
    assert nothing == pytest.approx([0.5, 0.25, 0.125])
    assert output.shares == (1.0, 1.0)


def test_shifts_of_a_tied_run_are_one_number() -> None:
    layer = nn.Linear(3, 3)
    model = named(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    change = torch.diag(torch.tensor([0.4, 0.1, 0.3]))
    found, _, _ = calibrated(model, change, [torch.diag(torch.tensor([2.0, 1.0, 1.0]))])
    assert found == pytest.approx([(4 * 0.4 + 0.1) / 5, (4 * 0.4 + 0.1) / 5, 0.3])


def test_shifts_stop_at_minus_sigma_and_null_ones_at_zero() -> None:
    layer = nn.Linear(3, 3)
    model = named(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([2.0, 1.0, 0.0])))
    found, _, _ = calibrated(model, torch.diag(torch.tensor([-3.0, 0.5, 4.0])), [torch.eye(3)])
    assert found == pytest.approx([-2.0, 0.5, 0.0])


def test_a_small_budget_of_memory_gives_the_same_in_several_runs() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)).requires_grad_(False)
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        model(correlated(20, 6))

    probes = {}
    for index in range(3):
        prepared = prepare_weight(LiveWeights({"model": model}), f"model.{index}.weight", "spectral", 0, BasisCache())
        factors = factors_of(prepared, normal(6, 6, seed=index))
        probes[f"model.{index}.weight"] = Probe(bytes_of((6, 6), 0), lambda factors=factors: factors)
    once = measure(model, probes, run)
    assert len(runs) == 1
    several = measure(model, probes, run, budget=2 * bytes_of((6, 6), 0))
    assert len(runs) == 3
    for name, moments in once.items():
        assert np.array_equal(moments.cross, several[name].cross)


def test_a_model_is_left_as_it_was() -> None:
    model = named(nn.Linear(6, 4))
    before = model[0].weight.clone()
    calibrated(model, normal(4, 6, seed=1), [correlated(5, 6)])
    assert torch.equal(model[0].weight, before)
    assert not model[0]._forward_pre_hooks


def test_a_layer_that_is_not_run_or_cannot_be_measured_is_left_out() -> None:
    model = named(nn.Linear(6, 4))
    prepared = prepared_of(model)
    probe = Probe(0, lambda: factors_of(prepared, normal(4, 6, seed=1)))
    assert measure(model, {NAME: probe}, lambda: None) == {}
    assert [measurable(layer) for layer in (nn.Embedding(4, 4), nn.Conv2d(4, 4, 1, groups=2), nn.LayerNorm(4))] == [
        False, False, False,
    ]  # fmt: skip


def test_a_half_precision_layer_is_measured_in_float32() -> None:
    model = named(nn.Linear(6, 4)).half()
    change = normal(4, 6, seed=1)
    found, _, _ = calibrated(model, change, [correlated(20, 6).half()])
    expected, _, _ = least_squares(prepared_of(model), change, vectors(model[0], [correlated(20, 6).half()]))
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="hold NaN or infinity: run the base in float32"):
        calibrated(named(nn.Linear(6, 4)), normal(4, 6, seed=1), [torch.full((1, 6), torch.inf)])
