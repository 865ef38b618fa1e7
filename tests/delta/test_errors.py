"""The errors: one tree, each with what mends it."""

from __future__ import annotations

import inspect
import pickle

import pytest

from svdiff_delta import errors
from svdiff_delta.errors import LONGEST, DeltaError, FormatError, MissingExtraError

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


def test_an_error_says_what_is_wrong_and_what_mends_it() -> None:
    error = DeltaError("the file is cut off", fix="fetch it again")
    assert str(error) == "the file is cut off: fetch it again"
    assert (error.message, error.fix) == ("the file is cut off", "fetch it again")


def test_an_error_without_a_fix_ends_with_its_message() -> None:
    assert str(DeltaError("there is no such file")) == "there is no such file"


@pytest.mark.parametrize("error", ALL)
def test_every_error_is_a_delta_error_and_is_drawn_in_the_tree(error: type[Exception]) -> None:
    assert issubclass(error, DeltaError)
    assert f" {error.__name__} " in f"{errors.__doc__} ".replace("\n", " ")


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    assert str(MissingExtraError("torch", "torch")) == (
        "this needs torch, which is not installed: pip install 'svdiff-delta[torch]'"
    )


def test_a_message_is_one_printable_line_whatever_it_quotes() -> None:
    error = DeltaError("a\nb\x1b[2J\udc80\u202e: is broken", fix="rename c\rd")
    assert error.message == r"a\nb\x1b[2J\udc80\u202e: is broken"
    assert error.fix == r"rename c\rd"


def test_a_message_that_quotes_a_megabyte_keeps_its_ends() -> None:
    message = DeltaError("first " + "x" * 1_000_000 + " last").message
    assert (message[:6], message[-5:], len(message)) == ("first ", " last", LONGEST + 3)


def test_a_missing_extra_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MissingExtraError("torch", "torch")))
    assert (type(error), error.extra, str(error)) == (
        MissingExtraError,
        "torch",
        str(MissingExtraError("torch", "torch")),
    )


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(FormatError("broken", fix="fetch it again")))
    assert (type(error), str(error)) == (FormatError, "broken: fetch it again")
