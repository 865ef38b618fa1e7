"""Errors of the device that computes: memory that is not enough, a device that fails or is gone, what it cannot do.

Torch and the libraries below it raise them as plain errors of Python, at any moment. Here they become one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from svdiff_delta.errors import DeltaError, is_out_of_memory

ERRORS: Final = (MemoryError, RuntimeError, TypeError)
"""The classes that they have; MPS refuses a dtype by a TypeError."""

FAILED: Final = re.compile(
    r"(CUDA|HIP|XPU)( driver| kernel)? (error|failure)|unhandled (cuda|system) error"
    r"|(CUBLAS|CUSOLVER|CUSPARSE|CUDNN|CUFFT|HIPBLAS|ROCBLAS|MIOPEN)_STATUS_|DEVICE_LOST|device (is |was )?lost"
    r"|no longer available|Command buffer execution failed",
    re.IGNORECASE,
)
"""What torch, CUDA's libraries, NCCL, ROCm, SYCL and Metal say when a device has failed, or is not there any more."""

UNBUILT: Final = "no kernel image"
"""What CUDA says where torch holds no code for the generation of the GPU."""

ON_MPS: Final = re.compile(r"\bMPS\b.*(support|implement)|(support|implement).*\bMPS\b|'MPS' backend")
"""What torch says where MPS lacks an operation or a dtype."""

OPERATION: Final = re.compile(r"'(aten::[\w.]+)'")
"""How it names an operation."""


class Told(NamedTuple):
    """What is wrong and why, and what mends it."""

    message: str
    fix: str


def is_device_failure(error: BaseException) -> bool:
    """Tell whether an error says that a device has failed or is gone: nothing more is to be had from it."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or FAILED.search(str(error)) is not None


def tell_device_failure(error: BaseException) -> Told:
    """Return the line for a device that has failed or is gone."""
    why = first_line(error)
    if UNBUILT in why:
        return Told(f"this torch has no code for the GPU ({why})", 'install a torch that has, or use `device="cpu"`')
    return Told(
        f"the device has failed or is gone ({why})", 'start again, in a new process, or on another one: `device="cpu"`'
    )


def tell(error: BaseException, when: str = "", enough: str = "") -> Told | None:
    """Return the line for an error of the device; None if it is another error.

    Args:
        error: what was raised.
        when: what was being done, as in "while attaching".
        enough: what to set where memory was not enough.
    """
    if is_out_of_memory(error):
        return Told(f"out of memory {when}".rstrip(), enough)
    if is_device_failure(error):
        return tell_device_failure(error)
    if isinstance(error, ERRORS) and ON_MPS.search(first_line(error)):
        return _tell_lacking(first_line(error))
    return None


@contextmanager
def telling(kind: type[DeltaError], when: str, enough: str) -> Iterator[None]:
    """Let an error of the device that a block or a function meets be one of this library.

    Args:
        kind: its class.
        when: what was being done, as in "while attaching".
        enough: what to set where memory was not enough.

    Raises:
        DeltaError: of the kind that is given.
    """
    try:
        yield
    except ERRORS as error:
        told = tell(error, when, enough)
        if told is None:
            raise
        raise kind(told.message, fix=told.fix) from error


def first_line(error: BaseException) -> str:
    """Return what an error says in its first line; torch adds hints for those who debug kernels."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(" .:")


def _tell_lacking(why: str) -> Told:
    if found := OPERATION.search(why):
        instead = 'use `device="cpu"`, or set PYTORCH_ENABLE_MPS_FALLBACK=1 to compute that part there'
        return Told(f"mps: lacks {found[1]}, which this needs", instead)
    return Told(f"mps: cannot do what this needs ({why})", 'use `device="cpu"`')
