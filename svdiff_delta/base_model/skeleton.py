"""A model's own class on torch's meta device: it says kinds and ties, and holds no values."""

from __future__ import annotations

import importlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

import torch
from torch import nn

from svdiff_delta._text.printable import shown
from svdiff_delta._util.interrupted import interruptions_kept
from svdiff_delta._util.limits import LAYERS, MODULES
from svdiff_delta.errors import BaseError, MissingExtraError

LEVELS: Final = 8
"""Configurations within one another that are looked at."""

SHARED: Final = 8
"""Skeletons that are kept for the next base of the same class and configuration; one takes as long as loading it."""

_shared: Final = OrderedDict[tuple[type[nn.Module], str], nn.Module]()
_sharing: Final = Lock()


def shared_skeleton(
    name: str, library: str, class_name: str, folder: Path | None, settings: Mapping[str, Any] | None
) -> nn.Module:
    """Return a model's class without values, the same one for all bases of its configuration; nobody changes it.

    Args and Raises: as `build_skeleton`.
    """
    if settings is None or not class_name:
        return build_skeleton(name, library, class_name, folder, settings)
    key = _class_named(name, library, class_name), json.dumps(settings, sort_keys=True)
    with _sharing:
        if key in _shared:
            _shared.move_to_end(key)
            return _shared[key]
    found = build_skeleton(name, library, class_name, folder, settings)
    with _sharing:
        _shared[key] = found
        while len(_shared) > SHARED:
            _shared.popitem(last=False)
    return found


def build_skeleton(
    name: str, library: str, class_name: str, folder: Path | None, settings: Mapping[str, Any] | None
) -> nn.Module:
    """Build a model from its configuration without reading a weight.

    Args:
        name: the component, for errors.
        library: "diffusers" or "transformers".
        class_name: the model's class.
        folder: where its config.json lies, if it has one.
        settings: what stands in that; {} for all that the class sets by itself, None where nothing is known.

    Raises:
        BaseError: the class is not known, or its configuration does not fit it.
        MissingExtraError: the library is not installed.
    """
    if settings is None or not class_name:
        raise BaseError(
            f"{name}: nothing says which class this model has, and kinds come from the class",
            fix="name the model's folder with its config.json, not the weight file alone",
        )
    cls = _class_named(name, library, class_name)
    said = dict(settings)
    place = "its configuration" if folder is None else folder / "config.json"
    try:
        _check_counts(said)
        with interruptions_kept(), torch.device("meta"), _few_modules():
            model = _from_config(cls, library, folder, said)
    except Exception as error:  # noqa: BLE001 - of wrong values, code of other libraries raises whatever it happens to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseError(f"{name}: {class_name} cannot be built from {place} ({reason})") from None
    return cast("nn.Module", model)


def _class_named(name: str, library: str, class_name: str) -> Any:
    """Return a model's class.

    Raises:
        BaseError: the library has none of this name.
        MissingExtraError: the library is not installed.
    """
    try:
        module: Any = importlib.import_module(library)
    except ImportError:
        raise MissingExtraError(library, "train") from None
    found: Any = getattr(module, class_name, None)
    # The name comes from a file: nothing but a model's class is ever called.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise BaseError(f"{name}: {library} has no model class {class_name}", fix="install a newer one")
    return found


def _from_config(cls: Any, library: str, folder: Path | None, said: Mapping[str, Any]) -> Any:
    if library == "diffusers":
        return cls.from_config(said)
    if folder is None:
        return cls(cls.config_class.from_dict(dict(said)))
    return cls(cls.config_class.from_pretrained(str(folder), local_files_only=True))


_COUNT: Final = re.compile(r"(?:.*_)?(?:n_?)?(?:layers?|blocks|depths?|experts)(?:_per_block)?")


def _check_counts(said: Mapping[str, Any], level: int = 0) -> None:
    """Raise ValueError if a configuration asks for more layers than any model has: to begin them would fill memory."""
    for key, value in said.items():
        counted = _COUNT.fullmatch(key) is not None
        for number in value if isinstance(value, list) else [value]:
            if counted and isinstance(number, int | float) and number > LAYERS:
                raise ValueError(f"{key} is {shown(number)}, more than {LAYERS:,}")
            if isinstance(number, Mapping) and level < LEVELS:
                _check_counts(number, level + 1)


@contextmanager
def _few_modules() -> Iterator[None]:
    """Let no more modules and parameters be made within the block than any model has."""
    made = 0

    def count(module: nn.Module, name: str, part: Any) -> None:  # noqa: ARG001
        nonlocal made
        made += 1
        if made > MODULES:
            raise ValueError(f"it would have more than {MODULES:,} layers and parameters")

    handles = [
        torch.nn.modules.module.register_module_module_registration_hook(count),
        torch.nn.modules.module.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tied_groups(skeleton: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for each parameter that shares its tensor with others all of their state-dict keys, the first one first.

    What the class ties when it is built is one object. What it ties when it is loaded stands in transformers'
    `all_tied_weights_keys` (key to source).
    """
    groups: dict[str, list[str]] = {}
    seen: dict[int, list[str]] = {}
    for key, parameter in skeleton.named_parameters(remove_duplicate=False):
        group = seen.setdefault(id(parameter), [])
        group.append(key)
        groups[key] = group
    ties = getattr(skeleton, "all_tied_weights_keys", None)
    for key, source in sorted(ties.items()) if isinstance(ties, Mapping) else ():
        if key in groups and source in groups and groups[key] is not groups[source]:
            moved = groups[key]
            groups[source].extend(moved)
            groups.update(dict.fromkeys(moved, groups[source]))
    return {key: tuple(group) for key, group in groups.items() if len(group) > 1}
