"""What work on a device takes: time, launches, memory; and the same work as one graph."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from svdiff_train.graphs.cuda_capture import Capture, CudaCapture, Graph
from svdiff_train.graphs.static_work import WARM


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, *, runs: int, rounds: int = 5) -> float:
    """Return the median over rounds of the milliseconds of a run, by the clock; the device is waited for at the ends.

    Args:
        work: what is measured; it has run before.
        device: where it runs.
        runs: how often it runs in a round, one after the other without waiting.
        rounds: how many there are.
    """
    taken = []
    for _ in range(rounds):
        wait(device)
        begun = time.perf_counter()
        for _ in range(runs):
            work()
        wait(device)
        taken.append(1e3 * (time.perf_counter() - begun) / runs)
    return statistics.median(taken)


class Again:
    """Stands in for a graph where there are none: does the work again, and puts its result in the same place."""

    def __init__(self, work: Callable[[], Tensor], result: Tensor) -> None:
        self.work, self.result = work, result

    def replay(self) -> None:
        """Do it."""
        self.result.copy_(self.work())


class Eager:
    """Stands in for what captures."""

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Do work as it is."""
        return work()

    def capture(self, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """Return what does it again; it is done once here to learn the result's shape."""
        result = work().clone()
        return Again(work, result), result


def capture_on(device: torch.device) -> Capture:
    """Return what captures on a device; on the CPU a stand-in, with which scripts run to their ends."""
    return CudaCapture(device) if device.type == "cuda" else Eager()


def as_graph(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Return what replays work that was captured as one graph, and gives its result."""
    capture = capture_on(device)
    for _ in range(WARM):
        capture.warm(work)
    graph, result = capture.capture(work)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class _Dispatched(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def launches(work: Callable[[], object], device: torch.device) -> int:
    """Return how many kernels a run launches; on the CPU how many operations it dispatches."""
    if device.type != "cuda":
        dispatched = _Dispatched()  # type: ignore[no-untyped-call]  # the class of torch has no types
        with dispatched:
            work()
        return dispatched.count
    from torch.profiler import DeviceType, ProfilerActivity, profile

    wait(device)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        wait(device)
    kernels = [event for event in found.events() if event.device_type == DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset", "Optimizer.", "##")) for event in kernels)


def tidy(device: torch.device) -> None:
    """Let go of memory that nothing uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def held(device: torch.device) -> int:
    """Return bytes of tensors on the device; 0 on the CPU, where torch does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak(device: torch.device) -> int:
    """Return the most bytes of tensors since `restart_peak`; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def restart_peak(device: torch.device) -> None:
    """Let the peak count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
