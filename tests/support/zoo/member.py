"""One class of the zoo: a tiny configuration, inputs for one forward, and the weights that this cannot reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from support.weights import normal as x
from torch import Tensor

__all__ = ["Member", "ids", "narrow", "of", "ones", "t", "without", "x"]


@dataclass(frozen=True)
class Member:
    """What is needed to build a class and to run it once.

    Attributes:
        config: what its constructor, or the constructor of its configuration, is given.
        inputs: what its forward is given.
        unreached: patterns of weights that this forward does not reach, each with the reason.
        wide: whether it runs in float64; some classes have float32 written into their forward.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    unreached: Mapping[str, str] = field(default_factory=dict)
    wide: bool = True


def of(config: Mapping[str, Any], **inputs: Any) -> Member:
    """Return a member all of whose weights are reached."""
    return Member(config, inputs)


def without(unreached: Mapping[str, str], member: Member) -> Member:
    """Return a member whose forward does not reach some weights."""
    return replace(member, unreached=unreached)


def narrow(member: Member) -> Member:
    """Return a member that has float32 written into its forward, or whose noise depends on the dtype."""
    return replace(member, wide=False)


def t(value: float = 7.0, samples: int = 1) -> Tensor:
    """One timestep for each sample; as whole a number as it is given."""
    return torch.full((samples,), value)


def ids(*shape: int, count: int = 30, seed: int = 0) -> Tensor:
    """Random token ids from 1 to count - 1."""
    return torch.randint(1, count, shape, generator=torch.Generator().manual_seed(seed))


def ones(*shape: int, dtype: torch.dtype = torch.bool) -> Tensor:
    """A mask that hides nothing."""
    return torch.ones(shape, dtype=dtype)
