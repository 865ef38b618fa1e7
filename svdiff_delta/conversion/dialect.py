"""Define a dialect: another form in which changes of a base's weights are kept, with its reader and writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from svdiff_delta._util.atomic import check_output
from svdiff_delta._util.paths import check_apart
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import Dtype, StoredDtype
from svdiff_delta.format.lineage import Source
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.parameter import Kind, Parameter

from .rank_policy import Ranking

if TYPE_CHECKING:
    from svdiff_delta.svd.cache import BasisCache
    from svdiff_delta.svd.calibration import Calibration
    from svdiff_delta.svd.prepare import Prepared, Progress

    from .lazy_tensors import OpenedAdapter
    from .result import Conversion
    from .weight_updates import Update


@dataclass(frozen=True)
class WeightChange:
    """A change of a weight by ΔW, which an input adds to it.

    Attributes:
        values: ΔW in the weight's own shape, of any floating-point dtype, on the CPU.
    """

    values: Tensor


@dataclass(frozen=True)
class ShiftReader:
    """A reader of δ itself, for a weight whose shift the input holds.

    Attributes:
        read: returns δ (size,) of the base's weight, and ‖ΔW‖² by the input's own formula.
    """

    read: Callable[[Prepared], tuple[NDArray[np.float64], float]]


Change = WeightChange | ShiftReader
"""What an input says of one weight."""


@dataclass(frozen=True)
class Job:
    """The arguments that a dialect's reader or writer gets.

    Attributes:
        base: the base; where it is a single file, under the name of the component that it is.
        cache: where bases are kept.
        dtype: number format of what is written.
        output: where to write; None only calculates.
        title: the title of what is written; None keeps that of the input.
        overwrite: whether an existing output may be replaced.
        min_energy: the share of the change below which nothing is written.
        allow_unmatched: whether what cannot be carried over may be left out.
        ranking: how many singular values a low-rank copy keeps.
        embeddings: whether embeddings may be shifted.
        progress: called with how much is done and how much there is in all.
        calibration: how the inputs of layers are measured, if δ is to depend on them.
        component: the component that an adapter's keys mean which name none; None for the denoiser or the only model.
        made_on: the base that an adapter was made on, where its file lacks what its library takes out of that base.
    """

    base: Base
    cache: BasisCache
    dtype: StoredDtype = "F32"
    output: Path | None = None
    title: str | None = None
    overwrite: bool = False
    min_energy: float = 0.0
    allow_unmatched: bool = False
    ranking: Ranking | None = None
    embeddings: bool = False
    progress: Progress | None = None
    calibration: Calibration | None = None
    component: str | None = None
    made_on: Base | None = None

    def check(self, source: str | PathLike[str] | Delta) -> None:
        """Check that the base has the component, and that the output may be written, before any work is done.

        Args:
            source: the input, which the output must not touch.

        Raises:
            InputError: there is no such component, or the output would be written over the input or the base.
            OutputError: the output exists, or its folder does not.
        """
        if self.component is not None and self.component not in self.base.components:
            known = ", ".join(sorted(self.base.components))
            raise InputError(f"the base has no component {self.component!r}", fix=f"name one of {known}")
        if self.output is not None:
            check_output(self.output, overwrite=self.overwrite)
            check_apart(self.output, [*self.base.files, *([] if isinstance(source, Delta) else [Path(source)])])


class Meter:
    """Counts the elements of weights that are done, of `total` in a stage of the work, for a progress display."""

    def __init__(self, job: Job, total: int) -> None:
        self.progress, self.total, self.done = job.progress, total, 0

    def add(self, count: int) -> None:
        """Count some more."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


@dataclass(frozen=True)
class Changes:
    """The changes that an input makes in a base's weights, one ΔW at a time.

    Attributes:
        kinds: kind and axis of each parameter that changes, by sorted name.
        read: returns what the input says of one of them.
        sources: returns SHA-256 and lineage entry of each input file, in order; called once, at the end.
        expected: what the input says about the base's weights, which must fit; empty if it says nothing.
        left_out: what changes and cannot be shifted, with the reason.
        unchanged: weights that are the base's own.
        metadata: what the input says of itself, as far as delta files do.
        remarks: what was assumed in reading it.
        hint: what to add to the list of what is left out, such as what the input looks like.
        dtype: the basis dtype of all parameters, where the input demands one; else a writer's choice (section 6.1).
        updates: what an adapter's reader makes ΔW of, by parameter: some have factors without a decomposition.
    """

    kinds: Mapping[str, tuple[Kind, int]]
    read: Callable[[str], Change]
    sources: Callable[[], list[tuple[str, Source]]]
    expected: Mapping[str, Parameter] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    unchanged: int = 0
    metadata: Metadata = field(default_factory=lambda: Metadata(BaseInfo(), {}))
    remarks: tuple[str, ...] = ()
    hint: str = ""
    dtype: Dtype | None = None
    updates: Mapping[str, Update] = field(default_factory=dict)

    def basis_dtype(self, name: str) -> Dtype | None:
        """Return the basis dtype that the input demands of a parameter; None for a writer's choice."""
        said = self.expected.get(name)
        return self.dtype if said is None else said.dtype


@dataclass(frozen=True)
class Dialect:
    """Another form of changes, and the way from it and to it.

    Attributes:
        about: what it is, in a few words.
        recognizes: tells from the names of a file or folder, and of its tensors, whether it is in this dialect.
        read: returns the changes that an input makes; None if it cannot be read.
        write: writes a delta in this dialect; None if it cannot be written.
        min_energy: the least share of a change that a delta must capture, if nobody says another.
        low_rank: whether it is written as low-rank factors, so that something must say the rank.
    """

    about: str
    recognizes: Callable[[OpenedAdapter], bool]
    read: Callable[[OpenedAdapter, Job], Changes] | None = None
    write: Callable[[Delta, Job], Conversion] | None = None
    min_energy: float = 0.0
    low_rank: bool = False
