"""Select weights of a base by selectors, and say why one that is named cannot be shifted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from svdiff_delta.errors import BaseError, SelectionError
from svdiff_delta.format.dtypes import FLOATING
from svdiff_delta.format.parameter import Kind
from svdiff_delta.selectors.match import match

from .component import Component
from .coverage import changed_words, lost_error, lost_weights
from .experts import stacks
from .kinds import base_kinds, class_kinds, class_shapes, whole_key
from .opened import Base
from .quantized import quantized


def choose_kinds(
    base: Base, selectors: Sequence[str] = (), *, allow_missing: bool = False
) -> dict[str, tuple[Kind, int]]:
    """Return kind and axis of the weights of a base that selectors name, by parameter name.

    Args:
        base: an opened base.
        selectors: as `select` takes them; all that can be shifted if none is given. Embeddings count where their own
            name, or one that is tied to it, is given.
        allow_missing: whether weights that the files hold under other names than the class may be left out.

    Raises:
        SelectionError: a selector is unknown or matches nothing.
        BaseError: one of the weights is quantized, or stands under another name than the class has, or one that is
            given by name is of no kind that can be shifted.
    """
    kinds = base_kinds(base)
    lost = {} if allow_missing else lost_weights(base)
    if not selectors and not kinds and not lost:
        raise BaseError(f"{base.path}: has no weight that can be shifted")
    hidden = _packed(base)
    given = [_stored(base, selector) for selector in selectors]
    requested = base_kinds(base, on_request=True) if any(_is_parameter(base, name) for name in given) else {}
    for name in given:
        if name in requested:
            kinds[name] = requested[name]
        elif name not in hidden and name not in lost and _is_parameter(base, name):
            raise _of_no_kind(base, name)
    shapes = {name: base.shape(name) for name in kinds} | hidden | lost
    info = base.info
    try:
        names = match(shapes, given, sample_size=info.sample_size, layout=info.attentions) if given else sorted(shapes)
    except SelectionError as error:
        if not (absent := base.absent):
            raise
        why = f"{error.message}; {base.path} has no folder {', '.join(absent)}, which its model_index.json names"
        raise SelectionError(why, fix="fetch the base again, with all of its parts") from None
    if left_out := [name for name in names if name in lost]:
        raise lost_error(base, left_out)
    for name in names:
        if name in hidden:
            base.locate(name)  # says how it is packed
        base.check_format(name)
    return {name: kinds[name] for name in names}


def _packed(base: Base) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights that the base holds only quantized under other keys, by parameter name."""
    found = {}
    for slot, component in base.components.items():
        shapes = class_shapes(component.skeleton)
        for key, _, _ in class_kinds(component.skeleton):
            if component.stored_parts(key) or not quantized(whole_key(key), component.dtypes, component.config):
                continue
            if key in shapes:
                found[f"{slot}.{key}"] = shapes[key]
    return found


def _is_parameter(base: Base, name: str) -> bool:
    """Tell whether this is the name of a weight, in the files or in the component's class."""
    slot, _, key = name.partition(".")
    component = base.components.get(slot)
    return component is not None and (component.stored(key) is not None or _find(component, key) is not None)


def _stored(base: Base, selector: str) -> str:
    slot, _, key = selector.partition(".")
    component = base.components.get(slot)
    stored = component.stored(key) if component is not None and key else None
    return f"{slot}.{stored}" if stored else selector


def _find(component: Component, key: str) -> tuple[nn.Module, torch.Tensor] | None:
    """Return a parameter of the component's class, and the module that owns it."""
    path, _, attribute = key.rpartition(".")
    try:
        module = component.skeleton.get_submodule(path)
    except AttributeError:
        return None
    value = getattr(module, attribute, None)
    return (module, value) if isinstance(value, torch.Tensor) else None


def _of_no_kind(base: Base, name: str) -> BaseError:
    """Return the error that says why a parameter that was named cannot be shifted."""
    slot, _, key = name.partition(".")
    component = base.components[slot]
    found = _find(component, component.live(key))
    if component.dtypes.get(key, "F32") not in FLOATING:
        why = f"its dtype {component.dtypes[key]} has no singular values"
    elif found is None and "expert" in key:
        why = f"{component.class_name} reads it as part of a tensor of all experts, which has no singular values"
    elif change := component.names and component.names.changed.get(key):
        why = f"it {changed_words(component, change)}"
    elif found is None:
        why = f"{component.class_name} has no weight of this name, so nothing says its kind"
    elif key.endswith("bias"):
        why = "biases are never shifted"
    elif key.rpartition(".")[2] in dict(stacks(found[0])):
        return _is_stack(component, name, key)
    elif found[1].ndim > 2:
        why = f"it holds many matrices in one tensor of shape {list(found[1].shape)}, batched experts or the like"
    elif component.stored(key) is None:
        why = "the base's files hold nothing under this name"
    else:
        why = f"{type(found[0]).__name__} is not of a class whose weights have a kind"
    return BaseError(f"{name}: cannot be shifted, {why}", fix="leave it out")


def _is_stack(component: Component, name: str, key: str) -> BaseError:
    """Return the error that says how the experts are named whose weights a stacked tensor holds."""
    slot, parts = name.partition(".")[0], component.stored_parts(f"{component.live(key)}[0]")
    if not parts:
        return BaseError(f"{name}: cannot be shifted, the base's files hold it in another form", fix="leave it out")
    return BaseError(
        f"{name}: cannot be shifted as a whole, its experts are parameters of their own",
        fix=f"name them, as in `{slot}.{parts[0]}`, or all of a kind by a glob",
    )
