"""Reading files that a user or a stranger names: regular files only, up to a size, and refusals in one line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from svdiff_delta.errors import DeltaError, InputError, refusal

KINDS: Final = (
    (stat.S_ISDIR, "Is a directory"),
    (stat.S_ISFIFO, "is a pipe, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
)
"""What is no regular file, and what errors call it."""

COPY: Final = "save its content as a file, and name that"


@contextmanager
def system_errors(what: object, error: type[DeltaError], doing: str = "read") -> Iterator[None]:
    """Turn whatever the system refuses within the block into one line; other errors pass.

    Args:
        what: the path that is named where the system names none.
        error: the class of the line.
        doing: what could not be done, such as "read".
    """
    try:
        yield
    except (OSError, UnicodeEncodeError) as cause:
        raise error(refusal(what, cause, doing)) from None
    except ValueError as cause:
        if "null byte" not in str(cause) and "null character" not in str(cause):
            raise
        raise error(refusal(what, cause, doing)) from None


@contextmanager
def regular_file(path: Path, error: type[DeltaError] = InputError) -> Iterator[BinaryIO]:
    """Open a regular file for reading; what else there is, is refused before it is opened, so that nothing waits.

    Raises:
        DeltaError: as `error`, if it is a folder, a pipe or a device, or cannot be opened; the message names it.
    """
    with system_errors(path, error):
        _check_regular(path, path.stat(), error)
        # Between look and opening a pipe may have taken its place: opening it so does not wait, and it is refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            _check_regular(path, os.fstat(descriptor), error)
            yield stream


def _check_regular(path: Path, about: os.stat_result, error: type[DeltaError]) -> None:
    if stat.S_ISREG(about.st_mode):
        return
    kind = next((words for test, words in KINDS if test(about.st_mode)), "is no file")
    raise error(f"{path}: could not be read ({kind})", fix="" if stat.S_ISDIR(about.st_mode) else COPY)


def read_bytes(path: Path, largest: int, error: type[DeltaError] = InputError) -> bytes:
    """Return what is in a regular file.

    Args:
        path: the file.
        largest: how many bytes it may have; no more than one more is read.
        error: the class of errors.

    Raises:
        DeltaError: as `regular_file`, or it is larger.
    """
    with regular_file(path, error) as stream:
        raw = stream.read(min(largest, os.fstat(stream.fileno()).st_size) + 1)
        raw += stream.read(largest + 1 - len(raw)) if len(raw) <= largest else b""
    if len(raw) > largest:
        raise error(f"{path}: has more than {largest:,} bytes", fix="split it, or name another file")
    return raw


def read_text(path: Path, largest: int, error: type[DeltaError] = InputError) -> str:
    """Return a UTF-8 file's text, without the byte order mark that some editors write.

    Raises:
        DeltaError: as `read_bytes`, or it is not UTF-8.
    """
    return decode(read_bytes(path, largest, error), path, error)


def decode(raw: bytes, what: object, error: type[DeltaError] = InputError) -> str:
    """Return the text of UTF-8 bytes, without a byte order mark; raise `error` that names `what` if they are not."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"{what}: is not UTF-8 (byte {cause.start})", fix="save it as UTF-8") from None
