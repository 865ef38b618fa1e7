"""Read safetensors files of vectors, one for each weight, as other programs keep shifts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.base_model.layout import PICKLE_SUFFIXES
from svdiff_delta.errors import InputError, TensorError
from svdiff_delta.format.dtypes import FLOATING

from .lazy_tensors import OpenedAdapter, Ref, Shape, TensorFile

UNPICKLE: Final = (
    'convert it once where you trust it: python -c "import sys, torch, safetensors.torch as s; '
    "s.save_file({k: v.detach().contiguous() for k, v in torch.load(sys.argv[1], 'cpu', weights_only=True).items()}, "
    'sys.argv[2])" OLD NEW.safetensors'
)


def open_vectors(source: OpenedAdapter, path: Path) -> TensorFile:
    """Open a file of vectors of an input; only its header is read.

    Raises:
        InputError: it cannot be read, or is a pickle.
        HeaderError: it is broken.
        TensorError: a tensor is not floating-point.
    """
    check_no_pickle(path)
    file = source.file(path)
    for key, entry in file.header.entries.items():
        if entry.dtype not in FLOATING:
            raise TensorError(f"{key}: {path} has it as {entry.dtype}", fix="use the file as it was trained")
    return file


def read_vector(ref: Ref) -> NDArray[np.float64]:
    """Return the numbers of one tensor in one dimension, float64.

    Raises:
        TensorError: it holds NaN or infinity.
    """
    values: NDArray[np.float64] = ref.read().flatten().numpy()
    return values


def check_no_pickle(path: Path) -> None:
    """Raise InputError if a file's name says that it is a pickle."""
    if path.suffix in PICKLE_SUFFIXES and path.is_file():
        raise InputError(f"{path}: is a pickle, which is never opened", fix=UNPICKLE)


def length(shape: Shape) -> int | None:
    """Return how many numbers a vector has; None if it is no vector. Dimensions of 1 do not count."""
    sides = [side for side in shape if side != 1]
    return None if len(sides) > 1 else sides[0] if sides else 1
