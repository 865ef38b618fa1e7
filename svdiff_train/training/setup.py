"""Prepare a run: the live model's family, checked pictures of every concept, and what draws from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.mapped_tensor import TORCH_DTYPES
from svdiff_delta.base_model.weight_selection import choose_kinds
from svdiff_delta.errors import InputError
from svdiff_delta.format.dtypes import VARIANT_DTYPES
from svdiff_train.data.batches import Batches
from svdiff_train.data.buckets import Size
from svdiff_train.data.concept_batches import ConceptBatches
from svdiff_train.data.cut_mix import Mixing
from svdiff_train.data.image_sets import ClassPictures, Pictures, Subject, open_pictures
from svdiff_train.families import Family, family_of
from svdiff_train.memory.plan import MemoryPlan, plan_memory, weight_bytes
from svdiff_train.memory.quantization import quantize
from svdiff_train.methods import METHODS
from svdiff_train.sampling.graphed_denoiser import GraphedDenoiser
from svdiff_train.sampling.pipelines import load_pipeline
from svdiff_train.settings.concept import Concept
from svdiff_train.settings.config import TrainConfig

from .class_images import class_folder, class_pictures
from .meaning import settle_family
from .processes import ALONE, Crew
from .unmix import Unmix

NAMES: Final[Mapping[str, str]] = {"no": "F32", "fp16": "F16", "bf16": "BF16"}
HALF: Final[Mapping[str, torch.dtype]] = {name: TORCH_DTYPES[VARIANT_DTYPES[name]] for name in ("fp16", "bf16")}


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
    subjects: tuple[Subject, ...]
    selectors: tuple[str, ...]
    resolution: int
    mixing: Mixing
    unmix: Unmix | None

    def facts(self) -> dict[str, Any]:
        """Return what is recorded of them; of several concepts, the numbers of their pictures in order."""
        counts = [len(subject.sizes) for subject in self.subjects]
        images = counts if len(counts) > 1 else counts[0]
        return {"selectors": list(self.selectors), "images": images, "resolution": self.resolution}

    def trained(self, base: Base) -> frozenset[str]:
        """Return the components that something is trained of."""
        names = choose_kinds(base, self.selectors, allow_missing=self.config.allow_missing)
        return frozenset(name.partition(".")[0] for name in names)

    def weight_bytes(self) -> int:
        """Return the bytes of all weights of the live model."""
        parts = self.family.pipeline.components.values()
        return sum(weight_bytes(part) for part in parts if isinstance(part, torch.nn.Module))

    @property
    def largest(self) -> Size:
        """Height and width of the largest pictures of the subjects."""
        return max((size for subject in self.subjects for size in subject.sizes), key=prod)

    def memory(self, base: Base, device: torch.device, processes: int = 1) -> MemoryPlan | None:
        """Return what the run is going to need; None where that is not known for its method.

        Args:
            base: the opened base.
            device: where it is going to run.
            processes: how many share out the denoiser's weights.
        """
        half = HALF.get(self.config.mixed_precision)
        cast = None if self.family.dtype == half else half
        return plan_memory(
            self.family, base, self.config, self.selectors, self.largest, device, processes=processes, cast=cast
        )

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
        self,
        base: Base,
        folder: Path | None,
        progress: Callable[[int, int], None] | None,
        crew: Crew = ALONE,
        graphs: GraphedDenoiser | None = None,
    ) -> dict[str, ClassPictures]:
        """Return the pictures of the classes that take part by their prompts, after painting what is not there yet.

        Args:
            base: what is painted with.
            folder: where they are kept; of several concepts, in a sub-folder for each class prompt.
            progress: called with pictures done and in all, of each class.
            crew: the processes of the run, which all call this.
            graphs: runs the denoiser.
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
                    graphs=graphs,
                )
                painted[prompt] = ClassPictures(pictures, prompt)
        return painted

    def batches(self, painted: Mapping[str, ClassPictures]) -> Batches:
        """Return what draws batches, with the pictures of the classes that take part."""
        config = self.config
        self.family.prepare()
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


def _family(base: Base, config: TrainConfig, device: torch.device, dtype: str) -> Family:
    """Return the family of the live model, whose weights are quantized before they are brought to the device."""
    if config.quantization == "no":
        return family_of(load_pipeline(base, device=device, dtype=dtype))
    family = family_of(load_pipeline(base, dtype=dtype))
    quantize(family.denoiser, config.quantization, family.dtype)
    family.pipeline.to(device)
    return family


def prepare_run(
    base: Base, images: Path | None, config: TrainConfig, device: torch.device, *, skip_bad: bool
) -> RunInputs:
    """Load the model, and find and check the pictures.

    Args:
        base: the opened pipeline.
        images: a folder of the subject's pictures; None if the config has concepts, which name their own.
        config: of the run.
        device: where the model goes.
        skip_bad: whether to go on without pictures, clips and pairs that cannot be used.

    Raises:
        MissingExtraError: the library is not installed that weights are to be quantized by.
        InputError: pictures are missing, named twice or unreadable, or the model cannot take the resolution.
        BaseError: the base cannot be loaded.
        SelectionError: no attention map is what the unmix regularization should look at.
        TrainError: no family knows the base; a setting has no meaning for it; or it has no attention maps, and the
            unmix regularization is asked for.
    """
    if (images is None) == (config.concepts is None):
        what = "the folder of pictures is missing" if images is None else "pictures are named beside concepts"
        raise InputError(what, fix="name one folder, or concepts that name their own")
    method = METHODS[config.method]
    dtype = NAMES[config.mixed_precision] if method.half() else "F32"
    family = _family(base, config, device, dtype)
    settle_family(family, config)
    resolution = config.resolution or family.resolution
    if resolution % family.unit:
        raise InputError(f"the model cannot take {resolution} pixels", fix=f"use a multiple of {family.unit}")
    concepts = config.subjects(images)
    frames: int | None = getattr(family, "frames", None)
    subjects = tuple(
        open_pictures(
            concept.images,
            config,
            resolution,
            family.unit,
            skip_bad=skip_bad,
            concept=concept,
            frames=frames,
            companion=family.companion,
        )
        for concept in concepts
    )
    mixing = Mixing(config.mixing, *config.templates)
    unmix = None
    if config.unmix:
        unmix = Unmix(
            family,
            concepts,
            mixing,
            maps=config.unmix_maps,
            layers=config.unmix_layers,
            resolutions=config.unmix_resolutions,
            resolution=resolution,
        )
    selectors = config.selectors or method.selectors(family)
    return RunInputs(config, family, concepts, subjects, selectors, resolution, mixing, unmix)
