"""Painting from an initial picture, by the pipeline's image-to-image twin or by a pipeline that edits pictures."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from PIL import Image, ImageOps

from svdiff_delta.errors import InputError

from .guidance import parameters

if TYPE_CHECKING:
    from .sample import Sampling

STRENGTH: Final = 0.8
"""How much of the noise an initial picture gets where nothing is said, as in diffusers' image-to-image pipelines."""


def image_to_image(pipeline: Any) -> Any:
    """Return what paints from an initial picture with a pipeline's models: itself, if it takes one, else its twin.

    Raises:
        InputError: it takes none, and diffusers knows no twin.
    """
    if "image" in parameters(pipeline):
        return pipeline
    from diffusers import AutoPipelineForImage2Image

    try:
        twin: Any = _video_twin(pipeline) or AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError:
        name = type(pipeline).__name__
        raise InputError(
            f"{name}: takes no initial picture, and diffusers has no image-to-image pipeline for it",
            fix="leave the picture out",
        ) from None
    twin.set_progress_bar_config(disable=True)
    return twin


def _video_twin(pipeline: Any) -> Any | None:
    """Return what makes clips from a first frame with a pipeline's models; None where they cannot see one.

    Of Wan's text-to-video models that of Wan 2.2 5B can, which is told a timestep for each token.
    """
    import diffusers

    name = type(pipeline).__name__
    if name not in VIDEO_TWINS or (name == "WanPipeline" and not pipeline.config.get("expand_timesteps")):
        return None
    kind: Any = getattr(diffusers, VIDEO_TWINS[name])
    known = {**pipeline.config, **pipeline.components}
    return kind(**{key: known[key] for key in inspect.signature(kind.__init__).parameters if key in known})


VIDEO_TWINS: Final = {"LTXPipeline": "LTXImageToVideoPipeline", "WanPipeline": "WanImageToVideoPipeline"}
"""Pipelines that make clips from a picture, by those that make them from text; diffusers' own table lacks them."""


@dataclass(frozen=True)
class Initial:
    """What is painted from.

    Attributes:
        image: a picture that is changed, or filled in.
        mask: white where it is filled in; None for all of it.
    """

    image: Image.Image
    mask: Image.Image | None = None


def needed(pipeline: Any) -> tuple[str, ...]:
    """Return what a pipeline cannot paint without: `image` and `mask_image`, of pipelines that edit or fill in."""
    taken = parameters(pipeline)
    if "mask_image" in taken:
        return ("image", "mask_image")
    return ("image",) if type(pipeline).__name__ in EDITING else ()


def check_needed(pipeline: Any) -> None:
    """Raise InputError if a pipeline cannot paint without something to paint from."""
    if lacking := needed(pipeline):
        raise InputError(
            f"{type(pipeline).__name__}: paints from {' and '.join(lacking)}",
            fix="give an initial picture, `init_image`",
        )


EDITING: Final = ("FluxKontextPipeline", "QwenImageEditPipeline", "WanImageToVideoPipeline")
"""Pipelines that say a picture is optional and do not paint without one, or not as they were trained."""


def initial(painter: Any, start: Initial, sampling: Sampling, unit: int) -> dict[str, Any]:
    """Return the arguments that give a pipeline its initial picture and mask, in a size that it can paint.

    Args:
        painter: what paints from it.
        start: the picture, and the mask if there is one.
        sampling: how it samples; its size, or else that of the picture, is what is painted.
        unit: sides are multiples of it.

    Raises:
        InputError: a strength is given, and the pipeline knows none; or a mask is, or is not, against what it takes.
    """
    taken, image = parameters(painter), start.image
    name = type(painter).__name__
    if start.mask is None and "mask_image" in taken:
        raise InputError(f"{name}: fills in, and is told no mask", fix="give a mask, white where it fills in")
    if start.mask is not None and "mask_image" not in taken:
        raise InputError(f"{name}: takes no mask", fix="leave the mask out")
    height, width = sampling.height or image.height, sampling.width or image.width
    height, width = (max(unit, side // unit * unit) for side in (height, width))
    given: dict[str, Any] = {"image": ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)}
    if start.mask is not None:
        given["mask_image"] = ImageOps.fit(start.mask.convert("L"), (width, height), Image.Resampling.NEAREST)
    if "strength" in taken and start.mask is None:
        given["strength"] = STRENGTH if sampling.strength is None else sampling.strength
    elif "strength" in taken and sampling.strength is not None:
        given["strength"] = sampling.strength
    elif sampling.strength is not None:
        raise InputError(f"{type(painter).__name__}: is told what to change, not how much", fix="leave out strength")
    if "max_area" in taken:  # of Kontext, which else paints about a million pixels whatever it is asked for
        given |= {"max_area": height * width, "_auto_resize": False}
    return {**given, "height": height, "width": width}
