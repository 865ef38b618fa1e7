"""Bases and tuned checkpoints that are small enough to look at, and δ by a decomposition of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from svdiff_delta.base_model.base import Base, open_base
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.metadata import BaseInfo, Metadata
from svdiff_delta.format.parameter import Kind
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import prepare_weight

WEIGHTS = "model.safetensors"


def bert(folder: Path) -> Base:
    """Return a transformers model of one layer, 16 wide, with all kinds of weights and random ones in each."""
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    model = BertModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return open_base(folder)


def changed(base: Path, folder: Path, change: Mapping[str, Callable[[Tensor], Tensor] | None]) -> Path:
    """Copy a transformers model, with some of its weights changed or, where None is given, left out."""
    shutil.copytree(base, folder)
    weights = load_file(base / WEIGHTS)
    for key, function in change.items():
        weight = weights.pop(key)
        if function is not None:
            weights[key] = function(weight).contiguous()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def single(path: Path, **weights: Tensor) -> Base:
    """Return a base that is one file; the weights are called `model.<name>.weight`."""
    save_file({f"{name}.weight": weight.contiguous() for name, weight in weights.items()}, path)
    return open_base(path)


def delta_of(base: Base, kind: Kind = "spectral", axis: int = 0, **shifts: NDArray[np.floating]) -> Delta:
    """Return a delta of these shifts for the weights `model.<name>.weight`."""
    cache = BasisCache()
    names = {f"model.{name}.weight": shift for name, shift in shifts.items()}
    kinds: dict[str, Kind] = {name: "elementwise" if len(base.shape(name)) == 1 else kind for name in names}
    parameters = {name: prepare_weight(base, name, kinds[name], axis, cache).parameter for name in names}
    return Delta(names, Metadata(BaseInfo({"model": ""}), parameters))


def true_shift(weight: Tensor, change: Tensor) -> NDArray[np.float64]:
    """Return max(uᵢᵀ ΔW vᵢ, −σᵢ) by NumPy's SVD of a matrix rounded to float16."""
    U, sigma, Vt = np.linalg.svd(weight.half().double().numpy(), full_matrices=False)
    return np.maximum(np.einsum("mi,mn,in->i", U, change.double().numpy(), Vt), -sigma)


def true_change(weight: Tensor, shift: NDArray[np.floating]) -> Tensor:
    """Return U diag(max(δ, −σ)) Vᵀ by NumPy's SVD of a matrix rounded to float16."""
    U, sigma, Vt = np.linalg.svd(weight.half().double().numpy(), full_matrices=False)
    return torch.from_numpy(U * np.maximum(shift.astype("f8"), -sigma) @ Vt)


def document(path: Path, key: str = "svdiff") -> dict[str, Any]:
    """Return the document in the header of a file, read by json alone."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"][key])
    return found
