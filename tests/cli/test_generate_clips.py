"""The commands on models of clips and of pairs, on tiny bases of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.commands import svdiff
from support.recorded_pipelines import BUILDERS
from support.recorded_runs import colour, shown
from support.seeing_pipelines import SEEING

pytestmark = pytest.mark.slow
SIZE = ("--steps", "2", "--size", "32x16", "--num-frames", "3")


@pytest.fixture
def wan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    BUILDERS["Wan 2.1"]().save_pretrained(tmp_path / "wan")
    return tmp_path


def test_a_run_on_clips_paints_clips_on_the_way_and_its_delta_makes_them(wan: Path) -> None:
    shown(wan, 64, 5)
    run = ("--prompt", "a cat", "--steps", "2", "--resolution", "64", "--num-frames", "3", "--validate", "a cat")
    outcome = svdiff("train", "wan", "shown", *run, "-o", "cat.safetensors")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in (wan / "cat.run" / "validation").glob("*.gif")] == ["step-000002-0.gif"]
    assert "num_frames = 3" in (wan / "cat.toml").read_text()
    outcome = svdiff("generate", "wan", "cat.safetensors", "--prompt", "a cat", *SIZE, "-o", "cat.gif")
    assert (outcome.code, outcome.out) == (0, "wrote cat.gif: 1 clip\n"), outcome.err
    with Image.open("cat.gif") as image:
        assert (image.size, image.n_frames) == ((32, 16), 3)
        assert b"a cat" in image.info["comment"]


def test_several_clips_are_a_folder_and_one_without_an_end_is_its_frames(wan: Path) -> None:
    outcome = svdiff("generate", "wan", "--prompt", "a cat", "--seeds", "2", *SIZE, "-o", "clips")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in Path("clips").glob("*.gif")) == ["000-000.gif", "000-001.gif"]
    assert svdiff("generate", "wan", "--prompt", "a cat", *SIZE, "-o", "frames").code == 0
    assert len(list(Path("frames").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("output", "seeds", "said"),
    [
        ("cat.png", "1", "cat.png: the pipeline makes clips, which are written as GIF, MP4 or a folder of frames"),
        ("cat.gif", "2", "cat.gif: several clips need a folder: call it cat"),
    ],
)
def test_names_that_cannot_hold_clips_are_refused(wan: Path, output: str, seeds: str, said: str) -> None:
    outcome = svdiff("generate", "wan", "--prompt", "a cat", "--seeds", seeds, *SIZE, "-o", output)
    assert outcome.code == 1
    assert said in outcome.err


def test_single_pictures_are_refused_before_anything_is_trained(wan: Path) -> None:
    Path("photos").mkdir()
    colour(0, 16).save("photos/a.png")
    outcome = svdiff("train", "wan", "photos", "--prompt", "a cat", "-o", "cat.safetensors")
    assert outcome.code == 1
    assert "photos: the model takes clips, and a.png is a single picture" in outcome.err


def test_a_number_of_frames_that_the_model_cannot_take_is_refused(wan: Path) -> None:
    shown(wan, 64, 5)
    outcome = svdiff("train", "wan", "shown", "--prompt", "a cat", "--num-frames", "4", "-o", "cat.safetensors")
    assert outcome.code == 1
    assert "WanPipeline: cannot take 4 frames, only one and a multiple of 2 more: use 3 or 5" in outcome.err


def test_a_model_that_edits_paints_from_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SEEING["SD 1 inpainting"]().save_pretrained(tmp_path / "fill")
    for name in ("photo", "mask"):
        colour(0, 16).save(f"{name}.png")
    how = ("generate", "fill", "--prompt", "a cat", "--steps", "2", "--guidance", "1")
    assert "paints from image and mask_image: give an initial picture, --init-image" in svdiff(*how, "-o", "a.png").err
    outcome = svdiff(*how, "--init-image", "photo.png", "--mask-image", "mask.png", "-o", "a.png")
    assert outcome.code == 0, outcome.err
    with Image.open("a.png") as image:
        assert image.size == (16, 16)
