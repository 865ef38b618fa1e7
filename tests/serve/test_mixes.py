"""Mixes: what is written is what is meant, and what is wrong is said with what would have been right."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.deltas import CONV, QUERY
from support.deltas import random_delta as delta

from svdiff_serve.errors import RefusedError
from svdiff_serve.mixes import TERMS, Mix, Term, parse_mix, unknown


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("tiny", ()),
        ("dog", (Term("dog"),)),
        ("dog:0.8+cat:0.5@unet-ca", (Term("dog", 0.8), Term("cat", 0.5, "unet-ca"))),
        ("pets/dog:-1", (Term("pets/dog", -1.0),)),
        ("a%2Bb:1e%2B1", (Term("a+b", 10.0),)),
        ("dog@unet-ca+dog@mid", (Term("dog", 1.0, "unet-ca"), Term("dog", 1.0, "mid"))),
    ],
)
def test_a_mix_is_read_as_it_is_written(text: str, terms: tuple[Term, ...]) -> None:
    assert parse_mix(text, "tiny") == Mix(terms)


@settings(max_examples=40)
@given(
    st.lists(
        st.builds(
            Term, st.text(min_size=1, max_size=8), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda term: (term.name, term.selector),
    )
)
def test_a_mix_that_is_written_is_read_again(terms: list[Term]) -> None:
    mix = Mix(tuple(terms))
    assert parse_mix(str(mix), "\0") == mix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "NAME"),
        ("dog+", "NAME"),
        (":0.5", "NAME"),
        ("dog:", "no weight"),
        ("dog:much", "no weight"),
        ("dog:nan", "not a finite number"),
        ("dog:1e999", "not a finite number"),
        ("dog:0.5+dog:0.2", "twice"),
        ("+".join(["dog"] * (TERMS + 1)), f"{TERMS} is the most"),
        ("d" * 10_000, "characters"),
    ],
)
def test_what_is_no_mix_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(RefusedError, match=said) as found:
        parse_mix(text, "tiny")
    assert found.value.field == "model"


def test_of_a_name_that_is_not_there_the_nearest_are_offered() -> None:
    assert "'dog'" in unknown("dgo", ["cat", "dog"]).fix
    assert "GET /v1/models" in unknown("zebra", ["cat", "dog"]).fix


def test_a_selector_takes_its_part_of_a_delta_and_no_other() -> None:
    whole = delta()
    assert list(Term("dog", selector="unet-ca").part(whole)) == [QUERY]
    assert list(Term("dog", selector="unet-ca,unet-conv").part(whole)) == [CONV, QUERY]
    assert Term("dog").part(whole) is whole


def test_a_selector_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RefusedError, match="neither a subset nor a parameter"):
        Term("dog", selector="nose").part(delta())


def test_of_very_many_names_those_that_begin_alike_are_looked_at() -> None:
    names = sorted(f"users/{number:06d}/dog" for number in range(20_000))
    assert "'users/012345/dog'" in unknown("users/012345/dig", names).fix
