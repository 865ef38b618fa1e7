"""Prepare a run: the live model's family, checked pictures of every concept, and what draws from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import InputError
from svdiff_train.data.batches import Batches
from svdiff_train.data.concept_batches import ConceptBatches
from svdiff_train.data.cut_mix import Mixing
from svdiff_train.data.image_sets import ClassPictures, FolderPictures, Pictures, open_pictures
from svdiff_train.families import Family, family_of
from svdiff_train.methods import METHODS
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig

from .class_images import class_folder, class_pictures
from .processes import ALONE, Crew
from .unmix import Unmix

NAMES: Final[Mapping[str, str]] = {"no": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class RunInputs:
    """What a run starts from.

    Attributes:
        config: of the run.
        family: of the live model.
        concepts: what is learned, one or several.
        subjects: the pictures of each.
        selectors: what is trained.
        resolution: side of square pictures in pixels.
        mixing: how often and how concepts are mixed.
        unmix: the regularization of the attention; None without.
    """

    config: TrainConfig
    family: Family
    concepts: tuple[Concept, ...]
    subjects: tuple[FolderPictures, ...]
    selectors: tuple[str, ...]
    resolution: int
    mixing: Mixing
    unmix: Unmix | None

    def facts(self) -> dict[str, Any]:
        """Return what is recorded of them; of several concepts, the numbers of their pictures in order."""
        counts = [len(subject.sizes) for subject in self.subjects]
        images = counts if len(counts) > 1 else counts[0]
        return {"selectors": list(self.selectors), "images": images, "resolution": self.resolution}

    def lines(self) -> Iterator[str]:
        """Yield what a person should read of the pictures, one fact per line."""
        for concept, subject in zip(self.concepts, self.subjects, strict=True):
            for line in subject.counts().lines():
                yield line if len(self.concepts) == 1 else f"{concept.noun}: {line}"

    def digest(self) -> str:
        """Return a digest of what is trained on, of all concepts in order."""
        digests = [subject.digest() for subject in self.subjects]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def classes(
        self, base: Base, folder: Path | None, progress: Callable[[int, int], None] | None, crew: Crew = ALONE
    ) -> dict[str, ClassPictures]:
        """Return the pictures of the classes that take part by their prompts, after painting what is not there yet.

        Args:
            base: what is painted with.
            folder: where they are kept; of several concepts, in a sub-folder for each class prompt.
            progress: called with pictures done and in all, of each class.
            crew: the processes of the run, which all call this.
        """
        config, painted = self.config, dict[str, ClassPictures]()
        for concept in self.concepts if config.with_prior else ():
            prompt = concept.class_prompt or ""
            if prompt not in painted:
                place = class_folder(folder, prompt) if folder is not None and len(self.concepts) > 1 else folder
                pictures = class_pictures(
                    self.family.pipeline,
                    prompt,
                    config.class_images,
                    config.seed,
                    base=base.info.repository or "",
                    folder=place,
                    progress=progress,
                    crew=crew,
                )
                painted[prompt] = ClassPictures(pictures, prompt)
        return painted

    def batches(self, painted: Mapping[str, ClassPictures]) -> Batches:
        """Return what draws batches, with the pictures of the classes that take part."""
        config = self.config
        sets: list[list[Pictures]] = [
            [subject, *([painted[concept.class_prompt or ""]] if painted else [])]
            for concept, subject in zip(self.concepts, self.subjects, strict=True)
        ]
        crop = config.crop == "random"
        if len(sets) == 1:
            return Batches(self.family, sets[0], seed=config.seed, crop=crop, flip=config.flip)
        return ConceptBatches(
            self.family, self.concepts, sets, self.mixing, seed=config.seed, crop=crop, flip=config.flip
        )


def prepare_run(
    base: Base, images: Path | None, config: TrainConfig, device: torch.device, *, skip_bad: bool
) -> RunInputs:
    """Load the model, and find and check the pictures.

    Args:
        base: the opened pipeline.
        images: a folder of the subject's pictures; None if the config has concepts, which name their own.
        config: of the run.
        device: where the model goes.
        skip_bad: whether to go on without pictures that cannot be read.

    Raises:
        InputError: pictures are missing, named twice or unreadable, or the model cannot take the resolution.
        BaseError: the base cannot be loaded.
        SelectionError: no attention map is what the unmix regularization should look at.
        TrainError: no family knows the base; or it has no attention maps, and the unmix regularization is asked for.
    """
    if (images is None) == (config.concepts is None):
        what = "the folder of pictures is missing" if images is None else "pictures are named beside concepts"
        raise InputError(what, fix="name one folder, or concepts that name their own")
    method = METHODS[config.method]
    dtype = NAMES[config.mixed_precision] if method.half() else "F32"
    family = family_of(load_pipeline(base, device=device, dtype=dtype))
    resolution = config.resolution or family.resolution
    if resolution % family.unit:
        raise InputError(f"the model cannot take {resolution} pixels", fix=f"use a multiple of {family.unit}")
    concepts = config.subjects(images)
    subjects = tuple(
        open_pictures(concept.images, config, resolution, family.unit, skip_bad=skip_bad, concept=concept)
        for concept in concepts
    )
    mixing = Mixing(config.mixing, *config.templates)
    unmix = None
    if config.unmix:
        unmix = Unmix(
            family,
            concepts,
            mixing,
            layers=config.unmix_layers,
            resolutions=config.unmix_resolutions,
            resolution=resolution,
        )
    selectors = config.selectors or method.selectors(family)
    return RunInputs(config, family, concepts, subjects, selectors, resolution, mixing, unmix)
