"""What the sections measure on: a UNet of SD 1.5's configuration with random weights, in a folder with its bases."""

from __future__ import annotations

import time
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svdiff_delta import Delta, build_basis, open_base, zero_delta
from svdiff_delta.base_model.base import Base
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.format.container import header_bytes
from svdiff_delta.svd.cache import BasisCache

FULL: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
TOKENS = 77
SETTLED = 2.1
"""Seconds after which a file is old enough that its fingerprints are remembered."""


class Scene:
    """A UNet on disk, and what is loaded from there to a device.

    Args:
        folder: where its weights and bases lie, or are made.
        device: what is measured.
        dry: whether it is tiny, to show that a script runs.
    """

    def __init__(self, folder: Path, device: torch.device, *, dry: bool) -> None:
        self.folder, self.device, self.dry = folder, device, dry
        self.config = TINY if dry else FULL
        if not (folder / "diffusion_pytorch_model.safetensors").exists():
            self._write()

    def _write(self) -> None:
        """Write random weights with which activations stay small in half precision, made where that is fast."""
        self.folder.mkdir(parents=True, exist_ok=True)
        skeleton = self.skeleton()
        skeleton.save_config(self.folder)
        shapes = {key: tuple(value.shape) for key, value in sorted(skeleton.state_dict().items())}
        generator = torch.Generator(self.device).manual_seed(0)
        with (self.folder / "diffusion_pytorch_model.safetensors").open("wb") as stream:
            stream.write(header_bytes([(key, "F32", shape) for key, shape in shapes.items()], {"format": "pt"}))
            for key, shape in shapes.items():
                drawn = torch.randn(shape, generator=generator, device=self.device)
                weight = drawn / (prod(shape[1:]) or 1) ** 0.5 if len(shape) > 1 else 0.1 * drawn
                if len(shape) == 1 and key.endswith("weight"):
                    weight += 1.0
                stream.write(weight.cpu().numpy().tobytes())
        if not self.dry:
            time.sleep(SETTLED)

    def skeleton(self) -> Any:
        """Return the UNet without weights."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"):
            return UNet2DConditionModel(**self.config)

    @cached_property
    def base(self) -> Base:
        """The folder, opened."""
        return open_base(self.folder)

    @cached_property
    def cache(self) -> BasisCache:
        """Its bases, which are computed on the device where they are not there yet."""
        cache = BasisCache(self.folder / "cache", device=self.device)
        build_basis(self.base, cache=cache)
        return cache

    @cached_property
    def layers(self) -> int:
        """How many layers have singular values."""
        return sum(kind == "spectral" for _, kind, _ in shiftable(self.skeleton()))

    def unet(self, dtype: torch.dtype) -> Any:
        """Return the UNet on the device, frozen."""
        from diffusers import UNet2DConditionModel

        model = UNet2DConditionModel.from_pretrained(self.folder, torch_dtype=dtype)
        return model.requires_grad_(False).eval().to(self.device)

    def inputs(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, timesteps and what a prompt would be, on the device."""
        side, width = self.config["sample_size"], self.config["cross_attention_dim"]
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(batch, 4, side, side, generator=generator)
        states = torch.randn(batch, TOKENS, width, generator=generator)
        times = torch.full((batch,), 500, device=self.device)
        return latents.to(self.device, dtype), times, states.to(self.device, dtype)

    def deltas(self, count: int) -> list[Delta]:
        """Return random deltas on all weights."""
        zero, random = zero_delta(self.base, cache=self.cache), np.random.default_rng(0)
        return [
            Delta({name: 0.01 * random.standard_normal(shift.size) for name, shift in zero.items()}, zero.metadata)
            for _ in range(count)
        ]
