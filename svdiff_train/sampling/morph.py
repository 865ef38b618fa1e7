"""From one subject to another in steps, always from the same noise (Fig. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from PIL import Image

from svdiff_delta._util.json import canonical_json
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import InputError
from svdiff_delta.svd.cache import BasisCache

from .adapter_stack import AdapterStack, Part
from .graphed_denoiser import GraphedDenoiser
from .png import Facts
from .sample import Sampling, check_sampling, generate, sheet

FRAME: Final = 200
"""Milliseconds that each picture of an animation stands."""


@dataclass(frozen=True)
class Frame:
    """One picture on the way.

    Attributes:
        alpha: α of Eq. 5, the share of the first part.
        image: the picture.
    """

    alpha: float
    image: Image.Image

    @property
    def label(self) -> str:
        """What stands over it."""
        return f"α = {self.alpha:.3g}"


def morph(
    pipeline: Any,
    base: Base,
    a: Part,
    b: Part,
    prompt: str,
    *,
    seed: int = 0,
    count: int = 7,
    sampling: Sampling | None = None,
    cache: BasisCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    graphs: GraphedDenoiser | None = None,
) -> list[Frame]:
    """Return pictures at `count` values of α, evenly from 0 to 1.

    Two deltas are interpolated as α δ_a + (1 − α) δ_b (Eq. 5), two tuned models as W + α ΔW_a + (1 − α) ΔW_b. A delta
    and a tuned model share the way alike: each has its weight.

    Args:
        pipeline: the live pipeline; it is left as it was.
        base: where its weights are from.
        a: what is shown at α = 1.
        b: what is shown at α = 0.
        prompt: what to paint.
        seed: of the noise of all pictures.
        count: how many pictures, at least 2.
        sampling: how to sample; the paper's DDIM with η = 0 if not given.
        cache: where bases are kept; the default cache if not given.
        progress: called with pictures done and in all.
        graphs: runs this pipeline's denoiser.

    Raises:
        InputError: there are less than 2 pictures, or the pipeline cannot sample so.
        AttachError, BaseError, BaseMismatchError: a part does not fit the pipeline.
    """
    if count < 2:
        raise InputError(f"the way has at least 2 pictures, not {count}")
    sampling = sampling or Sampling()
    check_sampling(pipeline, sampling)
    frames = []
    with AdapterStack(pipeline, base, [a, b], cache=cache) as stage:
        for index in range(count):
            alpha = index / (count - 1)
            with stage.active([alpha, 1.0 - alpha]):
                (image,) = generate(pipeline, [(prompt, seed)], sampling, graphs=graphs)
            frames.append(Frame(alpha, image))
            if progress is not None:
                progress(len(frames), count)
    return frames


def strip(frames: Sequence[Frame], label: str = "") -> Image.Image:
    """Return all pictures side by side, each under its α.

    Args:
        frames: the pictures.
        label: what stands to the left of them.
    """
    return sheet([(label, [frame.image for frame in frames])], [frame.label for frame in frames])


def gif_bytes(frames: Sequence[Frame], facts: Facts, *, label: str = "") -> bytes:
    """Return an endless animation with α on each picture; facts stand in its comment as canonical JSON.

    Args:
        frames: the pictures.
        facts: what to say of them.
        label: what stands to the left of each.
    """
    first, *others = [sheet([(label, [frame.image])], [frame.label]) for frame in frames]
    stream = BytesIO()
    comment = canonical_json(dict(facts))
    first.save(stream, "GIF", save_all=True, append_images=others, duration=FRAME, loop=0, comment=comment)
    return stream.getvalue()
