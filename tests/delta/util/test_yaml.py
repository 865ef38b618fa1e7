"""YAML that is made to take time or memory, or that says what no recipe needs."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from svdiff_delta._util.limits import ALIASES, NUMERAL, RECIPE
from svdiff_delta._util.yaml import parse_yaml, read_yaml
from svdiff_delta.errors import InputError
from svdiff_delta.ops.merge.recipe import read_recipe


def doubling(levels: int, between: str = "[{0}, {0}]") -> str:
    """Aliases of which each stands for two of the one before."""
    lines = ["a0: &a0 [x, x]" if "[" in between else "a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {between.format(f'*a{n - 1}')}" for n in range(1, levels)]
    return "\n".join(lines)


HEAVY = {
    "aliases that double": (doubling(40), "has more than 20,000 values, with what its aliases stand for"),
    "mappings that double": (doubling(40, "{{p: {0}, q: {0}}}"), "has more than 20,000 values"),
    "merge keys that double": (doubling(40, "{{<<: [{0}, {0}]}}"), "has more than 20,000 values"),
    "one that is printed in an error": (f"{doubling(14)}\ninputs: *a13", "has more than 20,000 values"),
    "a list that holds itself": ("a: &a [*a]", "a list or mapping in it holds itself"),
    "a mapping that holds itself by a merge": ("a: &a {<<: *a}", "a list or mapping in it holds itself"),
    "many aliases": ("a: &a x\nb: [" + "*a," * (ALIASES + 1) + "]", "has more than 1,000 aliases"),
    "many keys": ("\n".join(f"k{n}: 1" for n in range(20_000)), "has more than 20,000 values"),
    "depth": ("[" * 17 + "]" * 17, r"is nested too deeply \(16 levels are allowed\)"),
    "depth without an end": ("{a: " * 100_000, "is nested too deeply"),
    "depth by lines": ("- " * 100_000, "is nested too deeply"),
    "a long number": ("a: " + "1" * 2 * NUMERAL, "is not valid YAML .a number has more than 1,000 characters"),
    "a number in hexadecimal": (f"a: 0x{'f' * NUMERAL}", "is not valid YAML .a number has more than 1,000 characters"),
    "a tag of the wrong type": ("a: !!bool x", r"is not valid YAML \(a tag does not fit\)"),
    "a number that is a list": ("a: !!int [1]", "is not valid YAML"),
    "a number that is empty": ('a: !!int ""', "is not valid YAML"),
    "a time that is none": ("a: !!timestamp x", r"is not valid YAML \(a tag does not fit\)"),
    "a set": ("a: !!set {b, c}", "is not valid YAML .*!?set"),
    "pairs": ("a: !!pairs [b: c]", "is not valid YAML"),
    "ordered pairs": ("a: !!omap [b]", "is not valid YAML"),
    "bytes": ("a: !!binary '====='", "is not valid YAML"),
    "a name of one's own": ("a: !mine x", "is not valid YAML"),
    "a NUL": ("a: \0", "is not valid YAML"),
}


@pytest.mark.parametrize(("text", "reason"), HEAVY.values(), ids=HEAVY)
def test_it_is_refused_in_no_time_and_memory(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    tracemalloc.start()
    try:
        begun = time.process_time()
        with pytest.raises(InputError, match=rf"r\.yaml: {reason}"):
            read_yaml(path, RECIPE)
        assert time.process_time() - begun < 2
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_what_is_within_the_limits_is_read() -> None:
    assert parse_yaml("a: &a {x: 1, y: [2.5, yes, ~]}\nb: {<<: *a, x: 3}\nc: *a", "it", RECIPE) == {
        "a": {"x": 1, "y": [2.5, True, None]},
        "b": {"x": 3, "y": [2.5, True, None]},
        "c": {"x": 1, "y": [2.5, True, None]},
    }
    assert parse_yaml("", "it", RECIPE) is None
    assert parse_yaml(b"\xef\xbb\xbfa: 1", "it", RECIPE) == {"a": 1}


def test_recipes_that_take_in_one_another_twice_are_run_once_each(tmp_path: Path) -> None:
    from support.deltas import random_delta, saved

    from svdiff_delta.ops.merge.recipe import run_recipe

    saved(random_delta(1), tmp_path / "d")
    (tmp_path / "0.yaml").write_text("inputs: [{delta: d}]")
    for number in range(1, 16):
        (tmp_path / f"{number}.yaml").write_text(
            f"inputs: [{{recipe: {number - 1}.yaml, weight: 0.5}}, {{recipe: {number - 1}.yaml, weight: 0.5}}]"
        )
    begun = time.process_time()
    found = run_recipe(tmp_path / "15.yaml")
    assert time.process_time() - begun < 3
    assert found.keys() == random_delta(1).keys()
    assert all((found[name] == random_delta(1)[name]).all() for name in found)


def test_more_recipes_than_anyone_writes_are_refused(tmp_path: Path) -> None:
    from svdiff_delta.ops.merge.recipe import run_recipe

    for number in range(20):
        (tmp_path / f"{number}.yaml").write_text(f"inputs: [{{recipe: {number + 1}.yaml}}]")
    with pytest.raises(InputError, match=r"16\.yaml: more than 16 recipes take in one another: write them into one"):
        run_recipe(tmp_path / "0.yaml")
    names = ", ".join(f"{{recipe: w{number}.yaml}}" for number in range(200))
    (tmp_path / "wide.yaml").write_text(f"inputs: [{names}]")
    from support.deltas import random_delta, saved

    saved(random_delta(1), tmp_path / "d")
    for number in range(200):
        (tmp_path / f"w{number}.yaml").write_text("inputs: [{delta: d}]")
    with pytest.raises(InputError, match=r"w199\.yaml: more than 200 recipes are taken in"):
        run_recipe(tmp_path / "wide.yaml")


def test_a_place_s_name_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("inputs: [{delta: a, where: {1: 2}}]")
    with pytest.raises(InputError, match=r"inputs\[0\]\.where: the key 1 must be a text: write it in quotes"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 10), ("-7", -7), ("+7", 7), ("0x1F", 31), ("0o17", 15), ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5),
        ("5.", 5.0), ("-1.5e+2", -150.0), (".inf", float("inf")), ("1:30", "1:30"), ("1_000", "1_000"),
        ("0b11", "0b11"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(written: str, value: object) -> None:
    found = parse_yaml(f"a: {written}", "x", RECIPE)["a"]
    assert found == value
    assert type(found) is type(value)
