"""Canonical JSON and canonical containers (spec, sections 3.4 and 5.5), and containers that are broken on purpose."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

JSON = Any

ESCAPES = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


class Tensor(NamedTuple):
    """One tensor of a container: its values are bytes already."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def canonical(value: JSON) -> str:
    """Return the RFC 8785 form of a JSON value."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: str(key).encode("utf-16-be"))
        return "{" + ",".join(f"{_string(key)}:{canonical(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value)  # integers, true, false, null


def _string(text: str) -> str:
    parts = (ESCAPES.get(ord(char), char if char >= " " else f"\\u{ord(char):04x}") for char in text)
    return '"' + "".join(parts) + '"'


def _number(value: float) -> str:
    """Return the form of ECMAScript: Python's digits are the shortest ones too, only their layout differs."""
    if value == 0:
        return "0"
    decimal = Decimal(repr(abs(value))).as_tuple()
    digits = "".join(map(str, decimal.digits)).lstrip("0")
    point = len(digits) + int(decimal.exponent)
    digits = digits.rstrip("0")
    return ("-" if value < 0 else "") + _laid_out(digits, point)


def _laid_out(digits: str, point: int) -> str:
    if len(digits) <= point <= 21:
        return digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{mantissa}e{point - 1:+d}"


def framed(header: bytes, data: bytes, *, length: int | None = None) -> bytes:
    """Return a container of any header, true or not."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entries(tensors: Sequence[Tensor]) -> tuple[dict[str, JSON], bytes]:
    """Return the header's entries of tensors one after the other, and the data section."""
    header: dict[str, JSON] = {}
    data = b""
    for name, dtype, shape, raw in tensors:
        header[name] = {"data_offsets": [len(data), len(data) + len(raw)], "dtype": dtype, "shape": list(shape)}
        data += raw
    return header, data


def container(strings: Mapping[str, str], tensors: Sequence[Tensor]) -> bytes:
    """Return a container with canonical header and the tensors in the order given."""
    header, data = entries(tensors)
    text = canonical({"__metadata__": dict(strings), **header}).encode()
    return framed(text + b" " * (-len(text) % 8), data)
