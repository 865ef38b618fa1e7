"""Paint many pictures in rows and columns, on a labelled sheet, each with the facts of how it was painted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from PIL import Image

from svdiff_delta._util.json import JSON
from svdiff_delta.base_model.base import Base
from svdiff_delta.svd.cache import BasisCache

from .adapter_stack import AdapterStack, Part, part_facts
from .graphed_denoiser import GraphedDenoiser
from .image_to_image import Initial
from .sample import Sampling, generate, sheet

Facts = Mapping[str, JSON]


@dataclass(frozen=True)
class Plan:
    """What to paint.

    Attributes:
        parts: what is put on the base, by label, with weights.
        prompts: what to paint.
        seeds: of the noise.
        sampling: how to sample.
        each: whether the base and every part alone have a row, with a column per prompt and seed; else there is a row
            per prompt, with the sum of all parts, and a column per seed.
        init: what is painted from; None for noise alone.
    """

    parts: Mapping[str, tuple[Part, float]]
    prompts: Sequence[str]
    seeds: Sequence[int]
    sampling: Sampling
    each: bool = False
    init: Initial | None = None

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """Every prompt with every seed."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def shown(self) -> list[list[float]]:
        """The weights of the parts, for each time that all jobs are painted."""
        weights = [weight for _, weight in self.parts.values()]
        if not self.each:
            return [weights]
        alone = [[w if i == j else 0.0 for j, w in enumerate(weights)] for i in range(len(weights))]
        return [[0.0] * len(weights), *alone]

    @property
    def rows(self) -> tuple[str, ...]:
        """The labels of the rows."""
        return ("base", *self.parts) if self.each else tuple(self.prompts)

    @property
    def columns(self) -> tuple[str, ...]:
        """The labels of the columns."""
        if not self.each:
            return tuple(f"seed {seed}" for seed in self.seeds)
        return tuple(prompt if len(self.seeds) == 1 else f"{prompt}, seed {seed}" for prompt, seed in self.jobs)

    def paint(
        self,
        pipeline: Any,
        base: Base,
        progress: Callable[[int, int], None] | None = None,
        *,
        cache: BasisCache | None = None,
        cuda_graphs: bool = True,
        say: Callable[[str], None] | None = None,
    ) -> Gallery:
        """Paint all of it.

        Args:
            pipeline: the live pipeline; it is left as it was.
            base: where its weights are from.
            progress: called with pictures done and in all.
            cache: where bases are kept; as `attach` has it if not given.
            cuda_graphs: whether the denoiser's forwards are CUDA graphs on such a device, where they can be.
            say: whom to tell why they are not.

        Raises:
            InputError: the pipeline cannot sample so.
            AttachError, BaseError, BaseMismatchError: a part does not fit the pipeline.
        """
        images: list[Any] = []
        total = len(self.shown) * len(self.jobs)
        graphs = GraphedDenoiser(pipeline, say=say) if cuda_graphs else None

        def tell(before: int, done: int, _: int) -> None:
            if progress is not None:
                progress(before + done, total)

        with AdapterStack(pipeline, base, [part for part, _ in self.parts.values()], cache=cache) as stage:
            for weights in self.shown:
                with stage.active(weights):
                    progressing = partial(tell, len(images))
                    images += generate(pipeline, self.jobs, self.sampling, progressing, graphs=graphs, init=self.init)
        return Gallery(self, tuple(images))


@dataclass(frozen=True)
class Gallery:
    """What was painted.

    Attributes:
        plan: what was to be painted.
        images: the pictures, row by row; of a pipeline that makes clips, the frames of each.
    """

    plan: Plan
    images: tuple[Any, ...]

    @property
    def clips(self) -> bool:
        """Whether they are clips."""
        return not isinstance(self.images[0], Image.Image)

    def whole(self) -> Image.Image:
        """Return the only picture, or a labelled sheet of them."""
        if len(self.images) == 1:
            return cast("Image.Image", self.images[0])
        width = len(self.plan.columns)
        rows = [(label, self.images[row * width :][:width]) for row, label in enumerate(self.plan.rows)]
        return sheet(rows, self.plan.columns)

    def facts(self, facts: Facts) -> dict[str, JSON]:
        """Return what the whole says of itself.

        Args:
            facts: what is known of all pictures, as of `sampling_facts`.
        """
        first = self.images[0][0] if self.clips else self.images[0]
        return {**facts, **_deltas(self._said()), "size": f"{first.width}x{first.height}"}

    def separate(self, facts: Facts) -> Iterator[tuple[str, Image.Image, dict[str, JSON]]]:
        """Yield a file name (its row and column), the picture, and what it says of itself, for each picture."""
        plan, said = self.plan, self._said()
        shared = {key: value for key, value in facts.items() if key not in ("prompts", "seeds")}
        for index, image in enumerate(self.images):
            showing, job = divmod(index, len(plan.jobs))
            row, column = divmod(index, len(plan.columns))
            prompt, seed = plan.jobs[job]
            here = [one for one, weight in zip(said, plan.shown[showing], strict=True) if weight or not plan.each]
            yield f"{row:03d}-{column:03d}.png", image, {**shared, "prompt": prompt, "seed": seed, **_deltas(here)}

    def separate_clips(self, facts: Facts) -> Iterator[tuple[str, Sequence[Image.Image], dict[str, JSON]]]:
        """Yield a file name, the frames, and what it says of itself, for each clip."""
        for name, frames, own in self.separate(facts):
            yield name.replace(".png", ".gif"), frames, own  # type: ignore[misc]

    def _said(self) -> list[JSON]:
        return [part_facts(part, weight) for part, weight in self.plan.parts.values()]


def _deltas(said: Sequence[JSON]) -> dict[str, JSON]:
    return {"deltas": list(said)} if said else {}
