"""Read shifts of the paper's author: `eigenvalues_delta` of a parametrized weight (spec, section 7.11)."""

from __future__ import annotations

import re
from typing import Final

from svdiff_delta.svd.prepare import Prepared

from .dialect import Changes, Dialect, Job
from .lazy_tensors import OpenedAdapter
from .spectral_files import Format, Shift, read_shifts, weight_keys
from .svdiff_pytorch import make_shift as spectral_shift

_KEY: Final = re.compile(r"(.+?)(?:\.parametrizations\.weight\.0)?\.eigenvalues_delta")


def weight_key(key: str) -> str | None:
    """Return the key of the weight that `<module>.parametrizations.weight.0.eigenvalues_delta` shifts."""
    match = _KEY.fullmatch(key)
    return f"{match[1]}.weight" if match else None


def make_shift(given: Shift, prepared: Prepared) -> tuple[Shift, float]:
    """Return δ and ‖ΔW‖² of W + U (ReLU(σ + δ) − σ) Vᵀ, and of w + δ for norm weights, also those of one element.

    This is this project's own formula (section 6.6). A transposed convolution has its output channels first here too.
    """
    if prepared.basis is None:
        return given, float(given @ given)
    return spectral_shift(given, prepared)


FORM: Final = Format("the paper's author", weight_key, make_shift)


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file has `eigenvalues_delta` in it."""
    header = source.header()
    return header is not None and bool(weight_keys(header.entries, FORM))


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the shifts in a file.

    Raises:
        DeltaError: as `read_shifts`.
    """
    return read_shifts(source, [source.path], FORM, job)


svdiff_author: Final = Dialect("shifts of the paper's author", recognizes, read)
