"""The processes of one run: how they find each other, share out work, and wait for one that works alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from accelerate.accelerator import Accelerator
from PIL import Image
from torch import Tensor

from svdiff_delta.base_model.devices import find_device
from svdiff_delta.errors import InputError, TrainError
from svdiff_train.settings.config import TrainConfig

WORLD: Final = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where `torchrun` and the launchers of MPI say how many processes they started."""

UNUSED: Final = {
    "ACCELERATE_MIXED_PRECISION": ("no", "set mixed_precision"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "set accumulate"),
    "ACCELERATE_USE_DEEPSPEED": ("false", "every process has the whole model"),
}
"""What `accelerate launch` was told and a run does not look at: its value that means nothing, and what does."""

FOREVER: Final = timedelta(days=365)
"""How long a process waits for another one: a limit would end runs in which one of them paints, writes or loads."""

GLANCE: Final = 0.1
"""Seconds between looks at whether the others are there, in which Ctrl-C is heard."""


@dataclass(frozen=True)
class Crew:
    """The processes of a run, which all do the same calls in the same order.

    Attributes:
        count: how many there are.
        index: which of them this is; the first one writes.
        group: what connects them without a limit of time; None for a process alone.
        together: whether each of them has a part of the model only, so that all must compute whatever one does.
    """

    count: int = 1
    index: int = 0
    group: Any = None
    together: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def meet(self) -> None:
        """Wait for all, however long that takes.

        Raises:
            TrainError: one of them has ended.
        """
        if self.count > 1:
            self._wait(dist.barrier(self.group, async_op=True))

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process do something, then the others."""
        if not self.first:
            self.meet()
        yield
        if self.first:
            self.meet()

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return what is true for one process at least."""
        if self.count == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.uint8)
        self._wait(dist.all_reduce(found, dist.ReduceOp.MAX, self.group, async_op=True))
        return [bool(flag) for flag in found]

    def greatest(self, number: int) -> int:
        """Return the greatest of all processes' numbers; no device takes part.

        Raises:
            TrainError: one of them has ended.
        """
        if self.count == 1:
            return number
        found = torch.tensor([number])
        with _ended():
            dist.all_reduce(
                found, dist.ReduceOp.MAX, self.group
            )  # in step with each other, so a glance would cost more
        return int(found)

    def paint(self, chunks: int, paint: Callable[[int], list[Image.Image]]) -> list[list[Image.Image]]:
        """Return the pictures of `paint(chunk)` for every chunk in order, each painted by one process.

        A chunk is what is painted at a time, so the pictures have the pixels that a process alone would give them.
        Where all must compute together, each paints all of them.

        Args:
            chunks: how many there are.
            paint: returns one's pictures, RGB and of one size.
        """
        if self.together:
            return [paint(chunk) for chunk in range(chunks)]
        mine = {chunk: paint(chunk) for chunk in range(self.index, chunks, self.count)}
        if self.count == 1:
            return [mine[chunk] for chunk in range(chunks)]
        self.meet()
        return [self._told(mine.get(chunk, []), chunk % self.count) for chunk in range(chunks)]

    def _told(self, pictures: Sequence[Image.Image], by: int) -> list[Image.Image]:
        """Return one process's pictures in all of them."""
        shape = torch.zeros(4, dtype=torch.int64)
        pixels = torch.empty(0, dtype=torch.uint8)
        if self.index == by:
            pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
            shape = torch.tensor(pixels.shape)
        self._wait(dist.broadcast(shape, by, self.group, async_op=True))
        if self.index != by:
            pixels = torch.empty([int(side) for side in shape], dtype=torch.uint8)
        self._wait(dist.broadcast(pixels, by, self.group, async_op=True))
        return list(pictures) if self.index == by else [Image.fromarray(each.numpy()) for each in pixels]

    def _wait(self, work: Any) -> None:
        with _ended():
            while not work.is_completed():
                time.sleep(GLANCE)
            work.wait()


@contextmanager
def _ended() -> Iterator[None]:
    """Let an error of the connection say that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise TrainError("another process of the run has ended", fix="see what it said") from error


ALONE: Final = Crew()
"""A process that is the whole run."""


def started() -> int:
    """Return how many processes a launcher says it started."""
    said = [os.environ.get(name, "") for name in WORLD]
    return max([int(number) for number in said if number.isdecimal()], default=1)


def unused() -> Iterator[str]:
    """Yield what `accelerate launch` was told and this program does not look at."""
    for name, (nothing, instead) in UNUSED.items():
        value = os.environ.get(name, nothing)
        if value.lower() not in ("", nothing):
            yield f"note: {name}={value} is not looked at: {instead}"


def accelerator(device: str | torch.device | None = None, **given: Any) -> Accelerator:
    """Return accelerate's object for this process, in one run with the others that a launcher started.

    Without a GPU accelerate connects processes only when it is told that they are to run on the CPU.

    Args:
        device: where to run; what accelerate takes by itself if not given.
        given: for `Accelerator`.

    Raises:
        InputError: there is no such device, or it is one GPU for several processes.
        TrainError: there are other processes, and nothing connects them; or accelerate runs elsewhere in this process.
    """
    place = None if device is None else find_device(device)
    count, cpu = started(), started() > 1 and not _device()
    if place is not None:
        cpu = place.type == "cpu"
        _take(place, count)
    try:
        found = Accelerator(cpu=cpu, **given)
    except ValueError as error:  # this program made its state before, for one process alone
        raise _apart(count, str(error)) from None
    if found.num_processes < count:
        raise _apart(count, f"accelerate has no backend for {found.device.type}")
    if place is not None and found.device.type != place.type:
        raise TrainError(
            f"{place}: accelerate runs on {found.device} in this process", fix=f'use `device="{found.device}"`'
        )
    return found


def _take(place: torch.device, count: int) -> None:
    """Let a process alone have the GPU that is named; accelerate takes the current one then."""
    if place.index is None or place.type == "cpu":
        return
    if count > 1:
        raise InputError(f"{place}: each of {count} processes has a GPU of its own", fix=f'use `device="{place.type}"`')
    if place.type == "cuda":
        torch.cuda.set_device(place)


def _device() -> bool:
    return torch.cuda.is_available() or (hasattr(torch, "accelerator") and torch.accelerator.is_available())


def _apart(count: int, why: str) -> TrainError:
    return TrainError(
        f"{count} processes were started, and each would be a run of its own ({why})",
        fix="start one, or set ACCELERATE_USE_CPU=1",
    )


@contextmanager
def crew_of(found: Accelerator) -> Iterator[Crew]:
    """Yield the processes of accelerate's run."""
    if found.num_processes == 1:
        yield ALONE
        return
    group = dist.new_group(backend="gloo", timeout=FOREVER)
    try:
        yield Crew(found.num_processes, found.process_index, group)
    finally:
        dist.destroy_process_group(group)


def shared(config: TrainConfig, crew: Crew) -> TrainConfig:
    """Return the run with the number of processes it is for.

    Raises:
        InputError: they cannot share out what that many do.
    """
    wanted = config.processes or crew.count
    if wanted % crew.count:
        raise InputError(
            f"the run is one of {wanted} processes, which {crew.count} cannot share out",
            fix=f"set processes to {crew.count}, or start {wanted} or a number that divides it",
        )
    return replace(config, processes=wanted)


def mean(found: Accelerator, flat: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    reduced: Tensor = found.reduce(flat, "mean")
    return reduced
