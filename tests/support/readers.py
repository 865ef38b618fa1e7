"""What readers of adapters find: names of layers to change, and the one change that a file makes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from svdiff_delta.base_model.base import Base
from svdiff_delta.conversion import DIALECTS
from svdiff_delta.conversion.dialect import Changes, Job, WeightChange
from svdiff_delta.conversion.lazy_tensors import OpenedAdapter
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.tiny import open_tiny

from .weights import normal

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"  # from text
CONV = "mid_block.resnets.0.conv1"
FLAT = {path: path.replace(".", "_") for path in (Q, KEY, CONV)}
TEXT = "encoder.layers.1.mlp.fc1"
WIDE, CONTEXT = open_tiny().shape(f"unet.{KEY}.weight")
GROWN, TEXT_WIDE = open_tiny().shape(f"text_encoder.{TEXT}.weight")


def changes(path: Path, dialect: str, base: Base) -> Changes:
    found = DIALECTS[dialect].read
    assert found is not None
    return found(OpenedAdapter(str(path)), Job(base, BasisCache()))


def change_of(found: Changes, name: str) -> Tensor:
    """Return ΔW of one weight that changes hold."""
    change = found.read(name)
    assert isinstance(change, WeightChange)
    return change.values


def only(path: Path, dialect: str, base: Base, name: str) -> Tensor:
    """Return ΔW of the one weight that a file changes."""
    found = changes(path, dialect, base)
    assert [*found.kinds] == [name]
    assert found.left_out == {}
    change = change_of(found, name)
    assert change.dtype == torch.float64
    assert change.shape == base.shape(name)
    return change


def factors(rows: int, rank: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(rows, rank, seed=seed), normal(rank, columns, seed=seed + 1)


def module(path: str, prefix: str = "lora_unet", **tensors: Tensor) -> dict[str, Tensor]:
    return {f"{prefix}_{FLAT[path]}.{key.replace('__', '.')}": value for key, value in tensors.items()}
