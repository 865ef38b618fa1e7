"""Tell pictures that are black because a number on their way was none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from svdiff_delta._util.warned import warn_once
from svdiff_delta.errors import TensorError


@contextmanager
def noting_invalid() -> Iterator[list[str]]:
    """Note in a list whenever NumPy meets what is no number, in this thread, instead of warning of it.

    Pipelines round pictures to bytes by NumPy, which makes 0 of NaN: a picture of it is black.
    """
    noted: list[str] = []
    with np.errstate(invalid="call", call=lambda kind, _: noted.append(kind)):
        yield noted


def check_black(pictures: Sequence[Any], jobs: Sequence[tuple[str, int]], *, strict: bool) -> None:
    """Refuse black pictures where NumPy has met what is no number while they were made; warn if none is black.

    Args:
        pictures: of PIL, or lists of a clip's frames.
        jobs: their prompts and seeds.
        strict: whether that is an error, or a warning.

    Raises:
        TensorError: one is black all over.
    """
    found = False
    for picture, (prompt, seed) in zip(pictures, jobs, strict=True):
        frames = picture if isinstance(picture, list) else [picture]
        if any(frame.getbbox() is None for frame in frames):
            found = True
            what = f"the picture of {prompt!r}, seed {seed}, is black: a number on its way was too large, or none"
            if strict:
                raise TensorError(what, fix='paint with `dtype="F32"`, lower `guidance`, or lower the weights')
            warn_once(what, "black")
    if not found:
        warn_once("a number on the way to a picture was none: parts of it may be black", "black in parts")
