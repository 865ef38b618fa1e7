"""Hold the limits of a server: what a request may ask for, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from svdiff_delta.errors import InputError


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
