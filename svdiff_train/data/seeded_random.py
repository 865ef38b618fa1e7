"""Every random draw of training, from hash(seed, step, sample, purpose): the same in any process and after a resume."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, step: int, sample: int, purpose: str) -> torch.Generator:
    """Return a CPU generator for one purpose of one sample.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        sample: the sample's index in the whole batch, over all processes.
        purpose: what is drawn, such as "noise".
    """
    digest = hashlib.sha256(f"{seed}/{step}/{sample}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise(shape: tuple[int, ...], seed: int, step: int, sample: int, purpose: str = "noise") -> Tensor:
    """Return standard normal numbers (shape) in float32."""
    return torch.randn(shape, generator=generator(seed, step, sample, purpose))


def integer(limit: int, seed: int, step: int, sample: int, purpose: str) -> int:
    """Return a whole number from 0 to limit − 1."""
    return int(torch.randint(limit, (1,), generator=generator(seed, step, sample, purpose)))


def share(seed: int, step: int, sample: int, purpose: str) -> float:
    """Return a number from 0 to 1, less than 1, all equally likely."""
    return float(torch.rand((), generator=generator(seed, step, sample, purpose), dtype=torch.float64))
