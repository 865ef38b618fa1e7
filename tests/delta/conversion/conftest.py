"""Bases that adapters are read and written for, and deltas for the embedded one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoints import bert, single
from support.models import base_delta
from support.weights import with_spectrum

from svdiff_delta import Delta, select
from svdiff_delta.base_model.base import Base
from svdiff_train.tiny import open_tiny


@pytest.fixture
def model(tmp_path: Path) -> Base:
    return bert(tmp_path / "bert")


@pytest.fixture(scope="module")
def tiny() -> Base:
    return open_tiny()


@pytest.fixture(scope="module")
def whole(tiny: Base) -> Delta:
    """δ on the middle of the UNet: linear layers, convolutions and norms; some of it is clipped."""
    return base_delta(tiny, "mid", size=0.3)


@pytest.fixture(scope="module")
def delta(whole: Delta) -> Delta:
    return select(whole, "2d", "4d")


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A wide and a tall weight without a class."""
    sigma = torch.linspace(3, 1, 12)
    return single(
        tmp_path / "base.safetensors",
        a=with_spectrum(sigma, 12, 20).half().float(),
        b=with_spectrum(sigma, 20, 12, seed=3).half().float(),
    )
