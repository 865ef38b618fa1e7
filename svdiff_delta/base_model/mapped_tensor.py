"""One tensor of a safetensors file as pages of that file, which are given back when nobody holds the tensor."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from svdiff_delta.errors import TensorError
from svdiff_delta.format.entry import Entry

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
"""By the names of safetensors, of the dtypes that the specification lists."""

FOREIGN_DTYPES: Final[dict[str, torch.dtype]] = {
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
}
"""Further dtypes of safetensors whose values torch has one by one; F4 and F6 are packed, several to a byte."""


Look = Callable[[os.stat_result], None]
"""Called with what the system says of the file, before it is mapped; may raise."""


class Made(Entry):
    """A tensor that is made of others of its file, whose bytes are where `start` and `stop` say, and between.

    Attributes:
        make: makes it, called with what returns the values of an entry of the file.
    """

    make: Callable[[Callable[[Entry], Tensor]], Tensor]

    @classmethod
    def of(cls, entry: Entry, make: Callable[[Callable[[Entry], Tensor]], Tensor]) -> Made:
        """Return the entry of a tensor that `make` makes."""
        made = cls(*entry)
        made.make = make
        return made


def map_tensor(path: Path, data: int, entry: Entry, look: Look | None = None) -> Tensor:
    """Return a tensor on the CPU; what is written to it stays in memory.

    Only its own part of the file is mapped, so that a large file that is gone through tensor by tensor never takes more
    memory than one of them.

    Args:
        path: the file.
        data: where its data section starts.
        entry: what its header says of the tensor.
        look: called with what the system says of the file.

    Raises:
        OSError, ValueError: the file cannot be read, or has become shorter.
        TensorError: torch has no such dtype, or not one value at a time.
    """
    if isinstance(entry, Made):
        return entry.make(lambda other: map_tensor(path, data, other, look)).contiguous()
    dtype = TORCH_DTYPES.get(entry.dtype) or FOREIGN_DTYPES.get(entry.dtype)
    if dtype is None:
        raise TensorError(f"is stored as {entry.dtype}, which has no values that can be read one by one")
    if entry.stop == entry.start:
        return torch.empty(entry.shape, dtype=dtype)
    flat = map_bytes(path, data, entry, look)
    if (data + entry.start) % dtype.itemsize:
        flat = flat.clone()  # the file does not align its tensors, torch does
    return flat.view(dtype).reshape(entry.shape)


def map_bytes(path: Path, data: int, entry: Entry, look: Look | None = None) -> Tensor:
    """Return the bytes of a tensor, uint8 in one dimension, whatever its dtype; arguments and errors as `map_tensor`.

    Raises:
        OSError, ValueError: the file cannot be read, or has become shorter.
    """
    if isinstance(entry, Made):
        return map_tensor(path, data, entry, look).flatten().view(torch.uint8)
    count = entry.stop - entry.start
    if count == 0:
        return torch.empty(0, dtype=torch.uint8)
    offset = data + entry.start
    before = offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as stream:
        if look is not None:
            look(os.fstat(stream.fileno()))
        pages = mmap.mmap(stream.fileno(), before + count, offset=offset - before, access=mmap.ACCESS_COPY)
    return torch.from_numpy(np.frombuffer(pages, np.uint8, count, before))
