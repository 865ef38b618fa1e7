"""Values of files checked against types: what is wrong is named by key, with what was found and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from svdiff_delta._text.printable import SHOWN, shown
from svdiff_delta.errors import DeltaError, InputError

T = TypeVar("T")


def build(kind: type[T], value: Any, what: str = "", error: type[DeltaError] = InputError) -> T:
    """Return a value as an object of a msgspec Struct or dataclass, strictly: no text for a flag, no 1.5 for a count.

    Args:
        kind: the type; annotations say what each key may be.
        value: mappings, lists and plain values, as a parser returns them. Every number must be finite.
        what: what errors call it, such as its path; "" for nothing.
        error: the class of errors.

    Raises:
        DeltaError: as `error`: the message names the key, what was found and what is allowed.
    """
    where = f"{what}: " if what else ""
    try:
        if trail := next(_not_finite(value), None):
            raise error(f"{where}{_name(trail[0])}: must be a finite number, is {trail[1]!r}")
        return msgspec.convert(value, kind, strict=True, dec_hook=_hook)
    except msgspec.ValidationError as cause:
        wrong = next(_wrong(inspect.type_info(kind), value, ()), None)
        if wrong is None:
            raise error(f"{where}{cause}") from None
        raise error(f"{where}{wrong[0]}", fix=wrong[1]) from None
    except RecursionError:
        raise error(f"{where}is nested too deeply") from None


def keys_of(kind: type) -> tuple[str, ...]:
    """Return the keys that a mapping for a Struct may have, in the order of its fields."""
    return tuple(field.encode_name for field in msgspec.structs.fields(kind))


def given(fields: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a Struct that were given, by attribute."""
    return {name: value for name in fields.__struct_fields__ if (value := getattr(fields, name)) is not msgspec.UNSET}


def _hook(kind: type, value: Any) -> Any:
    """Return a path that is given as a text."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"must be {kind.__name__}")


Trail = tuple[str | int, ...]
"""Keys and places that lead to a value."""


def _name(trail: Trail) -> str:
    """Return how a value is called: `inputs[0].weight`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:SHOWN]}" for part in trail]
    return "".join(parts).removeprefix(".") or "it"


def _not_finite(value: Any) -> Iterator[tuple[Trail, float]]:
    """Yield where numbers are that are not finite."""
    waiting: list[tuple[Trail, Any]] = [((), value)]
    while waiting:
        trail, found = waiting.pop()
        if isinstance(found, float) and not isfinite(found):
            yield trail, found
        elif isinstance(found, Mapping):
            waiting += [((*trail, str(key)), item) for key, item in found.items() if not isinstance(item, str | int)]
        elif isinstance(found, list | tuple):
            waiting += [((*trail, place), item) for place, item in enumerate(found) if not isinstance(item, str | int)]


Wrong = tuple[str, str]
"""What is wrong, and its mend."""


def _wrong(kind: inspect.Type, value: Any, trail: Trail) -> Iterator[Wrong]:
    """Yield what is wrong with a value of a type that msgspec refused."""
    if isinstance(kind, inspect.UnionType):
        yield from _wrong_for_all(kind, value, trail)
    elif isinstance(kind, inspect.StructType | inspect.DataclassType):
        yield from _wrong_fields(kind, value, trail)
    elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
        yield from _wrong_items(kind, value, trail)
    elif isinstance(kind, inspect.TupleType) and isinstance(value, list) and len(value) == len(kind.item_types):
        for place, (own, item) in enumerate(zip(kind.item_types, value, strict=True)):
            yield from _wrong(own, item, (*trail, place))
    elif isinstance(kind, inspect.DictType):
        yield from _wrong_values(kind, value, trail)
    elif isinstance(kind, inspect.FloatType) and type(value) is int and abs(value) > sys.float_info.max:
        yield f"{_name(trail)}: the number is too large", ""
    elif not _fits(kind, value):
        yield _must(kind, value, trail)


def _wrong_for_all(kind: inspect.UnionType, value: Any, trail: Trail) -> Iterator[Wrong]:
    """Yield what is wrong with a value for every one of several types; that of the type it looks like comes first."""
    if any(next(_wrong(each, value, trail), None) is None for each in kind.types):
        return
    container = dict if isinstance(value, Mapping) else list if isinstance(value, list | tuple) else None
    for each in kind.types:
        alike = container is not None and _CONTAINERS.get(type(each)) is container
        large = isinstance(each, inspect.FloatType) and type(value) is int
        if alike or large:
            yield from _wrong(each, value, trail)
    yield _must(kind, value, trail)


def _wrong_items(kind: inspect.ListType | inspect.VarTupleType, value: Any, trail: Trail) -> Iterator[Wrong]:
    if not isinstance(value, list | tuple) or len(value) < (kind.min_length or 0):
        yield _must(kind, value, trail)
        return
    if len(value) > _most(kind):
        yield f"{_name(trail)}: has {len(value):,} items, {_most(kind):,} is the most", ""
        return
    for place, item in enumerate(value):
        yield from _wrong(kind.item_type, item, (*trail, place))


def _wrong_values(kind: inspect.DictType, value: Any, trail: Trail) -> Iterator[Wrong]:
    if not isinstance(value, Mapping):
        yield _must(kind, value, trail)
        return
    for key, item in value.items():
        if not isinstance(key, str):
            yield f"{_name(trail)}: the key {shown(key)} must be a text", "write it in quotes"
        yield from _wrong(kind.value_type, item, (*trail, str(key)))


def _wrong_fields(kind: inspect.StructType | inspect.DataclassType, value: Any, trail: Trail) -> Iterator[Wrong]:
    known = [field.encode_name for field in kind.fields]
    noun = f"{_name(trail)}: " * bool(trail) + f"{getattr(kind.cls, 'NOUN', '')} ".lstrip()
    if not isinstance(value, Mapping):
        yield f"{noun}must be a mapping", f"its keys are {', '.join(known)}"
        return
    if getattr(kind, "forbid_unknown_fields", False):
        for key in sorted(map(str, value.keys() - set(known))):
            yield f"{noun}has the unknown key {shown(key)}", f"known are {', '.join(known)}"
    for field in kind.fields:
        if field.encode_name in value:
            yield from _wrong(field.type, value[field.encode_name], (*trail, field.encode_name))
        elif field.required:
            needed = [f"{each.encode_name} ({_allowed(each.type)})" for each in kind.fields if each.required]
            yield f"{noun}has no {field.encode_name}", f"give {', '.join(needed)}"


def _must(kind: inspect.Type, value: Any, trail: Trail) -> Wrong:
    return f"{_name(trail)}: must be {_allowed(kind)}, is {shown(value)}", ""


_CONTAINERS: Final[Mapping[type, type]] = {
    inspect.StructType: dict,
    inspect.DataclassType: dict,
    inspect.DictType: dict,
    inspect.ListType: list,
    inspect.VarTupleType: list,
}

_PLAIN: Final[Mapping[type, tuple[str, Callable[[Any], bool]]]] = {
    inspect.AnyType: ("anything", lambda _: True),
    inspect.NoneType: ("nothing", lambda value: value is None),
    inspect.BoolType: ("true or false", lambda value: isinstance(value, bool)),
    inspect.IntType: ("a whole number", lambda value: type(value) is int),
    inspect.FloatType: ("a number", lambda value: type(value) in (int, float)),
    inspect.StrType: ("a text", lambda value: isinstance(value, str)),
    inspect.CustomType: ("a path", lambda value: isinstance(value, str | Path)),
}
"""What errors call a type, and how its values are told."""


def _fits(kind: inspect.Type, value: Any) -> bool:
    if isinstance(kind, inspect.LiteralType):
        return value in kind.values and not isinstance(value, bool)
    if isinstance(kind, inspect.StrType) and isinstance(value, str):
        return (kind.min_length or 0) <= len(value) <= _most(kind)
    if isinstance(kind, inspect.IntType | inspect.FloatType) and type(value) in (int, float):
        low, high = _bounds(kind)
        return low <= value <= high and _PLAIN[type(kind)][1](value)
    return _PLAIN[type(kind)][1](value) if type(kind) in _PLAIN else True


def _most(kind: inspect.StrType | inspect.ListType | inspect.VarTupleType) -> float:
    """Return how many characters or items a type allows."""
    return inf if kind.max_length is None else kind.max_length


def _bounds(kind: inspect.IntType | inspect.FloatType) -> tuple[float, float]:
    """Return the least and the largest number that a type allows."""
    return -inf if kind.ge is None else kind.ge, inf if kind.le is None else kind.le


def _between(kind: inspect.IntType | inspect.FloatType) -> str:
    """Return in words which numbers a type allows; empty for all."""
    low, high = _bounds(kind)
    if low == -inf:
        return "" if high == inf else f" of at most {high:,}"
    return f" of at least {low:,}" if high == inf else f" from {low:,} to {high:,}"


def _allowed(kind: inspect.Type) -> str:
    """Return in words what a type allows; that it may be left out is not said."""
    if isinstance(kind, inspect.UnionType):
        names = [_allowed(each) for each in kind.types if not isinstance(each, inspect.NoneType)]
        return " or ".join(dict.fromkeys(names))
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        item = _NOUNS.get(type(kind.item_type), "")
        return f"a list of {item}" if item else "a list"
    if type(kind) in _CONTAINERS:
        return "a mapping"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return _PLAIN[type(kind)][0] + _between(kind)
    if isinstance(kind, inspect.StrType) and kind.max_length is not None:
        return f"a text of at most {kind.max_length:,} characters"
    return _PLAIN[type(kind)][0] if type(kind) in _PLAIN else "another value"


_NOUNS: Final[Mapping[type, str]] = {
    inspect.StrType: "texts",
    inspect.IntType: "whole numbers",
    inspect.FloatType: "numbers",
    inspect.StructType: "mappings",
    inspect.DataclassType: "mappings",
}
