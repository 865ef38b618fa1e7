"""A delta as a document and tensors, and its canonical file (spec, sections 3.4, 4 and 5)."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod

from .container import JSON, Tensor, canonical, container
from .numbers import ITEM_SIZE, Stored, Values, decode, nearest, project

SCALES = "svdiff.scales"
Shape = tuple[int, ...]
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Param:
    """What a file says of one parameter."""

    shape: Shape
    kind: str = ""
    axis: int = 0
    dtype: str = "F16"
    fingerprint: str = ""
    tied: Runs = ()
    null: int = 0

    @property
    def spectral(self) -> bool:
        """Whether δ shifts singular values."""
        return (self.kind or default_kind(self.shape)) == "spectral"

    @property
    def size(self) -> int:
        """The length of δ."""
        rows = self.shape[self.axis]
        return min(rows, prod(self.shape) // rows) if self.spectral else prod(self.shape)


@dataclass(frozen=True)
class Delta:
    """A delta file: `base`, `document` and `strings` are what stands there beside what the other members say.

    `raw` is the file that it was read from, where that is not the canonical one.
    """

    params: Mapping[str, Param]
    stored: Mapping[str, Stored]
    base: Mapping[str, JSON]
    document: Mapping[str, JSON] = field(default_factory=dict)
    strings: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""

    def values(self, name: str) -> Values:
        """Return δ as a reader has it."""
        stored, param = self.stored[name], self.params[name]
        values = decode(stored)
        if stored.dtype != "I8":
            return values
        return [nearest(value, "F32") for value in project(values, param.tied, param.null)]


def default_kind(shape: Shape) -> str:
    """Return the kind of a parameter of which nothing is said."""
    return "elementwise" if len(shape) == 1 else "spectral"


def made_up(name: str, other: str = "") -> str:
    """Return a fingerprint of no weight."""
    return short(hashlib.sha256(f"vector {other}{name}".encode()).digest())


def short(digest: bytes) -> str:
    """Return the base64url form of the first 128 bits."""
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def fingerprint(shape: Shape, axis: int, values: Values) -> str:
    """Return the fingerprint of a rounded weight (spec, section 6.2)."""
    name = next(name for name in ("F16", "BF16", "F32") if all(_holds(name, value) for value in values))
    floats = [float(value) for value in values]  # no Fraction is −0
    if name == "F16":
        raw = struct.pack(f"<{len(floats)}e", *floats)
    else:
        raw = b"".join(struct.pack("<f", value)[2 if name == "BF16" else 0 :] for value in floats)
    text = f"svdiff 1 {name} {'x'.join(map(str, shape))} {axis}\n"
    return short(hashlib.sha256(text.encode() + raw).digest())


def _holds(name: str, value: Fraction) -> bool:
    return nearest(value, name) == value and (name != "F16" or abs(value) <= 65504)


def columns(params: Mapping[str, Param]) -> dict[str, JSON]:
    """Return the canonical columns of section 5.3."""
    ordered = {name: params[name] for name in sorted(params)}
    counts = Counter(param.dtype for param in ordered.values())
    dtype = max(("F32", "F16", "BF16"), key=lambda name: counts[name])  # of equal ones the first
    exceptions: dict[str, JSON] = {}
    for name, param in ordered.items():
        default = default_kind(param.shape)
        given = {"axis": param.axis, "dtype": param.dtype, "kind": param.kind or default}
        usual = {"axis": 0, "dtype": dtype, "kind": default}
        if given != usual:
            exceptions[name] = {key: value for key, value in given.items() if value != usual[key]}
    result: dict[str, JSON] = {
        "dtype": dtype,
        "fingerprints": " ".join(param.fingerprint or made_up(name) for name, param in ordered.items()),
        "shapes": " ".join("x".join(map(str, param.shape)) for param in ordered.values()),
    }
    optional: dict[str, JSON] = {
        "exceptions": exceptions,
        "tied": {n: " ".join(f"{first}-{last}" for first, last in p.tied) for n, p in ordered.items() if p.tied},
        "null": {name: param.null for name, param in ordered.items() if param.null},
    }
    return result | {key: value for key, value in optional.items() if value}


def document(delta: Delta) -> dict[str, JSON]:
    """Return the document of section 5.2."""
    fixed = {"format": "svdiff-delta", "version": 1, "base": dict(delta.base), "parameters": columns(delta.params)}
    return {**delta.document, **fixed}


def tensors(delta: Delta) -> list[Tensor]:
    """Return the tensors in canonical order."""
    names = sorted(delta.params)
    result = [Tensor(n, delta.stored[n].dtype, (delta.params[n].size,), delta.stored[n].data) for n in names]
    if scales := b"".join(delta.stored[name].scales for name in names):
        result.append(Tensor(SCALES, "F16", (len(scales) // 2,), scales))
    return sorted(result, key=lambda tensor: (-ITEM_SIZE[tensor.dtype], tensor.name))


def strings(delta: Delta) -> dict[str, str]:
    """Return the strings of `__metadata__`."""
    found = {**delta.strings, "svdiff": canonical(document(delta))}
    if "modelspec.hash_sha256" in found:
        data = b"".join(tensor.data for tensor in tensors(delta))
        found["modelspec.hash_sha256"] = f"0x{hashlib.sha256(data).hexdigest()}"
    return found


def file_bytes(delta: Delta) -> bytes:
    """Return the canonical file."""
    return container(strings(delta), tensors(delta))
