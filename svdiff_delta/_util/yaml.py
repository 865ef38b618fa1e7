"""Strict YAML of a bounded size: plain values only, no key twice, and nodes are counted before objects are made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from svdiff_delta.errors import DeltaError, InputError

from .limits import ALIASES, NUMERAL, Limit
from .reading import read_bytes

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, which is seven times faster, where it is
_PREFIX: Final = "tag:yaml.org,2002:"
_TAGS: Final = ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")
_BROKEN: Final = (
    yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
)  # fmt: skip
"""What PyYAML raises; all but the first where a tag stands at a value of another type, such as `!!bool x`."""


def read_yaml(path: Path, limit: Limit) -> Any:
    """Return what a YAML file holds.

    Raises:
        InputError: it cannot be read, is not YAML of that kind, or is larger than `limit`; the message names the file.
    """
    return parse_yaml(read_bytes(path, limit.bytes), str(path), limit)


def parse_yaml(raw: bytes | str, what: str, limit: Limit, error: type[DeltaError] = InputError) -> Any:
    """Return what a YAML text holds: plain values, lists and mappings, in which no key stands twice.

    Args:
        raw: the text.
        what: what errors call it.
        limit: how many nodes, and how deep, the text may be. Aliases count as what they stand for.
        error: the class of errors.

    Raises:
        DeltaError: as `error`, if it is none of that.
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        _check_events(text, what, limit, error)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Counter(what, limit, error).count(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise error(f"{what}: is nested too deeply") from None
    except _BROKEN as cause:
        said = isinstance(cause, yaml.YAMLError | ValueError)
        reason = " ".join(str(cause).split()) if said else "a tag does not fit"
        raise error(f"{what}: is not valid YAML ({reason})") from None


def check_yaml(text: str, what: str, limit: Limit, error: type[DeltaError] = InputError) -> None:
    """Refuse a YAML text that is too large, too deep or not YAML, for another reader to whom it will be given.

    Raises:
        DeltaError: as `error`; no object was made of it.
    """
    try:
        _check_events(text, what, limit, error)
        loader = _Loader(text)
        try:
            if (node := loader.get_single_node()) is not None:
                _Counter(what, limit, error).count(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise error(f"{what}: is nested too deeply") from None
    except _BROKEN as cause:
        raise error(f"{what}: is not valid YAML ({' '.join(str(cause).split())})") from None


def _check_events(text: str, what: str, limit: Limit, error: type[DeltaError]) -> None:
    """Refuse too many nodes or aliases, or too deep ones, before a single one is made."""
    nodes = aliases = depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        nodes += isinstance(event, yaml.NodeEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > limit.depth:
            raise error(f"{what}: is nested too deeply ({limit.depth} levels are allowed)")
        if nodes > limit.nodes:
            raise _too_many(what, limit, error)
        if aliases > ALIASES:
            raise error(f"{what}: has more than {ALIASES:,} aliases", fix="write out what they stand for")


def _too_many(what: str, limit: Limit, error: type[DeltaError]) -> DeltaError:
    return error(f"{what}: has more than {limit.nodes:,} values, with what its aliases stand for", fix="split it")


class _Counter:
    """Counts nodes of a graph as if every alias were written out, each node once."""

    def __init__(self, what: str, limit: Limit, error: type[DeltaError]) -> None:
        self.what, self.limit, self.error = what, limit, error
        self.sizes: dict[int, int | None] = {}

    def count(self, node: yaml.Node) -> int:
        """Return how many nodes there are from this one on; refuse too many, and what holds itself."""
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in self.sizes:
            if (known := self.sizes[id(node)]) is None:
                raise self.error(f"{self.what}: a list or mapping in it holds itself", fix="remove the alias")
            return known
        self.sizes[id(node)] = None
        pairs = isinstance(node, yaml.MappingNode)
        children = [part for pair in node.value for part in pair] if pairs else node.value
        size = 1
        for child in children:
            size += self.count(child)
            if size > self.limit.nodes:
                raise _too_many(self.what, self.limit, self.error)
        self.sizes[id(node)] = size
        return size


class _Loader(_LOADER):  # type: ignore[misc]
    """Plain values only, and no key twice: the last one would count in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    reason = f"the key {key.value[:100]!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
                seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """Return a whole number."""
        text = self._numeral(node)
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        return sign * (int(digits, 0) if digits[:2] in ("0x", "0o") else int(digits))

    def construct_fraction(self, node: yaml.ScalarNode) -> float:
        """Return any other number."""
        return float(self._numeral(node).lower().replace(".inf", "inf").replace(".nan", "nan"))

    def _numeral(self, node: yaml.ScalarNode) -> str:
        """Return how a number is written; a long one would take its time."""
        if len(node.value) > NUMERAL:
            raise ValueError(f"a number has more than {NUMERAL:,} characters")
        return str(node.value)


_Loader.yaml_constructors = {
    **{f"{_PREFIX}{tag}": yaml.SafeLoader.yaml_constructors[f"{_PREFIX}{tag}"] for tag in _TAGS},
    f"{_PREFIX}int": _Loader.construct_whole,
    f"{_PREFIX}float": _Loader.construct_fraction,
    None: yaml.SafeLoader.yaml_constructors[None],
}
# Numbers are those of YAML 1.2: PyYAML's are of 1.1, where 010 is 8, 1:30 is 90, and 1e-3 is a text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{_PREFIX}int", f"{_PREFIX}float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_WHOLE: Final = re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_FRACTION: Final = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_Loader.add_implicit_resolver(f"{_PREFIX}int", _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_PREFIX}float", _FRACTION, list("-+.0123456789"))
