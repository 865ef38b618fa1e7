"""Tell what the keys of an adapter say, whatever its shapes; once for all files that have the same keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from svdiff_delta.format.adapter_families import family_of, family_of_modules
from svdiff_delta.format.adapter_keys import Spelled, spell, split_module
from svdiff_delta.format.foreign import method_of, module_of

from .dialects import dialect_of
from .header_facts import Tensor

Shape = tuple[int, ...]

RANKED: Final = frozenset({"lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"})
"""Roles whose tensor has the rank as its first side."""

WIDE: Final = frozenset({"lora_down.weight", "diff"})
TALL: Final = frozenset({"lora_up.weight", "diff"})
"""Roles whose tensor has the width of a layer, which tells families: as its second side, and as its first."""

METHODS: Final = (
    ("dora_scale", "DoRA"),
    ("lora_down.weight", "LoRA"),
    ("hada_w1_a", "LoHa"),
    ("lokr_", "LoKr"),
    ("diff", "full difference"),
    ("w_norm", "norms"),
)
"""Methods by the beginning of a role."""


@dataclass(frozen=True)
class KeyLayout:
    """What a set of keys tells.

    Attributes:
        names: the keys.
        spelled: one key that is taken apart, for the program that writes it; None if there is none.
        methods: what its roles, or ends of other keys, tell.
        dialect: the dialect that they are in; empty if none.
        modules: the modules that they are of.
        alphas: whether modules have alphas of their own.
        ranked, wide, tall: the keys of the roles of these names.
    """

    names: frozenset[str]
    spelled: Spelled | None
    methods: tuple[str, ...]
    dialect: str
    modules: tuple[str, ...]
    alphas: bool
    ranked: tuple[str, ...]
    wide: tuple[str, ...]
    tall: tuple[str, ...]


@lru_cache(maxsize=1 << 9)
def layout_of(names: frozenset[str]) -> KeyLayout:
    """Return what keys tell."""
    found = [key for name in sorted(names) if (key := _spell(name)) is not None]
    taken = {key.key for key in found}
    others = {name: method[0] for name in sorted(names - taken) if (method := method_of(name)) is not None}
    modules = [*found, *(split_module(module_of(name)) for name in others)]
    roles = Counter(key.role for key in found)
    return KeyLayout(
        names,
        found[0] if found else None,
        (*_methods(roles), *sorted({*others.values()})),
        dialect_of(modules),
        tuple(sorted({key.module for key in modules})),
        "alpha" in roles,
        _of(found, RANKED),
        _of(found, WIDE),
        _of(found, TALL),
    )


_spell = lru_cache(maxsize=1 << 15)(spell)


def _of(keys: Iterable[Spelled], roles: frozenset[str]) -> tuple[str, ...]:
    return tuple(key.key for key in keys if key.role in roles)


def _methods(roles: Mapping[str, int]) -> list[str]:
    found = [name for start, name in METHODS if any(role.startswith(start) for role in roles)]
    return [name for name in found if name != "LoRA" or "DoRA" not in found]


def ranks_of(layout: KeyLayout, tensors: Mapping[str, Tensor]) -> tuple[tuple[int, int], ...]:
    """Return each rank with the number of tensors that have it, most first."""
    ranks = Counter([shape[0] for key in layout.ranked if (shape := tensors[key].shape)])
    return tuple(sorted(ranks.items(), key=lambda item: (-item[1], item[0])))


def family(layout: KeyLayout, tensors: Mapping[str, Tensor]) -> str:
    """Return the family that an adapter is for; empty if nothing tells."""
    wide = tuple([tensors[key].shape[1:2] for key in layout.wide])
    tall = tuple([tensors[key].shape[:1] for key in layout.tall])
    return _family(layout.names, wide, tall)


@lru_cache(maxsize=1 << 9)
def _family(names: frozenset[str], wide: tuple[Shape, ...], tall: tuple[Shape, ...]) -> str:
    # Neither the rank nor the number format tells anything: files that differ in these alone are of one family.
    layout = layout_of(names)
    if layout.spelled is None:
        return family_of_modules(dict.fromkeys(layout.modules, 0))
    shapes: dict[str, Shape] = dict.fromkeys(sorted(names), ())
    shapes |= zip(layout.tall, tall, strict=True)
    shapes |= {key: (*(shapes[key] or (0,)), *width) for key, width in zip(layout.wide, wide, strict=True)}
    return family_of(shapes)
