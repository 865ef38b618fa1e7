"""Resolve the route of a conversion: the dialects of both ends, and whether its arguments fit them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final, cast

from svdiff_delta._util.reading import regular_file, system_errors
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.dtypes import DTYPES, StoredDtype, is_dtype
from svdiff_delta.format.foreign import LFS, adapter_in
from svdiff_delta.format.metadata import KEY

from .dialect import Changes, Job
from .key_map import Names
from .lazy_tensors import OpenedAdapter
from .rank_policy import Ranking
from .registry import DELTA, DIALECTS
from .result import Conversion, check_arguments
from .unread_adapters import unread
from .vector_files import check_no_pickle

ASK: Final = f"give `from_`, one of {', '.join(DIALECTS)}"
"""The mend where nothing tells what an input is."""


@dataclass(frozen=True)
class ConversionRoute:
    """A way from a dialect to another one.

    Attributes:
        source: the dialect of the input.
        read: reads it; None if it is a delta.
        opened: the input as the reader takes it; None if it is a `Delta`.
        write: writes the result; None if that is a delta.
        min_energy: the least share of the change that must be captured.
    """

    source: str
    read: Callable[[OpenedAdapter, Job], Changes] | None
    opened: OpenedAdapter | None
    write: Callable[[Delta, Job], Conversion] | None
    min_energy: float


def resolve_route(
    source: str | PathLike[str] | OpenedAdapter | Delta,
    *,
    to: str = DELTA,
    from_: str | None = None,
    dtype: StoredDtype = "F32",
    min_energy: float | None = None,
    ranking: Ranking | None = None,
    base: Base | None = None,
    ask: str = ASK,
    same: bool = False,
) -> ConversionRoute:
    """Return the way from an input to a dialect; no weight is read, neither of the input nor of a base.

    Args:
        source: the input.
        to: the dialect that it is to become.
        from_: its own dialect; None finds it from the input.
        dtype: the number format of the result.
        min_energy: the least share of the change that must be captured; None for that of the input's dialect.
        ranking: how many singular values a low-rank copy keeps.
        base: whose names tell whether an unknown layout is one of its own names behind a prefix.
        ask: what to do where nothing tells the input's dialect.
        same: whether the input's own dialect may be that of the result.

    Raises:
        InputError: a dialect is unknown, or there is no way between the two, or an argument makes no sense on it.
    """
    check_arguments(min_energy or 0.0, dtype)
    for name in (from_, to):
        if name is not None and name != DELTA and name not in DIALECTS:
            raise InputError(f"{name!r}: there is no such dialect", fix=f"known are {_known()}")
    if isinstance(source, Delta) and from_ not in (None, DELTA):
        raise InputError(f"a Delta is not {from_}", fix="leave from_ away")
    opened = None if isinstance(source, Delta) else _opened(source)
    with system_errors(opened.name if opened else source, InputError):
        found = DELTA if opened is None else from_ or _recognized(opened, base, ask)
    if found == to and not same:
        raise InputError(
            f"the input is {found} already", fix=f"choose another of {_known()}; for another base, use `svdiff rebase`"
        )
    given, result = DIALECTS.get(found), DIALECTS.get(to)
    read, write = given.read if given else None, result.write if result else None
    if given and read is None:
        raise InputError(f"{found}: can be written and not read", fix="convert from another dialect")
    if result and write is None:
        raise InputError(f"{to}: can be read and not written", fix="convert to another dialect")
    _check_target(to, dtype, ranking)
    least = given.min_energy if given else 0.0
    return ConversionRoute(found, read, opened, write, least if min_energy is None else min_energy)


def _opened(source: str | PathLike[str] | OpenedAdapter) -> OpenedAdapter:
    return source if isinstance(source, OpenedAdapter) else OpenedAdapter(source)


def _known() -> str:
    return ", ".join([DELTA, *DIALECTS])


def _check_target(to: str, dtype: StoredDtype, ranking: Ranking | None) -> None:
    """Raise InputError if a dialect needs a rank that is not given, or has no place for what is."""
    if to != DELTA and not is_dtype(dtype):
        dtypes = " or ".join(f'`dtype="{name}"`' for name in DTYPES)
        raise InputError(f"{to}: cannot be stored as {dtype}, as deltas can", fix=f"use {dtypes}")
    low_rank = to != DELTA and DIALECTS[to].low_rank
    if low_rank and ranking is None:
        raise InputError(f"{to}: nothing says the rank", fix="give `rank`, such as 32, or `energy`, such as 0.95")
    if ranking is not None and not low_rank:
        copies = ", ".join(name for name, dialect in DIALECTS.items() if dialect.low_rank)
        raise InputError(f"{to}: has no rank", fix=f"leave `rank` and `energy` away, or use one of {copies} as `to`")


def _recognized(opened: OpenedAdapter, base: Base | None, ask: str) -> str:
    path = opened.path
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    header = opened.header()
    if header is not None and KEY in header.metadata:
        return DELTA
    for name, dialect in DIALECTS.items():
        if dialect.recognizes(opened):
            return name
    check_no_pickle(path)
    if path.suffix == ".safetensors" or _is_pointer(path):
        opened.file()  # what is broken says more than that it is not known
    if header is not None and adapter_in(header.entries):
        names = None if base is None else Names(base)
        error = unread(str(path), methods=header.entries, layers=header.entries, names=names)
        raise error or cast("InputError", unread(str(path), methods=header.entries, layers=header.entries))
    raise InputError(f"{path}: does not say what it is", fix=ask)


def _is_pointer(path: Path) -> bool:
    """Tell whether this is the text that Git LFS keeps in the place of a file."""
    if not path.is_file():
        return False
    with regular_file(path) as stream:
        return stream.read(len(LFS)) == LFS
