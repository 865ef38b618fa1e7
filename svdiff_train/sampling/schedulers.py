"""Schedulers by name, and DDIM wherever a pipeline is a diffusion model: what the paper samples with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from svdiff_delta.errors import InputError

SUFFIX: Final = "scheduler"
DDIM: Final = "DDIMScheduler"
DIFFUSION: Final = ("epsilon", "v_prediction", "sample")
"""What a denoiser of diffusion predicts; one of flow matching predicts another thing."""


def is_diffusion(pipeline: Any) -> bool:
    """Tell whether a pipeline is a diffusion model, whose noise process DDIM knows; else it is flow matching."""
    scheduler = pipeline.scheduler
    return DDIM in _compatibles(scheduler) and scheduler.config.get("prediction_type", "epsilon") in DIFFUSION


def make_scheduler(pipeline: Any, name: str | None = None) -> Any:
    """Return a scheduler with the noise process of a pipeline's own.

    Args:
        pipeline: a live pipeline; it stays as it is.
        name: a class of diffusers, in any case, with or without "Scheduler" at its end. None is DDIM for diffusion
            models, and the pipeline's own for flow matching.

    Raises:
        InputError: the class is unknown, or not compatible with the pipeline's.
    """
    own = pipeline.scheduler
    if name is None and not is_diffusion(pipeline):
        return own
    known = {_short(found): cls for found, cls in _compatibles(own).items()}
    cls = known.get(_short(name or DDIM))
    if cls is None:
        names = ", ".join(sorted(cls.__name__ for cls in known.values()))
        raise InputError(
            f"scheduler {name!r}: none that goes with {type(own).__name__} is called so", fix=f"use {names}"
        )
    if type(own) is cls:
        return own
    # DDIM and DDPM would else clip z_0 to [-1, 1], which is meant for pixels and not for latents.
    given = {} if _says(own.config, "clip_sample") else {"clip_sample": False}
    taken = inspect.signature(cls.__init__).parameters
    return cls.from_config(own.config, **{key: value for key, value in given.items() if key in taken})


@contextmanager
def scheduled(pipeline: Any, name: str | None = None) -> Iterator[Any]:
    """Let a pipeline sample with another scheduler while the block runs, which `make_scheduler` names.

    Raises:
        InputError: as `make_scheduler`.
    """
    own = pipeline.scheduler
    pipeline.scheduler = make_scheduler(pipeline, name)
    try:
        yield pipeline.scheduler
    finally:
        pipeline.scheduler = own


def takes_eta(scheduler: Any) -> bool:
    """Tell whether a scheduler's steps know η."""
    return "eta" in inspect.signature(scheduler.step).parameters


def _short(name: str) -> str:
    return name.lower().removesuffix(SUFFIX)


def _compatibles(scheduler: Any) -> dict[str, Any]:
    """Return the classes that can be made from a scheduler's configuration, by name, without those not installed."""
    return {cls.__name__: cls for cls in scheduler.compatibles if not hasattr(cls, "_backends")}


def _says(config: Any, key: str) -> bool:
    """Tell whether a scheduler's configuration names a setting, rather than its class' own default."""
    return key in config and key not in config.get("_use_default_values", ())
