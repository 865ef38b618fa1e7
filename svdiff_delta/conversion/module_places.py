"""Find the weights of a base that a module of an adapter changes, by whatever name the file has for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from svdiff_delta.format.adapter_keys import MAIN, Spelled
from svdiff_delta.format.original_names import Original, parts_of, turned

from .key_map import EXPERT, Names
from .row_updates import Rows, swapped
from .weight_updates import Update

TEXT: Final[Mapping[str, str]] = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""Attention layers of text encoders, as older versions of diffusers called them."""

ENCODERS: Final[Mapping[str, tuple[str, ...]]] = {
    "clip_l": ("text_encoder",),
    "clip_g": ("text_encoder_2", "text_encoder"),
    "t5xxl": ("text_encoder_3", "text_encoder_2"),
    # kohya's scripts count T5 as the third encoder where there are two, as in Flux.
    "text_encoder_3": ("text_encoder_3", "text_encoder_2"),
}
"""Components that may be meant where the word is not one of the base's."""

DENOISERS: Final = ("unet", "transformer", "prior")


@dataclass(frozen=True)
class Place:
    """A weight of the base that a module changes.

    Attributes:
        component: its component.
        path: its layer's path there.
        name: the parameter.
        original: the fused or turned layer that the module is, of which the weight is a part; None if it is all of it.
    """

    component: str
    path: str
    name: str
    original: Original | None = None


def find_places(module: Spelled, names: Names) -> list[Place]:
    """Return the weights that a module changes: the base's own names first, then those of the original code.

    Returns:
        No weight if the base has no such layer; several where the original code has them as one.
    """
    for component, path in _own(module, names):
        if name := names.dotted(component, path):
            return [Place(component, path, name)]
    for component in components(module.component, names):
        own = names.underscored(component, module.flattened)
        if own and (name := names.dotted(component, own)):
            return [Place(component, own, name)]
        if found := _parts(component, module, names):
            return found
    return []


def components(word: str, names: Names) -> list[str]:
    """Return the components of the base that a prefix may mean, the likeliest first."""
    base = names.base.components
    if word in base and word not in DENOISERS:
        return [word]
    if word == MAIN or word in DENOISERS:
        return [word if word in base and names.main != EXPERT else names.main]
    found = [name for name in ENCODERS.get(word, ()) if name in base]
    if word in ("t5xxl", "text_encoder_3"):
        return [name for name in found if base[name].class_name.startswith(("T5", "UMT5"))] or found[:1]
    return found


def _own(module: Spelled, names: Names) -> Iterator[tuple[str, str]]:
    """Yield components and dotted paths, today's and old ones, that a module may mean."""
    if module.flat:
        return
    first, _, inner = module.path.partition(".")
    if not module.prefix and first in names.base.components:  # such as `model`, or `vae`
        for path in spellings(inner):
            yield first, path
    for component in components(module.component, names):
        for path in spellings(module.path):
            yield component, path
    # What looks like a prefix may be the name of a module of the base.
    pieces = module.prefix.split(".")
    for start in range(len(pieces) - 1):
        yield names.main, ".".join(pieces[start:]) + module.path


def spellings(path: str) -> Iterator[str]:
    """Yield today's names of a layer, by an old one or its own."""
    yield path
    path = path.replace(".processor.", ".")
    yield path
    if path.endswith(".to_out"):
        yield f"{path}.0"
    parent, _, last = path.rpartition(".")
    if last in TEXT:
        yield f"{parent}.{TEXT[last]}"


def _parts(component: str, module: Spelled, names: Names) -> list[Place]:
    """Return the weights of a layer under its original name; none if the base lacks one of them."""
    original = parts_of(names.base.components[component].class_name, module.flattened, flat=True)
    found = [(part, names.dotted(component, part)) for part in (original.parts if original else ())]
    whole = original if original and (len(found) > 1 or original.swap) else None
    places = [Place(component, part, name, whole) for part, name in found if name]
    return places if len(places) == len(found) else []


def update_of(place: Place, update: Update, names: Names) -> Update:
    """Return what of a module's update is that of one of its weights.

    Args:
        place: the weight.
        update: of the whole module.
        names: the base's names.
    """
    if place.original is None:
        return update
    parts = [names.dotted(place.component, part) or "" for part in place.original.parts]
    rows = [names.base.shape(part)[0] for part in parts]
    index = parts.index(place.name)
    start = sum(rows[:index])
    swap = turned(place.original, names.base.shape(place.name))

    def whole() -> Tensor:
        weight = torch.cat([names.base.read(part) for part in parts])
        return swapped(weight) if swap else weight

    return Rows(update, start, start + rows[index], sum(rows), whole, swap)
