"""Doing again what a lineage says, from inputs found by their hashes (spec, section 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import DeltaError, InputError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import dumps, loads
from svdiff_delta.format.lineage import Lineage, Record
from svdiff_delta.io import load

from . import arithmetic
from .merge import merge
from .quantize import quantize
from .select import select
from .truncate import truncate
from .weights import Weight

SUFFIX: Final = ".safetensors"
WITH_BASES: Final = frozenset({"convert", "rebase"})
"""Operations that need more than delta files."""

DEEPEST: Final = 100
"""Operations, one on the result of the other, that are repeated at most where all files between are missing."""


@dataclass(frozen=True)
class Replay:
    """The result of replaying a lineage.

    Attributes:
        found: the files that were found by their hashes, by SHA-256.
        made: the SHA-256 of the files that were not found, and were made again from others.
        same: whether the result is the file, byte for byte.
        difference: in words, the first thing that differs; empty if nothing does.
    """

    found: Mapping[str, Path]
    made: tuple[str, ...]
    same: bool
    difference: str


def replay(path: Path, folder: Path) -> Replay:
    """Repeat the operation that made a file, from inputs in a folder, and compare the bytes.

    Inputs are looked for by their SHA-256, under whatever names. One that is not there is made again by its own entry
    in the lineage, if there is one.

    Args:
        path: a delta file with a lineage.
        folder: where its inputs are; files in folders below it count too.

    Raises:
        InputError: the file has no lineage, the folder cannot be read, an input is missing, or an operation is not one
            of this program or not recorded as this program does.
        FormatError: a file is not a valid delta file.
    """
    original = load(path)
    lineage = original.metadata.lineage
    if lineage is None:
        raise InputError(f"{path}: has no lineage: there is nothing to replay", fix="name a file that was calculated")
    work = _Work(lineage, _hashes(folder))
    raw = dumps(work.run(lineage.record, original.metadata.title))
    wanted = path.read_bytes()
    difference = "" if raw == wanted else _difference(original, loads(raw))
    return Replay(work.found, tuple(work.made), raw == wanted, difference)


def _hashes(folder: Path) -> dict[str, Path]:
    """Return the files of a folder that may be deltas, by SHA-256; of equal files the first by name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        if path.is_file():
            with path.open("rb") as stream:
                found.setdefault(hashlib.file_digest(stream, "sha256").hexdigest(), path)
    return found


class _Work:
    """The inputs of one lineage: found, or made again, each once."""

    def __init__(self, lineage: Lineage, files: Mapping[str, Path]) -> None:
        self._lineage, self._files = lineage, files
        self._deltas: dict[str, Delta] = {}
        self._above: list[str] = []
        self.found: dict[str, Path] = {}
        self.made: list[str] = []

    def run(self, record: Record, title: str | None) -> Delta:
        """Return the result of an operation, under the title that it had."""
        _check_repeatable(record.operation)  # before its inputs, which need not be deltas
        inputs = [self._input(sha256, record.operation) for sha256 in record.inputs]
        return perform(record, inputs).with_title(title)

    def _input(self, sha256: str, operation: str) -> Delta:
        if sha256 not in self._deltas:
            self._deltas[sha256] = self._find(sha256, operation)
        return self._deltas[sha256]

    def _find(self, sha256: str, operation: str) -> Delta:
        if path := self._files.get(sha256):
            self.found[sha256] = path
            return load(path)
        source = self._lineage.files.get(sha256)
        called = f"{sha256} ({source.title!r})" if source and source.title else sha256
        if sha256 in self._above or len(self._above) >= DEEPEST:
            raise InputError(
                f"{operation}: its input {called} goes back to itself, or too far: the lineage is not true"
            )
        if source is None or source.record is None:
            raise InputError(f"{operation}: its input {called} is not there", fix="put that file into the folder")
        self._above.append(sha256)
        raw = dumps(self.run(source.record, source.title))
        self._above.pop()
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise InputError(
                f"{operation}: its input {called} was made again from its own inputs, and came out different",
                fix="put that file into the folder",
            )
        self.made.append(sha256)
        return loads(raw)


def perform(record: Record, inputs: Sequence[Delta]) -> Delta:
    """Do a recorded operation.

    Raises:
        InputError: the operation is unknown, or its arguments are not as this program records them.
        DeltaError: as the operation.
    """
    _check_repeatable(record.operation)
    arguments = dict(record.arguments)
    try:
        if "weights" in arguments:
            arguments["weights"] = [_weight(value) for value in arguments["weights"]]
        return _OPERATIONS[record.operation](inputs, arguments)
    except DeltaError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{record.operation}: its recorded arguments cannot be used ({error})") from None


def recorded_weights(record: Record) -> list[Weight] | None:
    """Return the weights of a recorded operation that is a weighted sum of its inputs; None if it is another one.

    Raises:
        InputError: its arguments are not as this program records them.
    """
    arguments = record.arguments
    try:
        if record.operation == "add" or (record.operation == "merge" and arguments.get("method") == "linear"):
            return [_weight(value) for value in arguments["weights"]]
        if record.operation == "scale":
            return [Weight(_number(arguments["factor"]))]
        if record.operation == "interpolate":
            alpha = _number(arguments["alpha"])
            return [Weight(alpha), Weight(1.0 - alpha)]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{record.operation}: its recorded arguments cannot be used ({error})") from None
    return None


def _check_repeatable(operation: str) -> None:
    if operation in WITH_BASES:
        raise InputError(
            f"{operation}: cannot be repeated from files alone, it takes the weights of a base",
            fix=f"run `svdiff {operation}` again and compare with `svdiff diff`",
        )
    if operation not in _OPERATIONS:
        raise InputError(
            f"{operation!r}: is not an operation that can be repeated", fix=f"known are {', '.join(_OPERATIONS)}"
        )


def _weight(value: JSON) -> Weight:
    if not isinstance(value, dict):
        return Weight(_number(value))
    return Weight(_number(value["default"]), {str(selector): _number(factor) for selector, factor in value["where"]})


def _number(value: JSON) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _one(inputs: Sequence[Delta]) -> Delta:
    if len(inputs) != 1:
        raise ValueError(f"it takes one input, {len(inputs)} are recorded")
    return inputs[0]


def _slice(inputs: Sequence[Delta], arguments: dict[str, Any]) -> Delta:
    return select(_one(inputs), *arguments.pop("selectors"), **arguments)


def _interpolate(inputs: Sequence[Delta], arguments: dict[str, Any]) -> Delta:
    first, second = inputs
    return arithmetic.interpolate(first, second, **arguments)


_OPERATIONS: Final[Mapping[str, Callable[[Sequence[Delta], dict[str, Any]], Delta]]] = {
    "add": lambda inputs, arguments: arithmetic.add(*inputs, **arguments),
    "interpolate": _interpolate,
    "scale": lambda inputs, arguments: arithmetic.scale(_one(inputs), **arguments),
    "slice": _slice,
    "truncate": lambda inputs, arguments: truncate(_one(inputs), **arguments),
    "quantize": lambda inputs, arguments: quantize(_one(inputs), **arguments),
    "merge": lambda inputs, arguments: merge(inputs, **arguments),
}


def _difference(wanted: Delta, made: Delta) -> str:
    """Return in words where two deltas first differ."""
    if odd := sorted(wanted.keys() ^ made.keys()):
        return f"{odd[0]}: is in only one of them"
    for name in wanted:
        if wanted.dtype_of(name) != made.dtype_of(name):
            return f"{name}: is {wanted.dtype_of(name)} in the file, {made.dtype_of(name)} made again"
        if (wanted[name] != made[name]).any():
            return f"{name}: its values differ"
    return "the values are equal; what the file says about itself, or how it is laid out, differs"
