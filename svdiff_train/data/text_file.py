"""Text files that people wrote, with one thing on each line."""

from __future__ import annotations

from pathlib import Path

from svdiff_delta._util.limits import LINE
from svdiff_delta._util.reading import read_text
from svdiff_delta.errors import InputError


def text_lines(path: Path, largest: int) -> list[str]:
    """Return the lines of a text file that are not empty, without space around them.

    Args:
        path: the file.
        largest: how many bytes it may have.

    Raises:
        InputError: it cannot be read, is not UTF-8, is larger, or a line is too long.
    """
    lines = [line.strip() for line in read_text(path, largest).splitlines() if line.strip()]
    if any(len(line) > LINE for line in lines):
        raise InputError(f"{path}: a line has more than {LINE:,} characters", fix="split it")
    return lines
