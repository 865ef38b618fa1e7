"""A UNet of Stable Diffusion 1.5's own configuration with random weights, as a folder on disk, written in a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdiff_delta.base_model.kinds import shiftable as shiftable
from svdiff_delta.format.container import header_bytes
from svdiff_delta.svd.decomposition import matricize


def skeleton() -> Any:
    """The UNet without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def folder_of(named: Path | None, temporary: Path) -> Path:
    """Return the folder that was named, or a temporary one, with weights in it."""
    folder = named or temporary / "unet"
    folder.mkdir(exist_ok=True)
    if not (folder / "diffusion_pytorch_model.safetensors").exists():
        write(folder)
    return folder


def write(folder: Path, seed: int = 0) -> int:
    """Write configuration and float32 weights; return the number of weights' elements."""
    model = skeleton()
    model.save_config(folder)
    shapes = {key: tuple(value.shape) for key, value in sorted(model.state_dict().items())}
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as stream:
        stream.write(header_bytes([(key, "F32", shape) for key, shape in shapes.items()], {"format": "pt"}))
        for index, shape in enumerate(shapes.values()):
            generator = torch.Generator().manual_seed(seed + index)
            weight = torch.randn(shape, generator=generator) / (prod(shape[1:]) or 1) ** 0.5
            stream.write(weight.numpy().tobytes())
    return sum(map(prod, shapes.values()))


def matrices(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values, (rows, columns) float32, of each weight with singular values."""
    from safetensors import safe_open

    with safe_open(folder / "diffusion_pytorch_model.safetensors", "pt") as weights:
        for key, kind, axis in shiftable(skeleton()):
            if kind == "spectral":
                yield key, matricize(weights.get_tensor(key), axis)


def save_figures(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures as JSON, if a file was named."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
