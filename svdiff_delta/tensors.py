"""One tensor of a safetensors file as pages of that file, which are given back when nobody holds the tensor."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from .container import Entry

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
"""By the names of safetensors."""


def map_tensor(path: Path, data: int, entry: Entry) -> Tensor:
    """Return a tensor on the CPU; what is written to it stays in memory.

    Only its own part of the file is mapped, so that a large file that is gone through tensor by tensor never takes more
    memory than one of them.

    Args:
        path: the file.
        data: where its data section starts.
        entry: what its header says of the tensor.

    Raises:
        OSError, ValueError: the file cannot be read, or has become shorter.
    """
    dtype, count = TORCH_DTYPES[entry.dtype], entry.stop - entry.start
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    offset = data + entry.start
    before = offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as stream:
        pages = mmap.mmap(stream.fileno(), before + count, offset=offset - before, access=mmap.ACCESS_COPY)
    flat = torch.from_numpy(np.frombuffer(pages, np.uint8, count, before))
    if offset % dtype.itemsize:
        flat = flat.clone()  # the file does not align its tensors, torch does
    return flat.view(dtype).reshape(entry.shape)
