"""Refuse adapters that cannot be read: of other methods than LoRA's and LyCORIS', or in an unknown layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from svdiff_delta.errors import InputError
from svdiff_delta.format.foreign import adapter_in, beginning, method_of, module_of

from .key_map import PREFIXES, Names

MERGE: Final = 'merge it with the program that made it, then `from_="full"`'

_DIFFUSERS: Final = re.compile(r"\.(lora_[AB](\.default)?\.weight|lora\.(up|down)\.weight|alpha)$")
"""Ends of keys that are read with dotted names of layers."""

_COMPONENT: Final = re.compile(r"(unet|transformer|text_encoder|prior|vae|controlnet|model)(_\d+)?")
"""Prefixes that are read: where they stand and the base lacks the layers, it lacks that component."""


def unread(
    what: str, *, methods: Iterable[str] = (), layers: Iterable[str] = (), names: Names | None = None
) -> InputError | None:
    """Return the error for an adapter of which nothing is read; None if its keys tell nothing of the kind.

    Args:
        what: what errors call it.
        methods: keys that no rule explains: they may be of another method.
        layers: keys whose layers the base does not have: they may be the base's own behind a prefix.
        names: of the base; None where it is not known, so that any key of an adapter is one of an unknown layout.
    """
    for key in sorted(methods):
        if method := method_of(key):
            return InputError(
                f"{what}: holds {method[0]} factors (`{method[1]}`), which this program does not read here", fix=MERGE
            )
    keys = sorted(layers)
    if names is None:
        return _unknown(what, beginning(keys), MERGE) if adapter_in(keys) else None
    if prefix := _prefix({module_of(key) for key in keys}, names):
        return _unknown(what, prefix, _rename(prefix, keys, names))
    return None


def _unknown(what: str, prefix: str, fix: str) -> InputError:
    return InputError(f"{what}: this layout is not known, its keys begin with `{prefix}`", fix=fix)


def _rename(prefix: str, keys: Iterable[str], names: Names) -> str:
    """Return the mend: a prefix that is read in the place of this one, where nothing else of the keys is in the way."""
    if "." not in prefix or not all(_DIFFUSERS.search(key) for key in keys):
        return MERGE
    return f"rename them to begin with `{names.main}.`, as diffusers' do, or {MERGE}"


def _prefix(modules: Iterable[str], names: Names) -> str:
    """Return what stands before the base's own names in at least half of all modules; empty if nothing does."""
    found = [_before(module, names) for module in modules]
    prefix, count = Counter(found).most_common(1)[0] if found else ("", 0)
    if 2 * count < len(found) or prefix[:-1] in PREFIXES or _COMPONENT.fullmatch(prefix[:-1]):
        return ""
    return prefix


def _before(module: str, names: Names) -> str:
    """Return what stands before the name of a layer of the base in a module's name; empty if it is no such layer."""
    parts = module.split(".")
    for start in range(1, len(parts)):
        if _is_layer(parts[start:], names):
            return ".".join(parts[:start]) + "."
    flat = parts[0].split("_") if len(parts) == 1 else []
    for start in range(1, len(flat)):
        rest = "_".join(flat[start:])
        known = any(names.underscored(component, rest) for component in names.base.components)
        if known and any(part.isdigit() for part in flat[start:]):
            return "_".join(flat[:start]) + "_"
    return ""


def _is_layer(parts: Sequence[str], names: Names) -> bool:
    # One name alone, such as proj_out, many models have somewhere.
    path = ".".join(parts)
    return len(parts) > 1 and any(names.dotted(component, path) for component in names.base.components)
