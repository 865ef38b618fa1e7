"""Where memory is not enough: which settings to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from svdiff_delta.errors import TrainError

from .config import TrainConfig


@contextmanager
def enough_memory(when: str, fix: str) -> Iterator[None]:
    """Let an error of the memory, of the GPU or the machine, say when it was and what could be set instead.

    Raises:
        TrainError: memory was not enough.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch has no class of its own for the CPU's.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise TrainError(f"out of memory {when}", fix=fix) from error


def smaller_step(config: TrainConfig) -> str:
    """Return how to make a step smaller: the settings that are not at their smallest."""
    found = []
    if config.batch > 1:
        found.append(f"set batch_size below {config.batch} (with accumulate, the step is the same)")
    if not config.gradient_checkpointing:
        found.append("set gradient_checkpointing")
    return _ways(config, *found, "set resolution lower", "set selectors to a part of the model")


def smaller_model(config: TrainConfig) -> str:
    """Return how to make the model smaller."""
    return _ways(config, "take a smaller base")


def fewer_class_pictures(config: TrainConfig) -> str:
    """Return how to paint the class with less memory, or not here."""
    return _ways(config, "name a class folder that was filled elsewhere")


def smaller_validation(config: TrainConfig) -> str:
    """Return how to paint on the way with less memory, or not at all."""
    return _ways(config, "paint fewer pictures on the way, or none")


def _ways(config: TrainConfig, *ways: str) -> str:
    half = ["set mixed_precision to bf16"] if config.mixed_precision == "no" else []
    return ", or ".join([*half, *ways])
