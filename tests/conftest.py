"""Fixtures for all tests. Nothing here imports torch, so that the light half's tests stay light."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the Hub's library is imported: no test leaves this machine


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the basis cache of all tests in one temporary folder, never in the user's own."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["SVDIFF_HOME"] = str(folder)
    yield folder
    del os.environ["SVDIFF_HOME"]
