"""Turn the keys of one module in kohya's and LyCORIS' files into updates of its weight and bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .lazy_tensors import Ref
from .reasons import NO_ALPHA
from .weight_updates import Decomposed, Hadamard, Kronecker, LowRank, Update, Whole

LORA: Final = frozenset({"lora_up.weight", "lora_down.weight"})
LOHA: Final = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
CORES: Final = frozenset({"hada_t1", "hada_t2"})
LOKR: Final = frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"})
WEIGHT: Final = ("diff", "w_norm")
BIAS: Final = ("diff_b", "b_norm")
INPUTS: Final = ("lora_down.weight", "hada_w1_b", "diff")
"""Suffixes of tensors that tell the number of inputs of a layer."""


@dataclass
class Group:
    """The tensors under the keys of one module.

    Attributes:
        weight: the update of its weight, if there is one.
        bias: the update of its bias, if there is one.
        unused: suffixes that no rule explains.
        remarks: what was assumed.
    """

    weight: Update | None = None
    bias: Update | None = None
    unused: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_group(refs: Mapping[str, Ref]) -> Group:
    """Return what the keys of a module say.

    Args:
        refs: the module's tensors by suffix, such as `lora_up.weight`.
    """
    left, group = {suffix: ref for suffix, ref in refs.items() if suffix != "alpha"}, Group()
    scale = _Scale(refs.get("alpha"), group)
    if left.keys() >= LORA:
        down = left.pop("lora_down.weight")
        group.weight = LowRank(
            left.pop("lora_up.weight"), down, scale.over(down.length), left.pop("lora_mid.weight", None)
        )
    elif left.keys() >= LOHA:
        group.weight = _hadamard(left, scale)
    elif LOKR & left.keys():
        group.weight = _kronecker(left, scale)
    for suffix in WEIGHT:
        if group.weight is None and suffix in left:
            group.weight = Whole(left.pop(suffix))  # what is whole has no rank, and its alpha means nothing
    for suffix in BIAS:
        if group.bias is None and suffix in left:
            group.bias = Whole(left.pop(suffix))
    if group.weight is not None and "dora_scale" in left:
        group.weight = decomposed(group.weight, left.pop("dora_scale"))
    group.unused = sorted(left if group.weight else left.keys() | refs.keys() & {"alpha"})
    return group


def decomposed(update: Update, magnitude: Ref) -> Decomposed:
    """Return a DoRA around an update; `dora_scale`'s own shape says its axis: (out, 1, …), or (1, in, …) per input."""
    per_input = len(magnitude.shape) > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] > 1
    return Decomposed(update, magnitude, int(per_input))


class _Scale:
    """The factor alpha / rank of a module; without an alpha it is 1, which is remarked."""

    def __init__(self, alpha: Ref | None, group: Group) -> None:
        self._alpha, self._group = alpha, group

    def over(self, rank: int) -> float:
        """Return the factor for a rank."""
        if self._alpha is None:
            self._group.remarks.append(NO_ALPHA)
            return 1.0
        alpha = self._alpha.number()
        if alpha == 0:
            self._group.remarks.append("alpha 0")
            return 1.0  # kohya and LyCORIS take 0 for "not given"
        return alpha / max(1, rank)


def _hadamard(left: dict[str, Ref], scale: _Scale) -> Update:
    a = left.pop("hada_w1_a"), left.pop("hada_w2_a")
    b = left.pop("hada_w1_b"), left.pop("hada_w2_b")
    t = None
    if left.keys() >= CORES:
        t = left.pop("hada_t1"), left.pop("hada_t2")
    return Hadamard(a, b, scale.over(b[0].length), t)


def _kronecker(left: dict[str, Ref], scale: _Scale) -> Update | None:
    names = [_half(left, name) for name in ("lokr_w1", "lokr_w2")]
    if not all(names):
        return None
    first, second = (tuple(left.pop(name) for name in half) for half in names)
    # Both whole: there is no rank that alpha could be divided by, and LyCORIS ignores it.
    ranks = [half[1].length for half in (second, first) if len(half) == 2]
    core = left.pop("lokr_t2", None) if len(second) == 2 else None
    return Kronecker(first, second, scale.over(ranks[0]) if ranks else 1.0, core)


def _half(left: Mapping[str, Ref], name: str) -> tuple[str, ...]:
    """Return the suffixes of one side of a Kronecker product, whole or in two factors; none if it is not there."""
    if name in left:
        return (name,)
    factors = (f"{name}_a", f"{name}_b")
    return factors if all(factor in left for factor in factors) else ()
