"""Pictures painted while a run goes on, to see how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from svdiff_delta._util.atomic import replace_file
from svdiff_delta.errors import InputError
from svdiff_train.sampling.sample import Sampling, generate

from .processes import ALONE, Crew


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What to paint, and how often.

    Attributes:
        prompts: one picture each, always from the same noise.
        every: steps between; the last step is always painted.
        sampling: how to sample.
        seed: of the first picture's noise.
    """

    prompts: tuple[str, ...]
    every: int = 100
    sampling: Sampling = field(default_factory=partial(Sampling, steps=30))
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompts or self.every < 1:
            raise InputError("validation needs at least 1 prompt, and at least 1 step between pictures")

    def is_due(self, step: int, steps: int) -> bool:
        """Tell whether to paint after a step."""
        return step % self.every == 0 or step == steps

    def paint(self, pipeline: Any, step: int, folder: Path | None, trackers: Sequence[Any], crew: Crew = ALONE) -> None:
        """Paint, into a folder and to every tracker that takes pictures; all processes share it out, the first writes.

        Args:
            pipeline: as it is now.
            step: steps that were done.
            folder: where pictures go.
            trackers: accelerate's.
            crew: the processes of the run, which all call this.
        """
        jobs, size = (
            [(prompt, self.seed + index) for index, prompt in enumerate(self.prompts)],
            self.sampling.batch_size,
        )
        chunks = [jobs[at : at + size] for at in range(0, len(jobs), size)]
        found = crew.paint(len(chunks), lambda chunk: generate(pipeline, chunks[chunk], self.sampling))
        if crew.first:
            self._write([picture for pictures in found for picture in pictures], step, folder, trackers)

    def _write(self, pictures: Sequence[Image.Image], step: int, folder: Path | None, trackers: Sequence[Any]) -> None:
        for index, picture in enumerate(pictures):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                with replace_file(folder / f"step-{step:06d}-{index}.png", overwrite=True) as stream:
                    picture.save(stream, "PNG")
        stacked = {prompt: np.asarray(picture)[None] for prompt, picture in zip(self.prompts, pictures, strict=True)}
        for tracker in trackers:
            if tracker.name == "tensorboard":
                tracker.log_images(stacked, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({prompt: list(values) for prompt, values in stacked.items()}, step=step)
