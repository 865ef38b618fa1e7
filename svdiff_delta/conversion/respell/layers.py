"""Carry each layer of an adapter over: find what it changes, take it apart or put it together, and name it anew."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from svdiff_delta.conversion.key_map import Names
from svdiff_delta.conversion.module_places import Place, find_places
from svdiff_delta.conversion.write_target import Keys, Target
from svdiff_delta.errors import InputError, TensorError
from svdiff_delta.format.adapter_keys import Spelled, split_module
from svdiff_delta.format.original_names import original_of, turned
from svdiff_delta.format.parameter import Parameter

from .fused import DOWN, UP, cut, is_joined, join, narrow, turn
from .raw import Raw
from .source import NO_CONFIG, Source, configs_of
from .spelling import module_name

Tensors = dict[str, Raw]


@dataclass
class Layers:
    """The layers of an adapter under the names of a dialect.

    Attributes:
        names: the base's names.
        target: the dialect's names.
        whole: the tensors of each module there, by file and name.
        places: the parameter that a module is of, by file and name; of a fused one the first.
        parts: tensors by parameter, of those that are part of a module there, with where they stand.
        joined: the ranks of parts that became blocks, by module.
        left_out: why a module has no place, by its name in the input.
    """

    names: Names
    target: Target
    whole: dict[tuple[str, str], Tensors] = field(default_factory=dict)
    places: dict[tuple[str, str], str] = field(default_factory=dict)
    parts: dict[tuple[str, str], dict[str, tuple[Keys, Tensors]]] = field(default_factory=dict)
    joined: dict[str, list[int]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, source: Source) -> None:
        """Take all modules of a file.

        Raises:
            InputError: a module cannot be taken apart where it must be.
        """
        configs = configs_of(source, self.names)
        for name in source.modules:
            module = split_module(name)
            places = find_places(_within(module, source, self.names), self.names)
            if not places:
                self.left_out[name] = "the base has no such layer"
                continue
            config = configs.get(places[0].component, NO_CONFIG)
            self._add(name, places, source.tensors(name, config, places[0].path), source.joined.get(name))

    def _add(self, name: str, places: Sequence[Place], tensors: Tensors, ranks: Any) -> None:
        _check_rank(name, tensors)
        keys = [self._keys(place) for place in places]
        for found in keys:
            if isinstance(found, str):
                self.left_out[name] = found
                return
        there = [found for found in keys if isinstance(found, Keys)]
        if _is_same(places, there):
            self._put(there[0], places[0].name, tensors)
            return
        for place, found, piece in zip(places, there, self._pieces(name, places, tensors, ranks), strict=True):
            if piece is None:
                continue
            if found.rows is None:
                self._put(found, place.name, piece)
            else:
                parts = self.parts.setdefault((found.file, module_name(found.up)), {})
                if place.name in parts:
                    raise InputError(f"{name}: two sets of keys are of {place.name}", fix="keep one of them")
                parts[place.name] = found, piece

    def _keys(self, place: Place) -> Keys | str:
        """Return where a weight's tensors stand in the dialect, or why they have no place."""
        parameter = Parameter(self.names.base.shape(place.name), "spectral", 0, "F32", "")
        found = self.target.place(place.name, parameter)
        if isinstance(found, Keys):
            found = self.target.group(found, place.name, parameter, most=sys.maxsize)
        if isinstance(found, Keys) and found.transposed:
            return "its factors are an embedding's there"
        if isinstance(found, Keys) and found.groups > 1:
            return f"is a convolution of {found.groups} groups, for each of which it has factors there"
        return found

    def _put(self, keys: Keys, parameter: str, tensors: Tensors) -> None:
        key = keys.file, module_name(keys.up)
        if key in self.whole:
            raise InputError(f"{key[1]}: two sets of keys are of this layer", fix="keep one of them")
        self.whole[key], self.places[key] = tensors, parameter

    def _pieces(self, name: str, places: Sequence[Place], tensors: Tensors, ranks: Any) -> list[Tensors | None]:
        """Return the tensors of each weight of a layer; None for one that had none when the layer was put together."""
        shapes = [self.names.base.shape(place.name) for place in places]
        sizes = [shape[0] for shape in shapes]
        if places[0].original is None:
            return [dict(tensors)]
        if len(places) == 1:
            swap = turned(places[0].original, shapes[0])
            return [turn(tensors, sizes[0], name) if swap else dict(tensors)]
        stops = [0, *accumulate(sizes)]
        pieces = [cut(tensors, stops[-1], start, stop, name) for start, stop in pairwise(stops)]
        if not _are_ranks(ranks) or not is_joined(tensors, ranks, sizes):
            return [*pieces]
        return [narrow(tensors, ranks, i, piece) if ranks[i] else None for i, piece in enumerate(pieces)]

    def join_parts(self) -> None:
        """Put together what is one layer in the dialect.

        Raises:
            InputError, TensorError: one layer cannot hold it.
        """
        for (file, module), parts in sorted(self.parts.items()):
            keys = [keys for keys, _ in parts.values()]
            rows = keys[0].rows
            if rows is None:
                continue
            if rows.swap and len(parts) == 1:
                ((name, (_, tensors)),) = parts.items()
                self._put(keys[0], name, turn(tensors, rows.total, module))
                continue
            slots, sizes = self._slots(parts)
            tensors, ranks = join(slots, sizes, module)
            self._put(Keys(f"{module}.lora_x", file=file), min(parts), tensors)
            if ranks:
                self.joined[module] = ranks

    def _slots(self, parts: Mapping[str, tuple[Keys, Tensors]]) -> tuple[list[Tensors | None], list[int]]:
        """Return the tensors and the number of rows of each weight of a layer, in order; None for one that has none."""
        component, _, key = min(parts).partition(".")
        kind = self.names.base.components[component].class_name
        whole = original_of(kind, key.removesuffix(".weight"))
        found = [self.names.dotted(component, part) or "" for part in (whole.parts if whole else ())]
        tensors = [parts[name][1] if name in parts else None for name in found]
        return tensors, [self.names.base.shape(name)[0] for name in found]


def _check_rank(name: str, tensors: Tensors) -> None:
    """Raise TensorError if LoRA's factors do not fit each other, as those of a convolution's groups in PEFT."""
    if not {UP, DOWN} <= tensors.keys():
        return
    up, down = tensors[UP].shape, tensors[DOWN].shape
    if len(up) < 2 or len(down) < 2 or up[1] != down[0]:
        raise TensorError(f"{name}: factors of shapes {list(up)} and {list(down)} do not fit, or are of several groups")


def _within(module: Spelled, source: Source, names: Names) -> Spelled:
    """Return a module of PEFT's folder with the component that the folder is called by, if it is one."""
    if source.config is None or source.component not in names.base.components:
        return module
    return split_module(f"{source.component}.{module.path}") if not module.flat else module


def _are_ranks(ranks: Any) -> bool:
    return isinstance(ranks, list) and all(type(rank) is int and rank >= 0 for rank in ranks)


def _is_same(places: Sequence[Place], keys: Sequence[Keys]) -> bool:
    """Tell whether a module is one and the same layer in both dialects."""
    fused = places[0].original is not None
    if not fused:
        return keys[0].rows is None
    rows = [found.rows for found in keys]
    if any(found is None for found in rows) or len({found.up for found in keys}) > 1:
        return False
    return sum(found.stop - found.start for found in rows if found) == rows[0].total if rows[0] else False
