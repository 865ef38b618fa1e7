"""Adapters made by hand, and what real clients make of those that are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.dialect import Changes, Job
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.format.delta import Delta
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.sampling.sample import Sampling, generate

JOBS = [("a photo of a panda face", 0), ("a photo of a house", 1)]


def paint(pipeline: Any) -> list[Image.Image]:
    """Return two small pictures."""
    return generate(pipeline, JOBS, Sampling(steps=5, guidance=4.0))


def weights_file(path: Path) -> Path:
    """Return the file of an adapter's tensors: PEFT's lies in a folder."""
    return path / "adapter_model.safetensors" if path.is_dir() else path


def read_changes(path: Path, dialect: str, base: Base) -> Changes:
    """Return what a reader finds in an adapter's file or folder."""
    read = DIALECTS[dialect].read
    assert read is not None
    return read(OpenedAdapter(str(path)), Job(base, BasisCache()))


def apart(a: Iterable[Image.Image], b: Iterable[Image.Image]) -> int:
    """Return the largest difference of a colour value, of 255."""
    return max(int(np.abs(np.asarray(x, int) - np.asarray(y, int)).max()) for x, y in zip(a, b, strict=True))


def true_changes(base: Base, delta: Delta) -> dict[str, Tensor]:
    """Return ΔW of each weight whose axis of outputs is the first, by NumPy's SVD of the weights rounded to float16."""
    found = {}
    for name, shift in delta.items():
        weight = base.read(name)
        if weight.dim() == 1:
            found[name] = torch.from_numpy(shift.astype("f8"))
            continue
        U, sigma, Vt = np.linalg.svd(weight.half().double().flatten(1).numpy(), full_matrices=False)
        change = U * np.maximum(shift.astype("f8"), -sigma) @ Vt
        found[name] = torch.from_numpy(change).reshape(weight.shape)
    return found


def taken(*models: nn.Module) -> int:
    """Return how many layers of live models PEFT has wrapped."""
    return sum(hasattr(module, "lora_A") for model in models for module in model.modules())


def save_peft(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """Write a PEFT folder; keys are those below `base_model.model.`."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    save_file(
        {f"base_model.model.{key}": value.clone().contiguous() for key, value in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    """Write a file of tensors."""
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata=metadata or None)
    return path


def kohya_changes(path: Path) -> dict[str, Tensor]:
    """Return scale · up · down of each module of a kohya or LyCORIS file, in float64, by the module's flat name."""
    tensors = {key: value.double() for key, value in load_file(path).items()}
    found = {}
    for key, up in tensors.items():
        module, _, suffix = key.partition(".")
        if suffix == "lora_up.weight":
            down = tensors[f"{module}.lora_down.weight"]
            scale = float(tensors[f"{module}.alpha"]) / len(down)
            found[module] = (up.flatten(1) @ down.flatten(1) * scale).reshape(len(up), *down.shape[1:])
    return found
