"""Where the report's trainings and pictures are made: one live base, and a folder of everything that was trained."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from filelock import FileLock
from PIL import Image

from svdiff_delta._util.atomic import replace_file
from svdiff_delta._util.json import canonical_json
from svdiff_delta.base_model.base import open_base
from svdiff_delta.format.delta import Delta
from svdiff_delta.io import load
from svdiff_delta.runtime import attach
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.sampling.sample import Sampling, generate
from svdiff_train.settings.config import TrainConfig
from svdiff_train.tiny import base_path, open_tiny
from svdiff_train.training.class_images import class_pictures
from svdiff_train.training.keeping import Keeping
from svdiff_train.training.loop import train

from .recipe import CLASS_IMAGES, Recipe
from .subjects import SCENE, SUBJECTS

SAMPLING: Final = Sampling(steps=30, guidance=4.0, batch_size=8)
Job = tuple[str, int]
"""A prompt and a seed."""


@cache
def base_digest() -> str:
    """Return a digest of the embedded base's weights: with another base, everything is measured anew."""
    total = hashlib.sha256()
    for path in sorted(base_path().rglob("*.safetensors")):
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        recipe: what was trained.
        result: where it lies.
        seconds: what it took, the base being loaded and bases computed.
        size: bytes of what is particular to the result.
    """

    recipe: Recipe
    result: Path
    seconds: float
    size: int


class Lab:
    """The embedded base, live, and a work folder.

    Args:
        work: where trainings are kept and found again.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.base, self.cache = open_tiny(), BasisCache(work / "basis")
        self._plain: dict[tuple[Job, ...], list[Image.Image]] = {}

    @cached_property
    def pipeline(self) -> Any:
        """The live base, nothing attached."""
        return load_pipeline(self.base)

    def trained(self, recipe: Recipe) -> Trained:
        """Return a training, done now if it was not before."""
        folder = self.work / base_digest() / recipe.key()
        record = folder / "record.json"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # two cells may need the same
            if not record.exists() or not (folder / "steps").exists():
                self._train(recipe, folder)
        known = json.loads(record.read_bytes())
        return Trained(recipe, _only(folder / "steps"), known["seconds"], known["size"])

    def _train(self, recipe: Recipe, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if recipe.method == "svdiff":
            self._warm(recipe)
        begun = time.perf_counter()
        keeping = Keeping(folder=folder, every=recipe.steps, newest=1, results_every=recipe.steps)
        config = recipe.config()
        with self._images(recipe) as images:
            train(self.base, images, config, cache=self.cache, keeping=keeping, class_folder=self._classes(config))
        seconds = time.perf_counter() - begun
        shutil.rmtree(keeping.states, ignore_errors=True)
        facts = canonical_json({"seconds": round(seconds, 2), "size": _size(_only(folder / "steps"), recipe)})
        with replace_file(folder / "record.json", overwrite=True) as stream:
            stream.write(facts)

    def _warm(self, recipe: Recipe) -> None:
        """Compute bases before the clock starts: other trainings find them too."""
        from svdiff_delta.svd.build import zero_delta

        zero_delta(self.base, *(recipe.selectors or ("unet",)), cache=self.cache)

    @contextmanager
    def _images(self, recipe: Recipe) -> Iterator[Path | None]:
        """Give the folder of pictures, where the settings do not name folders of several concepts."""
        if recipe.scene is None:
            yield None if len(recipe.subjects) > 1 else SUBJECTS[recipe.subjects[0]].folder
            return
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(SCENE[recipe.scene].path, Path(folder) / "picture.png")
            yield Path(folder)

    def _classes(self, config: TrainConfig) -> Path:
        """Return where class pictures are kept: of one prompt, or in a folder for each of several."""
        if config.concepts:
            return self.work / base_digest() / f"class-{config.seed}"
        return self._class_folder(config.class_prompt or "", config.seed)

    def _class_folder(self, prompt: str, seed: int) -> Path:
        """Return a folder for each seed: every training has class pictures of its own seed."""
        return self.work / base_digest() / f"class-of-{seed}" / prompt.replace(" ", "-")

    def class_images(self, noun: str) -> list[Image.Image]:
        """Return the base's own pictures of a class."""
        prompt = f"a photo of a {noun}"
        return class_pictures(
            self.pipeline, prompt, CLASS_IMAGES, 0, base=self.base.info.repository or "",
            folder=self._class_folder(prompt, 0),
        )  # fmt: skip

    def paint_base(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """Return the base's own pictures, painted once: many cells compare with the same ones."""
        key = tuple(jobs)
        if key not in self._plain:
            self._plain[key] = self.paint(self.pipeline, jobs)
        return self._plain[key]

    @contextmanager
    def with_result(self, trained: Trained) -> Iterator[Any]:
        """Give a pipeline with what a training gave; nothing stays on the base."""
        if trained.recipe.method == "svdiff":
            with self.with_delta(load(trained.result)) as pipeline:
                yield pipeline
        elif trained.recipe.method == "lora":
            self.pipeline.load_lora_weights(str(trained.result))
            try:
                yield self.pipeline
            finally:
                self.pipeline.unload_lora_weights()
        else:
            yield load_pipeline(open_base(trained.result))

    @contextmanager
    def with_delta(self, delta: Delta, scale: float = 1.0) -> Iterator[Any]:
        """Give the base with a delta on it, fused: dozens of forwards pay for the products."""
        with attach(self.pipeline, delta, scale=scale, base=self.base, cache=self.cache, mode="fused"):
            yield self.pipeline

    def paint(self, pipeline: Any, jobs: Sequence[Job], negative: str | None = None) -> list[Image.Image]:
        """Return one picture per job."""
        sampling = Sampling(
            steps=SAMPLING.steps, guidance=SAMPLING.guidance, batch_size=SAMPLING.batch_size, negative_prompt=negative
        )
        return generate(pipeline, jobs, sampling)


def _only(folder: Path) -> Path:
    """Return the one thing in a folder."""
    (found,) = folder.iterdir()
    return found


def _size(path: Path, recipe: Recipe) -> int:
    """Return the bytes of a delta or LoRA, or of the tuned component: the base's others are not counted."""
    if path.is_file():
        return path.stat().st_size
    parts = {"lora": ("",), "full": ("unet",), "kv": ("unet", "text_encoder")}[recipe.method]
    files = (file for part in parts for file in (path / part).rglob("*.safetensors"))
    return sum(file.stat().st_size for file in files)
