"""Writing beside computing: a thread writes one piece after another while the next ones are made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import IO, Final, NamedTuple, Self

from svdiff_delta._util.parallel import Task, Threads

WAITING: Final = 1 << 26
"""Bytes that may wait to be written, beside the piece that was put last."""


class _Piece(NamedTuple):
    number: int
    size: int
    task: Task[int]


class WriteQueue:
    """Writes bytes to a stream in the order in which they are put, in a thread; a context manager.

    Small pieces between large ones do not wait for these: only when more than `WAITING` bytes wait does `put`.

    Args:
        stream: where to write.
        written: called with the size of each piece when it is written, by the thread that puts them.
    """

    def __init__(self, stream: IO[bytes], written: Callable[[int], None]) -> None:
        self._stream, self._written = stream, written
        self._threads: Threads[int] = Threads(1)
        self._pieces: deque[_Piece] = deque()
        self._waiting = self._put = self._done = 0

    def __enter__(self) -> Self:
        self._threads.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait(self._put)
        finally:
            self._threads.__exit__(kind, error, trace)

    def put(self, raw: memoryview) -> int:
        """Let bytes be written, and return their number; they must stay as they are until `wait` of that returns.

        Raises:
            OSError: an earlier piece could not be written.
        """
        while self._waiting > WAITING:
            self._settle()
        self._put += 1
        self._pieces.append(_Piece(self._put, raw.nbytes, self._threads.submit(partial(self._stream.write, raw))))
        self._waiting += raw.nbytes
        return self._put

    def wait(self, number: int) -> None:
        """Wait until a piece and all before it are written.

        Raises:
            OSError: one could not be written.
        """
        while self._done < number:
            self._settle()

    def _settle(self) -> None:
        """Wait for the piece that was put first."""
        piece = self._pieces.popleft()
        size = piece.task.result()
        self._done, self._waiting = piece.number, self._waiting - piece.size
        self._written(size)
