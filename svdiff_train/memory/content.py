"""Tell frozen models, and what they are given, by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from svdiff_delta._util.limits import PICTURE
from svdiff_delta._util.reading import read_bytes

from .output_cache import add_bytes

LIBRARIES: Final = ("torch", "diffusers", "transformers")
"""What computes the outputs; their last bits may differ between versions."""

PLACES: Final = frozenset({"name_or_path", "transformers_version", "torch_dtype", "dtype"})
"""What configurations say of where a model came from, and of what the weights themselves tell."""


def models_digest(pipeline: Any, slots: Iterable[str], folder: Path) -> str:
    """Return a digest of models: all their weights and settings, and all files of what prepares their inputs.

    Args:
        pipeline: the live pipeline.
        slots: names of its components; those that are no models are read as files.
        folder: where the base lies.
    """
    total = hashlib.sha256(json.dumps({name: version(name) for name in LIBRARIES}).encode())
    for slot in sorted(slots):
        part = pipeline.components[slot]
        total.update(f"{slot} {type(part).__module__}.{type(part).__qualname__}".encode())
        if isinstance(part, nn.Module):
            _add_model(total, part)
        else:
            for path in sorted((folder / slot).glob("*")):
                if path.is_file():
                    total.update(path.name.encode() + hashlib.sha256(read_bytes(path, PICTURE)).digest())
    return total.hexdigest()


def _add_model(total: hashlib._Hash, model: nn.Module) -> None:
    config: Any = getattr(model, "config", {})
    said = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    settings = {key: value for key, value in said.items() if not key.startswith("_") and key not in PLACES}
    total.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
            add_bytes(total, tensor)


def inputs_digest(*given: Any) -> str:
    """Return a digest of what a model is given: tensors, pictures, texts, numbers, and rows and tables of them.

    Raises:
        TypeError: something else is among it.
    """
    total = hashlib.sha256()
    _add(total, given)
    return total.hexdigest()


def _add(total: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        total.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        add_bytes(total, value)
    elif isinstance(value, Image.Image):
        total.update(f"picture {value.mode} {value.size} ".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        _add(total, sorted(value.items()))
    elif isinstance(value, str | bytes | bool | int | float | torch.dtype | torch.device) or value is None:
        text = repr(value).encode()
        total.update(f"{type(value).__name__} {len(text)} ".encode() + text)
    elif isinstance(value, Sequence):
        total.update(f"row {len(value)} ".encode())
        for each in value:
            _add(total, each)
    else:
        raise TypeError(f"{type(value).__name__} has no digest")
