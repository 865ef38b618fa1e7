"""Strict YAML of a bounded size: plain values only, no key twice, and nodes are counted before objects are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from ._limits import ALIASES, NUMERAL, Limit
from ._reading import read_bytes
from .errors import DeltaError, InputError

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

    def construct_numeral(self, node: yaml.ScalarNode) -> Any:
        """Return a number; a long one, such as one on base 60, would take its time."""
        if len(node.value) > NUMERAL:
            raise ValueError(f"a number has more than {NUMERAL:,} characters")
        return yaml.SafeLoader.yaml_constructors[node.tag](self, node)


_Loader.yaml_constructors = {
    **{f"{_PREFIX}{tag}": yaml.SafeLoader.yaml_constructors[f"{_PREFIX}{tag}"] for tag in _TAGS},
    **{f"{_PREFIX}{tag}": _Loader.construct_numeral for tag in ("int", "float")},
    None: yaml.SafeLoader.yaml_constructors[None],
}
