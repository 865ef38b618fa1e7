"""Know a base from an adapter alone: its class, the paths of its layers and their shapes, as far as keys tell them.

What is made here has no weights. It stands where a base would, so that names go one way only: a family's own, by the
tables that readers and writers of dialects go by. What keys do not tell is refused, and a base has to be named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from svdiff_delta.base_model.component import Component
from svdiff_delta.base_model.opened import Base
from svdiff_delta.conversion.key_map import EXPERT
from svdiff_delta.conversion.lazy_tensors import Modules, Ref, Shape
from svdiff_delta.conversion.module_places import spellings
from svdiff_delta.errors import InputError
from svdiff_delta.format.adapter_families import family_of
from svdiff_delta.format.adapter_keys import Spelled, split_module
from svdiff_delta.format.entry import Entry
from svdiff_delta.format.original_names import original_of, parts_of

from .standard_layers import TEXT_LAYERS, UNETS, unet_layers
from .unflatten import dotted

KINDS: Final[Mapping[str, str]] = {
    "Flux": "FluxTransformer2DModel",
    "Flux.2": "Flux2Transformer2DModel",
    "Chroma": "ChromaTransformer2DModel",
    "Stable Diffusion 3": "SD3Transformer2DModel",
    "Qwen-Image": "QwenImageTransformer2DModel",
    "Z-Image": "ZImageTransformer2DModel",
    "Lumina 2": "Lumina2Transformer2DModel",
    "Wan": "WanTransformer3DModel",
    "LTX-Video": "LTXVideoTransformer3DModel",
    "HiDream": "HiDreamImageTransformer2DModel",
    "AuraFlow": "AuraFlowTransformer2DModel",
    "Krea 2": "Krea2Transformer2DModel",
    "SANA": "SanaTransformer2DModel",
}
"""The class of each family's transformer."""

ENCODERS: Final[Mapping[str, Mapping[str, str]]] = {
    "Stable Diffusion 1.x": {"text_encoder": "CLIPTextModel"},
    "Stable Diffusion 2.x": {"text_encoder": "CLIPTextModel"},
    "SDXL": {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
    "Flux": {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"},
    "Stable Diffusion 3": {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
}
"""The text encoders of families whose adapters may change them."""

NAME: Final = "name the base that it is for: its configuration says what its layers are called"
NOWHERE: Final = Path(os.devnull) / "nothing"
"""The place of a base that has none: nothing stands there."""

TEXT: Final = ("text_encoder", "clip", "t5")


@dataclass(frozen=True)
class ToldComponent(Component):
    """A component of which only names and shapes are known."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)

    @cached_property
    def location(self) -> dict[str, tuple[Path, Entry]]:
        """An entry without data by state-dict key."""
        return {f"{path}.weight": (Path(), Entry("F32", shape, 0, 0)) for path, shape in self.shapes.items()}

    @cached_property
    def tied(self) -> dict[str, tuple[str, ...]]:
        """None is known to be tied."""
        return {}


def told_base(modules: Modules, what: str, *, original: bool, kind: str = "") -> Base:
    """Return what an adapter tells of its base.

    Args:
        modules: its tensors by module and role.
        what: what errors call it.
        original: whether the names of the original code are needed, for which the family must be known.
        kind: the class of its transformer, if the file says it.

    Raises:
        InputError: its keys do not tell the family, or what a layer is called.
    """
    shapes = {ref.key: ref.shape for refs in modules.values() for ref in refs.values()}
    said = next((name for name, known in KINDS.items() if known == kind), "")
    family = said or family_of(shapes)
    found = [(split_module(module), refs) for module, refs in modules.items()]
    denoiser = [(module, refs) for module, refs in found if not module.component.startswith(TEXT)]
    components: dict[str, Component] = {}
    if family in UNETS:
        components["unet"] = _told("UNet2DConditionModel", unet_layers(UNETS[family]))
    elif denoiser:
        kind = KINDS.get(family, "")
        if original and not kind:
            told = f"its keys look like {family}" if family else "its keys do not tell the family"
            raise InputError(f"{what}: {told}, whose names in the original code are not known from that", fix=NAME)
        name = (
            "unet" if any(module.component == "unet" for module, _ in denoiser) or "UNet" in family else "transformer"
        )
        if all(module.component == EXPERT for module, _ in denoiser):
            name = EXPERT
        components[name] = _told(kind, _layers(kind, denoiser, what))
    if len(denoiser) < len(found):
        components |= _encoders(family, what)
    return Base(NOWHERE, components)


def _told(kind: str, shapes: Mapping[str, Shape]) -> ToldComponent:
    return ToldComponent(kind, "", None, (), shapes=shapes)


def _encoders(family: str, what: str) -> dict[str, Component]:
    if family not in ENCODERS:
        raise InputError(f"{what}: changes text encoders, and its keys do not tell which the base has", fix=NAME)
    return {
        name: _told(kind, dict.fromkeys(TEXT_LAYERS["T5" if kind.startswith("T5") else "CLIP"], (0, 0)))
        for name, kind in ENCODERS[family].items()
    }


def _layers(kind: str, modules: Iterable[tuple[Spelled, Mapping[str, Ref]]], what: str) -> dict[str, Shape]:
    """Return the shapes of the layers of a denoiser that modules are of, and of those that are one layer with them."""
    found: dict[str, Shape] = {}
    for module, refs in modules:
        rows, columns = sides(refs)
        paths = _paths(kind, module, what)
        for path, size in zip(paths, _sizes(kind, paths, rows, columns, what), strict=True):
            found[path] = size, columns
    for path in sorted(found):
        whole = original_of(kind, path)
        for part in whole.parts if whole else ():
            if part not in found:
                found[part] = _sibling(kind, part, whole.parts if whole else (), found, what), found[path][1]
    return found


def _paths(kind: str, module: Spelled, what: str) -> tuple[str, ...]:
    """Return the layers of diffusers that a module is."""
    if whole := parts_of(kind, module.flattened, flat=True):
        return whole.parts
    if not module.flat:
        return (next(reversed([*spellings(module.path)][:2])),)
    path = dotted(kind, module.path)
    if path is None:
        raise InputError(f"{what}: {module.module}: where dots belong in this name is not known", fix=NAME)
    return (path,)


def sides(refs: Mapping[str, Ref]) -> tuple[int, int]:
    """Return the numbers of outputs and inputs of a module's layer; 0 where its tensors do not tell."""
    shapes = {role: ref.shape for role, ref in refs.items()}

    def first(*roles: str, side: int = 0) -> int:
        return next((shapes[role][side] for role in roles if role in shapes and len(shapes[role]) > side), 0)

    if any(role.startswith("lokr_") for role in shapes):
        rows = first("lokr_w1", "lokr_w1_a") * first("lokr_w2", "lokr_w2_a")
        return rows, first("lokr_w1", "lokr_w1_b", side=1) * first("lokr_w2", "lokr_w2_b", side=1)
    rows = first("lora_up.weight", "hada_w1_a", "diff", "dora_scale", "diff_b", "w_norm")
    return rows, first("lora_down.weight", "hada_w1_b", "diff", side=1)


def _sizes(kind: str, paths: tuple[str, ...], rows: int, columns: int, what: str) -> Iterator[int]:
    """Yield how many rows each part of a layer has: q as many as there are inputs, k and v as many as each other."""
    if len(paths) == 1:
        yield rows
        return
    if any("proj_mlp" in path for path in paths):
        equal, rest = columns, rows - (len(paths) - 1) * columns
    elif kind == "Lumina2Transformer2DModel":
        equal, rest = (rows - columns) // 2, 0
    else:
        equal, rest = rows // len(paths), 0
    sizes = [rest if "proj_mlp" in path else equal for path in paths]
    if kind == "Lumina2Transformer2DModel":
        sizes[0] = columns
    if sum(sizes) != rows or min(sizes) <= 0:
        raise InputError(f"{what}: {' + '.join(paths)}: how its {rows} rows are shared out is not known", fix=NAME)
    yield from sizes


def _sibling(kind: str, part: str, parts: tuple[str, ...], found: Mapping[str, Shape], what: str) -> int:
    """Return the rows of a layer that an adapter leaves alone, from those that are one layer with it."""
    there = {path: found[path] for path in parts if path in found}
    columns = next(iter(there.values()))[1]
    if "proj_mlp" in part:
        return 4 * columns
    equal = [shape[0] for path, shape in there.items() if "proj_mlp" not in path]
    if kind != "Lumina2Transformer2DModel":
        return equal[0] if equal else columns
    keys = [shape[0] for path, shape in there.items() if not path.endswith("to_q")]
    if part.endswith("to_q"):
        return columns
    if not keys:
        raise InputError(f"{what}: {part}: is left alone, and how many rows it has is not known", fix=NAME)
    return keys[0]
