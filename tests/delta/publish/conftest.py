"""Hubs to push to, and what is pushed beside a delta."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from support.hub import Hub
from support.pushes import BASE_CARD


@pytest.fixture(params=["regular", "lfs"])
def ours(request: pytest.FixtureRequest, hub: Hub, token: str) -> Hub:
    """A hub with a base that has a licence, and a token for `owner`."""
    hub.large = (".safetensors", ".png") if request.param == "lfs" else ()
    hub.add("owner/base", {"README.md": BASE_CARD, "model_index.json": b"{}"})
    return hub


@pytest.fixture
def simple(hub: Hub, token: str) -> Hub:
    hub.add("owner/base", {"README.md": BASE_CARD, "model_index.json": b"{}"})
    return hub


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "Anna on holiday.png"
    exif = Image.Exif()
    exif[0x010E] = "Anna Kowalska"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, exif=exif)
    return path


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    path = tmp_path / "lora.safetensors"
    save_file({"unet.a.lora_A.weight": np.zeros((2, 4), "f4"), "unet.a.lora_B.weight": np.zeros((4, 2), "f4")}, path)
    return path
