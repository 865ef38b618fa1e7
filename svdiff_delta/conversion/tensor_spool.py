"""Spool tensors to a file whose header is known only when all of them are there."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import numpy as np
from numpy.typing import NDArray

from svdiff_delta._util.reading import system_errors
from svdiff_delta.errors import OutputError, TensorError
from svdiff_delta.format.container import header_bytes
from svdiff_delta.format.delta import check_range
from svdiff_delta.format.dtypes import Dtype, StoredDtype, encode
from svdiff_delta.format.entry import ITEM_SIZE

PIECE: Final = 1 << 20
"""Bytes that are copied at a time."""


class Spool:
    """Keeps the bytes of tensors in a nameless temporary file, and gives them back in canonical order.

    Args:
        folder: where the temporary file lies; the system's place for such if not given.
        dtype: the number format, if a tensor is not given another.
    """

    def __init__(self, folder: Path | None, dtype: StoredDtype) -> None:
        try:
            self._stream: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `__exit__` closes it
        except OSError as error:
            raise OutputError(f"{folder}: could not be written ({error.strerror})") from None
        self._dtype, self._tensors = dtype, dict[str, tuple[StoredDtype, tuple[int, ...], int, int]]()
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what could not be written was said when it was read back
            self._stream.close()

    def add(self, key: str, values: NDArray[np.float64], shape: tuple[int, ...], *, dtype: Dtype | None = None) -> None:
        """Round a tensor once, and keep it.

        Args:
            key: its name in the file.
            values: its values, in any shape with the same order.
            shape: its shape in the file.
            dtype: its number format.

        Raises:
            TensorError: two tensors have one name, or a value is too large for the format.
            OutputError: the disk refused.
        """
        dtype_, flat = dtype or self._dtype, np.ascontiguousarray(values).ravel()
        if key in self._tensors:
            raise TensorError(f"{key}: two weights have this key", fix="convert them to two files, with `svdiff slice`")
        check_range(key, flat, dtype_, what="", fix='use `dtype="F32"`')
        data = encode(flat, dtype_).data
        try:
            self._stream.write(data)
        except OSError as error:
            raise OutputError(f"{key}: could not be written ({error.strerror})", fix="free some space") from None
        self._tensors[key] = dtype_, shape, self.size, len(data)
        self.size += len(data)

    def _order(self) -> list[str]:
        """Return the keys in canonical order: wide items first, so that every tensor is aligned, then by name."""
        return sorted(self._tensors, key=lambda key: (-ITEM_SIZE[self._tensors[key][0]], key))

    def header(self, strings: Mapping[str, str]) -> bytes:
        """Return the header of the file, with this metadata."""
        tensors = [(key, self._tensors[key][0], self._tensors[key][1]) for key in self._order()]
        return header_bytes(tensors, strings)

    def copy(self, stream: IO[bytes]) -> None:
        """Write all tensors to a file."""
        for piece in self._pieces():
            stream.write(piece)

    def digest(self) -> str:
        """Return SHA-256 of all tensors in the order of the file, as ModelSpec writes it."""
        found = hashlib.sha256()
        for piece in self._pieces():
            found.update(piece)
        return f"0x{found.hexdigest()}"

    def _pieces(self) -> Iterator[bytes]:
        for key in self._order():
            _, _, start, left = self._tensors[key]
            with system_errors("the temporary file", OutputError, "written"):
                self._stream.seek(start)  # writes what was kept back
            while left:
                with system_errors("the temporary file", OutputError):
                    piece = self._stream.read(min(PIECE, left))
                if not piece:
                    raise OutputError("the temporary file has become shorter", fix="free some space")
                left -= len(piece)
                yield piece
