"""The base that most bakes are of, and a delta for it."""

from __future__ import annotations

import pytest
from support.models import MINILM, base_delta

from svdiff_delta import Delta, open_base
from svdiff_delta.base_model.base import Base


@pytest.fixture(scope="module")
def minilm() -> Base:
    return open_base(MINILM)


@pytest.fixture(scope="module")
def delta(minilm: Base) -> Delta:
    return base_delta(minilm, "model.encoder.layer.0.*")
