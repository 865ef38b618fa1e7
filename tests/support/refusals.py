"""What torch and the libraries below it say when a device refuses, as was seen or as their sources have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

Raised = Callable[[], BaseException]


class AcceleratorError(RuntimeError):
    """The class that torch 2.8 and later raise for what CUDA says; older ones have it not."""


EXHAUSTED: Final[dict[str, Raised]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuSOLVER": lambda: RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuDNN's workspace": lambda: RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    "driver": lambda: AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.02 MB)"),
    "CPU": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    "CPU of Windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    "Python": MemoryError,
}
"""Memory that is not enough, by who says so."""

FAILED: Final[dict[str, Raised]] = {
    "assert": lambda: RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported"),
    "launch": lambda: AcceleratorError("CUDA error: unspecified launch failure"),
    "gone": lambda: AcceleratorError("CUDA error: the device is no longer available"),
    "access": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    "other words": lambda: AcceleratorError("the bus is off"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "NCCL": lambda: RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1: unhandled cuda error"),
    "ROCm": lambda: RuntimeError("HIP error: the operation cannot be performed in the present state"),
}
"""A device that has failed or is gone, by how it shows."""
