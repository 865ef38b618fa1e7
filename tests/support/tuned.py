"""Fully tuned copies of the embedded base, as training writes them, without training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdiff_train.tiny import base_path

FILE: Final = Path("unet") / "diffusion_pytorch_model.safetensors"
KEYS: Final = ("conv_in.weight", "conv_in.bias", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
"""A kernel, a bias that no delta shifts, and a matrix."""


def unet_weights(folder: Path) -> dict[str, Tensor]:
    """Return the UNet's weights of a pipeline's folder as they stand."""
    return load_file(folder / FILE)


def tuned_base(folder: Path, seed: int, *, size: float = 0.02, keys: tuple[str, ...] = KEYS) -> Path:
    """Write the embedded base with float32 weights, some of them changed at random, and return its folder."""
    shutil.copytree(base_path(), folder)
    generator = torch.Generator().manual_seed(seed)
    weights = {key: value.float() for key, value in unet_weights(folder).items()}
    for key in keys:
        weights[key] += size * torch.randn(weights[key].shape, generator=generator)
    save_file(weights, folder / FILE)
    return folder
