"""Patterns of strangers: they mean what Python's do, and no way of writing one takes long."""

from __future__ import annotations

import random
import re
import time
from fnmatch import fnmatchcase
from itertools import product

import pytest

from svdiff_delta._util.limits import PATTERN, STATES
from svdiff_delta._util.patterns import expression, glob
from svdiff_delta._util.regex import Pattern
from svdiff_delta.conversion.peft_config import parse_config, pattern_value
from svdiff_delta.errors import InputError, SelectionError
from svdiff_delta.selectors.match import match

ATOMS = ["a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", "[a-c.]", r"\w", "0", "[]a]", "[a-]", r"\W", r"\S", "^", "$"]
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{0,}", "*?", "+?", "{,2}", "{2,3}?"]
TEXTS = ["".join(chars) for length in range(5) for chars in product("ab.0", repeat=length)]


def drawn(draw: random.Random, depth: int = 0) -> str:
    kind = draw.random()
    if depth > 3 or kind < 0.4:
        return draw.choice(ATOMS)
    if kind < 0.6:
        return drawn(draw, depth + 1) + drawn(draw, depth + 1)
    if kind < 0.75:
        return f"({drawn(draw, depth + 1)}|{drawn(draw, depth + 1)})"
    return f"({drawn(draw, depth + 1)}){draw.choice(REPEATS)}"


def test_an_expression_matches_what_python_s_does() -> None:
    draw, compared = random.Random(3), 0
    for _ in range(400):
        text = drawn(draw)
        try:
            expected, found = re.compile(text), Pattern(text)
        except re.error:
            continue
        for name in draw.sample(TEXTS, 40):
            assert found.matches(name) == (expected.fullmatch(name) is not None), (text, name)
            compared += 1
    assert compared > 10_000


SLOW = ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*)*b", "(.*.*.*.*)*b", "((a?){10}){20}b", "(a*)*(a*)*b", "([ab]+[ab]+)+c"]


@pytest.mark.parametrize("text", SLOW)
def test_an_expression_that_takes_python_for_ever_takes_no_time(text: str) -> None:
    begun = time.process_time()
    assert not Pattern(rf"(.*\.)?({text})").matches("a" * 300)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(", r"a \( has no \)"),
        ("a)", r"a \) has no \("),
        ("[", r"a \[ has no \]"),
        ("a**", "a repetition is repeated"),
        ("*a", "nothing is repeated"),
        ("\\", "a backslash has nothing behind it"),
        ("(?=a)", "only"),
        ("(?P<n>a)", "only"),
        (r"(a)\1", r"\\1 is not known here"),
        (r"\ba", r"\\b is not known here"),
        ("a{3,2}", "ends before it begins"),
        ("[b-a]", "is empty"),
        ("a{9999}{9999}", f"more than {STATES:,} steps"),
        ("(" * 100 + ")" * 100, "nested too deeply"),
        ("a" * (PATTERN + 1), f"more than {PATTERN:,} characters"),
    ],
)
def test_an_expression_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"is no pattern of a layer's name .*{reason}"):
        expression(text)


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("to_q", "a.to_q", True),
        ("to_q", "a.not_to_q", False),
        ("^to_q", "a.to_q", False),
        ("^to_q", "to_q", True),
        (r"blocks\.0\.to_q", "unet.blocks.0.to_q", True),
        ("blocks.0.to_q", "unet.blocks.0.to_q", True),
        ("to_q|to_k", "a.to_k", True),
        (r"blocks\.\d+\.to_q", "x.blocks.17.to_q", True),
        (".*attn1.*", "x.attn1.to_q", True),
        ("(down|up)_blocks.*", "up_blocks.1", True),
        ("(down|up)_blocks.*", "mid_block", False),
    ],
)
def test_a_pattern_of_peft_is_taken_from_some_dot_on(pattern: str, path: str, found: bool) -> None:
    assert (pattern_value({pattern: 4.0}, path) == 4.0) is found
    assert (re.match(rf"(.*\.)?({pattern})$", path) is not None) is found


def test_patterns_of_a_configuration_have_a_bound_together() -> None:
    plain = {f"unet.blocks.{number}.to_q": 4 for number in range(1_000)}
    assert parse_config({"lora_alpha": 4, "rank_pattern": plain}, "c").ranks["unet.blocks.7.to_q"] == 4
    many = {f"(a|b){{50}}{number}": 4 for number in range(100)}
    with pytest.raises(InputError, match=rf"c: its patterns have more than {STATES:,} steps: merge it"):
        parse_config({"lora_alpha": 4, "rank_pattern": many}, "c")


@pytest.mark.parametrize(
    "pattern", ["*a" * 400 + "b", "?*" * 300 + "b", "*" * 900 + "b", "*[a]" * 200 + "b", "[" * 900]
)
def test_a_glob_takes_no_time(pattern: str) -> None:
    begun = time.process_time()
    assert not any(map(glob(pattern), ["a" * 500 + str(number) for number in range(100)]))
    assert time.process_time() - begun < 2


def test_a_glob_is_what_it_was() -> None:
    for pattern in ("unet.*", "*.to_[qk].weight", "a?c", "[!a]*", "*"):
        for name in ("unet.a", "x.to_q.weight", "abc", "b", "", "A?C"):
            assert glob(pattern)(name) == fnmatchcase(name, pattern)


def test_a_selector_longer_than_any_name_is_refused() -> None:
    for selector in ("*" * (PATTERN + 1), "a" * (PATTERN + 1), "!" + "a" * (PATTERN + 1)):
        with pytest.raises(SelectionError, match=r"…: has more than 1,000 characters: write a shorter pattern"):
            match({"unet.a": (2, 2)}, [selector])
