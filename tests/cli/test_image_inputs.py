"""Commands that paint: generate, morph, edit. What they write, what it says of itself, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import SVDIFF, Outcome, svdiff
from support.deltas import saved
from support.files import listing, written
from support.forked import forked
from support.models import base_delta
from support.pipelines import small_sd3
from support.tuned import tuned_base

from svdiff_delta import load, style_mix
from svdiff_delta.format.file import file_digest
from svdiff_train.sampling.png import read_facts
from svdiff_train.tiny import open_tiny, pictures_path

PROMPT = "a photo of a cat"
FEW = ["--steps", "2", "--guidance", "3"]
PICTURE = sorted(pictures_path("black_cat").glob("*.*"))[0]
LONG = " ".join(["cat"] * 24)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two deltas."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        saved(base_delta(open_tiny(), "mid-ca", size=3.0, seed=seed), tmp_path / f"{name}.safetensors")
    return tmp_path


def done(*arguments: str) -> Outcome:
    outcome = svdiff(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(*arguments: str) -> str:
    """Run a command that must fail and write nothing; return its last line."""
    before = listing(Path())
    outcome = svdiff(*arguments)
    assert listing(Path()) == before
    assert outcome.code in (1, 2)
    return outcome.err.splitlines()[-1]


def generate(*arguments: str) -> Outcome:
    return done("generate", "tiny", *arguments, *FEW, "-q")


def pixels(path: str) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


# -- generate


@pytest.mark.slow
def test_the_same_command_writes_the_same_bytes_in_another_process() -> None:
    arguments = ["generate", "tiny", "a.safetensors:0.5", "--prompt", PROMPT, "--seeds", "2", "--eta", "0.5", *FEW]
    for output in ("one.png", "two.png"):
        outcome = forked(SVDIFF, *arguments, "-o", output)
        assert outcome.code == 0, outcome.err
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' own scheduler
def test_a_picture_says_how_it_was_painted_and_no_path() -> None:
    given = ["--seed", "3", "--negative-prompt", "blue", "--scheduler", "eulerdiscrete", "--size", "48x64"]
    generate("a.safetensors:0.5", "./b.safetensors", "--prompt", PROMPT, *given, "-o", "out.png")
    facts = read_facts(Path("out.png"))
    deltas = [load(f"{name}.safetensors") for name in ("a", "b")]
    assert json.loads(facts.pop("deltas")) == [
        {"kind": "delta", "sha256": file_digest(delta)[0], "weight": weight}
        for delta, weight in zip(deltas, (0.5, 1), strict=True)
    ]
    assert facts == {
        "prompt": PROMPT,
        "negative_prompt": "blue",
        "seed": "3",
        "steps": "2",
        "guidance": "3",
        "scheduler": "EulerDiscreteScheduler",
        "eta": "0",
        "base": "tiny",
        "size": "48x64",
    }
    assert pixels("out.png").shape == (64, 48, 3)
    assert b"safetensors" not in Path("out.png").read_bytes()


def test_every_delta_has_its_own_row_beside_the_base() -> None:
    arguments = ["a.safetensors", "b.safetensors:0.5", "--each", "--prompt", PROMPT, "--prompt", "a house"]
    generate(*arguments, "--seeds", "2", "--separate", "each", "-o", "out.png")
    assert sorted(written(Path("each"))) == [f"{row:03d}-{column:03d}.png" for row in range(3) for column in range(4)]
    plain, one, other = (read_facts(Path("each") / f"00{row}-003.png") for row in range(3))
    assert (plain["prompt"], plain["seed"], plain.get("deltas")) == ("a house", "1", None)
    assert [json.loads(facts["deltas"])[0]["weight"] for facts in (one, other)] == [1, 0.5]
    whole = read_facts(Path("out.png"))
    assert (len(json.loads(whole["deltas"])), json.loads(whole["seeds"]), whole["size"]) == (2, [0, 1], "64x64")
    generate("--prompt", "a house", "--seed", "1", "-o", "base.png")
    generate("b.safetensors:0.5", "--prompt", "a house", "--seed", "1", "-o", "b.png")
    # What else is in its batch changes a picture by the last bit at most.
    assert abs(pixels("base.png") - pixels("each/000-003.png")).max() <= 1
    assert abs(pixels("b.png") - pixels("each/002-003.png")).max() <= 1
    assert abs(pixels("base.png") - pixels("b.png")).max() > 5
    sheet = pixels("out.png")
    assert sheet.shape[0] > 3 * 64
    assert sheet.shape[1] > 4 * 64


def test_json_tells_what_was_painted_and_cut() -> None:
    long = f"{LONG} red house"
    outcome = done("generate", "tiny", "--prompt", long, "--json", *FEW, "-o", "out.png")
    facts = json.loads(outcome.out)
    assert outcome.err == ""
    assert (facts["pictures"], facts["cut"], facts["prompt"]) == (1, {long: "red house"}, long)


def test_words_that_the_model_does_not_read_are_named() -> None:
    outcome = done("generate", "tiny", "--prompt", f"{LONG} red house", *FEW, "-o", "out.png")
    (line,) = outcome.err.splitlines()
    assert line.startswith("warning: 'cat cat")
    assert line.endswith("too long, the model does not read 'red house'")


def test_tuned_models_are_summed_as_weights_and_told_from_deltas() -> None:
    tuned_base(Path("full-a"), 1)
    tuned_base(Path("full-b"), 2)
    arguments = ["generate", "tiny", "full-a", "full-b:0.5", "a.safetensors", "--prompt", PROMPT, *FEW]
    outcome = done(*arguments, "-o", "out.png")
    assert outcome.err.splitlines() == [f"full-{name}: no delta; 3 weights differ from the base" for name in ("a", "b")]
    kinds = [part["kind"] for part in json.loads(read_facts(Path("out.png"))["deltas"])]
    assert kinds == ["difference", "difference", "delta"]
    generate("a.safetensors", "--prompt", PROMPT, "-o", "a.png")
    assert abs(pixels("out.png") - pixels("a.png")).max() > 5


def test_prompts_may_stand_in_a_file() -> None:
    Path("prompts.txt").write_text("a house\na car\n", "utf-8")
    generate("--prompt", PROMPT, "--prompts", "prompts.txt", "-o", "out.png")
    assert json.loads(read_facts(Path("out.png"))["prompts"]) == [PROMPT, "a house", "a car"]


def test_style_mixing_takes_geometry_and_appearance() -> None:
    layers = "(4,down,1)"
    mixing = ["--geometry", "a.safetensors", "--appearance", "b.safetensors", "--layers", layers]
    generate(*mixing, "--prompt", PROMPT, "-o", "out.png")
    mixed = style_mix(load("a.safetensors"), load("b.safetensors"), layers=layers)
    saved(mixed, Path("mixed.safetensors"))
    generate("mixed.safetensors", "--prompt", PROMPT, "-o", "again.png")
    assert Path("out.png").read_bytes() == Path("again.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", PROMPT, "--scheduler", "karras"], "scheduler 'karras': none that goes with DDIMScheduler"),
        (["--prompts", "none.txt"], "none.txt: could not be read"),
        (["--prompts", "empty.txt"], "empty.txt: has no prompt"),
        ([], "Missing option '--prompt'"),
        (["--prompt", PROMPT, "--seed", "1", "--seeds", "2"], "--seed and --seeds exclude each other"),
        (["--prompt", PROMPT, "--size", "64"], "'64' is not WIDTHxHEIGHT"),
        (["--prompt", PROMPT, "--size", "65x64"], "cannot paint 65 pixels: use multiples of 8"),
        (["--prompt", PROMPT, "--eta", "0.5", "--scheduler", "pndm"], "PNDMScheduler has no η"),
        (["--prompt", PROMPT, "--geometry", "a.safetensors"], "--geometry and --appearance go together"),
        (["--prompt", PROMPT, "--separate", "empty.txt"], "empty.txt: exists already"),
    ],
)
def test_generate_refuses_with_one_line_and_writes_nothing(arguments: list[str], message: str) -> None:
    Path("empty.txt").write_text("\n")
    assert message in refused("generate", "tiny", *arguments, "-o", "out.png")


# -- morph


def test_morph_writes_a_strip_that_says_what_is_on_it() -> None:
    arguments = ["morph", "tiny", "a.safetensors", "b.safetensors", "--prompt", PROMPT, "--count", "3", *FEW]
    outcome = done(*arguments, "-o", "strip.png")
    assert outcome.out == "wrote strip.png: 3 pictures\n"
    facts = read_facts(Path("strip.png"))
    assert (json.loads(facts["alphas"]), facts["size"], facts["seed"]) == ([0, 0.5, 1], "64x64", "0")
    assert pixels("strip.png").shape[1] > 3 * 64


def test_morph_writes_an_animation_by_its_suffix() -> None:
    tuned_base(Path("full-a"), 1)
    tuned_base(Path("full-b"), 2)
    arguments = ["morph", "tiny", "full-a", "full-b", "--prompt", PROMPT, "--count", "2", *FEW, "-o", "strip.gif"]
    facts = json.loads(done(*arguments, "--json").out)
    with Image.open("strip.gif") as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
        assert json.loads(image.info["comment"])["deltas"] == facts["deltas"]


def test_morph_takes_no_weights() -> None:
    arguments = ["morph", "tiny", "a.safetensors:0.5", "b.safetensors", "--prompt", PROMPT, "-o", "strip.png"]
    assert "morph takes no weights" in refused(*arguments)


# -- edit


def test_edit_shows_source_reconstruction_and_every_edit() -> None:
    edits = ["--prompt", PROMPT, "--prompt", "a photo of a dog"]
    arguments = ["edit", "tiny", "a.safetensors:0.5", str(PICTURE), *edits, "--both", "--alpha", "0.2", *FEW]
    outcome = done(*arguments, "--seed", "0", "--seed", "1", "-o", "sheet.png", "--json")
    told = json.loads(outcome.out)
    facts = read_facts(Path("sheet.png"))
    assert (told["pictures"], told["inverted"], told["prompts"]) == (8, [True, False], [PROMPT, "a photo of a dog"])
    assert {name: facts[name] for name in ("alpha", "size", "eta", "scheduler")} == {
        "alpha": "0.2",
        "size": "64x64",
        "eta": "0",
        "scheduler": "DDIMScheduler",
    }
    assert json.loads(facts["deltas"])[0]["weight"] == 0.5
    assert str(PICTURE.parent).encode() not in Path("sheet.png").read_bytes()
    height, width, _ = pixels("sheet.png").shape
    assert height > 4 * 64
    assert width > 4 * 64


def test_edit_names_the_words_that_are_cut() -> None:
    arguments = ["edit", "tiny", str(PICTURE), "--prompt", f"{LONG} red house", "--no-invert", *FEW]
    outcome = done(*arguments, "-o", "sheet.png")
    assert outcome.err.splitlines()[-1].endswith("too long, the model does not read 'red house'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "--prompt", PROMPT], "none.png: could not be read (No such file or directory)"),
        ([str(PICTURE)], "Missing option '--prompt'"),
        ([str(PICTURE), "--prompt", PROMPT, "--both", "--no-invert"], "--both and --no-invert exclude each other"),
        ([str(PICTURE), "--prompt", PROMPT, "--alpha", "2"], "2.0 is not in the range 0<=x<=1"),
    ],
)
def test_edit_refuses_with_one_line_and_writes_nothing(arguments: list[str], message: str) -> None:
    assert message in refused("edit", "tiny", *arguments, "-o", "sheet.png")


def test_edit_refuses_flow_matching() -> None:
    small_sd3().save_pretrained("sd3")
    line = refused("edit", "sd3", str(PICTURE), "--prompt", PROMPT, "-o", "sheet.png")
    assert "DDIM inverts diffusion only" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "tiny", "--prompt", PROMPT, "-o", "x.jpg"],
        ["generate", "tiny", "--prompt", PROMPT, "-o", "x.GIF"],
        ["morph", "tiny", "a.safetensors", "b.safetensors", "--prompt", PROMPT, "-o", "x.webp"],
        ["edit", "tiny", "a.safetensors", str(PICTURE), "--prompt", PROMPT, "-o", "x.jpeg"],
    ],
)
def test_a_name_of_another_format_is_refused_before_anything_is_painted(arguments: list[str]) -> None:
    assert refused(*arguments, *FEW) == f"error: {arguments[-1]}: pictures are written as PNG: call it x.png"
