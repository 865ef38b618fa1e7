"""The losses against the paper's formulas in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from support.weights import normal

from svdiff_train.training.loss import denoising_loss, prior_preserving_loss

PREDICTION, TARGET = normal(5, 2, 3, seed=1), normal(5, 2, 3, seed=2)
SQUARES = ((PREDICTION.numpy().astype("f8") - TARGET.numpy()) ** 2).mean(axis=(1, 2))


def test_equation_1_is_the_mean_squared_error_of_each_sample() -> None:
    assert np.allclose(denoising_loss(PREDICTION, TARGET).numpy(), SQUARES, rtol=1e-6)


def test_equation_3_adds_the_prior_s_mean_with_its_weight() -> None:
    expected = SQUARES[:3].mean() + 0.4 * SQUARES[3:].mean()
    assert np.isclose(prior_preserving_loss(PREDICTION, TARGET, 3, 0.4).item(), expected, rtol=1e-6)


def test_equation_3_without_prior_samples_is_equation_1() -> None:
    assert np.isclose(prior_preserving_loss(PREDICTION, TARGET, 5, 0.4).item(), SQUARES.mean(), rtol=1e-6)


def test_the_loss_is_computed_in_float32() -> None:
    assert denoising_loss(PREDICTION.bfloat16(), TARGET.bfloat16()).dtype == torch.float32
