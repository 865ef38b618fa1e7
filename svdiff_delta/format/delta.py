"""The delta: a mapping from parameter name to δ, with what the file says about itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import fsum, nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from svdiff_delta._text.printable import counted
from svdiff_delta.errors import TensorError

from .content import Content
from .dtypes import LARGEST, Stored, StoredDtype, encode
from .metadata import Metadata
from .parameter import Parameter


@dataclass(frozen=True)
class Origin:
    """Where a delta was read from.

    Attributes:
        content: all bytes of the file.
        data: where the data section starts in them.
        name: what errors call the file.
        flat: whether the data section is all of δ in F32, in sorted-name order.
    """

    content: Content
    data: int
    name: str = ""
    flat: bool = False


Shift = NDArray[np.float32]
"""δ of one parameter: (size,), in the order of descending σ, or of the weight's own elements."""


class Delta(Mapping[str, Shift]):
    """An immutable mapping from parameter name, sorted, to δ as a read-only float32 array.

    Values are float32 whatever dtype they are stored in: every storable dtype converts exactly. Values that were given
    are rounded to their stored dtype at once, so that what is in memory is what a file will hold. It can be copied, and
    pickled for other processes of one's own; files hold it as `save` writes it, and no pickle is ever opened.

    Args:
        values: δ by parameter name.
        metadata: what to say about it; `metadata.parameters` names exactly the same parameters.
        dtypes: the stored dtype by parameter name; what is not named is F32.

    Raises:
        TensorError: a value has a wrong length, is not finite, differs within a tied run, or is not 0 where σ is null.
    """

    def __init__(
        self, values: Mapping[str, ArrayLike], metadata: Metadata, *, dtypes: Mapping[str, StoredDtype] | None = None
    ) -> None:
        stored = {}
        for name, parameter in _matched(values, metadata).items():
            dtype = (dtypes or {}).get(name, "F32")
            wide = np.asarray(values[name], dtype=np.float64)
            check_shift(name, parameter, wide)
            check_range(name, wide, dtype)
            stored[name] = encode(wide, dtype)
        self._set(stored, metadata, None)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Stored], metadata: Metadata, origin: Origin | None = None) -> Delta:
        """Return a delta of values in their stored form; each is checked when it is read.

        Args:
            stored: the values by parameter name.
            metadata: as in `Delta`.
            origin: the bytes that they were read from, if these hold nothing else; then names were compared already.
        """
        delta = cls.__new__(cls)
        if origin is None:
            _matched(stored, metadata)
        delta._set(stored, metadata, origin)
        return delta

    def _set(self, stored: Mapping[str, Stored], metadata: Metadata, origin: Origin | None) -> None:
        self.stored: Mapping[str, Stored] = stored
        self.metadata = metadata
        self.origin = origin

    def __getitem__(self, name: str) -> Shift:
        stored, parameter = self.stored[name], self.metadata.parameters[name]
        try:
            values = stored.decode()
            if stored.dtype == "I8" and values.shape == (parameter.size,):
                values = project(parameter, values.astype(np.float64)).astype(np.float32)
            check_shift(name, parameter, values)
        except TensorError as error:
            if self.origin is None or not self.origin.name:
                raise
            raise TensorError(f"{self.origin.name}: {error.message}", fix=error.fix) from None
        values.flags.writeable = False
        return values

    def __contains__(self, name: object) -> bool:
        return name in self.metadata.parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self.metadata.parameters)

    def __len__(self) -> int:
        return len(self.metadata.parameters)

    def __eq__(self, other: object) -> bool:
        """Tell whether another delta says the same of itself and stores the same bytes."""
        if not isinstance(other, Delta):
            return NotImplemented
        return self.metadata == other.metadata and all(
            self.stored[name].owned() == other.stored[name].owned() for name in self
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Let other processes and copies have all bytes, whatever becomes of the file."""
        stored = self.stored if self.origin else {name: self.stored[name].owned() for name in self}
        return Delta.from_stored, (stored, self.metadata, self.origin)

    def __repr__(self) -> str:
        title = f"{self.metadata.title!r}, " if self.metadata.title else ""
        return f"Delta({title}{counted(len(self), 'parameter')}, {counted(self.metadata.numbers, 'number')})"

    def with_title(self, title: str | None) -> Delta:
        """Return the same delta under another title, or without one."""
        return Delta.from_stored(self.stored, self.metadata.with_title(title))

    @property
    def dtypes(self) -> dict[str, StoredDtype]:
        """The stored dtype of each parameter."""
        return {name: stored.dtype for name, stored in self.stored.items()}

    def dtype_of(self, name: str) -> StoredDtype:
        """Return the dtype in which this parameter is stored."""
        return self.stored[name].dtype

    def flat(self) -> NDArray[np.float32] | None:
        """Return all of δ as one array in sorted-name order, if the file holds it so: all F32, one after the other.

        The values are not checked.
        """
        if self.origin is None or not self.origin.flat:
            return None
        start = self.origin.data
        return np.frombuffer(self.origin.content.part(start, start + 4 * self.metadata.numbers), "<f4")


def _matched(values: Mapping[str, object], metadata: Metadata) -> Mapping[str, Parameter]:
    if values.keys() != metadata.parameters.keys():
        odd = min(values.keys() ^ metadata.parameters.keys())
        raise TensorError(f"{odd}: values and metadata must name the same parameters")
    return metadata.parameters


def check_shift(name: str, parameter: Parameter, shift: NDArray[np.floating]) -> None:
    """Raise TensorError unless `shift` is a valid δ for `parameter` (spec, sections 4 and 6.4)."""
    if shift.shape != (parameter.size,):
        raise TensorError(f"{name}: δ has shape {list(shift.shape)}, its weight needs [{parameter.size}]")
    if not np.isfinite(shift).all():
        raise TensorError(f"{name}: δ holds NaN or infinity", fix="train or convert it again")
    if run := differing_run(shift, parameter.tied):
        raise TensorError(f"{name}: δ differs within the tied run {run[0]}-{run[1]}, where it must be equal")
    if shifts_null(shift, parameter.null):
        raise TensorError(f"{name}: δ must be 0 on the {parameter.null} null singular values")


def differing_run(shift: NDArray[np.floating], tied: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first tied run (first, last), inclusive, in which δ is not equal; None if it is in all."""
    return next((run for run in tied if (shift[run[0] : run[1] + 1] != shift[run[0]]).any()), None)


def shifts_null(shift: NDArray[np.floating], null: int) -> bool:
    """Tell whether δ is not 0 on some of the `null` smallest singular values."""
    return bool(null and shift[shift.size - null :].any())


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
            run[:] = _exact_sum(run) / run.size
    if parameter.null:
        result[parameter.size - parameter.null :] = 0.0
    return result


def _exact_sum(values: NDArray[np.float64]) -> float:
    """Return the exact sum, rounded once; NaN where it or a value is beyond float64, for `check_range` to refuse."""
    try:
        return fsum(values)
    except (OverflowError, ValueError):
        return nan


def check_range(
    name: str,
    values: NDArray[np.floating],
    dtype: StoredDtype,
    *,
    what: str = "δ ",
    fix: str = "use a wider `dtype`",
) -> None:
    """Raise TensorError if a value is too large for `dtype`, or not finite.

    Args:
        name: what errors call the tensor.
        values: its values.
        dtype: what they are to be stored in.
        what: what they are, with a space behind.
        fix: what mends it.
    """
    largest = np.abs(values).max(initial=0.0)
    if not largest <= LARGEST[dtype]:
        raise TensorError(f"{name}: {what}reaches {largest:g}, {dtype} ends at {LARGEST[dtype]:g}", fix=fix)
