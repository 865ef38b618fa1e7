"""`svdiff evaluate`: pictures painted and read, measured, written, drawn."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.commands import Outcome, svdiff
from support.files import listing
from support.models import base_delta
from support.scenes import CAR, CAT, painted, pairs, portraits, save_all, side_by_side

from svdiff_delta import add, load, save
from svdiff_delta.runtime import attach
from svdiff_train.evaluate import Clip, Lpips, image_alignment, mean_interval, text_alignment
from svdiff_train.evaluate.lpips import shapes
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.tiny import base_path, open_tiny, pictures_path

CATS = ("--images", pictures_path(CAT))
PROMPT = "a photo of a sks cat"
FEW = ("--prompt", PROMPT, "--seeds", 2, "--steps", 2, "--guidance", 4, *CATS)


def run(*arguments: object) -> Outcome:
    return svdiff("evaluate", *map(str, arguments))


def refused(why: str, *arguments: object) -> None:
    done = run(*arguments)
    assert done.code == 1, done.err
    assert why in done.err


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("deltas")
    for seed, name in enumerate(("dog", "cat")):
        save(base_delta(open_tiny(), "unet-ca-kv", size=0.2, seed=seed), folder / f"{name}.safetensors")
    return folder / "dog.safetensors", folder / "cat.safetensors"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that exist already: cat and car, three times as asked and once the other way round."""
    folder = save_all([*pairs(CAT, CAR)[:3], pairs(CAR, CAT)[0]], tmp_path_factory.mktemp("pictures") / "scenes")
    prompt = "a cat on the left and a car on the right"
    lines = [json.dumps({"file_name": f"{number}.png", "text": prompt}) for number in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_a_sum_of_deltas_is_painted_and_measured(deltas: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "both.json"
    done = run("tiny", deltas[0], f"{deltas[1]}:0.5", *FEW, "--token", "sks", "-o", output)
    assert done.code == 0, done.err
    facts: dict[str, Any] = json.loads(output.read_bytes())
    assert {key: facts[key] for key in ("base", "clip", "measures", "references", "tokens", "steps", "guidance")} == {
        "base": "tiny",
        "clip": "tiny/clip",
        "measures": {"clip": "tiny/clip"},
        "references": 5,
        "tokens": ["sks"],
        "steps": 2,
        "guidance": 4,
    }
    base, clip = open_tiny(), Clip.load(base_path() / "clip")
    pipeline = load_pipeline(base)
    with attach(pipeline, add(*map(load, deltas), weights=(1, 0.5)), base=base):
        images = generate(pipeline, [(PROMPT, 0), (PROMPT, 1)], Sampling(steps=2, guidance=4.0))
    (found,) = facts["results"]
    text = text_alignment(clip, images, ["a photo of a cat"] * 2)
    assert found["label"] == "dog + cat:0.5"
    assert found["text_alignment"] == mean_interval(text).facts()
    assert found["image_alignment"]["clip"] == mean_interval(image_alignment(clip, images, portraits(CAT))).facts()
    assert [(each["prompt"], each["seed"], each["text_alignment"]) for each in found["pictures"]] == [
        (PROMPT, 0, float(text[0])),
        (PROMPT, 1, float(text[1])),
    ]
    assert done.out.splitlines()[0].split() == ["pictures", "text", "image", "(clip)"]
    assert done.out.splitlines()[1].startswith(f"dog + cat:0.5         2  {mean_interval(text)}  ")
    assert done.out.splitlines()[2] == f"wrote {output}"


def test_each_delta_is_measured_on_its_own_and_drawn(deltas: tuple[Path, Path], tmp_path: Path) -> None:
    output, plot = tmp_path / "each.json", tmp_path / "each.png"
    arguments = ("tiny", *deltas, *FEW, "--each", "--plot", plot)
    done = run(*arguments, "--json", "-o", output)
    assert done.code == 0, done.err
    assert done.out.encode() == output.read_bytes()
    found = json.loads(done.out)["results"]
    assert [each["label"] for each in found] == ["dog", "cat"]
    assert found[0]["text_alignment"] != found[1]["text_alignment"]
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    again = tmp_path / "again"
    again.mkdir()
    assert run("tiny", deltas[1], *FEW, "-q", "-o", again / "one.json").out == ""
    assert json.loads((again / "one.json").read_bytes())["results"] == found[1:]
    refused("each.json: exists already", *arguments, "-o", output)
    refused("each.png: exists already", *arguments, "-o", again / "two.json")


def test_prompts_come_from_a_file_and_the_base_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a cat\n\na photo of a car\n")
    asked = ("--prompts", tmp_path / "prompts.txt", "--seeds", 1, "--seed", 7, "--steps", 2, *CATS)
    assert run("tiny", *asked, "-o", tmp_path / "base.json").code == 0
    (found,) = json.loads((tmp_path / "base.json").read_bytes())["results"]
    assert found["label"] == "tiny"
    assert [(each["prompt"], each["seed"]) for each in found["pictures"]] == [
        ("a photo of a cat", 7),
        ("a photo of a car", 7),
    ]


def test_a_dry_run_checks_and_writes_nothing(deltas: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("tiny", *deltas, *FEW, "--dry-run", "-o", tmp_path / "both.json")
    assert (done.code, done.out) == (0, "would measure 1 prompts by 5 pictures of the subject\n")
    assert listing(tmp_path) == []
    refused("no prompts", "tiny", *CATS, "--dry-run", "-o", tmp_path / "both.json")


def test_regions_are_told_by_pictures(scenes: Path, tmp_path: Path) -> None:
    regions = ["--region", "left=cat", "--region", "right=car"]
    regions += ["--concept", f"cat={pictures_path(CAT)}", "--concept", f"car={pictures_path(CAR)}"]
    both = (*CATS, "--images", pictures_path(CAR))
    done = run("tiny", "--pictures", scenes, *both, *regions, "-o", tmp_path / "scenes.json")
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "scenes.json").read_bytes())
    assert (facts["references"], facts["regions"]) == (10, {"left": "cat", "right": "car"})
    (found,) = facts["results"]
    assert found["label"] == "scenes"
    assert {name: (share["mean"], share["count"]) for name, share in found["shares"].items()} == {
        "left": (0.75, 4),
        "right": (0.75, 4),
        "all": (0.75, 4),
        "all in any order": (1, 4),
        "crossed over": (0.25, 4),
        "crossed over in any order": (0, 4),
    }
    assert found["pictures"][3]["file"] == "3.png"
    assert found["pictures"][3]["regions"] == {"left": "car", "right": "cat"}


def test_regions_are_told_by_words(tmp_path: Path) -> None:
    folder = save_all([side_by_side(painted("tractor"), painted("panda"))], tmp_path / "scenes")
    (folder / "0.txt").write_text("a tractor on the left and a panda on the right")
    regions = ("--region", "left=tractor", "--region", "right=strawberry", "--among", "panda", "--among", "car")
    assert run("tiny", "--pictures", folder, *CATS, *regions, "-o", tmp_path / "x.json").code == 0
    (found,) = json.loads((tmp_path / "x.json").read_bytes())["results"]
    assert found["pictures"][0]["regions"] == {"left": "tractor", "right": "panda"}
    assert (found["shares"]["left"]["mean"], found["shares"]["right"]["mean"]) == (1, 0)


def test_lpips_measures_beside_clip(scenes: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes().items()}
    save_file(weights, tmp_path / "alex.safetensors")
    lpips = ("--lpips", tmp_path / "alex.safetensors")
    done = run("tiny", "--pictures", scenes, *CATS, *lpips, "--json", "-o", tmp_path / "x.json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["measures"] == {"clip": "tiny/clip", "lpips": "alex.safetensors"}
    images = [Image.open(scenes / f"{number}.png") for number in range(4)]
    expected = image_alignment(Lpips.load(lpips[1]), images, portraits(CAT))
    assert facts["results"][0]["image_alignment"]["lpips"] == mean_interval(expected).facts()


def test_the_same_pictures_give_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        files = ("-o", tmp_path / f"{name}.json", "--plot", tmp_path / f"{name}.png")
        assert run("tiny", "--pictures", scenes, *CATS, *files).code == 0
    for suffix in ("json", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_prompt_that_clip_cuts_is_said(scenes: Path, tmp_path: Path) -> None:
    folder = save_all(portraits(CAT)[:1], tmp_path / "cats")
    (folder / "0.txt").write_text("a photo of a " + "small " * 30 + "cat")
    done = run("tiny", "--pictures", folder, *CATS, "-o", tmp_path / "cats.json")
    assert done.code == 0
    assert "too long for tiny/clip" in done.err


@pytest.fixture
def unwritten(tmp_path: Path) -> Iterator[Path]:
    """A folder for an output that is not written in the end."""
    yield tmp_path / "x.json"
    assert not (tmp_path / "x.json").exists()


def test_references_that_are_not_there_are_refused(tmp_path: Path, unwritten: Path) -> None:
    (tmp_path / "none").mkdir()
    ask = ("tiny", "--prompt", "a cat", "-o", unwritten)
    refused("there is no such folder", *ask, "--images", tmp_path / "nowhere")
    refused("holds no pictures", *ask, "--images", tmp_path / "none")
    (tmp_path / "none" / "a.png").write_bytes(b"GIF")
    refused("could not be read as a picture", *ask, "--images", tmp_path / "none")
    assert run(*ask).code == 2  # click: --images is missing


def test_missing_and_unreadable_prompts_are_refused(tmp_path: Path, unwritten: Path) -> None:
    ask = ("tiny", *CATS, "-o", unwritten)
    refused("there are no prompts", *ask)
    empty = tmp_path / "empty.txt"
    refused("could not be read", *ask, "--prompts", empty)
    empty.write_text("\n \n")
    refused("has no prompt", *ask, "--prompts", empty)
    empty.write_bytes(b"\xff\xfe")
    refused("is not UTF-8", *ask, "--prompts", empty)
    refused("zwx: stands in no prompt", *ask, "--prompt", PROMPT, "--token", "zwx")
    for more in (("--prompt", ""), ("--prompt", "sks", "--token", "sks")):
        refused("a prompt is empty, or has nothing but tokens", *ask, *more)


def test_what_is_no_model_and_pickles_are_refused(tmp_path: Path, unwritten: Path) -> None:
    ask = ("tiny", *FEW, "-o", unwritten)
    refused("is no CLIP", *ask, "--clip", base_path() / "unet")
    refused("is no DINO", *ask, "--dino", base_path() / "clip")
    pickled = tmp_path / "alex.pth"
    pickled.write_bytes(pickle.dumps(np.zeros(3)))
    refused("is a pickle, which is never opened", *ask, "--lpips", pickled)
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    pickled.rename(folder / "pytorch_model.bin")
    refused("holds only a pickle", *ask, "--clip", folder)


def test_a_clip_that_is_neither_here_nor_reachable_is_refused(
    unreachable: Path, tmp_path: Path, unwritten: Path
) -> None:
    refused("owner/clip", "tiny", *FEW, "--clip", "owner/clip", "-o", unwritten)


def test_bad_regions_are_refused(unwritten: Path) -> None:
    ask = ("tiny", *FEW, "-o", unwritten)
    refused("middle: there is no such region", *ask, "--region", "middle=cat")
    refused("--region left: names one thing", *ask, "--region", "left")
    refused("one candidate (cat)", *ask, "--region", "left=cat")
    refused("there are no regions", *ask, "--among", "cat")
    refused("a region is named twice", *ask, "--region", "left=cat", "--region", "left=car")
    concept = ("--concept", f"cat={pictures_path(CAT)}")
    refused("cat stands there twice", *ask, "--region", "left=cat", *concept, *concept)
    refused("car: has no pictures", *ask, "--region", "left=car", *concept)
    refused("not compared with each other", *ask, "--region", "left=cat", *concept, "--among", "car")


def test_pictures_without_prompts_are_refused(
    deltas: tuple[Path, Path], scenes: Path, tmp_path: Path, unwritten: Path
) -> None:
    ask = (*CATS, "-o", unwritten)
    refused("00.png: has no prompt", "tiny", *ask, "--pictures", pictures_path(CAT))
    refused("nothing is painted", "tiny", *ask, "--pictures", scenes, "--prompt", "a cat")
    refused("nothing is painted", "tiny", deltas[0], *ask, "--pictures", scenes)


def test_a_delta_that_is_named_twice_is_refused(deltas: tuple[Path, Path], unwritten: Path) -> None:
    refused("named twice", "tiny", deltas[0], deltas[0], *FEW, "--each", "-o", unwritten)
