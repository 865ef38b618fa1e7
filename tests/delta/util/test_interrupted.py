"""An error in the course of an interruption reads as the interruption, at each place that takes any error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from svdiff_delta._util.interrupted import interrupt, interruptions_kept
from svdiff_delta.base_model.skeleton import build_skeleton
from svdiff_train.data.picture_file import opened_picture


@contextmanager
def fails_at_its_end() -> Iterator[None]:
    """As torch's device contexts do when a signal arrives as they end."""
    try:
        yield
    finally:
        raise AssertionError("trying to pop from empty mode stack")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_an_interruption_made_fail_is_the_interruption(kind: type[BaseException]) -> None:
    with pytest.raises(kind) as caught, interruptions_kept(), fails_at_its_end():
        raise kind
    assert isinstance(caught.value.__cause__, AssertionError)


def test_it_is_found_behind_several_errors_and_where_their_context_is_hidden() -> None:
    def translated() -> None:
        try:
            with fails_at_its_end():
                raise KeyboardInterrupt
        except AssertionError as error:
            raise ValueError(str(error)) from None

    with pytest.raises(KeyboardInterrupt), interruptions_kept():
        translated()


def test_other_errors_and_interruptions_pass() -> None:
    with pytest.raises(AssertionError), interruptions_kept(), fails_at_its_end():
        raise ValueError
    with pytest.raises(KeyboardInterrupt) as caught, interruptions_kept():
        raise KeyboardInterrupt
    assert caught.value.__cause__ is None


def test_what_fails_after_an_interruption_that_the_caller_deals_with_is_its_own_error() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="of its own"), interruptions_kept():
            raise ValueError("of its own")  # noqa: B904 - its context is the point


def dropped() -> None:
    """As compiled code does that calls Python and makes an error of its own of what came out."""
    with suppress(KeyboardInterrupt, SystemExit):
        interrupt(SystemExit(143))


def test_one_that_foreign_code_dropped_is_what_counts_too() -> None:
    def load() -> None:
        dropped()
        raise OSError("unable to load weights")

    with pytest.raises(SystemExit) as caught, interruptions_kept():
        load()
    assert caught.value.code == 143
    assert isinstance(caught.value.__cause__, OSError)


def test_one_that_safetensors_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, file)

    def interrupted(*_: Any) -> None:
        interrupt(KeyboardInterrupt())

    monkeypatch.setattr("torch.UntypedStorage.__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt), interruptions_kept():
        load_file(file)


def test_one_that_came_before_is_no_reason_for_what_fails_now() -> None:
    dropped()
    with pytest.raises(OSError, match="of its own"), interruptions_kept():
        raise OSError("of its own")


def test_an_error_of_another_thread_is_its_own() -> None:
    seen: list[BaseException] = []

    def fail() -> None:
        try:
            with interruptions_kept():
                dropped()
                raise OSError("of its own")
        except BaseException as error:  # noqa: BLE001 - what it is, is the question
            seen.append(error)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert isinstance(seen[0], OSError)


def test_a_model_that_is_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        with fails_at_its_end():
            raise KeyboardInterrupt

    monkeypatch.setattr("diffusers.UNet2DConditionModel.from_config", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_skeleton("unet", "diffusers", "UNet2DConditionModel", None, {})


def test_a_picture_that_is_being_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(KeyboardInterrupt), opened_picture(tmp_path / "x.png"), fails_at_its_end():
        raise KeyboardInterrupt
