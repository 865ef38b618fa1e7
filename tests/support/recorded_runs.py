"""What runs on tiny bases are given, and the loss that they are judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from svdiff_train.data.batches import Batch
from svdiff_train.training.loss import denoising_loss


def colour(index: int, side: int) -> Image.Image:
    """A picture of two colours."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[: side // 2], pixels[side // 2 :] = (220, 15 * index, 40), (20, 60, 200 - 10 * index)
    return Image.fromarray(pixels)


def shown(folder: Path, side: int, frames: int | None) -> Path:
    """A folder with two pictures, or two clips of so many frames: one of frames in a folder, one a GIF."""
    place = folder / "shown"
    place.mkdir()
    if frames is None:
        for index in range(2):
            colour(index, side).save(place / f"{index}.png")
        return place
    (place / "first").mkdir()
    for index in range(frames):
        colour(index, side).save(place / "first" / f"{index:03d}.png")
    first, *others = (colour(index, side) for index in range(frames + 2))
    first.save(place / "second.gif", save_all=True, append_images=others)
    return place


def loss_of(family: Any, batch: Batch) -> float:
    """The error on a batch, whose noise and timesteps are in it."""
    noised, target = family.noised(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        told = {**family.join([family.encode_prompts([prompt]) for prompt in batch.prompts]), **batch.seen}
        return float(denoising_loss(family.predict(family.denoiser, noised, batch.timesteps, told), target).mean())
