"""Settings that a family gives a meaning to, and those that it has none for: they are named before anything starts."""

from __future__ import annotations

from typing import Any, Final

from svdiff_delta.errors import InputError, TrainError
from svdiff_train.families import Family
from svdiff_train.settings.config import TrainConfig

FLOW: Final = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale")
"""Settings of flow matching."""


def settle_family(family: Family, config: TrainConfig) -> None:
    """Let a family draw timesteps and frames as a run says.

    Raises:
        InputError: the model cannot take so many frames.
        TrainError: a setting has no meaning for the family.
    """
    _settle_timesteps(family, config)
    _settle_frames(family, config)
    _check_companions(family, config)


def _check_companions(family: Family, config: TrainConfig) -> None:
    """Raise TrainError where pictures would come without what belongs to them."""
    name, kind = type(family.pipeline).__name__, family.companion
    if kind is not None and config.with_prior:
        raise TrainError(f"{name}: pictures of the class are painted, and have no {kind}", fix="leave out class_prompt")
    if kind is not None and config.mixing:
        raise TrainError(f"{name}: Cut-Mix mixes pictures, and not their {kind}", fix="set mix_probability to 0")


def _settle_timesteps(family: Any, config: TrainConfig) -> None:
    own, name = getattr(family, "timestep_sampling", None), type(family.pipeline).__name__
    said = [each for each in FLOW if getattr(config, each) is not None]
    if own is None:
        if said:
            raise TrainError(
                f"{name}: {said[0]} is for flow matching, and this is diffusion", fix=f"leave out {said[0]}"
            )
        return
    if config.snr_gamma is not None:
        raise TrainError(
            f"{name}: min-SNR weighting is defined for diffusion, not for flow matching", fix="leave out snr_gamma"
        )
    family.timestep_sampling = own.changed(**{each: getattr(config, each) for each in said})


def _settle_frames(family: Any, config: TrainConfig) -> None:
    name = type(family.pipeline).__name__
    if not hasattr(family, "frames"):
        if config.num_frames is not None:
            raise TrainError(f"{name}: num_frames is for models of moving pictures", fix="leave out num_frames")
        return
    if config.num_frames is not None:
        unit, asked = family.frame_unit, config.num_frames
        if asked % unit != 1 % unit:
            below = (asked - 1) // unit * unit + 1
            raise InputError(
                f"{name}: cannot take {asked} frames, only one and a multiple of {unit} more",
                fix=f"use {below} or {below + unit}",
            )
        family.frames = asked
    if config.with_prior:
        raise TrainError(f"{name}: prior preservation paints pictures, no clips", fix="leave out class_prompt")
    if config.mixing:
        raise TrainError(f"{name}: Cut-Mix mixes pictures, no clips", fix="set mix_probability to 0")
