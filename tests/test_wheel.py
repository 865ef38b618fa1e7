"""The wheel and the sdist: what is in them, that their bytes are always the same, and what can be done with them."""

from __future__ import annotations

import os
import shlex
import shutil
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
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "svdiff_delta",
        "svdiff_train",
        "svdiff_serve",
        "svdiff_cli",
    }


def test_the_wheel_holds_the_embedded_base_its_card_and_the_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    base = "svdiff_train/tiny/base"
    assert f"{base}/unet/diffusion_pytorch_model.safetensors" in names
    assert f"{base}/README.md" in names
    assert {"LICENSE", "NOTICE"} <= {name.rsplit("/", 1)[-1] for name in names if ".dist-info/" in name}


@pytest.mark.slow
def test_wheel_and_sdist_do_not_depend_on_where_and_when_they_are_built(tmp_path: Path) -> None:
    """In a copy with other times and modes, under another umask and in another time zone."""
    found = []
    unwanted = shutil.ignore_patterns(".venv", ".git", "*cache*", ".hypothesis", "dist", "*-out", "node_modules")
    for name, umask, zone in (("here", 0o022, "UTC"), ("there", 0o077, "Asia/Tokyo")):
        source = shutil.copytree(ROOT, tmp_path / name, ignore=unwanted, symlinks=True)
        for path in source.rglob("*"):
            if path.is_file() and name == "there":
                os.utime(path, (0, 10**9))
                path.chmod(0o600)
        command = f"umask {umask:o} && {shlex.quote(sys.executable)} -m hatchling build -d ../{name}-built"
        subprocess.run(["sh", "-c", command], cwd=source, env={**os.environ, "TZ": zone}, check=True)
        found.append({path.name: path.read_bytes() for path in (tmp_path / f"{name}-built").iterdir()})
    assert {Path(name).suffix for name in found[0]} == {".whl", ".gz"}
    assert found[0] == found[1]


def install(tmp_path: Path, what: str, *again: str) -> Path:
    """Install something in a fresh environment, or again in the same; return the folder of its programs."""
    if not again:
        venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    # Of 18,000 files few are imported: pip need not compile the others, which takes longer than all else here.
    command = [programs / "pip", "install", "--quiet", "--no-compile", "--constraint", str(ROOT / "constraints.txt")]
    if "[" in what and not again:  # torch first and alone, so that pip takes the build that is pinned
        subprocess.run([*command, "torch"], check=True)
    subprocess.run([*command, *again, what], check=True)
    return programs


@pytest.mark.slow
def test_in_a_fresh_environment_the_demo_s_first_subject_is_learned_for_a_step(wheel: Path, tmp_path: Path) -> None:
    """Of the wheel, and then of the sdist in its place, which asks for the same and finds it there."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    learned, asked = [], []
    for package in (wheel, sdist):
        again = learned and ["--force-reinstall", "--no-deps"]
        programs = install(tmp_path, f"{package}[train]", *again)
        say = "from svdiff_train.tiny import pictures_path; print(pictures_path('black_cat'))"
        pictures = subprocess.check_output([programs / "python", "-c", say], text=True, cwd=tmp_path).strip()
        assert pictures.startswith(str(tmp_path))
        told = "from importlib.metadata import requires; print(requires('svdiff-delta'))"
        asked.append(subprocess.check_output([programs / "python", "-c", told], text=True, cwd=tmp_path))
        output = tmp_path / f"{package.name}.safetensors"
        options = ["--prompt", "a photo of a V1 cat", "--steps", "1", "-o", str(output)]
        subprocess.run([programs / "svdiff", "train", "tiny", pictures, *options], cwd=tmp_path, check=True)
        learned.append(output.read_bytes())
        assert len(learned[-1]) < 300_000
    assert asked[0] == asked[1]
    assert learned[0] == learned[1]


@pytest.mark.slow
def test_a_fresh_environment_without_extras_calculates_and_names_the_extra(wheel: Path, tmp_path: Path) -> None:
    programs = install(tmp_path, str(wheel))
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
