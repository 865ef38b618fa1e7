"""Read full weights: a tuned checkpoint beside its base, or a file of ΔW (spec, sections 7.8 and 7.9)."""

from __future__ import annotations

from typing import Final

from svdiff_delta.errors import InputError
from svdiff_delta.format.metadata import KEY

from .checkpoint_diff import read_tuned
from .dialect import Changes, Dialect, Job
from .full_difference import is_difference, read_difference, write_difference
from .lazy_tensors import OpenedAdapter


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether this is a file of ΔW or a model's folder; a bare weight file could be anything."""
    path = source.path
    return is_difference(source) or (path / "model_index.json").is_file() or (path / "config.json").is_file()


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the changes that a file of ΔW, or a tuned checkpoint, makes in the base.

    Raises:
        InputError: it is a delta file.
        DeltaError: as `read_difference` and `read_tuned`.
    """
    if is_difference(source):
        return read_difference(source)
    header = source.header()
    if header is not None and KEY in header.metadata:
        raise InputError(f"{source.path}: is a delta, not full weights", fix="leave `from_` away")
    return read_tuned(source.name, job)


full: Final = Dialect("full weights: a tuned checkpoint, or a file of ΔW", recognizes, read, write_difference)
