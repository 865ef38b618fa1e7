"""Tiny models as single files in original layouts, each with the folder of its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .originals import (
    COMFY,
    clip_file,
    open_clip_file,
    randomized,
    transformer_file,
    unet_file,
    vae_file,
    write,
)
from .weights import normal
from .zoo.registry import DENOISERS
from .zoo.trial import class_of

UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
XL = {
    **UNET,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
VAE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "projection_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
WIDER = {**CLIP, "hidden_size": 48, "projection_dim": 48}


@dataclass(frozen=True)
class Single:
    """A single file.

    Attributes:
        file: the file.
        config: a folder with the configuration of each of its parts.
        models: its parts by component.
    """

    file: Path
    config: Path
    models: dict[str, Any]


def _saved(folder: Path, models: dict[str, Any]) -> Path:
    for slot, model in models.items():
        save = model.save_config if hasattr(model, "save_config") else model.config.save_pretrained
        save(folder / slot)
    return folder


def stable_diffusion(folder: Path, kind: str) -> Single:
    """Return Stable Diffusion "1", "2" or "xl" as one file, in float16, with tensors that belong to no part."""
    unet = randomized(UNet2DConditionModel(**(XL if kind == "xl" else UNET)), torch.float16)
    models = {"unet": unet, "vae": randomized(AutoencoderKL(**VAE), torch.float16)}
    models["text_encoder"] = randomized(CLIPTextModel(CLIPTextConfig(**CLIP)), torch.float16)
    texts = {
        "1": lambda: clip_file(models["text_encoder"], "cond_stage_model.transformer."),
        "2": lambda: open_clip_file(models["text_encoder"], "cond_stage_model.model."),
        "xl": lambda: clip_file(models["text_encoder"], "conditioner.embedders.0.transformer."),
    }[kind]()
    if kind == "xl":
        second = CLIPTextModelWithProjection(CLIPTextConfig(**WIDER))
        models["text_encoder_2"] = randomized(second, torch.float16)
        texts |= open_clip_file(second, "conditioner.embedders.1.model.")
    other = {"betas": normal(10), "model_ema.num_updates": torch.tensor(3)}
    parts = [unet_file(unet), vae_file(models["vae"]), texts, other]
    file = write(folder / f"sd{kind}.safetensors", *(part.items() for part in parts), format="pt", title="mine")
    return Single(file, _saved(folder / "config", models), models)


def transformer(folder: Path, name: str, front: str = COMFY, dtype: torch.dtype = torch.bfloat16) -> Single:
    """Return a tiny transformer of diffusers as one file under the names of its makers."""
    model = randomized(class_of(name)(**dict(DENOISERS[name].config)), dtype)
    file = write(folder / "transformer.safetensors", transformer_file(model, front).items(), format="pt")
    model.save_config(folder / "config")
    return Single(file, folder / "config", {"transformer": model})
