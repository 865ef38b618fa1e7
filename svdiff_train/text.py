"""Text files that people wrote."""

from __future__ import annotations

from pathlib import Path

from svdiff_delta.errors import InputError


def read_text(path: Path) -> str:
    """Return a text file's content, without the byte order mark that some editors write.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start})", fix="save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})") from None
