"""The rows of the table of families: tiny models of the real classes, in the slots of the pipelines that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from support.adapters import true_changes
from support.models import base_delta
from support.weights import normal
from support.zoo.language import LANGUAGE
from support.zoo.member import Member, of
from support.zoo.registry import DENOISERS
from support.zoo.trial import build, class_of
from support.zoo.unets import CROSS
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.conversion.result import Conversion
from svdiff_delta.format.delta import Delta

UNET: Final = "UNet2DConditionModel"


@dataclass(frozen=True)
class Slot:
    """One model of a pipeline: its class, and how a tiny one is built and run."""

    kind: str
    member: Member


@dataclass(frozen=True)
class Family:
    """A pipeline's class, and the models in it that deltas are made for."""

    pipeline: str
    slots: Mapping[str, Slot]


def _transformer(pipeline: str, kind: str, /, inputs: Mapping[str, Any] | None = None, **config: Any) -> Family:
    """Return a pipeline with the zoo's transformer, in another configuration where one is given."""
    return Family(pipeline, {"transformer": _slot(kind, inputs, **config)})


def _slot(kind: str, inputs: Mapping[str, Any] | None = None, **config: Any) -> Slot:
    member = DENOISERS[kind]
    changed = {key: value for key, value in {**member.inputs, **(inputs or {})}.items() if value is not None}
    return Slot(kind.split()[0], replace(member, config={**member.config, **config}, inputs=changed))


def _unet(pipeline: str, width: int, inputs: Mapping[str, Any], encoders: tuple[str, ...], **config: Any) -> Family:
    """Return a pipeline with a UNet that sees text of a width, by which programs tell the family, and its encoders."""
    channels = config.get("in_channels", 4)
    given = {"sample": normal(1, channels, 8, 8), "timestep": torch.tensor([7.0]), **inputs}
    text = normal(1, 5, width, seed=1)
    unet = of({**CROSS, "attention_head_dim": 4, "cross_attention_dim": width, **config}, **given)
    member = replace(unet, inputs={**unet.inputs, "encoder_hidden_states": text})
    slots = {
        f"text_encoder_{index}" if index > 1 else "text_encoder": Slot(kind, LANGUAGE[kind])
        for index, kind in enumerate(encoders, 1)
    }
    return Family(pipeline, {"unet": Slot(UNET, member), **slots})


XL: Final[dict[str, Any]] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}
ADDED: Final = {"added_cond_kwargs": {"text_embeds": normal(1, 8, seed=2), "time_ids": torch.full((1, 6), 64.0)}}
ONE: Final = ("CLIPTextModel",)
TWO: Final = ("CLIPTextModel", "CLIPTextModelWithProjection")
WAN: Final = "WanTransformer3DModel"

FAMILIES: Final[dict[str, Family]] = {
    "SD 1": _unet("StableDiffusionPipeline", 768, {}, ONE),
    "SD 1 inpainting": _unet("StableDiffusionInpaintPipeline", 768, {}, ONE, in_channels=9),
    "SD 2": _unet("StableDiffusionPipeline", 1024, {}, ONE, use_linear_projection=True),
    "SDXL": _unet("StableDiffusionXLPipeline", 2048, ADDED, TWO, **XL),
    "SDXL inpainting": _unet("StableDiffusionXLInpaintPipeline", 2048, ADDED, TWO, **XL, in_channels=9),
    "SD 3": _transformer("StableDiffusion3Pipeline", "SD3Transformer2DModel", qk_norm=None, dual_attention_layers=()),
    "SD 3.5 medium": _transformer("StableDiffusion3Pipeline", "SD3Transformer2DModel"),
    "SD 3.5 large": _transformer("StableDiffusion3Pipeline", "SD3Transformer2DModel", dual_attention_layers=()),
    "Flux.1 dev": _transformer("FluxPipeline", "FluxTransformer2DModel"),
    "Flux.1 schnell": _transformer("FluxPipeline", "FluxTransformer2DModel", {"guidance": None}, guidance_embeds=False),
    "Flux.1 Kontext": _transformer("FluxKontextPipeline", "FluxTransformer2DModel"),
    "Flux.1 Fill": _transformer(
        "FluxFillPipeline",
        "FluxTransformer2DModel",
        {"hidden_states": normal(1, 16, 12)},
        in_channels=12,
        out_channels=4,
    ),
    "Flux.2 dev": _transformer("Flux2Pipeline", "Flux2Transformer2DModel"),
    "Flux.2 klein": _transformer(
        "Flux2KleinPipeline", "Flux2Transformer2DModel", {"guidance": None}, guidance_embeds=False
    ),
    "Qwen-Image": _transformer("QwenImagePipeline", "QwenImageTransformer2DModel"),
    "Qwen-Image-Edit": _transformer(
        "QwenImageEditPipeline",
        "QwenImageTransformer2DModel",
        {"hidden_states": normal(1, 32, 4), "img_shapes": [[(1, 4, 4), (1, 4, 4)]]},
    ),
    "Z-Image": _transformer("ZImagePipeline", "ZImageTransformer2DModel"),
    "Chroma": _transformer("ChromaPipeline", "ChromaTransformer2DModel"),
    "Lumina 2": _transformer("Lumina2Pipeline", "Lumina2Transformer2DModel"),
    "SANA": _transformer("SanaPipeline", "SanaTransformer2DModel"),
    "Krea 2": _transformer("Krea2Pipeline", "Krea2Transformer2DModel"),
    "HiDream": _transformer("HiDreamImagePipeline", "HiDreamImageTransformer2DModel"),
    "AuraFlow": _transformer("AuraFlowPipeline", "AuraFlowTransformer2DModel"),
    "Wan 2.1": _transformer("WanPipeline", WAN),
    "Wan 2.1 from a picture": _transformer("WanImageToVideoPipeline", f"{WAN} from a picture"),
    "Wan 2.2": Family("WanPipeline", {"transformer": _slot(WAN), "transformer_2": _slot(WAN)}),
    "LTX": _transformer("LTXPipeline", "LTXVideoTransformer3DModel"),
}
"""The families that people train, each with what a pipeline of it holds."""


@dataclass
class Made:
    """A family's models in a folder, the base they are, and a δ on all weights of it.

    Attributes:
        name: the family.
        folder: an empty folder to work in.
        files: the LoRAs that were written, by dialect and number: where each is, and what was written.
    """

    name: str
    folder: Path
    files: dict[tuple[str, int], tuple[Path, Conversion]] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @cached_property
    def models(self) -> dict[str, nn.Module]:
        """The live models by slot, with random weights; those of two experts differ."""
        found: dict[str, nn.Module] = {}
        for index, (slot, what) in enumerate(self.family.slots.items()):
            found[slot] = build(what.kind, what.member)
            for parameter in found[slot].parameters():
                parameter.data = (parameter.data * (1 - index / 8)).half().float()
        return found

    @cached_property
    def base(self) -> Base:
        """The base, of a folder that the libraries wrote."""
        folder, parts = self.folder / "base", {}
        for slot, model in self.models.items():
            model.save_pretrained(folder / slot)  # type: ignore[operator]
            parts[slot] = [type(model).__module__.partition(".")[0], type(model).__name__]
        index = {"_class_name": self.family.pipeline, **parts}
        (folder / "model_index.json").write_text(json.dumps(index))
        return open_base(folder)

    @cached_property
    def delta(self) -> Delta:
        """A random δ on all weights, none of it below −σ or 0: such a δ comes back whole from a copy."""
        found = base_delta(self.base, size=0.1)
        return Delta({name: abs(shift) for name, shift in found.items()}, found.metadata)

    @cached_property
    def changes(self) -> dict[str, Tensor]:
        """ΔW of each weight in float64, by NumPy's SVD."""
        return true_changes(self.base, self.delta)

    def loaded(self, slot: str, folder: Path | None = None) -> Any:
        """Return a slot's model as its library loads it."""
        kind: Any = class_of(self.family.slots[slot].kind)
        return kind.from_pretrained((folder or self.base.path) / slot)
