"""Name the settings to lower when memory is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from svdiff_delta.errors import TrainError, is_out_of_memory
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
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainError(f"out of memory {when}", fix=fix) from error


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


def smaller_model(config: TrainConfig, otherwise: str) -> str:
    """Return how to make the model smaller, where the method lets it be in half precision; and what else would help."""
    halves = config.mixed_precision == "no" and METHODS[config.method].half()
    return ", or ".join([*([HALVED] if halves else []), otherwise])
