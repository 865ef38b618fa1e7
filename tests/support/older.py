"""What older programs compute with their shifts, in float64 by NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig, WhisperModel

from svdiff_delta.base_model.base import Base, open_base

Array = NDArray[np.float64]


def svdiff_pytorch(weight: Tensor, delta: Array) -> Array:
    """Return W′ = U diag(ReLU(σ + δ)) Vᵀ of svdiff-pytorch: a norm is one row, a kernel `co (cin h w)`."""
    wide = weight.double().numpy()
    matrix = wide[None] if wide.ndim == 1 else wide.reshape(wide.shape[0], -1)
    U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
    return (U @ np.diag(np.maximum(sigma + delta, 0)) @ Vt).reshape(wide.shape)


def transformer2(weight: Tensor, z: Array) -> Array:
    """Return W′ of Transformer²: singular values times z, scaled so that their sum stays."""
    U, sigma, Vt = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    return (U @ np.diag(sigma * z) @ Vt) * (sigma.sum() / (sigma * z).sum())


def whisper(folder: Path) -> Base:
    """Return a small model with Conv1d, Linear, Embedding and LayerNorm, and random F32 weights in each."""
    config = WhisperConfig(
        vocab_size=30, num_mel_bins=6, d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20, max_source_positions=8,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return open_base(folder)


def shifts_for(base: Base, keys: dict[str, str], *, size: float = 0.05, seed: int = 0) -> dict[str, Array]:
    """Return random shifts by key of a file, for the weights that are named; the last one of each clips."""
    random, found = np.random.default_rng(seed), {}
    for key, name in keys.items():
        shape = base.shape(name)
        count = 1 if len(shape) == 1 else min(shape[0], int(np.prod(shape)) // shape[0])
        sigma = np.linalg.svd(base.read(name).double().numpy().reshape(shape[0] if len(shape) > 1 else 1, -1))[1]
        found[key] = (random.standard_normal(count) * size * sigma).astype("f4").astype("f8")
        if count > 1:
            found[key][-1] = np.float32(-1.5 * sigma[-1])
    return found


def saved(path: Path, shifts: dict[str, Array], dtype: torch.dtype = torch.float32) -> Path:
    """Write shifts as an older program does, without any metadata."""
    save_file({key: torch.from_numpy(np.ascontiguousarray(value)).to(dtype) for key, value in shifts.items()}, path)
    return path
