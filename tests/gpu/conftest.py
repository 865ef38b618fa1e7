"""What tests on a card need."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def card() -> torch.device:
    """The CUDA device; whoever asks for these tests where there is none is told so."""
    if not torch.cuda.is_available():
        pytest.fail("no CUDA device")
    return torch.device("cuda")
