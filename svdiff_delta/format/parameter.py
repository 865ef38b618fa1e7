"""One shifted weight as a file describes it, and the columns that describe all of them (spec, section 5.3)."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from svdiff_delta._util.json import JSON, as_object, take
from svdiff_delta.errors import MetadataError

from .dtypes import DTYPES, Dtype

Kind = Literal["spectral", "elementwise"]

_SHAPE = re.compile(r"[1-9][0-9]{0,11}(x[1-9][0-9]{0,11}){0,7}")
_RUN = re.compile(r"(0|[1-9][0-9]{0,11})-([1-9][0-9]{0,11})")


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a file says about one shifted weight.

    Attributes:
        shape: the weight's shape in the base.
        kind: "spectral" (δ on singular values) or "elementwise" (δ on the weight's own elements, in their order).
        axis: the axis of output channels, which becomes the rows of the matrix.
        dtype: the basis dtype, to which the weight is rounded before its basis is computed.
        fingerprint: 22 characters, base64url of the 128-bit digest of the rounded weight.
        tied: runs (first, last), both inclusive, of singular values too close to tell apart.
        null: how many of the smallest singular values are numerically zero.
    """

    shape: tuple[int, ...]
    kind: Kind
    axis: int
    dtype: Dtype
    fingerprint: str
    tied: tuple[tuple[int, int], ...] = ()
    null: int = 0

    @property
    def size(self) -> int:
        """Length of δ: K, the shorter side of the matrix, or the number of the weight's own elements."""
        if self.kind == "elementwise":
            return prod(self.shape)
        rows = self.shape[self.axis]
        return min(rows, prod(self.shape) // rows)


class Table(dict[str, Parameter]):
    """Parameters by name, in sorted order. Files of one base share one, so it is not to be changed."""

    @cached_property
    def numbers(self) -> int:
        """The length of all δ together."""
        return sum(parameter.size for parameter in self.values())


def _default_kind(shape: tuple[int, ...]) -> Kind:
    return "elementwise" if len(shape) == 1 else "spectral"


def free_index(parameter: Parameter) -> NDArray[np.int64] | None:
    """Return for each entry of δ which free number it shows, −1 where it is null; None if every entry is free.

    One number is free for each tied run, none for null singular values (spec, section 6.4).
    """
    if not parameter.tied and not parameter.null:
        return None
    starts = np.ones(parameter.size, dtype=np.int64)
    for first, last in parameter.tied:
        starts[first + 1 : last + 1] = 0
    index = starts.cumsum() - 1
    if parameter.null:
        index[parameter.size - parameter.null :] = -1
    return index


def dump_columns(parameters: Mapping[str, Parameter]) -> dict[str, JSON]:
    """Return the columns in sorted-name order; what differs from the default stands beside them by name."""
    counts = Counter(parameter.dtype for parameter in parameters.values())
    dtype = max(DTYPES, key=lambda name: (counts[name], -DTYPES.index(name)))
    exceptions = {}
    for name, parameter in parameters.items():
        defaults: dict[str, JSON] = {"axis": 0, "dtype": dtype, "kind": _default_kind(parameter.shape)}
        actual = {"axis": parameter.axis, "dtype": parameter.dtype, "kind": parameter.kind}
        if different := {key: actual[key] for key in actual if actual[key] != defaults[key]}:
            exceptions[name] = different
    columns: dict[str, JSON] = {
        "dtype": dtype,
        "fingerprints": " ".join(parameter.fingerprint for parameter in parameters.values()),
        "shapes": " ".join("x".join(map(str, parameter.shape)) for parameter in parameters.values()),
        "exceptions": exceptions,
        "null": {name: parameter.null for name, parameter in parameters.items() if parameter.null},
        "tied": {
            name: " ".join(f"{first}-{last}" for first, last in parameter.tied)
            for name, parameter in parameters.items()
            if parameter.tied
        },
    }
    return {key: value for key, value in columns.items() if value != {}}


def parse_columns(fields: dict[str, JSON], names: Sequence[str]) -> Table:
    """Check and read the columns for tensors of these names, which must be sorted. The result is in their order.

    Raises:
        MetadataError: a column breaks a rule of section 5.3; the message names it.
    """
    if not names:
        raise MetadataError("parameters: the file shifts nothing, it has no tensor")
    rest = json.dumps(fields, sort_keys=True)
    return _parse_columns(tuple(names), rest)


@lru_cache(maxsize=8)
def _parse_columns(names: tuple[str, ...], text: str) -> Table:
    """Parse the columns; kept, since files of one base have the same ones."""
    fields = json.loads(text)
    dtype = take(fields, "dtype", "parameters.")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise MetadataError(f"parameters.dtype: must be one of {', '.join(DTYPES)}, is {dtype!r}")
    shapes = _column(fields, "shapes", len(names))
    fingerprints = _column(fields, "fingerprints", len(names))
    exceptions = _by_name(fields, "exceptions", names)
    nulls = _by_name(fields, "null", names)
    ties = _by_name(fields, "tied", names)
    if fields:
        raise MetadataError(f"parameters.{min(fields)}: unknown column")
    result = {}
    for name, shape, fingerprint in zip(names, shapes, fingerprints, strict=True):
        parameter = _parse_parameter(name, dtype, shape, fingerprint, exceptions.get(name, {}))
        runs = _parse_runs(name, ties[name]) if name in ties else ()
        null = nulls.get(name, 0)
        _check_runs(name, parameter, runs, null, given=name in nulls)
        result[name] = replace(parameter, tied=runs, null=null) if runs or null else parameter
    return Table(result)


def _parse_parameter(name: str, dtype: JSON, shape_text: str, fingerprint: str, exception: JSON) -> Parameter:
    if not _SHAPE.fullmatch(shape_text):
        raise MetadataError(f"{name}: parameters.shapes has {shape_text!r} for it, which is not a shape")
    shape = tuple(map(int, shape_text.split("x")))
    if not _is_fingerprint(fingerprint):
        raise MetadataError(f"{name}: parameters.fingerprints has {fingerprint!r} for it, which is not a fingerprint")
    if not isinstance(exception, dict) or exception.keys() - {"axis", "dtype", "kind"}:
        raise MetadataError(f"{name}: parameters.exceptions may give axis, dtype and kind")
    fields = {"axis": 0, "dtype": dtype, "kind": _default_kind(shape), **exception}
    if fields["dtype"] not in DTYPES:
        raise MetadataError(f"{name}: unknown basis dtype {fields['dtype']!r} in parameters")
    if fields["kind"] not in get_args(Kind) or (fields["kind"] == "spectral" and len(shape) == 1):
        raise MetadataError(f"{name}: kind {fields['kind']!r} does not fit its shape {shape_text} in parameters")
    if type(fields["axis"]) is not int or not 0 <= fields["axis"] < len(shape):
        raise MetadataError(f"{name}: axis {fields['axis']!r} does not fit its shape {shape_text} in parameters")
    return Parameter(shape, fields["kind"], fields["axis"], cast("Dtype", fields["dtype"]), fingerprint)


def _is_fingerprint(text: str) -> bool:
    try:
        raw = base64.b64decode(text + "==", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == 16 and base64.urlsafe_b64encode(raw) == f"{text}==".encode()


def _parse_runs(name: str, text: JSON) -> tuple[tuple[int, int], ...]:
    matches = [_RUN.fullmatch(run) for run in text.split(" ")] if isinstance(text, str) else [None]
    runs = tuple((int(match[1]), int(match[2])) for match in matches if match)
    if len(runs) != len(matches):
        raise MetadataError(f"{name}: parameters.tied must be runs such as '0-3 7-9', is {text!r}")
    return runs


def _check_runs(name: str, parameter: Parameter, runs: Sequence[tuple[int, int]], null: JSON, *, given: bool) -> None:
    if type(null) is not int or not int(given) <= null <= parameter.size:
        raise MetadataError(f"{name}: parameters.null must be from 1 to {parameter.size}, is {null!r}")
    if (runs or null) and parameter.kind == "elementwise":
        raise MetadataError(f"{name}: parameters.tied and parameters.null are for spectral parameters")
    previous = -1
    for first, last in runs:
        if not previous < first < last < parameter.size - null:
            raise MetadataError(f"{name}: the run {first}-{last} in parameters.tied is out of order or range")
        previous = last


def _column(fields: dict[str, JSON], key: str, count: int) -> list[str]:
    text = take(fields, key, "parameters.")
    values = text.split(" ") if isinstance(text, str) and text else []
    if not isinstance(text, str) or len(values) != count:
        raise MetadataError(f"parameters.{key}: must have one entry per tensor ({count}), has {len(values)}")
    return values


def _by_name(fields: dict[str, JSON], key: str, names: Sequence[str]) -> dict[str, JSON]:
    values = as_object(fields.pop(key, {}), f"parameters.{key}")
    if unknown := sorted(set(values) - set(names)):
        raise MetadataError(f"parameters.{key}: names {unknown[0]!r}, and there is no such tensor")
    return values
