"""The wheel: what is in it, and what a fresh environment without extras can do with it."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from support.deltas import random_delta

from svdiff_delta import save

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"svdiff_delta", "svdiff_train", "svdiff_cli"}


def test_the_wheel_holds_the_embedded_base_its_card_and_the_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    base = "svdiff_train/tiny/base"
    assert f"{base}/unet/diffusion_pytorch_model.safetensors" in names
    assert f"{base}/README.md" in names
    assert {"LICENSE", "NOTICE"} <= {name.rsplit("/", 1)[-1] for name in names if ".dist-info/" in name}


@pytest.mark.slow
def test_a_fresh_environment_without_extras_calculates_and_names_the_extra(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([programs / "pip", "install", "--quiet", *constraints, wheel], check=True)
    save(random_delta(), tmp_path / "a.safetensors")

    def svdiff(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [programs / "svdiff", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    added = svdiff("add", "a.safetensors", "a.safetensors:-0.5", "-o", "sum.safetensors")
    assert added.returncode == 0, added.stderr
    assert svdiff("info", "sum.safetensors").returncode == 0
    baked = svdiff("bake", "tiny", "a.safetensors", "-o", "out")
    assert baked.returncode == 1
    assert baked.stderr == "error: this needs torch, which is not installed: pip install 'svdiff-delta[torch]'\n"
