"""Say what to do when memory is not enough, or the device fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from svdiff_delta._util.device_errors import ERRORS, is_device_failure, tell
from svdiff_delta.errors import DeltaError, TrainError, is_out_of_memory
from svdiff_train.methods import METHODS
from svdiff_train.settings.config import TrainConfig

HALVED: Final = "set mixed_precision to bf16"
PARTLY: Final = "set selectors to a part of the model"
SMALLER_BASE: Final = "take a smaller base"
FILLED: Final = "name a class folder that was filled elsewhere"
FEWER: Final = "paint fewer pictures on the way, or none"


@contextmanager
def enough_memory(when: str, fix: str) -> Iterator[None]:
    """Let an error of the memory, of the GPU or the machine, say when it was and what could be set instead.

    Raises:
        TrainError: memory was not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError, DeltaError) as error:
        if isinstance(error, TrainError) or not is_out_of_memory(error):
            raise
        raise TrainError(f"out of memory {when}", fix=fix) from error


@contextmanager
def device_kept(newest: Callable[[], Path | None]) -> Iterator[None]:
    """Let an error of a device that has failed say where the run can go on from.

    Nothing is read from such a device, and nothing can be: what is left is the newest state file.

    Args:
        newest: returns that file, None if there is none.

    Raises:
        TrainError: the device has failed or is gone, or lacks what the run needs.
    """
    try:
        yield
    except ERRORS as error:
        told = None if is_out_of_memory(error) else tell(error)
        if told is None:
            raise
        path = newest() if is_device_failure(error) else None
        if path is None:
            raise TrainError(told.message, fix=told.fix) from error
        raise TrainError(
            f"{told.message}; the last state is kept in {path}",
            fix="go on from it, in a new process, with `resume=True`",
        ) from error


def smaller_step(config: TrainConfig) -> str:
    """Return how to make a step smaller: the settings that are not at their smallest."""
    found = []
    if config.mixed_precision == "no":
        found.append(HALVED)
    if config.batch > 1:
        found.append(f"set batch_size below {config.batch} (with accumulate, the step is the same)")
    if not config.gradient_checkpointing:
        found.append("set gradient_checkpointing")
    return ", or ".join([*found, "set resolution lower", PARTLY])


def smaller_run(config: TrainConfig) -> str:
    """Return how to make all of a run smaller: its step, and what stands beside it."""
    beside = [f"set {name}" for name in ("pre_compute_text_embeddings", "cache_latents") if not getattr(config, name)]
    stored = [] if config.quantization != "no" else ["set quantization"]
    return ", or ".join([*beside, *stored, smaller_step(config)])


def smaller_model(config: TrainConfig, otherwise: str) -> str:
    """Return how to make the model smaller, where the method lets it be in half precision; and what else would help."""
    halves = config.mixed_precision == "no" and METHODS[config.method].half()
    return ", or ".join([*([HALVED] if halves else []), otherwise])
