"""Whether a family's whole pipeline trains and paints: every model of it tiny, of its real class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from support.pipelines import small_flux, small_sd2, small_sd3, small_sdxl
from support.recorded_pipelines import BUILDERS, VIDEOS
from support.recorded_runs import colour, loss_of, shown
from support.recorded_truth import PROMPT
from support.seeing_pipelines import MASKED, SEEING, wan_image

from svdiff_delta import attach
from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.format.delta import Delta
from svdiff_train.data.batches import Batches
from svdiff_train.families import FAMILIES, family_of
from svdiff_train.sampling.image_to_image import Initial
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.training.loop import train
from svdiff_train.training.setup import prepare_run

from .cell import LackingError
from .rows import Made

FROM_PICTURE: Final = "Wan 2.1 from a picture"

WHOLE: Final[Mapping[str, Callable[[], Any]]] = {
    **BUILDERS,
    **SEEING,
    FROM_PICTURE: wan_image,
    "SD 1": partial(small_sd2, prediction_type="epsilon"),
    "SD 2": small_sd2,
    "SDXL": small_sdxl,
    "SD 3": small_sd3,
    "SD 3.5 medium": partial(small_sd3, qk_norm="rms_norm", dual_attention_layers=(0,)),
    "SD 3.5 large": partial(small_sd3, qk_norm="rms_norm"),
    "Flux.1 dev": small_flux,
    "Flux.1 schnell": partial(small_flux, guided=False),
}
"""How the whole pipeline of a family is made."""

UNSAVED: Final = ("Qwen-Image-Edit",)
"""Pipelines whose tiny processor does not come back from a folder as it was."""


def side_of(name: str, unit: int) -> int:
    """Return the side of pictures that are small and that the family takes."""
    return 8 if name == "HiDream" else {"SDXL": 16}.get(name, max(16, 4 * unit if unit < 32 else unit))


def whole(made: Made) -> Base:
    """Return the base that a family's whole pipeline is."""
    if made.family.pipeline not in FAMILIES:
        raise LackingError(f"{made.family.pipeline}: no model family knows this pipeline")
    if made.name in UNSAVED:
        raise LackingError("its tiny processor does not come back from a folder; a test trains it in memory")
    folder = made.folder / "whole"
    if not folder.exists():
        WHOLE[made.name]().save_pretrained(folder)
    return open_base(folder)


def beside(name: str, place: Path, side: int) -> None:
    """Put what is seen beside pictures where training looks for it."""
    if name not in SEEING:
        return
    folder = place / ("masks" if name in MASKED else "conditions")
    folder.mkdir()
    for index in range(2):
        colour(index + 3, side).save(folder / f"{index}.png")


def prepared(made: Made) -> tuple[Base, Path, TrainConfig]:
    """Return a base, its pictures and a run on them."""
    base = whole(made)
    family: Any = family_of(load_pipeline(base))
    side = side_of(made.name, family.unit)
    frames = 1 + family.frame_unit if made.name in VIDEOS else None
    if made.name == FROM_PICTURE:  # Wan's autoencoder reads four frames at a time after the first
        frames = 5
    place = made.folder / "shown"
    if not place.exists():
        shown(made.folder, side, frames)
        beside(made.name, place, side)
    rates = {"learning_rate": 0.1, "learning_rate_1d": 0.01}
    return base, place, TrainConfig(prompt=PROMPT, steps=10, resolution=side, num_frames=frames, **rates)


def trained(made: Made) -> str:
    """A run on the same noise at every step lowers the loss on it, and shifts have moved."""
    base, place, config = prepared(made)
    own = Batches.batch
    with patch.object(Batches, "batch", lambda batches, step, samples: own(batches, 0, samples)):
        delta = train(base, place, config).delta
    opened = prepare_run(base, place, config, torch.device("cpu"), skip_bad=False)
    batch = opened.batches({}).batch(0, [0])
    before = loss_of(opened.family, batch)
    with attach(opened.family.pipeline, delta, base=base):
        assert loss_of(opened.family, batch) < before
    moved = [name for name in delta if delta[name].any()]
    assert len(moved) > 0.4 * len(delta)  # of two experts one; the last block's text reaches nothing in some
    return str(len(moved))


def painted(made: Made) -> str:
    """With a delta on, the pipeline paints something else, of the size that was asked for."""
    base, _, config = prepared(made)
    pipeline: Any = load_pipeline(base)
    family: Any = family_of(pipeline)
    if made.name == "HiDream":
        pipeline.default_sample_size = 8
    side = config.resolution
    sampling = Sampling(steps=2, height=side, width=side, num_frames=config.num_frames, guidance=1.0)
    assert side is not None
    start = None
    if made.name in (*SEEING, FROM_PICTURE):
        start = Initial(colour(0, side), colour(3, side) if made.name in MASKED else None)
    (plain,) = generate(pipeline, [(PROMPT, 0)], sampling, init=start)
    from support.models import base_delta

    delta: Delta = base_delta(base, *family.slots, size=0.3)
    with attach(pipeline, delta, base=base):
        (other,) = generate(pipeline, [(PROMPT, 0)], sampling, init=start)
    frames = [plain] if isinstance(plain, Image.Image) else list(plain)
    others = [other] if isinstance(other, Image.Image) else list(other)
    assert any((np.asarray(one) != np.asarray(two)).any() for one, two in zip(frames, others, strict=True))
    size = f"{frames[0].width}x{frames[0].height}"
    return size if isinstance(plain, Image.Image) else f"{size}x{len(frames)}"
