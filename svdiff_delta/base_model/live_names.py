"""Names of weights in files, and what a library calls them in the model it loads, by the library's own rules.

transformers and diffusers rename weights when they load a model: files of older versions, of a model without its head,
or of another program have other keys than the class. A delta names a weight as its base's file does (spec, section
4.1); what is here leads from there to the class, or to a live model, and back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

from torch import nn

from .experts import ExpertPart

_EXPERT: Final = re.compile(r"\.([0-9]{1,9})(?=\.)")
"""A number in a key; the last one is the expert's."""

OLD_ATTENTION: Final = re.compile(r"\.(query|key|value|proj_attn)\.(weight|bias)")
"""How keys end that diffusers may rename when it loads them: those of the first versions' attention, and no others."""

OWNERS: Final[Mapping[str, str]] = {"PreTrainedModel": "transformers", "ModelMixin": "diffusers"}
"""The library that loads a model, by the class that all of its models come from."""


class Renamed(NamedTuple):
    """A key of a file and what becomes of it: its key in the class, and what the tensor goes through on the way.

    One of several experts that the library stacks is a part of the tensor that it makes of them.
    """

    key: str
    live: str
    change: str = ""
    part: ExpertPart | None = None


class LiveNames:
    """The keys of a model's files, each with the key that the tensor has in the model's class.

    Args:
        model: the model, or its class on the meta device.
        keys: the keys of its files.
        files: how many files these are.

    Attributes:
        live: the key in the class by the key in the files, of all tensors that the library loads as they are.
        changed: what it does to a tensor that it splits, merges or turns when it loads it, by the key in the files.
        parts: where it puts the weight of one expert, of those that it stacks, by the key in the files.
        members: the keys in the files of what is put there, by the key of the stack in the class and the expert.
    """

    def __init__(self, model: nn.Module, keys: Iterable[str], files: int = 1) -> None:
        self._model = model
        self.live: dict[str, str] = {}
        self.changed: dict[str, str] = {}
        self.parts: dict[str, ExpertPart] = {}
        self.members: dict[tuple[str, int], tuple[str, ...]] = {}
        known, taken = known_keys(model), set[str]()
        for each in renamed(model, keys, files):
            if each.part is not None and each.part.stack in known:
                self.parts[each.key], place = each.part, each.part[:2]
                self.members[place] = (*self.members.get(place, ()), each.key)
            elif each.change:
                self.changed[each.key] = each.change
            elif each.live in known and each.live not in taken:  # of two for one weight the library takes the first
                taken.add(each.live)
                self.live[each.key] = each.live

    @cached_property
    def stored(self) -> Mapping[str, str]:
        """The key in the files by the key in the class."""
        return {live: key for key, live in self.live.items()}

    def find(self, key: str) -> str | None:
        """Return the key in these files of the tensor that other files of this class call `key`; None if they lack it.

        One that the library would have to split or merge is none of these.
        """
        (found,) = renamed(self._model, [key])
        return None if found.change or found.part else self.stored.get(found.live)


def known_keys(model: nn.Module) -> dict[str, bool]:
    """Return the state-dict keys of a model, as they are without the layers that PEFT puts around others."""
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers()
    return {key.replace(".base_layer.", "."): True for key, _ in (*parameters, *buffers)}


def renamed(model: nn.Module, keys: Iterable[str], files: int = 1) -> Iterator[Renamed]:
    """Yield what becomes of each key of a model's files when its library loads them.

    Args:
        model: the model, or its class on the meta device; it is not changed.
        keys: keys of its files; all of them, where some are renamed only beside others.
        files: how many files these are: diffusers renames nothing in shards.
    """
    library = next((OWNERS[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in OWNERS), "")
    if library == "transformers":
        yield from _by_transformers(model, keys)
    elif library == "diffusers" and files == 1:
        yield from _by_diffusers(model, keys)
    else:
        yield from (Renamed(key, key) for key in keys)


def _by_diffusers(model: nn.Module, keys: Iterable[str]) -> Iterator[Renamed]:
    """Autoencoders and UNets of the first versions call their attention query, key, value and proj_attn."""
    from diffusers import ModelMixin

    names = {key: key for key in keys}
    # The method of the parent: those of subclasses may take parts of the model away.
    fix: Any = getattr(ModelMixin, "_fix_state_dict_keys_on_load", None)
    if fix is not None and any(map(OLD_ATTENTION.search, names)):  # it walks through the whole model
        fix(model, names)
    return (Renamed(key, live) for live, key in names.items())


def _by_transformers(model: Any, keys: Iterable[str]) -> Iterator[Renamed]:
    """In the order and by the two tries of transformers' own `convert_and_load_state_dict_in_model`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    steps = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    known, prefix = known_keys(model), model.base_model_prefix
    for key in sorted(keys, key=dot_natural_key):
        live, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if live not in known and key in known:
            live, pattern = rename_source_key(key, [], [], prefix, known)
        if pattern is None:
            yield Renamed(key, live)
        else:
            yield Renamed(key, live, _steps(steps[pattern]), _part(steps[pattern], key, live, pattern))


def _steps(rule: Any) -> str:
    return ", ".join(type(step).__name__ for step in rule.operations)


def _part(rule: Any, key: str, live: str, pattern: str) -> ExpertPart | None:
    """Return where a rule puts one expert's weight, if all that it does is to stack them, alone or joined."""
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in rule.operations]
    joined = [("MergeModulelist", 0), ("Concatenate", 1)]
    numbers = _EXPERT.findall(key)
    if pattern.count("*") != 1 or not numbers or len(rule.target_patterns) != 1:
        return None
    if steps == joined[:1] and len(rule.source_patterns) == 1:
        return ExpertPart(live, int(numbers[-1]))
    if steps != joined:
        return None
    return ExpertPart(live, int(numbers[-1]), rule.source_patterns.index(pattern), len(rule.source_patterns))
