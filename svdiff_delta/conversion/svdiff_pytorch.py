"""Read shifts of svdiff-pytorch: `<module>.delta`, one number for a whole norm weight (spec, section 7.11)."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from svdiff_delta.errors import InputError
from svdiff_delta.format.parameter import Kind
from svdiff_delta.svd.prepare import Prepared

from .dialect import Changes, Dialect, Job
from .lazy_tensors import OpenedAdapter
from .spectral_files import Format, Shift, read_shifts
from .vector_files import check_no_pickle

FILES: Final = ("spectral_shifts.safetensors", "spectral_shifts_te.safetensors")
"""What svdiff-pytorch calls the files of the UNet and of the text encoder in its output folder."""

_KEY: Final = re.compile(r"(.+?)(?:\.parametrizations\.weight\.0)?\.delta")

CONV2D: Final = 4
"""Dimensions of the largest weights that svdiff-pytorch shifts."""


def weight_key(key: str) -> str | None:
    """Return the key of the weight that `<module>.delta` shifts, also where it stands below a parametrization."""
    match = _KEY.fullmatch(key)
    return f"{match[1]}.weight" if match else None


def make_shift(given: Shift, prepared: Prepared) -> tuple[Shift, float]:
    """Return δ and ‖ΔW‖² of svdiff-pytorch's formula, U diag(ReLU(σ + δ)) Vᵀ.

    A norm weight w is a matrix of one row there, with the one singular value ‖w‖: w′ = w ReLU(‖w‖ + δ)/‖w‖, which is
    w + w Δσ/‖w‖ with Δσ = max(δ, −‖w‖). Norms with a number for each element are those of the paper's author.

    Raises:
        InputError: the norm weight is 0 throughout.
    """
    if prepared.basis is not None:
        applied = np.maximum(given, -prepared.basis.sigma.numpy())
        return given, float(applied @ applied)
    weight = prepared.weight.double().flatten().numpy()
    if given.size == 1:
        return _along(weight, float(given[0]))
    return given, float(given @ given)


def _along(weight: Shift, shift: float) -> tuple[Shift, float]:
    norm = float(np.linalg.norm(weight))
    change = max(shift, -norm)
    if change and not norm:
        raise InputError(
            "the base's norm weight is 0 throughout, so that a number for its singular value has no direction",
            fix="name the base that the file was trained for",
        )
    return (weight * (change / norm) if change else np.zeros_like(weight)), change * change


def _shifts(kind: Kind, axis: int, shape: tuple[int, ...]) -> bool:
    """Tell whether the program shifts a weight: norms, and up to Conv2d what has its output channels first."""
    return kind == "elementwise" or (axis == 0 and len(shape) <= CONV2D)


FORM: Final = Format("svdiff-pytorch", weight_key, make_shift, scalar_norms=True, shifts=_shifts)


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether this is a file with keys that end in `.delta`, or the folder of such files."""
    path = source.path
    if path.is_dir():
        return any((path / name).is_file() for name in FILES)
    header = source.header()
    return header is not None and any(map(weight_key, header.entries))


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the shifts in a file, or in both files of a folder.

    Raises:
        InputError: the folder has none of the files.
        DeltaError: as `read_shifts`.
    """
    path = source.path
    if not path.is_dir():
        return read_shifts(source, [path], FORM, job)
    paths = [path / name for name in FILES if (path / name).is_file()]
    if not paths:
        for file in sorted(path.iterdir()):
            check_no_pickle(file)
        raise InputError(f"{path}: has neither {' nor '.join(FILES)}", fix="name the file itself")
    return read_shifts(source, paths, FORM, job)


svdiff_pytorch: Final = Dialect("shifts of svdiff-pytorch", recognizes, read)
