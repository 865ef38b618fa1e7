"""Bases that adapters are read for."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import bert

from svdiff_delta.base import Base
from svdiff_train.tiny import open_tiny


@pytest.fixture
def model(tmp_path: Path) -> Base:
    return bert(tmp_path / "bert")


@pytest.fixture(scope="module")
def tiny() -> Base:
    return open_tiny()
