"""Hold what a server is told, and what counts where it is not: for the command, for a program, and on Ray."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final

from svdiff_delta.errors import InputError

HOST: Final = "127.0.0.1"
"""Where a server listens: this machine's own programs alone reach it."""

WATCH_EVERY: Final = 5.0
"""Seconds between looks at the deltas."""

DRAIN: Final = 60.0
"""Seconds in which a server that is to end finishes what it has accepted."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What requests may ask for.

    Attributes:
        pixels: of a picture, height times width.
        steps: of denoising.
        pictures: of one request.
        prompt: characters of a prompt, and of a negative one.
        body: bytes of a request.
        body_seconds: in which they must have come.
        rate: pictures of a key in a minute; 0 for any number.
        seconds: after which a request is given up.
    """

    pixels: int = 1024 * 1024
    steps: int = 100
    pictures: int = 4
    prompt: int = 4000
    body: int = 64 << 10
    body_seconds: float = 20.0
    rate: float = 0.0
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "rate" else 1e-3
            if not (isfinite(value) and value >= least):
                raise InputError(f"the limit of {name} must be at least {least:g}, is {value}")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """How a picture is painted where the request does not say.

    Attributes:
        steps: of denoising.
        guidance: its scale; None is the pipeline's own.
        scheduler: a class of diffusers; None as `svdiff generate` takes it.
    """

    steps: int = 30
    guidance: float | None = None
    scheduler: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How much is done and kept at a time.

    Attributes:
        batch_size: pictures that are painted at a time.
        queue_size: pictures that may wait.
        queue_of_key: pictures of one key that may wait.
        gain_bytes: bytes of the gains that are kept on the device.
        index: the SQLite file of the store's index; None keeps it in memory.
    """

    batch_size: int = 8
    queue_size: int = 64
    queue_of_key: int = 64
    gain_bytes: int = 1 << 30
    index: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue_size", "queue_of_key"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, is {getattr(self, name)}")
