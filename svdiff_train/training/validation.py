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
from svdiff_train.sampling.clip_out import save_clip
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.image_to_image import Initial, check_needed, image_to_image, initial
from svdiff_train.sampling.sample import Sampling, check_sampling, generate, is_video, size_unit

from .processes import ALONE, Crew


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What to paint, and how often.

    Attributes:
        prompts: one picture each, always from the same noise.
        every: steps between; the last step is always painted.
        sampling: how to sample; guidance is the pipeline's own if it is not given.
        seed: of the first picture's noise.
        init: what is painted from, for pipelines that edit or fill in; the same for all prompts.
    """

    prompts: tuple[str, ...]
    every: int = 100
    sampling: Sampling = field(default_factory=partial(Sampling, steps=30, guidance=None))
    seed: int = 0
    init: Initial | None = None

    def __post_init__(self) -> None:
        if not self.prompts or self.every < 1:
            raise InputError("validation needs at least 1 prompt, and at least 1 step between pictures")

    def check(self, pipeline: Any) -> None:
        """Refuse before the first step what a pipeline could not paint on the way.

        Raises:
            InputError: as `check_sampling`; or it paints from something, and that is not given.
        """
        check_sampling(pipeline, self.sampling)
        if self.init is None:
            check_needed(pipeline)
        else:
            initial(image_to_image(pipeline), self.init, self.sampling, size_unit(pipeline))

    def is_due(self, step: int, steps: int) -> bool:
        """Tell whether to paint after a step."""
        return step % self.every == 0 or step == steps

    def paint(
        self,
        pipeline: Any,
        step: int,
        folder: Path | None,
        trackers: Sequence[Any],
        crew: Crew = ALONE,
        graphs: GraphedDenoiser | None = None,
    ) -> None:
        """Paint, into a folder and to every tracker that takes pictures; all processes share it out, the first writes.

        Args:
            pipeline: as it is now.
            step: steps that were done.
            folder: where pictures go.
            trackers: accelerate's.
            crew: the processes of the run, which all call this.
            graphs: runs the denoiser.
        """
        jobs = [(prompt, self.seed + index) for index, prompt in enumerate(self.prompts)]
        video = is_video(pipeline)
        size = 1 if video else self.sampling.batch_size
        chunks = [jobs[at : at + size] for at in range(0, len(jobs), size)]

        def painted(chunk: int) -> list[Image.Image]:
            found = generate(pipeline, chunks[chunk], self.sampling, graphs=graphs, init=self.init, strict=False)
            return list(found[0]) if video else found  # a clip is sent as its frames

        found = crew.paint(len(chunks), painted)
        if crew.first and video:
            self._write_clips(found, step, folder)
            self._show([frames[0] for frames in found], step, trackers)
        elif crew.first:
            self._write([picture for pictures in found for picture in pictures], step, folder, trackers)

    def _write_clips(self, clips: Sequence[Sequence[Image.Image]], step: int, folder: Path | None) -> None:
        for index, frames in enumerate(clips):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                facts = {"prompt": self.prompts[index], "seed": self.seed + index, "step": step}
                save_clip(frames, folder / f"step-{step:06d}-{index}.gif", facts, overwrite=True)

    def _write(self, pictures: Sequence[Image.Image], step: int, folder: Path | None, trackers: Sequence[Any]) -> None:
        for index, picture in enumerate(pictures):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                with replace_file(folder / f"step-{step:06d}-{index}.png", overwrite=True) as stream:
                    picture.save(stream, "PNG")
        self._show(pictures, step, trackers)

    def _show(self, pictures: Sequence[Image.Image], step: int, trackers: Sequence[Any]) -> None:
        """Give pictures, of clips their first frames, to every tracker that takes some."""
        stacked = {prompt: np.asarray(picture)[None] for prompt, picture in zip(self.prompts, pictures, strict=True)}
        for tracker in trackers:
            if tracker.name == "tensorboard":
                tracker.log_images(stacked, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({prompt: list(values) for prompt, values in stacked.items()}, step=step)
