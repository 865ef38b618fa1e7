"""Read an adapter's file in any spelling: its keys are taken apart once, then each module is looked up in the base."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from torch import Tensor

from svdiff_delta._util.json import as_object, strict_json
from svdiff_delta.base_model.layout import read_json
from svdiff_delta.errors import BaseError, InputError, MetadataError
from svdiff_delta.format.adapter_keys import MAIN, Spelled, spell, split_module
from svdiff_delta.format.foreign import method_of, module_of

from .adapter_reader import Adapter, document, unexplained, width
from .dialect import Changes, Job
from .key_map import EXPERT, Names
from .lazy_tensors import MemoryTensors, Modules, OpenedAdapter, Ref, TensorFile
from .library_methods.lycoris import take_method
from .library_names import LORA, convert_module
from .module_keys import INPUTS, Group, read_group
from .module_places import DENOISERS, Place, find_places, update_of
from .peft_config import PeftConfig, parse_config
from .peft_fields import CHANGING
from .reasons import BIAS, NO_HALF, NO_MAGNITUDE, NO_MODULE
from .unread_adapters import MERGE
from .weight_updates import Decomposed, LowRank, Update

CONFIG: Final = "lora_adapter_metadata"
"""Key of `__metadata__` with the configuration of each component, as PEFT has it."""

LORA_BIAS: Final = "lora_up.bias"
NO_CONFIG: Final = PeftConfig(default=None)

Configs = Mapping[str, PeftConfig]


def begins(source: OpenedAdapter, *starts: str) -> bool:
    """Tell whether a file has keys that begin so."""
    header = source.header()
    return header is not None and any(key.startswith(starts) for key in header.entries)


def read(source: OpenedAdapter, job: Job) -> Changes:
    """Return the changes of a file, in whatever spelling its keys are.

    Raises:
        InputError, FormatError: it cannot be read, or its tensors do not fit each other.
        BaseMismatchError: nothing in it fits the base.
        MissingExtraError: only diffusers knows its names, and it is not installed.
    """
    return read_spelled(source.file(), source.name, Names(job.base, job.component)).changes(job)


def read_spelled(file: TensorFile, what: str, names: Names) -> Adapter:
    """Return the updates in a file, in whatever spelling its keys are.

    Args:
        file: the file.
        what: what errors call it.
        names: the base's names.

    Raises:
        InputError: a field says that the factors mean something else, or two sets of keys change one weight.
        TensorError: tensors do not fit each other.
        MetadataError: its configuration breaks PEFT's rules.
        MissingExtraError: only diffusers knows the names, and it is not installed.
    """
    check_network(file)
    names = _expert(file, names)
    adapter, configs = Adapter(what, [file]), read_configs(file, names)
    modules, others = read_modules(file)
    for module, refs in modules.items():
        adapter.widths[module] = max((width(refs[role]) for role in INPUTS if role in refs), default=0)
        _Reader(names, configs, adapter).read(split_module(module), refs)
    for key in others:
        adapter.spoil([key], _owner(key, names))
    if adapter.updates and _is_open(file, names):
        adapter.remarks.append(f"its keys name no expert: taken for {names.main}; `component` names the other")
    return adapter


def _expert(file: TensorFile, names: Names) -> Names:
    """Return the names that a file goes by: those of a second expert if it says that it is for that alone."""
    if names.main == EXPERT:
        return names
    said = document(file)
    meant = {name.partition(".")[0] for name in said.parameters} if said else set()
    return Names(names.base, EXPERT) if EXPERT in meant and names.main not in meant else names


def _is_open(file: TensorFile, names: Names) -> bool:
    """Tell whether nothing says which of a base's two experts a file is for."""
    if EXPERT not in names.base.components or names.main == EXPERT or document(file):
        return False
    return not any(split_module(key).component == EXPERT for key in file.keys())  # noqa: SIM118 - it is no mapping


def read_modules(file: TensorFile) -> tuple[Modules, list[str]]:
    """Return all tensors of a file by module and role, and the keys that no module of it owns.

    A flat name ends at its dot. A dotted one that no rule explains is of the module that it begins with.
    """
    modules, others, unknown = Modules(), [], []
    for key in file.keys():  # noqa: SIM118 - it is no mapping
        if found := spell(key):
            modules.take(found.module, found.role, Ref(file, key))
        elif split_module(flat := key.partition(".")[0]).flat:
            modules.take(flat, key.removeprefix(f"{flat}."), Ref(file, key))
        else:
            unknown.append(key)
    for key in unknown:
        owner = modules.owner(key) or (module_of(key) if module_of(key) in modules else None)
        if owner is None:
            others.append(key)
        else:
            modules.take(owner, key.removeprefix(f"{owner}."), Ref(file, key))
    return modules, others


class _Reader:
    """Reads the modules of one file into an adapter."""

    def __init__(self, names: Names, configs: Configs, adapter: Adapter) -> None:
        self.names, self.configs, self.adapter = names, configs, adapter

    def read(self, module: Spelled, refs: dict[str, Ref]) -> None:
        """Take the updates of one module: all of it, or nothing, and then its keys are left out."""
        places = find_places(module, self.names)
        if not places and self._is_pair(module, refs) and self._by_library(module, refs):
            return
        if not places:
            self._leave(module, refs)
            return
        if len(places) == 1 and places[0].original is None:
            name, base = places[0].name, self.names.base
            if take_method(module.module, refs, name, base, self.adapter):
                return
        keys = [ref.key for ref in refs.values()]
        bias = refs.pop(LORA_BIAS, None)
        group = read_group(refs)
        if group.unused:
            self._leave_unused(group, refs, places, keys)
            return
        config = self.configs.get(places[0].component, NO_CONFIG)
        if config.dora and not isinstance(group.weight, Decomposed):
            self.adapter.leave(keys, NO_MAGNITUDE)
            return
        self._add(module, places, _configured(group, config, places[0].path, "alpha" in refs), keys)
        if bias is not None and bias.read().any():
            self.adapter.leave([bias.key], BIAS)

    def _add(self, module: Spelled, places: list[Place], group: Group, keys: list[str]) -> None:
        """Take what a module says of its weights, and of its bias."""
        if group.weight is not None:
            for place in places:
                self.adapter.add(place.name, update_of(place, group.weight, self.names), keys)
        for missing in group.remarks:
            self.adapter.assume_scale(module.module, missing)
        if group.bias is None:
            return
        bias = self.names.dotted(places[0].component, places[0].path, "bias") if len(places) == 1 else None
        if places[0].original is not None:
            self.adapter.leave((key for key in keys if key.endswith(("diff_b", "b_norm"))), BIAS)
        elif bias is None:
            self.adapter.left_out[f"{module.module} (bias)"] = NO_MODULE
        else:
            self.adapter.add(bias, group.bias)

    def _leave_unused(self, group: Group, refs: Mapping[str, Ref], places: Iterable[Place], keys: list[str]) -> None:
        """Leave a module out that is not understood whole."""
        halves = refs.keys() - {"alpha", "dora_scale"}
        if len(halves) == 1 and halves <= {*LORA}:
            self.adapter.leave(keys, NO_HALF)
            return
        for place in places:
            self.adapter.spoil([refs[role].key for role in group.unused], place.name, keys)

    def _leave(self, module: Spelled, refs: Mapping[str, Ref]) -> None:
        """Leave a module out for which the base has no layer."""
        known = bool(module.prefix) or refs.keys() & {*LORA}
        for ref in refs.values():
            is_layer = known and not (method_of(ref.key) and not spell(ref.key))
            self.adapter.leave([ref.key], NO_MODULE if is_layer else unexplained(ref.key))

    def _is_pair(self, module: Spelled, refs: Mapping[str, Ref]) -> bool:
        """Tell whether a module is a LoRA of a transformer and nothing else, as diffusers' converters take it."""
        denoiser = module.component in (MAIN, EXPERT, *DENOISERS)
        return denoiser and self.names.is_transformer and refs.keys() - {"alpha"} == {*LORA}

    def _by_library(self, module: Spelled, refs: Mapping[str, Ref]) -> bool:
        """Take a module through the pipeline's own converter; tell whether that took all of it."""
        names = self.names
        kind = names.base.components[names.main].class_name
        found = convert_module(kind, _pipeline(names), module, refs)
        group = read_group(refs)
        placed = self._placed(found, names)
        if not placed or not isinstance(group.weight, LowRank):
            return False
        keys = [ref.key for ref in refs.values()]
        for name, update in placed:
            self.adapter.add(name, replace(update, scale=group.weight.scale), keys)
        for missing in group.remarks:
            self.adapter.assume_scale(module.module, missing)
        return True

    def _placed(self, found: Mapping[str, Tensor], names: Names) -> list[tuple[str, LowRank]]:
        """Return the update of each weight in tensors under diffusers' keys; none if one of them has no place."""
        tensors, modules = MemoryTensors(self.adapter.what, found), Modules()
        for key in tensors.keys():  # noqa: SIM118 - it is no mapping
            if spelled := spell(key):
                modules.take(spelled.module, spelled.role, Ref(tensors, key))
        updates = []
        for path, refs in modules.items():
            places = find_places(split_module(path), names)
            if len(places) != 1 or places[0].original is not None:
                return []
            updates.append((places[0].name, LowRank(refs["lora_up.weight"], refs["lora_down.weight"])))
        return updates


def _configured(group: Group, config: PeftConfig, path: str, has_alpha: bool) -> Group:
    """Return a group with the scale that the file's configuration gives; an alpha among its tensors goes before it."""
    if has_alpha or config.alpha is None:
        return group
    return replace(group, weight=_scaled(group.weight, config, path), remarks=[])


def _scaled(update: Update | None, config: PeftConfig, path: str) -> Update | None:
    if isinstance(update, Decomposed):
        return replace(update, inner=_scaled(update.inner, config, path) or update.inner)
    if isinstance(update, LowRank):
        return replace(update, scale=config.scale(path, update.down.length))
    return update


def _owner(key: str, names: Names) -> str | None:
    """Return the parameter of the layer that a key without a rule begins with; None if it begins with none."""
    path = key
    while path := path.rpartition(".")[0]:
        if places := find_places(split_module(path.removesuffix("_lora")), names):
            return places[0].name
    return None


def _pipeline(names: Names) -> str:
    """Return the class of the base's pipeline; empty if nothing says it."""
    try:
        said = read_json(names.base.path / "model_index.json").get("_class_name")
    except BaseError:
        return ""
    return said if isinstance(said, str) else ""


def read_configs(file: TensorFile, names: Names) -> dict[str, PeftConfig]:
    """Return the configuration of each component in the file's metadata; of the main one where none is named."""
    text = file.header.metadata.get(CONFIG)
    if text is None:
        return {}
    where = f"{file.path}: {CONFIG}"
    fields = as_object(strict_json(text.encode("utf-8", "surrogatepass"), where, MetadataError), where)
    parts: dict[str, dict[str, object]] = defaultdict(dict)
    for key, value in fields.items():
        component, dot, name = key.partition(".")
        parts[component if dot else names.main][name if dot else key] = value
    return {part: parse_config(found, f"{where}: {part}", default=None) for part, found in parts.items()}


def check_network(file: TensorFile) -> None:
    """Raise InputError if a trainer's arguments say that the factors are not what their keys say.

    Some initializations take the factors out of the base, which the file does not hold.
    """
    arguments: dict[str, object] = {}
    with suppress(ValueError, AttributeError, RecursionError):
        arguments = dict(json.loads(file.header.metadata.get("ss_network_args", "{}")).items())
    for key, value in sorted(arguments.items()):
        for name, what in CHANGING.items() if "init" in key.lower() else ():
            if str(value).lower().startswith(name):
                raise InputError(f"{file.name}: ss_network_args: {key} is {value}, which {what}", fix=MERGE)
