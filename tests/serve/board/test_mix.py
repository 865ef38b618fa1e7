"""A mix of the board is a recipe, number for number, and comes back from it."""

from __future__ import annotations

import random

import pytest

from svdiff_delta.ops.weights import Weight
from svdiff_serve.board.asking import Checked, read
from svdiff_serve.board.mix import LARGEST, PARTS, Mix, Term, check_mix, term_of
from svdiff_serve.errors import LimitError, RefusedError


def test_factors_are_times_the_weight_of_the_whole() -> None:
    term = Term(name="dog", weight=0.8, parts=(("unet-ca", 0.5), ("down.1", 0.0)))
    assert term.weights() == Weight(0.8, {"unet-ca": 0.4, "down.1": 0.0})


def test_no_weight_is_minus_nought() -> None:
    weights = Term(name="dog", weight=-0.0, parts=(("mid", -3.0),)).weights()
    assert [str(weights.default), *map(str, weights.where.values())] == ["0.0", "0.0"]


def test_what_sliders_say_comes_back_as_it_was() -> None:
    draw = random.Random(1)
    for _ in range(3000):
        weight = round(draw.uniform(-2, 2), 2) or 1.0
        parts = tuple((f"down.{number}", round(draw.uniform(-2, 2), 2) + 0.0) for number in range(3))
        term = Term(name="dog", weight=weight, parts=parts)
        assert term_of("dog", term.weights()) == term


def test_weights_of_any_recipe_come_back_bit_for_bit() -> None:
    draw = random.Random(2)
    for _ in range(3000):
        weight = Weight(draw.uniform(-2, 2), {"mid": draw.uniform(-2, 2), "up": draw.gauss(0, 1e-3)})
        term = term_of("dog", weight)
        again = term.weights()
        assert (again.where["mid"], again.where["up"]) == (weight.where["mid"], weight.where["up"])
        assert again.where.get("*", again.default) == weight.default


def test_a_part_beside_a_weight_of_nought_opens_with_its_own_weight() -> None:
    term = term_of("dog", Weight(0.0, {"mid": 0.7}))
    assert term == Term(name="dog", weight=1.0, parts=(("*", 0.0), ("mid", 0.7)))
    assert term_of("dog", Weight(0.0, {"mid": 0.0})) == Term(name="dog", weight=0.0, parts=(("mid", 1.0),))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"mixes": []}', "mixes"),
        (b'{"mixes": [{"terms": [{"name": "dog", "weight": 1e999}]}]}', "too large"),
        (b'{"mixes": [{"terms": [{"name": "dog", "weight": 2e6}]}]}', "weight"),
        (b'{"mixes": [{"terms": [{"name": "dog", "parts": [["mid"]]}]}]}', "parts"),
        (b'{"mixes": [{"terms": [{"name": "dog", "parts": [["", 1]]}]}]}', "parts"),
        (b'{"mixes": [{"terms": [{"nom": "dog"}]}]}', "nom"),
        (b'{"mixes": [{"terms": ' + b"[" * 40 + b"]" * 40 + b"}]}", "nested"),
        (b'{"mixes": [{"terms": [' + b",".join([b'{"name": "d"}'] * 17) + b"]}]}", "terms"),
        (b"{", "JSON"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_body_that_is_no_mix_is_refused_by_what_is_wrong(body: bytes, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        read(Checked, body)


def test_a_name_and_a_part_are_named_once() -> None:
    with pytest.raises(RefusedError, match="names 'dog' twice"):
        check_mix(Mix(terms=(Term(name="dog"), Term(name="dog"))))
    with pytest.raises(RefusedError, match="a part twice"):
        check_mix(Mix(terms=(Term(name="dog", parts=(("mid", 1.0), ("mid", 2.0))),)))


def test_a_recipe_that_is_too_much_for_sliders_is_refused() -> None:
    with pytest.raises(LimitError):
        term_of("dog", Weight(2 * LARGEST))
    with pytest.raises(LimitError):
        term_of("dog", Weight(1.0, {f"down.{number}": 1.0 for number in range(PARTS + 1)}))
