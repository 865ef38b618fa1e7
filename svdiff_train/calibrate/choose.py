"""Choose the kind of calibration for a path: a file of prompts, a folder of pictures, or texts for a language model."""

from __future__ import annotations

from pathlib import Path

import torch

from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.devices import find_device
from svdiff_delta.svd.calibration import Calibration
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.prompts import read_prompts

from .pictures import calibration_on_pictures, digest_pictures, find_pictures
from .prompts import calibration_on, digest_lines
from .texts import calibration_on_texts, is_language_model, load_language_model


def calibration_from(path: Path, base: Base, *, steps: int = 20, device: str | torch.device = "cpu") -> Calibration:
    """Return the calibration of a base on what lies at a path; the base is loaded when it is needed.

    A folder's pictures are noised, with its captions. A file's lines are prompts that a pipeline paints, and texts that
    a language model reads.

    Args:
        path: a folder of pictures, or a file with one prompt or text per line.
        base: the opened base.
        steps: denoising steps of each prompt, or timesteps of each picture.
        device: where the base runs.

    Raises:
        InputError: there is no such device, what lies there cannot be read or is empty, or there is no step.
    """
    place = find_device(device)
    if path.is_dir():
        return calibration_on_pictures(lambda: load_pipeline(base, device=place), find_pictures(path), steps=steps)
    lines = read_prompts(path)
    if is_language_model(base):
        return calibration_on_texts(lambda: load_language_model(base, device=place), lines)
    return calibration_on(lambda: load_pipeline(base, device=place), lines, steps=steps)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of what lies at a path, as a lineage has it.

    Raises:
        InputError: it cannot be read or is empty.
    """
    return digest_pictures(find_pictures(path)) if path.is_dir() else digest_lines(read_prompts(path))
