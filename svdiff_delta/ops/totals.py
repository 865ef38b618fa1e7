"""Weighted sums of δ in float64: over whole deltas one by one, and over one parameter (spec, section 7.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from svdiff_delta.format.delta import Delta, check_range, project
from svdiff_delta.format.dtypes import StoredDtype, encode
from svdiff_delta.format.metadata import Metadata
from svdiff_delta.format.parameter import Parameter

from .combine import unite
from .flat_layout import FlatLayout, flat_values
from .weights import Weight


class Totals:
    """Sums of δ in float64, in the order in which inputs are added, one flat array for all parameters.

    Args:
        parameters: what is summed so far, by sorted name.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._layout, self._flat = FlatLayout({}), np.zeros(0)
        self._lay_out(parameters)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """What is summed so far, by sorted name."""
        return self._layout.parameters

    def _lay_out(self, parameters: Mapping[str, Parameter]) -> None:
        old = {name: self[name] for name in self.parameters}
        self._layout = FlatLayout(parameters)
        self._flat = np.zeros(self._layout.size)
        for name, values in old.items():
            self[name] = values

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self._flat[self._layout.slices[name]]

    def __setitem__(self, name: str, values: NDArray[np.float64]) -> None:
        self._flat[self._layout.slices[name]] = values

    def add(self, delta: Delta, weight: Weight, sample_size: int | None = None) -> None:
        """Add one delta; addresses in its weight count from `sample_size`, or from what it says itself.

        Raises:
            BaseMismatchError: it disagrees with those before about a weight's fingerprint, kind or axis.
            SelectionError: a selector of the weight is unknown or matches nothing in this delta.
            TensorError: a value of the delta is not valid.
        """
        if weight.where:
            self.add_by_name(delta, weight.by_name(delta.metadata, sample_size))
            return
        self._take_in(delta.metadata.parameters)
        values = flat_values(delta) if self.parameters == delta.metadata.parameters else None
        if values is None:
            self.add_by_name(delta, dict.fromkeys(delta, weight.default))
            return
        with np.errstate(over="ignore", invalid="ignore"):  # `result` refuses what overflowed, by name
            self._flat += np.multiply(values, weight.default, dtype=np.float64)

    def add_by_name(self, delta: Delta, factors: Mapping[str, float]) -> None:
        """Add one delta; each of its parameters has its own factor.

        Raises:
            BaseMismatchError, TensorError: as `add`.
        """
        parameters = delta.metadata.parameters
        self._take_in(parameters)
        flat = self.parameters == parameters and factors.keys() == parameters.keys()
        values = flat_values(delta) if flat else None
        with np.errstate(over="ignore", invalid="ignore"):
            if values is not None:  # the same products, hundreds of parameters at a time
                sizes = [item.size for item in parameters.values()]
                own = np.array([factors[name] for name in parameters], np.float64)
                self._flat += values * np.repeat(own, sizes)
                return
            for name, factor in factors.items():
                self._flat[self._layout.slices[name]] += factor * delta[name].astype(np.float64)

    def _take_in(self, parameters: Mapping[str, Parameter]) -> None:
        """Have room for these parameters beside those before."""
        if self.parameters == parameters:
            return
        union = unite(self.parameters, parameters)
        if union.keys() == self.parameters.keys():
            self._layout.parameters = union  # only runs were widened
        else:
            self._lay_out(union)

    def result(self, metadata: Metadata, dtype: StoredDtype) -> Delta:
        """Return the sums, projected on tied and null runs and rounded once.

        Raises:
            TensorError: a sum is too large for `dtype`.
        """
        stored = {}
        for name, parameter in self.parameters.items():
            with np.errstate(over="ignore", invalid="ignore"):
                values = project(parameter, self[name])
            check_range(name, values, dtype)
            stored[name] = encode(values, dtype)
        return Delta.from_stored(stored, metadata)


def weighted_total(
    name: str, parameter: Parameter, deltas: Sequence[Delta], factors: Sequence[float]
) -> NDArray[np.float64]:
    """Return Σ wᵢ δᵢ of one parameter in float64, in the order given, projected on its tied and null runs."""
    total = np.zeros(parameter.size)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflowed is refused where it is rounded
        for delta, factor in zip(deltas, factors, strict=True):
            if name in delta:
                total += factor * delta[name].astype(np.float64)
        return project(parameter, total)
