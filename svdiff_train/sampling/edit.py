"""Single-image editing (section 3.4): inversion on the target prompt, some noise, and sampling with another prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from svdiff_delta.errors import InputError

from .ddim_inversion import ddim_invert, diffusion_family, encode_image, slerp
from .graphed_denoiser import GraphedDenoiser
from .sample import Sampling, Start, check_sampling, generate
from .schedulers import DDIM


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """How a picture is edited.

    Attributes:
        steps: of inversion, and of sampling.
        guidance: scale of classifier-free guidance while sampling; inversion is without (the paper's scale 1).
        eta: η of DDIM while sampling, within [0, 1].
        alpha: α of Eq. 7: how far the inverted latents go towards noise, within [0, 1].
        invert: whether to start from the picture's latents; else from the seed's noise, for changes of structure.
        negative_prompt: what guidance leads away from; nothing if not given.
        seeds: of the noise, one picture each. At α = 0 and η = 0 they all give the same.
        source_prompt: describes the picture, for its reconstruction, such as what its delta was trained on.
        batch_size: pictures that are painted at a time.
    """

    steps: int = 50
    guidance: float | None = 7.5
    eta: float = 0.0
    alpha: float = 0.0
    invert: bool = True
    negative_prompt: str | None = None
    seeds: tuple[int, ...] = (0,)
    source_prompt: str = ""
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"alpha must be within [0, 1], is {self.alpha}")
        if not self.seeds:
            raise InputError("editing needs at least 1 seed")
        self.sampling(8, 8)  # checks the rest

    def sampling(self, height: int, width: int) -> Sampling:
        """Return how edited pictures of a size in pixels are sampled."""
        return Sampling(
            steps=self.steps,
            guidance=self.guidance,
            eta=self.eta,
            negative_prompt=self.negative_prompt,
            batch_size=self.batch_size,
            scheduler=DDIM,
            height=height,
            width=width,
        )


@dataclass(frozen=True)
class Edited:
    """A picture and what became of it, all of one size.

    Attributes:
        source: the picture as the model takes it, scaled and cut.
        reconstruction: what inversion on the source prompt and sampling without guidance and noise make of it; None if
            that was not asked for.
        pictures: one row per edit, with a picture per seed.
    """

    source: Image.Image
    reconstruction: Image.Image | None
    pictures: tuple[tuple[Image.Image, ...], ...]


def edit(
    pipeline: Any,
    image: Image.Image,
    edits: Sequence[str],
    config: EditConfig,
    *,
    size: tuple[int, int] | None = None,
    reconstruct: bool = True,
    progress: Callable[[int, int], None] | None = None,
    graphs: GraphedDenoiser | None = None,
) -> Edited:
    """Paint a picture as each of some prompts would have it (section 3.4, Eq. 6 and 7).

    Args:
        pipeline: a live diffusion pipeline, with the delta on it that was trained on the picture.
        image: the picture.
        edits: the target prompts.
        config: how to edit.
        size: height and width in pixels; the square that the model was made for if not given.
        reconstruct: whether to paint the picture itself too, to see what inversion loses.
        progress: called with inversions and pictures done, and how many there are in all.
        graphs: runs this pipeline's denoiser, there and back.

    Raises:
        InputError: the pipeline is none of diffusion, there is no edit, or the size cannot be.
    """
    family = diffusion_family(pipeline)
    if not edits:
        raise InputError("there is nothing to edit", fix="give at least one target prompt")
    height, width = size or (family.resolution, family.resolution)
    sampling = config.sampling(height, width)
    check_sampling(pipeline, sampling)
    total = len(edits) * (len(config.seeds) + config.invert) + 2 * reconstruct
    painter = _Painter(pipeline, encode_image(pipeline, image, size=(height, width)), total, progress, graphs)
    reconstruction = None
    if reconstruct:
        back = EditConfig(steps=config.steps, guidance=1.0)
        (reconstruction,) = painter.paint(config.source_prompt, back, back.sampling(height, width))
    rows = tuple(tuple(painter.paint(text, config, sampling)) for text in edits)
    source = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    return Edited(source, reconstruction, rows)


class _Painter:
    """Paints from one picture's latents, and counts what is done."""

    def __init__(
        self,
        pipeline: Any,
        latents: Tensor,
        total: int,
        progress: Callable[[int, int], None] | None,
        graphs: GraphedDenoiser | None,
    ) -> None:
        self.pipeline, self.latents, self.graphs = pipeline, latents, graphs
        self.total, self.progress, self.done = total, progress, 0

    def paint(self, prompt: str, config: EditConfig, sampling: Sampling) -> list[Image.Image]:
        """Return a picture of a prompt per seed, from the inverted latents or from noise."""
        start = self._start(prompt, config) if config.invert else None
        jobs = [(prompt, seed) for seed in config.seeds]
        images = generate(self.pipeline, jobs, sampling, start=start, graphs=self.graphs)
        self._count(len(images))
        return images

    def _start(self, prompt: str, config: EditConfig) -> Start:
        with nullcontext() if self.graphs is None else self.graphs.running():
            inverted = ddim_invert(self.pipeline, self.latents, prompt, config.steps)
        self._count(1)

        def start(index: int, noise: Tensor) -> Tensor:
            del index
            return slerp(config.alpha, inverted.to(noise.device), noise.float()).to(noise.dtype)

        return start

    def _count(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)
