"""Recipes: what they may say, what they do, and how wrong ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.deltas import CONV, NORM, TEXT, of_another_base, random_delta, saved

from svdiff_delta import Delta, add, merge, save
from svdiff_delta.errors import BaseMismatchError, DeltaError, HeaderError, InputError, SelectionError, TensorError
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.io import load
from svdiff_delta.ops.merge.recipe import Input, Recipe, read_recipe, run_recipe
from svdiff_delta.ops.weights import Weight


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two deltas of one base, one of another, and one that is none."""
    saved(random_delta(1), tmp_path / "a")
    saved(random_delta(2), tmp_path / "b")
    saved(random_delta(3, of_another_base()), tmp_path / "other")
    (tmp_path / "broken").write_bytes(b"x")
    return tmp_path


def recipe(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def same(a: Delta, b: Delta) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_recipe_is_read_with_all_it_may_say(folder: Path) -> None:
    path = recipe(
        folder,
        "method: dare_ties\ndensity: 0.5\nseed: 7\ndtype: f16\ntitle: δ of both\n"
        "inputs:\n- {delta: a, weight: 2}\n- {recipe: in.yaml, where: {unet-ca: 0, mid: 0.5}}\n- delta: sub/b\n",
    )
    assert read_recipe(path) == Recipe(
        inputs=(
            Input(folder / "a", is_recipe=False, weight=Weight(2.0)),
            Input(folder / "in.yaml", is_recipe=True, weight=Weight(1.0, {"unet-ca": 0.0, "mid": 0.5})),
            Input(folder / "sub/b", is_recipe=False, weight=None),
        ),
        options={"method": "dare_ties", "density": 0.5, "seed": 7, "dtype": "F16"},
        title="δ of both",
    )


def test_a_recipe_does_what_merge_does_byte_for_byte(folder: Path) -> None:
    path = recipe(
        folder,
        "method: ties\ndensity: 0.5\ndtype: BF16\ntitle: Both\ninputs:\n"
        "- {delta: a, weight: 0.7, where: {text: -1}}\n- {delta: b}\n",
    )
    inputs = [load(folder / "a"), load(folder / "b")]
    expected = merge(inputs, method="ties", density=0.5, dtype="BF16", weights=[Weight(0.7, {"text": -1.0}), 1.0])
    assert dumps(run_recipe(path)) == dumps(expected.with_title("Both"))


def test_slerp_is_told_its_share(folder: Path) -> None:
    path = recipe(folder, "method: slerp\nalpha: 0.25\ninputs: [{delta: a}, {delta: b}]")
    expected = merge([load(folder / "a"), load(folder / "b")], method="slerp", alpha=0.25)
    assert dumps(run_recipe(path)) == dumps(expected)


def test_paths_are_relative_to_the_recipe_s_own_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    recipe(folder, "inputs: [{delta: ../b, weight: 4}]", "sub/in.yaml")
    path = recipe(folder, "inputs: [{delta: a}, {recipe: sub/in.yaml}]")
    assert same(run_recipe(path), add(random_delta(1), random_delta(2), weights=(1, 4)))


def test_an_absolute_path_stays_one(folder: Path) -> None:
    path = recipe(folder, f"inputs: [{{delta: {folder / 'a'}}}]", "sub/r.yaml")
    assert same(run_recipe(path), random_delta(1))


def test_a_recipe_may_be_an_input_twice_without_being_a_cycle(folder: Path) -> None:
    recipe(folder, "inputs: [{delta: a}, {delta: b}]", "in.yaml")
    path = recipe(folder, "inputs: [{recipe: in.yaml}, {recipe: in.yaml, weight: -1}, {delta: a, where: {unet: 0}}]")
    found = run_recipe(path)
    assert not found[CONV].any()
    assert np.array_equal(found[TEXT], random_delta(1)[TEXT])


def test_a_lineage_goes_back_through_all_recipes(folder: Path) -> None:
    recipe(folder, "inputs: [{delta: a}, {delta: b}]", "in.yaml")
    path = recipe(folder, "inputs: [{recipe: in.yaml}, {delta: a}]")
    lineage = run_recipe(path).metadata.lineage
    assert lineage is not None
    assert len(lineage.files) == 3
    assert len(lineage.record.inputs) == 2


def test_a_result_does_not_name_the_recipe_or_its_folder(folder: Path) -> None:
    raw = dumps(run_recipe(recipe(folder, "inputs: [{delta: a}]", "secret.yaml")))
    assert b"secret" not in raw
    assert str(folder).encode() not in raw


def test_without_a_title_a_result_of_several_has_none(folder: Path) -> None:
    assert run_recipe(recipe(folder, "inputs: [{delta: a}, {delta: b}]")).metadata.title is None


KEYS = "alpha, density, dtype, inputs, method, sample_size, seed, title"
INPUT_KEYS = "delta, recipe, weight, where"
WRONG: dict[str, tuple[str, type[DeltaError], str]] = {
    "no YAML": ("inputs: [", InputError, "is not valid YAML"),
    "no UTF-8": ("\udcff", InputError, "is not valid YAML"),
    "two documents": ("inputs: []\n---\ninputs: []", InputError, "is not valid YAML"),
    "a key twice": (
        "inputs: [{delta: a}]\nmethod: ties\nmethod: linear",
        InputError,
        ".*the key 'method' stands twice",
    ),
    "a place twice": (
        "inputs: [{delta: a, where: {mid: 1, mid: 2}}]",
        InputError,
        "is not valid YAML .the key 'mid' stands twice",
    ),
    "a day that is none": ("title: 2000-99-99\ninputs: [{delta: a}]", InputError, "is not valid YAML"),
    "a key that is a list": ("{[1]: 2}", InputError, "is not valid YAML"),
    "too deep": ("[" * 100_000, InputError, "is nested too deeply"),
    "a huge density": (
        f"density: 1{'0' * 400}\ninputs: [{{delta: a}}]",
        InputError,
        "density: the number is too large",
    ),
    "a huge weight": (
        f"inputs: [{{delta: a, weight: 1{'0' * 400}}}]",
        InputError,
        r"inputs\[0\].weight: the number is too large",
    ),
    "an object of Python": ("!!python/object:os.stat {}", InputError, "is not valid YAML"),
    "nothing": ("", InputError, f"a recipe must be a mapping: its keys are {KEYS}$"),
    "a list": ("[]", InputError, "a recipe must be a mapping"),
    "an unknown key": ("inpust: [{delta: a}]", InputError, f"a recipe has the unknown key 'inpust': known are {KEYS}$"),
    "a number as key": ("1: 2", InputError, "a recipe has the unknown key '1'"),
    "no inputs": ("method: linear", InputError, "a recipe has no inputs: give inputs .a list of mappings.$"),
    "an empty list of inputs": ("inputs: []", InputError, "inputs: must be a list of mappings, is an empty list$"),
    "inputs as a text": ("inputs: a", InputError, "inputs: must be a list of mappings, is 'a'$"),
    "an input as a text": (
        "inputs: [a]",
        InputError,
        rf"inputs\[0\]: an input must be a mapping: its keys are {INPUT_KEYS}$",
    ),
    "an unknown key of an input": (
        "inputs: [{delta: a, wieght: 1}]",
        InputError,
        rf"inputs\[0\]: an input has the unknown key 'wieght': known are {INPUT_KEYS}$",
    ),
    "an input that is nothing": ("inputs: [{weight: 1}]", InputError, "an input has either a delta or a recipe: give"),
    "an input that is both": ("inputs: [{delta: a, recipe: a}]", InputError, "an input has either a delta or a recipe"),
    "a delta that is no path": ("inputs: [{delta: 1}]", InputError, r"inputs\[0\].delta: must be a text, is 1$"),
    "a recipe that is no path": (
        "inputs: [{recipe: [x]}]",
        InputError,
        r"inputs\[0\].recipe: must be a text, is a list$",
    ),
    "a method that is a number": ("method: 1\ninputs: [{delta: a}]", InputError, "method: must be a text, is 1$"),
    "an unknown method": ("method: tiez\ninputs: [{delta: a}]", InputError, "'tiez': no such merge method: known are"),
    "an option that is not taken": ("density: 0.5\ninputs: [{delta: a}]", InputError, "linear takes no density"),
    "an option that is lacking": ("method: ties\ninputs: [{delta: a}]", InputError, "ties needs density"),
    "a density of text": ("density: half\ninputs: [{delta: a}]", InputError, "density: must be a number, is 'half'$"),
    "a density of yes": ("density: yes\ninputs: [{delta: a}]", InputError, "density: must be a number, is True$"),
    "a density out of range": (
        "method: ties\ndensity: 2\ninputs: [{delta: a}]",
        InputError,
        r"density must be within \(0, 1\], is 2.0$",
    ),
    "a density that is not a number": (
        "method: ties\ndensity: .nan\ninputs: [{delta: a}]",
        InputError,
        "density: must be a finite number, is nan$",
    ),
    "an alpha of nothing": (
        "method: slerp\nalpha:\ninputs: [{delta: a}]",
        InputError,
        "alpha: must be a number, is No",
    ),
    "a seed with a fraction": ("seed: 1.0\ninputs: [{delta: a}]", InputError, "seed: must be a whole number, is 1.0$"),
    "a sample size of text": (
        "sample_size: big\ninputs: [{delta: a}]",
        InputError,
        "sample_size: must be a whole number, is 'big'$",
    ),
    "a sample size of 0": (
        "sample_size: 0\ninputs: [{delta: a, where: {mid: 1}}]",
        InputError,
        "the sample size must be at least 1, is 0$",
    ),
    "a seed of yes": ("seed: yes\ninputs: [{delta: a}]", InputError, "seed: must be a whole number, is True$"),
    "a seed below 0": (
        "method: dare_ties\ndensity: 1\nseed: -1\ninputs: [{delta: a}]",
        InputError,
        "seed must be a whole number from 0 to .* is -1$",
    ),
    "a title that is a number": ("title: 1\ninputs: [{delta: a}]", InputError, "title: must be a text, is 1$"),
    "an unknown dtype": ("dtype: I4\ninputs: [{delta: a}]", InputError, "dtype: 'I4' is unknown: known are F32, F16"),
    "a dtype that is a number": ("dtype: 16\ninputs: [{delta: a}]", InputError, "dtype: must be a text, is 16$"),
    "a weight of text": (
        "inputs: [{delta: a, weight: much}]",
        InputError,
        r"inputs\[0\].weight: must be a number, is 'much'$",
    ),
    "a weight of nothing": (
        "inputs: [{delta: a, weight: }]",
        InputError,
        r"inputs\[0\].weight: must be a number, is None$",
    ),
    "a weight that is not finite": (
        "inputs: [{delta: a, weight: .inf}]",
        InputError,
        r"inputs\[0\].weight: must be a finite number, is inf$",
    ),
    "a weight that is no number": (
        "inputs: [{delta: a, weight: .nan}]",
        InputError,
        r"inputs\[0\].weight: must be a finite number, is nan$",
    ),
    "a place's weight not finite": (
        "inputs: [{delta: a, where: {mid: -.inf}}]",
        InputError,
        r"inputs\[0\].where.mid: must be a finite number, is -inf$",
    ),
    "a place's weight of text": (
        "inputs: [{delta: a, where: {mid: x}}]",
        InputError,
        r"inputs\[0\].where.mid: must be a number, is 'x'$",
    ),
    "places as a list": (
        "inputs: [{delta: a, where: [mid]}]",
        InputError,
        r"inputs\[0\].where: must be a mapping, is a list$",
    ),
    "a place that is not there": ("inputs: [{delta: a, where: {up: 1}}]", SelectionError, "'up': matches none of"),
    "weights for slerp": (
        "method: slerp\nalpha: 0.5\ninputs: [{delta: a, weight: 1}, {delta: b}]",
        InputError,
        "slerp takes no weights: use alpha$",
    ),
    "too few for slerp": (
        "method: slerp\nalpha: 0.5\ninputs: [{delta: a}]",
        InputError,
        "slerp takes 2 deltas, 1 were",
    ),
    "itself": ("inputs: [{delta: a}, {recipe: r.yaml}]", InputError, "the recipe takes itself as an input: remove the"),
    "itself by another path": (
        "inputs: [{recipe: ../{folder}/./r.yaml}]",
        InputError,
        "the recipe takes itself as an input",
    ),
    "different bases": (
        "inputs: [{delta: a}, {delta: other}]",
        BaseMismatchError,
        ".*: the inputs were made for different bases",
    ),
    "too large a result": (
        "dtype: F16\ninputs: [{delta: a, weight: 1000000}]",
        TensorError,
        f"({CONV}|{NORM}|{TEXT}): δ reaches .* F16 ends at 65504",
    ),
}


@pytest.mark.parametrize(("text", "error", "reason"), WRONG.values(), ids=WRONG)
def test_a_recipe_that_cannot_be_run_is_refused_by_its_name(
    folder: Path, text: str, error: type[DeltaError], reason: str
) -> None:
    path = folder / "r.yaml"
    path.write_bytes(text.replace("{folder}", folder.name).encode("utf-8", "surrogateescape"))
    with pytest.raises(error, match=f"r.yaml: {reason}") as caught:
        run_recipe(path)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("nothing", InputError, "there is no such file$"),
        (".", InputError, r"could not be read \(Is a directory\)$"),
        ("broken", HeaderError, "has 1 bytes"),
    ],
)
def test_an_input_that_is_no_delta_is_named(folder: Path, name: str, error: type[DeltaError], reason: str) -> None:
    with pytest.raises(error, match=f"^{folder / name}: .*{reason}"):
        run_recipe(recipe(folder, f"inputs: [{{delta: a}}, {{delta: {name}}}]"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nothing", "No such file or directory"), (".", "Is a directory"), ("x" * 300, "File name too")],
)
def test_a_recipe_that_cannot_be_read_is_named(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^{folder / name}: could not be read \({reason}"):
        read_recipe(folder / name)


def test_a_cycle_through_other_recipes_is_found(folder: Path) -> None:
    recipe(folder, "inputs: [{recipe: 2.yaml}]", "1.yaml")
    recipe(folder, "inputs: [{delta: a}, {recipe: 3.yaml}]", "2.yaml")
    recipe(folder, "inputs: [{recipe: 1.yaml}]", "3.yaml")
    with pytest.raises(
        InputError, match=f"^{folder / '1.yaml'}: the recipe takes itself as an input: remove the cycle$"
    ):
        run_recipe(folder / "1.yaml")


@pytest.mark.parametrize("name", ["a\0b", "loop"])
def test_a_path_that_leads_nowhere_is_named(folder: Path, name: str) -> None:
    (folder / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"loop: |b: "):
        run_recipe(folder / name)


def test_one_input_keeps_its_title_where_the_recipe_gives_none(folder: Path) -> None:
    save(load(folder / "a").with_title("Dog"), folder / "titled")
    assert run_recipe(recipe(folder, "inputs: [{delta: titled}]")).metadata.title == "Dog"


def test_a_cycle_through_a_link_is_found(folder: Path) -> None:
    path = recipe(folder, "inputs: [{recipe: link.yaml}]")
    (folder / "link.yaml").symlink_to(path)
    with pytest.raises(InputError, match="takes itself as an input"):
        run_recipe(path)


def test_what_is_wrong_in_a_recipe_within_another_is_said_by_its_own_name(folder: Path) -> None:
    inner = recipe(folder, "method: tiez\ninputs: [{delta: a}]", "in.yaml")
    with pytest.raises(InputError, match=f"^{inner}: 'tiez': no such merge method"):
        run_recipe(recipe(folder, "inputs: [{recipe: in.yaml}]"))


def test_values_are_checked_before_they_are_merged(folder: Path) -> None:
    raw = (folder / "a").read_bytes()
    (folder / "nan").write_bytes(raw[:-4] + np.float32("nan").tobytes())
    with pytest.raises(TensorError, match="δ holds NaN or infinity"):
        run_recipe(recipe(folder, "inputs: [{delta: nan}]"))


def test_a_result_is_a_delta_that_can_be_written_and_read(folder: Path) -> None:
    found = run_recipe(recipe(folder, "dtype: I8\ninputs: [{delta: a}, {delta: b}]"))
    read = loads(dumps(found))
    assert same(read, found)
    assert set(read.dtypes.values()) == {"I8"}
