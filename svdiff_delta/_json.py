"""Strict and canonical JSON: what a hostile or sloppy writer could slip in is refused; output is RFC 8785."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import rfc8785

from .errors import FormatError, MetadataError

MAX_DEPTH: Final = 8
MAX_INTEGER: Final = 2**53 - 1  # what every JSON reader can hold exactly
JSON = Any


def strict_json(text: bytes, what: str, error: type[FormatError]) -> JSON:
    """Parse UTF-8 JSON; refuse duplicate keys, NaN and infinities, huge integers and deep nesting.

    Raises:
        FormatError: as `error`, if the text is none of that; `what` names it in the message.
    """
    try:
        parsed = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_int=_small_int,
        )
    except UnicodeDecodeError as cause:
        raise error(f"{what} is not UTF-8 (byte {cause.start})") from None
    except RecursionError:
        raise error(f"{what} is nested too deeply ({MAX_DEPTH} levels are allowed)") from None
    except ValueError as cause:
        raise error(f"{what} is not valid JSON ({cause})") from None
    _check_depth(parsed, what, error)
    return parsed


def _check_depth(parsed: JSON, what: str, error: type[FormatError]) -> None:
    level = [parsed]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise error(f"{what} is nested too deeply ({MAX_DEPTH} levels are allowed)")


def _children(node: JSON) -> Iterable[JSON]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _small_int(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        raise ValueError(f"the integer {digits[:20]} is larger than 2^53")
    return int(digits)


def canonical_json(value: JSON) -> bytes:
    """Return RFC 8785 bytes of a JSON value.

    Raises:
        MetadataError: the value holds something JSON has no place for (NaN, an integer beyond 2^53, another type).
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise MetadataError(f"the metadata cannot be written as JSON ({error})") from None


def as_object(value: JSON, where: str) -> dict[str, JSON]:
    """Return `value` if it is a JSON object; raise MetadataError naming `where` if not."""
    if not isinstance(value, dict):
        raise MetadataError(f"{where}: must be a JSON object")
    return value


def take(fields: dict[str, JSON], key: str, prefix: str = "") -> JSON:
    """Remove and return a member that must be there; raise MetadataError naming it if it is not."""
    try:
        return fields.pop(key)
    except KeyError:
        raise MetadataError(f"{prefix}{key}: is missing") from None
