"""Strict and canonical JSON: what a hostile or sloppy writer could slip in is refused; output is RFC 8785."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import isfinite
from typing import Any, Final

import rfc8785

from svdiff_delta.errors import DeltaError, FormatError, MetadataError

from .limits import Limit

MAX_DEPTH: Final = 12
MAX_INTEGER: Final = 2**53 - 1  # what every JSON reader can hold exactly
JSON = Any


def strict_json(text: bytes, what: str, error: type[FormatError], *, fixed: bool = False) -> JSON:
    """Parse UTF-8 JSON; refuse duplicate keys, numbers that no double holds, half surrogate pairs and deep nesting.

    Args:
        text: the JSON.
        what: what errors call it.
        error: the class of errors.
        fixed: the caller checks every number and the structure itself, so neither is looked at here.

    Raises:
        FormatError: as `error`, if the text is none of that; `what` names it in the message.
    """
    try:
        parsed = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=None if fixed else _integer,
        )
        if rb"\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{what} is not UTF-8 (byte {cause.start})") from None
    except UnicodeEncodeError:
        raise error(f"{what} has half of a surrogate pair in a string") from None
    except RecursionError:
        raise error(f"{what} is nested too deeply ({MAX_DEPTH} levels are allowed)") from None
    except ValueError as cause:
        raise error(f"{what} is not valid JSON ({cause})") from None
    if not fixed:
        _check_depth(parsed, what, error)
    return parsed


_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


def check_nodes(text: bytes, what: str, limit: Limit, error: type[DeltaError]) -> None:
    """Raise `error` if a JSON text has more values than `limit` allows; nothing is made of them yet."""

    def nodes(found: bytes) -> int:
        return sum(map(found.count, (b",", b"[", b"{", b":"))) + 1

    if nodes(text) > limit.nodes and nodes(_STRING.sub(b"", text)) > limit.nodes:
        raise error(f"{what}: has more than {limit.nodes:,} values", fix="split it, or name another file")


_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[{}]', re.DOTALL)
# Possessive, and an unclosed string is one token up to the end: the time is linear in the text whatever it holds.


def end_of_object(text: bytes, start: int) -> int | None:
    """Return where the object that begins at `start` ends in a JSON text, behind its brace; None if it does not.

    Only strings and braces are looked at: what lies between is for `strict_json` to judge.
    """
    depth = 0
    for match in _TOKEN.finditer(text, start):
        if match[0] == b"{":
            depth += 1
        elif match[0] == b"}":
            depth -= 1
            if depth == 0:
                return match.end()
    return None


def _check_depth(parsed: JSON, what: str, error: type[FormatError]) -> None:
    if is_deeper(parsed, MAX_DEPTH):
        raise error(f"{what} is nested too deeply ({MAX_DEPTH} levels are allowed)")


def is_deeper(value: JSON, depth: int) -> bool:
    """Tell whether lists and mappings stand more than so many within one another."""
    level = [value]
    for _ in range(depth):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list | tuple)]
        if not level:
            return False
    return True


def _children(node: JSON) -> Iterable[JSON]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name!r} stands twice in one object")
        result[name] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _integer(digits: str) -> int | float:
    """Return an integer, or the double of which these digits are the RFC 8785 form (1e20 is written as an integer)."""
    if len(digits) <= 17 and abs(int(digits)) <= MAX_INTEGER:
        return int(digits)
    if len(digits) <= 22 and rfc8785.dumps(float(digits)) == digits.encode():
        return float(digits)
    raise ValueError(f"the integer {digits[:22]} is larger than 2^53")


def canonical_json(value: JSON) -> bytes:
    """Return RFC 8785 bytes of a JSON value.

    Raises:
        MetadataError: the value holds something JSON has no place for (NaN, an integer beyond 2^53, another type), or
            is nested so deeply that it could not be read again.
    """
    _check_depth(value, "the metadata", MetadataError)
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
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
