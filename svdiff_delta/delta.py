"""The delta: a mapping from parameter name to δ, with what the file says about itself."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .codec import LARGEST, Dtype
from .errors import TensorError
from .metadata import Metadata
from .parameter import Parameter


@dataclass(frozen=True)
class Origin:
    """Where a delta was read from: its bytes, where the data section starts in them, and what errors call the file."""

    buffer: bytes | mmap.mmap
    data: int
    name: str = ""


Shift = NDArray[np.float32]
"""δ of one parameter: (size,), in the order of descending σ, or of the weight's own elements."""


class Delta(Mapping[str, Shift]):
    """An immutable mapping from parameter name, sorted, to δ as a read-only float32 array.

    Values are float32 whatever dtype the file stores: every storable dtype converts exactly.

    Args:
        values: δ by parameter name; values read lazily are checked at each access, all others at once.
        metadata: what to say about it; `metadata.parameters` names exactly the same parameters.
        dtypes: stored dtype by parameter name; what is not named is F32.
        origin: the bytes it was read from, if any; `values` then reads them lazily.

    Raises:
        TensorError: a value has a wrong length, is not finite, differs within a tied run, or is not 0 where σ is null.
    """

    def __init__(
        self,
        values: Mapping[str, ArrayLike],
        metadata: Metadata,
        *,
        dtypes: Mapping[str, Dtype] | None = None,
        origin: Origin | None = None,
    ) -> None:
        if values.keys() != metadata.parameters.keys():
            odd = min(values.keys() ^ metadata.parameters.keys())
            raise TensorError(f"{odd}: values and metadata must name the same parameters")
        self.metadata: Final = metadata
        self.dtypes: Final[Mapping[str, Dtype]] = dict(dtypes or {})
        self._values: Mapping[str, ArrayLike] = values
        self.origin: Final = origin
        if origin is None:
            with np.errstate(over="ignore"):  # what float32 cannot hold is refused by name
                self._values = {name: self._checked(name, values[name]) for name in metadata.parameters}

    def __getitem__(self, name: str) -> Shift:
        value = self._values[name]
        if isinstance(value, np.ndarray) and not value.flags.writeable and value.dtype == np.float32:
            return value
        try:
            return self._checked(name, value)
        except TensorError as error:
            if self.origin is None or not self.origin.name:
                raise
            raise TensorError(f"{self.origin.name}: {error.message}", fix=error.fix) from None

    def __contains__(self, name: object) -> bool:
        return name in self.metadata.parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self.metadata.parameters)

    def __len__(self) -> int:
        return len(self.metadata.parameters)

    def __repr__(self) -> str:
        numbers = sum(parameter.size for parameter in self.metadata.parameters.values())
        title = f"{self.metadata.title!r}, " if self.metadata.title else ""
        return f"Delta({title}{len(self)} parameters, {numbers} numbers)"

    def with_title(self, title: str | None) -> Delta:
        """Return the same delta under another title, or without one."""
        return Delta(dict(self), self.metadata.with_title(title), dtypes=self.dtypes)

    def dtype_of(self, name: str) -> Dtype:
        """Return the dtype in which this parameter is stored."""
        return self.dtypes.get(name, "F32")

    def _checked(self, name: str, value: ArrayLike) -> Shift:
        array = np.array(value, dtype=np.float32)
        check_shift(name, self.metadata.parameters[name], array)
        array.flags.writeable = False
        return array


def check_shift(name: str, parameter: Parameter, shift: Shift) -> None:
    """Raise TensorError unless `shift` is a valid δ for `parameter` (spec, sections 4 and 6.4)."""
    if shift.shape != (parameter.size,):
        raise TensorError(f"{name}: δ has shape {list(shift.shape)}, its weight needs [{parameter.size}]")
    if not np.isfinite(shift).all():
        raise TensorError(f"{name}: δ holds NaN or infinity", fix="train or convert it again")
    for first, last in parameter.tied:
        if (shift[first : last + 1] != shift[first]).any():
            raise TensorError(f"{name}: δ differs within the tied run {first}-{last}, where it must be equal")
    if parameter.null and shift[parameter.size - parameter.null :].any():
        raise TensorError(f"{name}: δ must be 0 on the {parameter.null} null singular values")


def project(parameter: Parameter, shift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return δ with each tied run replaced by its mean and null shifts by 0 (spec, section 6.4), in float64.

    Equal values stay as they are; the mean of others is their exact sum, rounded once, divided by their count.
    """
    if not parameter.tied and not parameter.null:
        return shift
    result = shift.copy()
    for first, last in parameter.tied:
        run = result[first : last + 1]
        if (run != run[0]).any():
            run[:] = fsum(run) / run.size
    if parameter.null:
        result[parameter.size - parameter.null :] = 0.0
    return result


def check_range(name: str, shift: NDArray[np.float64], dtype: Dtype) -> None:
    """Raise TensorError if a value is too large for `dtype`, or not finite."""
    largest = np.abs(shift).max(initial=0.0)
    if not largest <= LARGEST[dtype]:
        raise TensorError(
            f"{name}: δ reaches {largest:g}, {dtype} ends at {LARGEST[dtype]:g}", fix="use a wider --dtype"
        )
