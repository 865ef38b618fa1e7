"""Quantized single files: told by what is in them, and read as float32 numbers where that was asked for.

Values are those that the scheme's own library gives: `gguf.dequantize` of llama.cpp's package for GGUF; for fp8 with a
scale for each weight, as ComfyUI writes it, the product of the two in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from svdiff_delta._util.json import JSON
from svdiff_delta.errors import BaseError, MissingExtraError
from svdiff_delta.format.entry import Entry, Header

from .mapped_tensor import Made

FLOAT8: Final = ("F8_E4M3", "F8_E5M2")

SCALES: Final = ("scale_weight", "weight_scale")
"""What the scale of `stem.weight` is called, after `stem.`: ComfyUI's older name and its newer one."""

BESIDE: Final = ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant", "scaled_fp8")
"""What stands beside weights in fp8 and is no weight."""

SCHEMES: Final = {
    ".quant_state.bitsandbytes__nf4": "bitsandbytes nf4",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes fp4",
    ".absmax": "bitsandbytes 4-bit",
    ".SCB": "bitsandbytes 8-bit",
    "._weight_qdata": "torchao",
    "._data": "quanto",
    ".weight_packed": "compressed-tensors",
    ".qweight": "GPTQ, AWQ or SVDQuant",
}
"""Schemes that no value is read of, by how a key ends."""

FP8: Final = "fp8 with scales"
GGUF: Final = "GGUF"

ASK: Final = "use the unquantized base, or read it with `dequantize=True`"


def scheme_of(entries: Mapping[str, Entry]) -> str:
    """Return how a single file is quantized, "" if nothing in it says so."""
    for key in entries:
        if found := next((scheme for end, scheme in SCHEMES.items() if key.endswith(end)), ""):
            return found
    fp8 = any(entry.dtype in FLOAT8 for entry in entries.values())
    return FP8 if fp8 and any(key.endswith(BESIDE) for key in entries) else ""


def said(scheme: str) -> Mapping[str, JSON]:
    """Return what a delta says of its base that was read dequantized: scheme, library and its version."""
    if scheme != GGUF:
        return {"dequantized": {"scheme": scheme, "library": f"torch {torch.__version__.partition('+')[0]}"}}
    from importlib.metadata import version

    return {"dequantized": {"scheme": scheme, "library": f"gguf {version('gguf')}"}}


def check_readable(path: Path, scheme: str) -> None:
    """Raise BaseError if no value can be read of a file that is quantized so."""
    if scheme in SCHEMES.values():
        raise BaseError(
            f"{path}: is quantized ({scheme}), which cannot be read without the program that wrote it",
            fix="use the unquantized base",
        )


def float8_entries(path: Path, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return a file's tensors, those in fp8 as float32 numbers with their scales in them.

    Raises:
        BaseError: a weight has more than one scale, in an arrangement that is not known.
    """
    found: dict[str, Entry] = {}
    for key, entry in entries.items():
        stem = key.removesuffix("weight")
        scale = next((entries[stem + name] for name in SCALES if stem + name in entries), None)
        if entry.dtype in FLOAT8 and not key.endswith(BESIDE):
            if scale is not None and scale.shape not in ((), (1,)):
                raise BaseError(
                    f"{path}: {key} has scales of shape {list(scale.shape)}, and only one is understood",
                    fix="use the unquantized base",
                )
            made = partial(_scaled, entry, scale if key.endswith("weight") else None)
            found[key] = Made.of(entry._replace(dtype="F32"), made)
        elif not key.endswith(BESIDE):
            found[key] = entry
    return found


def _scaled(entry: Entry, scale: Entry | None, read: Callable[[Entry], Tensor]) -> Tensor:
    values = read(entry).float()
    return values if scale is None else values * read(scale).float()


PLAIN: Final = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F64", "I8": "I8", "I16": "I16", "I32": "I32"}
"""Types of GGUF that are stored one number at a time, by their names in gguf, as safetensors calls them."""


def gguf_header(path: Path) -> Header:
    """Return the tensors of a GGUF file, as a header of safetensors would tell them; packed ones are F32.

    Raises:
        BaseError: it cannot be read, or is damaged.
        MissingExtraError: the package gguf is not installed.
    """
    try:
        gguf: Any = importlib.import_module("gguf")
    except ImportError:
        raise MissingExtraError("gguf", "quantized") from None
    try:
        tensors = gguf.GGUFReader(str(path)).tensors
        entries = {str(tensor.name): _gguf_entry(gguf, tensor) for tensor in tensors}
    except Exception as error:  # noqa: BLE001 - of a damaged file, the reader raises whatever it happens to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseError(f"{path}: gguf cannot read it ({reason})", fix="fetch the file again") from None
    size = path.stat().st_size
    if late := next((key for key, entry in entries.items() if entry.stop > size), None):
        raise BaseError(f"{path}: ends before {late} does", fix="fetch the file again")
    ordered = sorted(entries.items(), key=lambda item: item[1].start)
    return Header({}, MappingProxyType(dict(ordered)), 0)


def _gguf_entry(gguf: Any, tensor: Any) -> Entry:
    shape = tuple(int(length) for length in reversed(tensor.shape.tolist()))
    start, stop = int(tensor.data_offset), int(tensor.data_offset) + int(tensor.n_bytes)
    if (dtype := PLAIN.get(tensor.tensor_type.name)) is not None:
        return Entry(dtype, shape, start, stop)
    raw = Entry("U8", (stop - start,), start, stop)
    return Made.of(
        Entry("F32", shape, start, stop), partial(_unpacked, gguf.dequantize, tensor.tensor_type, raw, shape)
    )


def _unpacked(
    dequantize: Any, kind: Any, raw: Entry, shape: tuple[int, ...], read: Callable[[Entry], Tensor]
) -> Tensor:
    return torch.from_numpy(dequantize(read(raw).numpy(), kind).reshape(shape))
