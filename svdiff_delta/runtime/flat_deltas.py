"""Keep deltas of one base as flat arrays, and sum them with weights in float64 (spec, sections 6.6 and 7.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.errors import AttachError, TensorError
from svdiff_delta.format.delta import Delta, project
from svdiff_delta.format.dtypes import LARGEST
from svdiff_delta.format.parameter import Parameter
from svdiff_delta.ops.combine import combine_parameters, unite
from svdiff_delta.ops.flat_layout import FlatLayout, flat_values
from svdiff_delta.svd.decomposition import Runs
from svdiff_delta.svd.prepare import check_runs


@dataclass(frozen=True, eq=False)
class Flat:
    """One delta laid out flat.

    Attributes:
        delta: the delta.
        values: (D,) float32, 0 where it shifts nothing.
    """

    delta: Delta
    values: NDArray[np.float32]


class Sums(FlatLayout):
    """A table of parameters laid out one after the other, D numbers in all.

    Args:
        parameters: by sorted name.
        runs: the runs of singular values, at a reader's tolerance, of those that have any.
    """

    def __init__(self, parameters: Mapping[str, Parameter], runs: Mapping[str, Runs]) -> None:
        super().__init__(parameters)
        self.runs = runs
        self._fitting: Mapping[str, Parameter] = {}

    def flatten(self, delta: Delta) -> Flat:
        """Lay out a delta.

        Raises:
            AttachError: it shifts a parameter that is not in the table.
            BaseMismatchError: it was made for another base.
            TensorError: a value of it is not valid, or differs where the base's singular values are tied.
        """
        if delta.metadata.parameters is not self._fitting:  # files of one base share theirs
            self._check(delta.metadata.parameters)
            self._fitting = delta.metadata.parameters
        values = flat_values(delta) if len(delta) == len(self.parameters) else None
        if values is None:
            values = np.zeros(self.size, np.float32)
            for name, shift in delta.items():
                values[self.slices[name]] = shift
        for name, runs in self.runs.items():
            check_runs(name, values[self.slices[name]], runs)
        return Flat(delta, values)

    def _check(self, found: Mapping[str, Parameter]) -> None:
        if odd := [name for name in found if name not in self.parameters]:
            more = f", and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise AttachError(
                f"{odd[0]}{more}: is not among the attached layers",
                fix="detach, and attach all deltas together, as in `attach(model, {name: delta, …})`",
            )
        unite({name: self.parameters[name] for name in found}, found)

    def total(self, terms: Sequence[tuple[Flat, float]], out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return Σ wᵢ δᵢ (D,), in the order given, projected on tied and null runs.

        Args:
            terms: deltas with their factors.
            out: where to write it; in new memory if not given.

        Raises:
            TensorError: a sum is too large.
        """
        total = np.empty(self.size) if out is None else out
        with np.errstate(over="ignore", invalid="ignore"):
            if terms:
                np.multiply(terms[0][0].values, terms[0][1], out=total)
            else:
                total.fill(0.0)
            for flat, factor in terms[1:]:
                total += np.multiply(flat.values, factor, dtype=np.float64)
            if len(terms) > 1:  # a single one is projected already
                for name, parameter in combine_parameters([flat.delta for flat, _ in terms]).items():
                    if parameter.tied or parameter.null:
                        total[self.slices[name]] = project(parameter, total[self.slices[name]])
        if not _within(total):
            odd = next(name for name in self.slices if not _within(self.part(total, name)))
            raise TensorError(f"{odd}: δ times its weights is too large for float32", fix="use smaller weights")
        return total

    def part(self, total: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        """Return the part of a sum that belongs to a parameter, (size,)."""
        return total[self.slices[name]]


def _within(values: NDArray[np.float64]) -> bool:
    """Tell whether all values are numbers that float32 has room for."""
    return bool(-LARGEST["F32"] <= values.min(initial=0.0) and values.max(initial=0.0) <= LARGEST["F32"])
