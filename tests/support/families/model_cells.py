"""What can be done with a family's models: open, basis, attach, bake, and the subsets of weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Final

import torch
from support.weights import relative
from support.zoo.structure import attention_layers, cross_layers, feed_forwards, within
from support.zoo.trial import off, run
from torch import nn

from svdiff_delta import bake
from svdiff_delta.base_model.coverage import lost_weights, strange_keys
from svdiff_delta.base_model.kinds import shiftable
from svdiff_delta.errors import SelectionError
from svdiff_delta.runtime import attach
from svdiff_delta.selectors.match import match
from svdiff_delta.svd.cache import BasisCache
from svdiff_delta.svd.prepare import prepare_weight

from .cell import NoMeaningError
from .rows import Made

ALONE: Final = "the text stands in one row with the picture, and no layer has weights for it alone"
"""Why a family has no cross-attention: seen in its classes, which have no such flag and no such parts."""


def live_key(made: Made, name: str) -> tuple[str, str]:
    """Return slot and key of a parameter in the live model."""
    slot, _, key = name.partition(".")
    return slot, made.base.components[slot].live(key)


def opened(made: Made) -> str:
    """All weights of the files have a place, and all that can be shifted in the live classes have a name."""
    base = made.base
    assert not lost_weights(base)
    assert not any(strange_keys(component) for component in base.components.values())
    live = {(slot, key) for slot, model in made.models.items() for key, _, _ in shiftable(model)}
    assert live == {live_key(made, name) for name in made.delta}
    return str(len(live))


def basis(made: Made) -> str:
    """Each matrix's σ are what NumPy finds."""
    count, cache = 0, BasisCache()
    for name, parameter in made.delta.metadata.parameters.items():
        if parameter.kind != "spectral":
            continue
        found = prepare_weight(made.base, name, parameter.kind, parameter.axis, cache).basis
        assert found is not None, name
        sigma = torch.linalg.svdvals(made.base.read(name).double().flatten(1))
        assert (found.sigma - sigma).abs().max() <= 1e-6 * sigma[0], name
        count += 1
    return str(count)


def attached(made: Made) -> str:
    """Live with the check, each model computes what one in float64 with W + ΔW does; detached, all is as it was."""
    models = {slot: copy.deepcopy(model) for slot, model in made.models.items()}
    members = {slot: what.member for slot, what in made.family.slots.items()}
    with torch.no_grad():
        before = {slot: run(model, members[slot]) for slot, model in models.items()}
        state = {slot: copy.deepcopy(model.state_dict()) for slot, model in models.items()}
        moved = moved_models(made)
        expected = {slot: run(model.double(), members[slot]) for slot, model in moved.items()}
        rounded = {slot: run(model.float(), members[slot]) for slot, model in moved.items()}
        with attach(SimpleNamespace(components=models), made.delta, check=True):
            found = {slot: run(model, members[slot]) for slot, model in models.items()}
        for slot, model in models.items():
            limit = max(1e-4, 2 * off(rounded[slot], expected[slot], before[slot]))
            assert off(found[slot], expected[slot], before[slot]) < limit, slot
            after = model.state_dict()
            assert after.keys() == state[slot].keys()
            assert all(torch.equal(after[key], value) for key, value in state[slot].items()), slot
            assert torch.equal(run(model, members[slot]), before[slot])
    return str(len(made.delta))


def moved_models(made: Made) -> dict[str, nn.Module]:
    """Return float64 copies of the models with W + ΔW, by NumPy's SVD of each weight."""
    moved = {slot: copy.deepcopy(model).double() for slot, model in made.models.items()}
    for name, change in made.changes.items():
        slot, key = live_key(made, name)
        weight = moved[slot].get_parameter(key)
        weight.data += change.reshape(weight.shape)
    return moved


def baked(made: Made) -> str:
    """The folder loads by the library, with W + ΔW where δ is, and all else bit for bit."""
    output = made.folder / "baked"
    bake(made.base, [made.delta], output)
    shifted = {live_key(made, name) for name in made.delta}
    for slot, truth in moved_models(made).items():
        found = made.loaded(slot, output).state_dict()
        expected = truth.state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if (slot, key) in shifted:
                assert relative(found[key], value) < 1e-6, key
            else:
                assert torch.equal(found[key].double(), value.double()), key
    return str(len(shifted))


# --- Subsets ---


def subset(made: Made, part: str) -> str:
    """A part of the denoisers has all that their classes say it is, and nothing of another part."""
    shapes = {name: made.base.shape(name) for name in made.delta if not name.startswith("text_encoder")}
    evidence = evident(made, shapes, part)
    try:
        found = {*match(shapes, ["block.0" if part == "block" else part])}
    except SelectionError:
        assert not evidence, part
        raise NoMeaningError(ALONE) from None
    if part == "block":
        assert found <= evidence
    else:
        assert evidence <= found, sorted(evidence - found)
    return str(len(found))


def evident(made: Made, shapes: Mapping[str, tuple[int, ...]], part: str) -> set[str]:
    """Return the weights that the classes say are of a part."""
    found: set[str] = set()
    for slot, model in made.models.items():
        if slot.startswith("text_encoder"):
            continue
        if part == "block":
            rows = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
            found |= {name for name in shapes if name.startswith(tuple(f"{slot}.{path}.0." for path in rows))}
        elif part == "kv":
            layers = within(shapes, slot, attention_layers(model))
            found |= {name for name in layers if name.endswith(("to_k.weight", "to_v.weight", "to_qkv.weight"))}
        else:
            finder = {"attn": attention_layers, "ca": cross_layers, "mlp": feed_forwards}[part]
            found |= within(shapes, slot, finder(model))
    return found
