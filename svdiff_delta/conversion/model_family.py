"""Find the family of models that a base belongs to, and its names in kohya's scripts and in ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from svdiff_delta.base_model.component import Component
from svdiff_delta.base_model.layout import read_json
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import BaseError

UNET: Final = "UNet2DConditionModel"
FOREIGN: Final = (
    "encoder_hid_proj.",
    "class_embedding.",
    "motion_modules.",
    "temp_convs.",
    "temporal_transformer_blocks.",
)
"""Parts of a UNet that none of Stable Diffusion's has: those of other models, and of video."""

CONTEXT: Final = "attn2.to_k.weight"
"""Ends the keys whose columns are the width of the text that cross-attention sees."""

FLUX2: Final = {6144: "flux_2_dev", 3072: "flux_2_klein_4b", 4096: "flux_2_klein_9b"}
"""musubi-tuner's words for the models of Flux.2, by their width."""

SD1, SD2, REFINER = 768, 1024, 1280
"""Those widths."""


@dataclass(frozen=True)
class Family:
    """The names of a family of models in other programs.

    Attributes:
        version: `ss_base_model_version`, by which AUTOMATIC1111 and others know the models that a file is for.
        architecture: `modelspec.architecture` without what follows the slash; empty where it has no sure word.
        second: whether it is Stable Diffusion 2, `ss_v2`.
        velocity: whether it predicts velocities, `ss_v_parameterization`; None if that is not known.
    """

    version: str
    architecture: str = ""
    second: bool = False
    velocity: bool | None = None

    def strings(self) -> dict[str, str]:
        """Return the metadata that kohya's scripts write of it."""
        found = {"ss_base_model_version": self.version, "ss_v2": str(self.second)}
        return found if self.velocity is None else {**found, "ss_v_parameterization": str(self.velocity)}


FAMILIES: Final[Mapping[str, Family]] = {
    # sd-scripts' words, and musubi-tuner's: `ss_base_model_version` and `modelspec.architecture`.
    "ChromaTransformer2DModel": Family("chroma", "chroma"),
    "Lumina2Transformer2DModel": Family("lumina2", "lumina-2"),
    "QwenImageTransformer2DModel": Family("qwen_image", "Qwen-Image"),
    "ZImageTransformer2DModel": Family("z_image", "Z-Image"),
    "WanTransformer3DModel": Family("wan", "wan2.1"),
    "HunyuanVideoTransformer3DModel": Family("hunyuan_video", "hunyuan-video"),
    # No trainer's word is sure: those of the models themselves, and no architecture.
    "HiDreamImageTransformer2DModel": Family("hidream"),
    "Krea2Transformer2DModel": Family("krea2"),
    "LTXVideoTransformer3DModel": Family("ltxv"),
    "LTX2VideoTransformer3DModel": Family("ltx2"),
    "AuraFlowTransformer2DModel": Family("auraflow"),
    "SanaTransformer2DModel": Family("sana"),
}
"""Families that their transformer's class tells."""


def find_family(base: Base) -> Family | None:
    """Return the family of a base; None if its structure does not tell, and then nothing is guessed."""
    if "unet" in base.components:
        return _of_unet(base.components["unet"], _velocity(base))
    return _of_transformer(base.components["transformer"]) if "transformer" in base.components else None


def _of_unet(unet: Component, velocity: bool | None) -> Family | None:
    keys = unet.location
    if unet.class_name not in (UNET, "") or any(part in key for key in keys for part in FOREIGN):
        return None
    width = next((entry.shape[1] for key, (_, entry) in keys.items() if key.endswith(CONTEXT)), None)
    if "add_embedding.linear_1.weight" in keys and width is not None:
        if width == REFINER:
            return Family("sdxl_refiner_v1-0", "stable-diffusion-xl-v1-refiner", velocity=velocity)
        return Family("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", velocity=velocity)
    if any(key.startswith("add_embedding.") for key in keys):
        return None
    suffix = "_v" if velocity else ""
    if width == SD1:
        return Family(f"sd_v1{suffix}", "stable-diffusion-v1", velocity=velocity)
    if width == SD2:
        names = {True: "stable-diffusion-v2-768-v", False: "stable-diffusion-v2-512", None: ""}
        return Family(f"sd_v2{suffix}", names[velocity], second=True, velocity=velocity)
    return None


def _velocity(base: Base) -> bool | None:
    """Return whether the pipeline's scheduler says that velocities are predicted; None if it says nothing known."""
    try:
        said = read_json(base.path / "scheduler" / "scheduler_config.json").get("prediction_type")
    except BaseError:
        return None
    return {"v_prediction": True, "epsilon": False}.get(said) if isinstance(said, str) else None


def _of_transformer(transformer: Component) -> Family | None:
    keys = transformer.location
    if transformer.class_name == "FluxTransformer2DModel":
        guided = any(key.startswith("time_text_embed.guidance_embedder.") for key in keys)
        return Family("flux1", "flux-1-dev" if guided else "flux-1-schnell")
    if transformer.class_name == "SD3Transformer2DModel":
        if not any(key.endswith("attn.norm_k.weight") for key in keys):
            return Family("3-medium", "stable-diffusion-3")
        return Family(f"3-5-{'medium' if any('.attn2.' in key for key in keys) else 'large'}", "stable-diffusion-3")
    if transformer.class_name == "Flux2Transformer2DModel":
        return Family(FLUX2.get(_outputs(transformer, "x_embedder.weight"), "flux_2"))
    return FAMILIES.get(transformer.class_name)


def _outputs(transformer: Component, key: str) -> int:
    """Return the number of rows of a weight; 0 if there is no such weight."""
    return transformer.location[key][1].shape[0] if key in transformer.location else 0
