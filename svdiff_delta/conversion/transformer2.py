"""Read factors on singular values, of Transformer² and SVF: W′ = c U diag(σ z) Vᵀ (spec, section 7.11)."""

from __future__ import annotations

from typing import Final

import torch

from svdiff_delta.errors import InputError
from svdiff_delta.format.parameter import Kind
from svdiff_delta.svd.prepare import Prepared

from .dialect import Changes, Dialect, Job
from .lazy_tensors import OpenedAdapter
from .spectral_files import Format, Shift, read_shifts
from .vector_files import length


def weight_key(key: str) -> str | None:
    """Return the key itself, if it is that of a weight."""
    return key if key.endswith(".weight") else None


def from_factors(factors: Shift, prepared: Prepared) -> tuple[Shift, float]:
    """Return δ = σ(c z − 1) and ‖ΔW‖², where c = Σσ/Σσz keeps the sum of the singular values.

    Raises:
        InputError: Σσz is not positive.
    """
    if prepared.basis is None:
        raise InputError("factors of singular values need a matrix")
    sigma = prepared.basis.sigma.numpy()
    total = float(sigma @ factors)
    if not total > 0:
        raise InputError(
            f"the factors z of a weight of shape {list(prepared.parameter.shape)} have Σσz = {total:g}, which must be "
            "positive to keep the sum of the singular values",
            fix="use the file as it was trained",
        )
    shift = sigma * (float(sigma.sum()) / total * factors - 1.0)
    return shift, float(shift @ shift)


def from_logits(logits: Shift, prepared: Prepared) -> tuple[Shift, float]:
    """Return δ and ‖ΔW‖² where the file holds what Transformer² trains: z is its sigmoid, rounded to bfloat16.

    The largest z that Transformer² allows, a constant, divides out.
    """
    return from_factors(torch.from_numpy(logits).sigmoid().to(torch.bfloat16).double().numpy(), prepared)


def _matrices(kind: Kind, axis: int, shape: tuple[int, ...]) -> bool:  # noqa: ARG001
    return kind == "spectral" and len(shape) == 2


LOGITS: Final = Format("Transformer²", weight_key, from_logits, shifts=_matrices)
FACTORS: Final = Format("SVF", weight_key, from_factors, shifts=_matrices)


def recognizes(source: OpenedAdapter) -> bool:
    """Tell whether a file has a vector for weights of MLPs alone, with a negative number, which no factor z is."""
    header = source.header()
    if header is None or not header.entries:
        return False
    entries = header.entries
    if not all("mlp" in key and weight_key(key) and length(entry.shape) is not None for key, entry in entries.items()):
        return False
    return any(bool((source.file().load(key) < 0).any()) for key in entries)


def read_logits(source: OpenedAdapter, job: Job) -> Changes:
    """Return the shifts in a file of `learnable_params` of Transformer².

    Raises:
        DeltaError: as `read_shifts`.
    """
    return read_shifts(source, [source.path], LOGITS, job)


def read_factors(source: OpenedAdapter, job: Job) -> Changes:
    """Return the shifts in a file of factors z.

    Raises:
        DeltaError: as `read_shifts`.
    """
    return read_shifts(source, [source.path], FACTORS, job)


transformer2: Final = Dialect("learnable_params of Transformer², whose sigmoid is z", recognizes, read_logits)
svf: Final = Dialect("factors z of singular values", lambda source: False, read_factors)  # noqa: ARG005
