"""A safetensors file of vectors, one for each weight, as other programs keep shifts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors
from numpy.typing import NDArray

from svdiff_delta.container import Entry
from svdiff_delta.errors import InputError, TensorError
from svdiff_delta.layout import PICKLE_SUFFIXES

from .difference import file_header

REAL: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes of shifts that can be read."""

UNPICKLE: Final = (
    'convert it once where you trust it: python -c "import sys, torch, safetensors.torch as s; '
    "s.save_file({k: v.detach().contiguous() for k, v in torch.load(sys.argv[1], 'cpu', weights_only=True).items()}, "
    'sys.argv[2])" OLD NEW.safetensors'
)


@dataclass(frozen=True)
class Vectors:
    """An opened file of vectors.

    Attributes:
        path: the file.
        entries: its tensors by key.
    """

    path: Path
    entries: Mapping[str, Entry]

    def read(self, key: str) -> NDArray[np.float64]:
        """Return the numbers of one tensor in one dimension, float64.

        Raises:
            TensorError: it holds NaN or infinity.
        """
        with safetensors.safe_open(self.path, "pt") as file:
            values: NDArray[np.float64] = file.get_tensor(key).double().flatten().numpy()
        if not np.isfinite(values).all():
            raise TensorError(f"{key}: {self.path} holds NaN or infinity", fix="train it again, or leave the file out")
        return values


def open_vectors(path: Path) -> Vectors:
    """Open a file of vectors; only its header is read.

    Raises:
        InputError: it cannot be read, or is a pickle.
        HeaderError: it is broken.
        TensorError: a tensor is not floating-point, or has more than one dimension that counts.
    """
    check_no_pickle(path)
    entries = file_header(path).entries
    for key, entry in entries.items():
        if entry.dtype not in REAL:
            raise TensorError(f"{key}: {path} has it as {entry.dtype}", fix="use the file as it was trained")
    return Vectors(path, entries)


def check_no_pickle(path: Path) -> None:
    """Raise InputError if a file's name says that it is a pickle."""
    if path.suffix in PICKLE_SUFFIXES and path.is_file():
        raise InputError(f"{path}: is a pickle, which is never opened", fix=UNPICKLE)


def length(entry: Entry) -> int | None:
    """Return how many numbers a vector has; None if it is no vector. Dimensions of 1 do not count."""
    sides = [side for side in entry.shape if side != 1]
    return None if len(sides) > 1 else sides[0] if sides else 1
