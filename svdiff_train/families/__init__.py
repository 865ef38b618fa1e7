"""Model families: what training must know about a pipeline, one small file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from svdiff_delta.errors import TrainError

from .family import Conditioning as Conditioning
from .family import Family as Family
from .flux import Flux
from .stable_diffusion import StableDiffusion
from .stable_diffusion_3 import StableDiffusion3
from .stable_diffusion_xl import StableDiffusionXL

FAMILIES: Final[dict[str, Callable[[Any], Family]]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}
"""Family by the class name of the pipeline."""


def family_of(pipeline: Any) -> Family:
    """Return the family of a live pipeline.

    Raises:
        TrainError: no family knows its class, or what its scheduler predicts.
    """
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise TrainError(f"{name}: no model family knows this pipeline", fix=f"known are {', '.join(FAMILIES)}")
    return FAMILIES[name](pipeline)
