"""The cache of gains: what was used last stays, up to a number of bytes, and each is made once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from svdiff_serve.store.gains import GainCache


@dataclass
class Made:
    nbytes: int


def test_what_was_used_longest_ago_goes_first_and_bytes_stay_below_the_limit() -> None:
    cache: GainCache[Made] = GainCache(250)
    first = cache.get("a", lambda: Made(100))
    cache.get("b", lambda: Made(100))
    assert cache.get("a", lambda: Made(100)) is first
    cache.get("c", lambda: Made(100))  # b goes
    assert cache.nbytes == 200
    assert cache.get("a", lambda: Made(100)) is first
    before = cache.misses
    cache.get("b", lambda: Made(100))
    assert cache.misses == before + 1


def test_what_is_larger_than_the_limit_is_made_and_not_kept() -> None:
    cache: GainCache[Made] = GainCache(50)
    assert cache.get("a", lambda: Made(100)).nbytes == 100
    assert (len(cache), cache.nbytes) == (0, 0)


def test_of_several_that_ask_at_once_one_makes_it() -> None:
    cache: GainCache[Made] = GainCache(1000)
    entered, go_on, made = threading.Event(), threading.Event(), []

    def make() -> Made:
        made.append(1)
        entered.set()
        assert go_on.wait(10)
        return Made(1)

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(cache.get, "a", make)
        assert entered.wait(10)
        others = [threads.submit(cache.get, "a", make) for _ in range(3)]
        go_on.set()
        assert all(other.result(10) is first.result(10) for other in others)
    assert len(made) == 1


def test_an_error_is_raised_and_the_next_one_tries_again() -> None:
    cache: GainCache[Made] = GainCache(1000)

    def fail() -> Made:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        cache.get("a", fail)
    assert cache.get("a", lambda: Made(1)).nbytes == 1
