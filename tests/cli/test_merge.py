"""The commands merge, truncate and quantize, and recipes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.deltas import CONV, QUERY, TEXT, random_delta, saved
from support.sd15 import sd15_delta

from svdiff_cli.main import main
from svdiff_delta import load, select
from svdiff_delta.format.delta import Delta


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two deltas of one base."""
    monkeypatch.chdir(tmp_path)
    saved(random_delta(1), tmp_path / "a")
    saved(random_delta(2), tmp_path / "b")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def made(*arguments: object) -> Delta:
    result = run(*arguments, "-o", "out")
    assert result.exit_code == 0, result.output
    return load("out")


def refused(*arguments: object) -> str:
    result = run(*arguments, "-o", "out")
    assert result.exit_code in (1, 2)
    assert not Path("out").exists()
    return result.stderr.strip().splitlines()[-1]


def test_merge_is_linear_unless_told_otherwise() -> None:
    a, b = load("a"), load("b")
    merged = made("merge", "a:0.5", "b:2")
    expected = 0.5 * a[CONV].astype("f8") + 2 * b[CONV].astype("f8")
    assert np.array_equal(merged[CONV], expected.astype("f4"))
    assert merged.metadata.lineage.record.operation == "merge"


def test_merge_passes_method_and_options_on() -> None:
    merged = made("merge", "a", "b", "--method", "dare_ties", "--density", 0.5, "--seed", 7)
    arguments = merged.metadata.lineage.record.arguments
    assert arguments == {"method": "dare_ties", "density": 0.5, "seed": 7, "weights": [1, 1]}


def test_merge_refuses_an_option_that_the_method_does_not_take() -> None:
    assert "linear takes no density" in refused("merge", "a", "b", "--density", 0.5)


def test_merge_without_deltas_is_refused() -> None:
    assert "nothing to merge" in refused("merge")


def test_slerp_takes_alpha_and_no_weights() -> None:
    merged = made("merge", "a", "b", "--method", "slerp", "--alpha", 1)
    assert np.allclose(merged[QUERY], load("a")[QUERY])


def test_a_recipe_does_what_the_options_do(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        "method: ties\ndensity: 0.5\ntitle: both\ninputs:\n- {delta: a, weight: 0.5}\n- {delta: b}\n"
    )
    by_recipe = made("merge", "--recipe", "r.yaml")
    assert by_recipe.metadata.title == "both"
    Path("out").unlink()
    by_options = made("merge", "a:0.5", "b", "--method", "ties", "--density", 0.5)
    assert all(np.array_equal(by_recipe[name], by_options[name]) for name in by_options)


def test_a_recipe_takes_another_as_input_and_weights_by_selector(folder: Path) -> None:
    (folder / "in.yaml").write_text("inputs:\n- {delta: a, weight: 2}\n")
    (folder / "r.yaml").write_text("inputs:\n- {recipe: in.yaml, where: {'text*': 0}}\n- {delta: b, weight: 0}\n")
    merged = made("merge", "--recipe", "r.yaml")
    assert np.array_equal(merged[CONV], 2 * load("a")[CONV])
    assert not merged[TEXT].any()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("inputs: [", "is not valid YAML"),
        ("[]", "a recipe must be a mapping"),
        ("inputs: []", "inputs: must be a list"),
        ("inpust: [{delta: a}]", "a recipe has the unknown key 'inpust'"),
        ("inputs: [{delta: a, wieght: 1}]", "an input has the unknown key 'wieght'"),
        ("inputs: [{delta: a, recipe: r.yaml}]", "either a delta or a recipe"),
        ("inputs: [{recipe: r.yaml}]", "takes itself as an input"),
        ("inputs: [{delta: nothing}]", "nothing: there is no such file"),
        ("method: tiez\ninputs: [{delta: a}]", "'tiez': no such merge method"),
        ("method: ties\ninputs: [{delta: a}]", "ties needs density"),
        ("inputs: [{delta: a, weight: .nan}]", "must be a finite number"),
        ("inputs: [{delta: a, weight: much}]", "weight: must be a number"),
        ("dtype: I4\ninputs: [{delta: a}]", "dtype: 'I4' is unknown"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused(folder: Path, text: str, reason: str) -> None:
    (folder / "r.yaml").write_text(text)
    assert reason in refused("merge", "--recipe", "r.yaml")


def test_add_takes_weights_by_selector() -> None:
    total = made("add", "a", "b", "--where", f"{CONV}=0,3")
    assert np.array_equal(total[CONV], 3 * load("b")[CONV])
    assert np.allclose(total[QUERY], load("a")[QUERY] + load("b")[QUERY])


def test_geometry_from_one_and_appearance_from_the_other_is_one_command(folder: Path) -> None:
    for seed, name in enumerate(["shape", "look"]):
        saved(sd15_delta(seed), folder / name)
    place = "(16,down,1)-(8,down,0)"
    mixed = made("add", "shape:0", "look:1", "--where", f"{place}=1,0", "--sample-size", 64)
    shape, look = load("shape"), load("look")
    geometry = set(select(shape, place, sample_size=64))
    assert 0 < len(geometry) < len(mixed)
    for name, value in mixed.items():
        assert np.array_equal(value, shape[name] if name in geometry else look[name]), name
    assert mixed.metadata.lineage.record.arguments["sample_size"] == 64


@pytest.mark.parametrize("place", ["unet", "unet=1", "unet=1,x", "=1,1"])
def test_add_refuses_a_place_without_a_weight_per_delta(place: str) -> None:
    assert "must give 2 weights" in refused("add", "a", "b", "--where", place)


def test_truncate_keeps_the_largest_shifts() -> None:
    whole, kept = load("a")[CONV], made("truncate", "a", "--rank", 1)[CONV]
    assert np.count_nonzero(kept) == 1
    assert kept[np.abs(whole).argmax()] == whole[np.abs(whole).argmax()]


def test_truncate_keeps_a_tied_run_as_a_whole_or_not_at_all() -> None:
    kept = made("truncate", "a", "--rank", 4)[QUERY]  # runs of 2 and 3, one single, two null
    assert kept[0] == kept[1]
    assert kept[3] == kept[4] == kept[5]
    assert np.count_nonzero(kept) in (3, 4)


def test_truncate_by_all_the_energy_keeps_everything() -> None:
    assert all(np.array_equal(value, load("a")[name]) for name, value in made("truncate", "a", "--energy", 1).items())


@pytest.mark.parametrize("options", [(), ("--rank", 1, "--energy", 0.5), ("--rank", 0), ("--energy", 1.5)])
def test_truncate_refuses_what_is_no_rank_or_energy(options: tuple[object, ...]) -> None:
    assert refused("truncate", "a", *options).startswith("error: ")


def test_quantize_says_what_it_loses(folder: Path) -> None:
    result = run("quantize", "a", "--json", "-o", "out")
    facts = json.loads(result.stdout)
    a, quantized = load("a"), load("out")
    wide = {name: a[name].astype("f8") for name in a}
    lost = np.sqrt(sum(np.square(quantized[name] - wide[name]).sum() for name in a))
    assert facts["error"] == pytest.approx(lost / np.sqrt(sum(np.square(value).sum() for value in wide.values())))
    assert {quantized.dtype_of(name) for name in a} <= {"I8", "F16"}


def test_quantizing_back_keeps_the_values() -> None:
    small = dict(made("quantize", "a").items())
    Path("out").rename("small")
    back = made("quantize", "small", "--dtype", "f32")
    assert all(np.array_equal(back[name], small[name]) for name in small)
    assert {back.dtype_of(name) for name in small} == {"F32"}
