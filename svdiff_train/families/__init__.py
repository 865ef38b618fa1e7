"""Model families: what training must know about a pipeline, one small file each."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Final

from svdiff_delta.errors import TrainError

from .aura_flow import AuraFlow
from .autoencoders import autoencoder_of
from .chroma import Chroma
from .family import Conditioning as Conditioning
from .family import Family as Family
from .flux import Flux
from .flux2 import Flux2
from .flux_pairs import FluxFill, FluxKontext
from .hidream import HiDream
from .inpainting import Inpainting, InpaintingXL
from .krea2 import Krea2
from .lumina2 import Lumina2
from .qwen_image import QwenImage
from .qwen_image_edit import QwenImageEdit
from .recorded import Recorded
from .sana import Sana
from .stable_diffusion import StableDiffusion
from .stable_diffusion_3 import StableDiffusion3
from .stable_diffusion_xl import StableDiffusionXL
from .videos import Ltx, Wan
from .wan_image import WanImage
from .z_image import ZImage

FAMILIES: Final[dict[str, Callable[[Any], Family]]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "ZImagePipeline": ZImage,
    "QwenImagePipeline": QwenImage,
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Flux2,
    "WanPipeline": Wan,
    "WanImageToVideoPipeline": WanImage,
    "Krea2Pipeline": Krea2,
    "ChromaPipeline": Chroma,
    "Lumina2Pipeline": Lumina2,
    "SanaPipeline": Sana,
    "LTXPipeline": Ltx,
    "AuraFlowPipeline": AuraFlow,
    "HiDreamImagePipeline": HiDream,
    "StableDiffusionInpaintPipeline": Inpainting,
    "StableDiffusionXLInpaintPipeline": InpaintingXL,
    "FluxKontextPipeline": FluxKontext,
    "FluxFillPipeline": FluxFill,
    "QwenImageEditPipeline": QwenImageEdit,
}
"""Family by the class name of the pipeline."""


def family_of(pipeline: Any) -> Family:
    """Return the family of a live pipeline.

    Raises:
        TrainError: no family knows its class, or what its scheduler predicts; it names the nearest that is known, and
            what the pipeline's own run lacked.
    """
    name = type(pipeline).__name__
    if name not in FAMILIES:
        nearest = get_close_matches(name, FAMILIES, n=1, cutoff=0.0)[0]
        raise TrainError(
            f"{name}: no model family knows this pipeline ({lacking(pipeline)}); the nearest known is {nearest}",
            fix=f"known are {', '.join(FAMILIES)}",
        )
    return FAMILIES[name](pipeline)


def lacking(pipeline: Any) -> str:
    """Return what an unknown pipeline's own run does not tell, or what nothing else tells if it is clear."""
    parts = [part for part in ("transformer", "vae", "scheduler") if getattr(pipeline, part, None) is None]
    if parts or not hasattr(pipeline, "encode_prompt"):
        return f"it cannot be recorded: it has no {', '.join([*parts] or ['encode_prompt'])}"
    try:
        found = Recorded(pipeline).learned
    except TrainError as error:
        return error.message.partition(": ")[2]
    except Exception as error:  # noqa: BLE001 - whatever a foreign pipeline raises, it is not known
        return f"it cannot be recorded: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return (
        f"its recording is clear, with latents in {found.latents.argument} and time in {found.time.argument}; nothing "
        "says how its latents are packed"
    )


def unit_of(pipeline: Any) -> int | None:
    """Return what sides of pictures of a recorded family are multiples of; None of other pipelines."""
    kind = FAMILIES.get(type(pipeline).__name__)
    if not (isinstance(kind, type) and issubclass(kind, Recorded)):
        return None
    return autoencoder_of(pipeline).spatial * kind.patch
