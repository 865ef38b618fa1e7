"""Weights are computed side by side and written in the file's order, in memory that is not used again too early."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.files import tree

from svdiff_delta import Delta, bake
from svdiff_delta.baking.workers import Workers
from svdiff_delta.baking.write_queue import WriteQueue
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import TensorError
from svdiff_delta.svd.workspace import Workspace


class Slow(io.BytesIO):
    """A disk that takes its time."""

    def write(self, raw: object) -> int:
        time.sleep(0.005)
        return super().write(raw)  # type: ignore[arg-type]


@contextmanager
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def filled(value: int, pause: float, space: Workspace) -> torch.Tensor:
    time.sleep(pause)
    return space.take("rounded", (8,)).fill_(float(value)).view(torch.uint8)


def test_what_is_done_first_waits_for_what_was_asked_for_first() -> None:
    stream, sizes = Slow(), list[int]()
    with two_threads(), WriteQueue(stream, sizes.append) as queue, Workers(queue) as workers:
        for value in range(8):
            workers.compute(lambda space, value=value: filled(value, 0.01 * (value % 2 == 0), space))
            workers.pass_on(lambda value=value: torch.full((4,), 100 + value, dtype=torch.uint8))
    expected = b"".join(
        torch.full((8,), float(value)).numpy().tobytes() + bytes([100 + value] * 4) for value in range(8)
    )
    assert stream.getvalue() == expected
    assert sizes == [32, 4] * 8


def test_the_first_error_in_the_file_s_order_is_told() -> None:
    def fail(space: Workspace, name: str, pause: float) -> torch.Tensor:
        time.sleep(pause)
        raise TensorError(f"{name}: {type(space).__name__}")

    def ask() -> None:
        with two_threads(), WriteQueue(io.BytesIO(), lambda size: None) as queue, Workers(queue) as workers:
            workers.compute(lambda space: fail(space, "first", 0.02))
            workers.compute(lambda space: fail(space, "second", 0.0))

    with pytest.raises(TensorError, match="first"):
        ask()


def test_what_the_disk_refuses_is_raised() -> None:
    class Full(io.BytesIO):
        def write(self, raw: object) -> int:
            raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space left"),
        WriteQueue(Full(), lambda size: None) as queue,
        Workers(queue) as workers,
    ):
        workers.pass_on(lambda: torch.zeros(4, dtype=torch.uint8))


def test_two_threads_bake_the_bytes_of_one_and_are_given_back(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            bake(minilm, [delta], tmp_path / str(count))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
