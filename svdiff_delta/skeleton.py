"""A model's own class on torch's meta device: it says kinds and ties, and holds no values."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .errors import BaseError, MissingExtraError
from .layout import read_json


def build_skeleton(name: str, library: str, class_name: str, folder: Path | None) -> nn.Module:
    """Build a model from its configuration without reading a weight.

    Args:
        name: the component, for errors.
        library: "diffusers" or "transformers".
        class_name: the model's class.
        folder: where its config.json lies.

    Raises:
        BaseError: the class is not known, or its configuration does not fit it.
        MissingExtraError: the library is not installed.
    """
    if folder is None or not class_name:
        raise BaseError(
            f"{name}: nothing says which class this model has, and kinds come from the class",
            fix="name the model's folder with its config.json, not the weight file alone",
        )
    try:
        module: Any = importlib.import_module(library)
    except ImportError:
        raise MissingExtraError(library, "train") from None
    found: Any = getattr(module, class_name, None)
    # The name comes from a file: nothing but a model's class is ever called.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise BaseError(f"{name}: {library} has no model class {class_name}", fix="install a newer one")
    cls: Any = found
    try:
        with torch.device("meta"):
            if library == "diffusers":
                model = cls.from_config(read_json(folder / "config.json"))
            else:
                model = cls(cls.config_class.from_pretrained(str(folder), local_files_only=True))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseError(f"{name}: {class_name} cannot be built from {folder / 'config.json'} ({reason})") from None
    return cast("nn.Module", model)


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
