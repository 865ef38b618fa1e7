"""The learning rate over a run, by diffusers' names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from svdiff_delta.errors import InputError
from svdiff_train.settings.config import TrainConfig

SCHEDULES: Final = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def rate_factor(config: TrainConfig) -> Callable[[int], float]:
    """Return the factor on the learning rate at a step, counted from 0: it depends on nothing else, so a resume agrees.

    Raises:
        InputError: the schedule is unknown.
    """
    from diffusers.optimization import get_scheduler

    name = config.schedule
    if name not in SCHEDULES:
        raise InputError(f"schedule {name!r} is unknown", fix=f"use {', '.join(SCHEDULES)}")
    if name == "constant" and config.warmup:
        name = "constant_with_warmup"
    unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule: Any = get_scheduler(name, unused, num_warmup_steps=config.warmup, num_training_steps=config.horizon)
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
