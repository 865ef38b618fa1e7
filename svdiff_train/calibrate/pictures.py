"""Calibration on a data set: what the layers of a pipeline meet while its denoiser sees noised pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from svdiff_delta._util.limits import PICTURE
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import InputError
from svdiff_delta.runtime import measure
from svdiff_delta.svd.calibration import Calibration, Moments, Probe
from svdiff_train.data import Found, find_images, load_image, seeded_random
from svdiff_train.data.batches import Texts
from svdiff_train.families import Family, family_of

BATCH: Final = 8
"""Predictions that are made at a time."""

SEED: Final = 0
"""Of all draws; a picture's index is their sample, and the number of its timestep their step."""


def find_pictures(folder: Path) -> Found:
    """Return the pictures and captions of a folder, as training reads them.

    Raises:
        InputError: it has no picture, one cannot be read, or a caption is wrong.
    """
    return find_images(folder, skip_bad=None)


def digest_pictures(found: Found) -> str:
    """Return the SHA-256 of the digests of every picture's file and caption, in order; no caption counts as "".

    Raises:
        InputError: a picture cannot be read any more.
    """
    total = hashlib.sha256()
    for picture in found.pictures:
        content = read_bytes(picture.path, PICTURE)
        for part in (content, (picture.caption or "").encode()):
            total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def calibration_on_pictures(load: Callable[[], Any], found: Found, *, steps: int = 20) -> Calibration:
    """Return the calibration on what a pipeline's layers meet while its denoiser sees noised pictures.

    Args:
        load: returns the base as a live pipeline of a known family, when it is needed.
        found: the pictures with their captions.
        steps: timesteps of each picture.

    Raises:
        InputError: there is no picture or no step.
    """
    if not found.pictures or steps < 1:
        raise InputError("calibration needs at least 1 picture and 1 step")
    captions = sum(picture.caption is not None for picture in found.pictures)
    facts = {
        "pictures": len(found.pictures),
        "captions": captions,
        "sha256": digest_pictures(found),
        "steps": steps,
    }
    return Calibration(
        lambda probes: collect(family_of(load()), found, probes, steps=steps), facts, tuple(_remarks(found, captions))
    )


def _remarks(found: Found, captions: int) -> Iterator[str]:
    """Yield what of the folder is not as somebody may think it is."""
    pictures = len(found.pictures)
    if captions < pictures:
        which = f"{pictures - captions} of {pictures} pictures have no" if captions else "no picture has a"
        yield f"calibration: {which} caption; such are seen with the empty prompt only"
    if left := [*found.ignored, *(f"{name}/" for name in found.folders)]:
        yield f"calibration: not read: {', '.join(left)}"


def collect(
    family: Family, found: Found, probes: Mapping[str, Probe], *, steps: int = 20, resolution: int | None = None
) -> dict[str, Moments]:
    """Return the moments of what layers of a pipeline meet while its denoiser sees noised pictures.

    Each picture is encoded once, and its latents are noised to `steps` timesteps that are drawn as the family's
    training draws them. For each of them the denoiser predicts with the caption and with the empty prompt.

    Args:
        family: of the live pipeline; it stays as it is.
        found: the pictures with their captions.
        probes: the layers, by parameter name.
        steps: timesteps of each picture.
        resolution: side of the square that pictures are scaled and cut to, in pixels; the model's own if not given.

    Raises:
        AttachError: the pipeline has no such layer.
        InputError: a picture cannot be read any more.
        TrainError: the pipeline cannot read prompts.
    """
    side = family.resolution if resolution is None else resolution
    prompts = [tuple(dict.fromkeys((picture.caption or "", ""))) for picture in found.pictures]
    family.prepare()  # layers are looked at from here on
    runs = [(index, step, prompt) for index, texts in enumerate(prompts) for step in range(steps) for prompt in texts]

    def see() -> None:
        texts = Texts(family, trained=False)
        loaded = [load_image(picture.path, side) for picture in found.pictures]
        moments = [family.encode_images(picture.pixels[None]) for picture in loaded]
        for start in range(0, len(runs), BATCH):
            chunk = runs[start : start + BATCH]
            noised, timesteps = _noised(family, moments, chunk)
            sizes = torch.tensor([loaded[index].sizes for index, _, _ in chunk])
            text = texts.conditioning([prompt for _, _, prompt in chunk])
            family.predict(family.denoiser, noised, timesteps, {**text, "sizes": sizes})

    return measure(family.pipeline, probes, see)


def _noised(family: Family, moments: Sequence[Tensor], chunk: Sequence[tuple[int, int, str]]) -> tuple[Tensor, Tensor]:
    """Return noised latents (batch, channels, height, width) and timesteps (batch,) of (picture, step, prompt)."""
    device = next(family.denoiser.parameters()).device
    shape = tuple(moments[0].shape[2:])

    def drawn(purpose: str) -> Tensor:
        return torch.stack([seeded_random.noise(shape, SEED, step, index, purpose) for index, step, _ in chunk]).to(
            device
        )

    generators = (seeded_random.generator(SEED, step, index, "timestep") for index, step, _ in chunk)
    timesteps = torch.stack([family.draw_timestep(generator) for generator in generators]).to(device)
    batch = torch.cat([moments[index] for index, _, _ in chunk]).to(device)
    noised, _ = family.noised(family.sample_latents(batch, drawn("posterior")), drawn("noise"), timesteps)
    return noised, timesteps
