"""Find the original values of live weights: in the model's files if it was cast or offloaded, else in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from svdiff_delta.base_model.base import open_base
from svdiff_delta.base_model.component import Component
from svdiff_delta.base_model.experts import ExpertWeight
from svdiff_delta.base_model.kinds import weight_of
from svdiff_delta.base_model.layout import variants
from svdiff_delta.base_model.opened import Base
from svdiff_delta.errors import AttachError, BaseError
from svdiff_delta.hub_client.reference import SCHEME, find_cached, parse_reference
from svdiff_delta.svd.fingerprint import PIECE

from .modules import layer
from .sharded import is_sharded, own_part
from .stored_weight import digest, words

GIVE: Final = "say where its files are, as in `attach(model, delta, base=open_base(...))`"
"""What mends a base that was not found."""


def find_base(target: object, models: Mapping[str, nn.Module], slots: Iterable[str]) -> Base | None:
    """Return the files that live models were loaded from, as far as they are still here; the Hub is not asked.

    Every model says itself where it came from, since a pipeline may be put together from several places.

    Args:
        target: the pipeline or model.
        models: its models by component name.
        slots: the components that are needed.

    Returns:
        A base with these components; None if one of them is not found.
    """
    found: dict[str, Component] = {}
    whole: Base | None = None
    for slot in sorted(set(slots)):
        places = [place for owner in (models[slot], target) for place in _places(owner)]
        opened = (_open(place, slot, variant) for place in places for variant in (None, *_variants(place)))
        base = next((base for base in opened if base is not None and slot in base.components), None)
        if base is None:
            return None
        found[slot], whole = base.components[slot], whole or base
    return replace(whole, components=found) if whole is not None else None


def _places(owner: object) -> list[str]:
    """Return the folders or repositories that a model or pipeline says it came from."""
    config = getattr(owner, "config", None)
    found = []
    for teller in (config, owner):
        said = _get(teller, "_name_or_path") or _get(teller, "name_or_path")
        place = fspath(said) if isinstance(said, str | PathLike) else ""
        if place and place not in found:
            commit = _get(teller, "_commit_hash")
            reference = None if Path(place).exists() else parse_reference(f"{SCHEME}{place}")
            if reference is not None and reference.revision is None and isinstance(commit, str):
                found.append(f"{SCHEME}{replace(reference, revision=commit)}")
            found.append(place if reference is None else f"{SCHEME}{reference}")
    return found


def _variants(place: str) -> list[str]:
    """Return the variants of weights below a folder, which are opened where there is nothing else."""
    reference = parse_reference(place) if place.startswith(SCHEME) else None
    snapshot = find_cached(reference) if reference is not None else None
    folder = snapshot.folder if snapshot is not None else Path(place)
    return variants(path.name for path in folder.glob("*.*")) or variants(path.name for path in folder.glob("*/*.*"))


def _open(place: str, slot: str, variant: str | None) -> Base | None:
    with suppress(BaseError):
        base = open_base(place, component=None, variant=variant, fetch=False)
        if base.pipeline or slot in base.components or len(base.components) != 1:
            return base
        # A model on its own goes by the name that the delta has for it.
        return replace(base, components=dict.fromkeys([slot], *base.components.values()))
    return None


def _get(owner: object, key: str) -> Any:
    if isinstance(owner, Mapping):
        return owner.get(key)
    return getattr(owner, "__dict__", {}).get(key)


def live_values(module: nn.Module) -> Tensor | None:
    """Return the values of a layer's weight on the CPU; None where they are kept elsewhere and nobody says where.

    accelerate leaves an offloaded weight on the meta device, and the values in a map that its hook holds.
    """
    kept = kept_weight(module)
    return None if kept is None else kept.cpu()


def kept_weight(module: nn.Module) -> Tensor | None:
    """Return a layer's weight where its values are kept, without gradients; None if nobody says where that is."""
    weight = weight_of(module).data
    if weight.device.type != "meta":
        return weight
    attribute = module.attribute if isinstance(module, ExpertWeight) else "weight"
    for hook in _hooks(module):
        kept = getattr(hook, "weights_map", None)
        if kept is not None and attribute in kept:
            values = cast("Tensor", kept[attribute]).data
            return module.view(values) if isinstance(module, ExpertWeight) else values
    return None


def device_of(module: nn.Module) -> torch.device:
    """Return where a layer computes: where its weight is, or where accelerate brings it."""
    device = weight_of(module).device
    for hook in _hooks(module) if device.type == "meta" else ():
        if (execution := getattr(hook, "execution_device", None)) is not None:
            return torch.device(execution)
    return torch.device("cpu") if device.type == "meta" else device


def running_on(models: Iterable[nn.Module]) -> torch.device:
    """Return the device that models are on: of their first weight that is not on the CPU, or only on its way there."""
    weights = (weight for model in models for weight in model.parameters())
    return next((weight.device for weight in weights if weight.device.type not in ("cpu", "meta")), torch.device("cpu"))


def _hooks(module: nn.Module) -> list[object]:
    hook = getattr(module.owner if isinstance(module, ExpertWeight) else module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook])) if hook is not None else []


class LiveWeights:
    """The weights of live models that came from no file; they are read as they stand."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models

    def read(self, name: str) -> Tensor:
        """Return a parameter's values on the CPU.

        Raises:
            AttachError: there is no such layer, or its values are offloaded or quantized.
        """
        module = layer(self._models, name)
        if is_sharded(weight_of(module)):
            raise AttachError(f"{name}: the live weight is sharded, and the file it came from was not found", fix=GIVE)
        values = live_values(module)
        if values is None or not values.is_floating_point():
            state = "offloaded" if values is None else f"quantized ({str(values.dtype).removeprefix('torch.')})"
            raise AttachError(f"{name}: the live weight is {state}, and the file it came from was not found", fix=GIVE)
        return values


def cast_as_live(name: str, module: nn.Module, original: Tensor) -> tuple[torch.dtype, ...]:
    """Return the casts that make the live weight of the file's, bit for bit; its own values are not identified.

    Both are read once. A weight on another device stays there: digests are compared. Of one that is sharded, this
    process's part is compared.

    Raises:
        AttachError: it is another one.
    """
    live = kept_weight(module)
    if live is None:  # offloaded where nobody can look
        return (weight_of(module).dtype,)
    same = live.shape == original.shape
    if same and is_sharded(live):
        live, original = own_part(live, original)
    # An F32 file may have been loaded as F16 and then cast.
    for between in (live.dtype, torch.float16, torch.bfloat16):
        casts = tuple(dict.fromkeys((between, live.dtype)))
        if same and _is_cast(live, original, casts):
            return casts
    raise AttachError(
        f"{name}: the live weight is not the one in the base's file",
        fix="unload what else was fused into it, or name its base with `base=`",
    )


def cast_to(weight: Tensor, dtypes: Iterable[torch.dtype]) -> Tensor:
    """Return a weight in one dtype after the other."""
    for dtype in dtypes:
        weight = weight.to(dtype)
    return weight


def _is_cast(live: Tensor, original: Tensor, casts: Sequence[torch.dtype]) -> bool:
    """Tell whether a live weight is the file's after some casts."""
    if live.device.type != "cpu":
        return digest(live) == digest(cast_to(original, casts))
    pieces = zip(live.flatten().split(PIECE), original.flatten().split(PIECE), strict=True)  # they stay in the cache
    return all(_is_equal(own, cast_to(given, casts)) for own, given in pieces)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two pieces in one dtype are equal: by all of their bits, which is faster; 0 is −0 as well."""
    return all(map(torch.equal, words(one), words(other))) or torch.equal(one, other)
