"""The queue: bounded, and fair between keys."""

from __future__ import annotations

import pytest

from svdiff_serve.engine.queue import FairQueue
from svdiff_serve.errors import BusyError, LimitError


def queue(most: int = 10, most_of_key: int = 10) -> FairQueue[str]:
    return FairQueue(most, most_of_key, lambda: 7)


def test_keys_are_served_in_turn_and_each_in_its_own_order() -> None:
    found = queue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        found.put(item[0], item)
    assert [found.take() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    with pytest.raises(IndexError):
        found.take()


def test_who_comes_late_waits_behind_one_of_each_key_and_not_behind_all() -> None:
    found = queue()
    for number in range(8):
        found.put("a", f"a{number}")
    assert found.take() == "a0"
    found.put("b", "b0")
    assert [found.take(), found.take()] == ["a1", "b0"]


def test_a_full_queue_says_when_to_come_again() -> None:
    found = queue(most=2)
    found.put("a", "1")
    found.check("b", 1)
    with pytest.raises(BusyError, match="1 pictures wait already, 2 is the most") as full:
        found.check("b", 2)
    assert full.value.retry_after == 7


def test_what_never_fits_is_not_told_to_come_again() -> None:
    with pytest.raises(LimitError, match="never fit"):
        queue(most=2).check("a", 3)


def test_one_key_cannot_fill_it() -> None:
    found = queue(most_of_key=1)
    found.put("a", "1")
    with pytest.raises(BusyError, match="of this key"):
        found.check("a", 1)
    found.check("b", 1)


def test_what_is_not_wanted_any_more_is_taken_out() -> None:
    found = queue()
    for item in ("a1", "a2", "b1"):
        found.put(item[0], item)
    assert found.remove(lambda item: item[1] == "1") == ["a1", "b1"]
    assert (len(found), found.of_key("b"), found.take()) == (1, 0, "a2")
