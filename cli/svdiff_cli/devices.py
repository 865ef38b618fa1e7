"""Where commands compute: the option --device, what they take where it is not given, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from svdiff_delta.errors import AttachError, DeltaError, is_out_of_memory

from .options import Command

if TYPE_CHECKING:
    import torch


class Default(NamedTuple):
    """Where a command computes if nobody says.

    Attributes:
        gpu: whether on a GPU where torch finds one that works.
        said: where, and why, as the help text says it.
        float64: whether only on a GPU that is fast in float64.
    """

    gpu: bool
    said: str
    float64: bool = False


MODEL: Final = Default(True, "a GPU if there is one: models run many times faster there")
BASES: Final = Default(True, "a GPU if there is one that is fast in float64, as those for data centers", float64=True)
BYTES: Final = Default(False, "cpu, so that the bytes do not depend on a GPU")

DEFAULTS: Final[Mapping[str, Default]] = {
    "train": MODEL,
    "generate": MODEL,
    "edit": MODEL,
    "morph": MODEL,
    "evaluate": MODEL,
    "serve": MODEL,
    "board": MODEL,
    "basis build": BASES,
    "bake": BYTES,
    "convert": BYTES,
}
"""Where each command that takes --device computes by default."""

MEMORY: Final[Mapping[str, str]] = {
    "generate": "lower --batch-size or --size, or use --device cpu",
    "edit": "lower --batch-size or --size, or use --device cpu",
    "morph": "lower --size, or use --device cpu",
    "evaluate": "use --device cpu, or paint with `svdiff generate --separate` and measure its --pictures",
    "serve": "lower --batch-size, or use --device cpu",
    "board": "use --dtype F16, or --device cpu",
    "bake": "use --device cpu, or set OMP_NUM_THREADS=1, which computes one weight at a time",
    "basis": "lower --workers, or select a part of the model",
    "train": "select a part of the model, or lower --resolution",
}
"""What to set where a command's memory is not enough, and no part of it says better."""

OTHERWISE: Final = "select a part of the model, or use --device cpu where it takes one"


def device(command: str, what: str = "Where to run") -> Callable[[Command], Command]:
    """Return the option --device of a command.

    Args:
        command: its name in `DEFAULTS`.
        what: what happens there.
    """
    return click.option("--device", help=f"{what}: cpu, cuda, cuda:1 or mps [default: {DEFAULTS[command].said}].")


def device_for(command: str, given: str | None) -> torch.device:
    """Return where a command computes: where --device says, else by its default.

    Raises:
        InputError: there is no such device; the error says what torch sees.
    """
    import torch

    from svdiff_delta.base_model.devices import best_device, find_device

    default = DEFAULTS[command]
    if given is not None:
        return find_device(given)
    return best_device(float64=default.float64) if default.gpu else torch.device("cpu")


def told(error: BaseException, command: str | None) -> str | None:
    """Return the line for an error of the device or the memory, whatever part of a command met it; None for others."""
    from svdiff_delta._util.device_errors import tell

    advice = MEMORY.get(command or "", OTHERWISE)
    if isinstance(error, AttachError) and is_out_of_memory(error):
        return f"{error.message}: {advice}"
    found = None if isinstance(error, DeltaError) else tell(error, enough=advice)
    return None if found is None else f"{found.message}: {found.fix}"
