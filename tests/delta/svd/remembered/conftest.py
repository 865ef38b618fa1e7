"""A home for what is remembered, and a weight file that has settled."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.remembered import (
    RACY,
    AnyFileSystem,
    forget_process,
    written,
)
from support.weights import normal

from svdiff_delta._util import file_state


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("SVDIFF_HOME", str(folder))
    monkeypatch.setattr(file_state, "RACY", int(RACY * 1e9))
    monkeypatch.setattr(file_state, "TRUSTED", AnyFileSystem())  # whatever the temporary folder lies on
    forget_process()
    return folder


@pytest.fixture
def path(tmp_path: Path, home: Path) -> Path:
    path = tmp_path / "secret-place" / "model.safetensors"
    path.parent.mkdir()
    return written(path, normal(6, 8))
