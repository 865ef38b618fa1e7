"""The members of a large JSON object, one by one: so what is held is one of them, whatever the text is made of.

Parsed as a whole, a text of small values takes thirty times its size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from svdiff_delta._util.json import end_of_object, strict_json
from svdiff_delta.errors import HeaderError

_SPACE: Final = rb"[ \t\n\r]*+"
_NAME: Final = _SPACE + rb'("[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+")' + _SPACE + rb":" + _SPACE
_OBJECT: Final = rb"(\{[^{}]{0,65536}+\})"
_AFTER: Final = _SPACE + rb"([,}])"
_KEY, _FLAT, _NEXT, _MEMBER = (
    re.compile(pattern, re.DOTALL) for pattern in (_NAME, _OBJECT, _AFTER, _NAME + _OBJECT + _AFTER)
)


def members(text: bytes, free: str, largest: int) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the text of the value of each member; the values are objects without others in them.

    Args:
        text: the object, which begins with its brace, in UTF-8.
        free: the key of the one member that may have strings with braces in them.
        largest: how many bytes the value of that one may have; those of the others have at most 65,536.

    Raises:
        HeaderError: it is not that, or a key stands twice.
    """
    seen: set[str] = set()
    position, more = 1, True
    if empty := _NEXT.match(text, position):
        position, more = empty.end(), empty[1] == b","
    while more:
        member = _MEMBER.match(text, position)
        key = member or _match(_KEY, text, position)
        name = _string(key[1])
        if name in seen:
            raise HeaderError(f"the header is not valid JSON (the key {name!r} stands twice in one object)")
        seen.add(name)
        if member is not None and name != free:
            value, following = member[2], member
        else:
            start = member.start(2) if member is not None else key.end()
            value = _free(text, start, name, largest) if name == free else _flat(text, start, name)
            following = _match(_NEXT, text, start + len(value))
        position, more = following.end(), following[following.re.groups] == b","
        yield name, value
    if text[position:].strip(b" \t\n\r"):
        raise _broken(position)


def _string(text: bytes) -> str:
    """Return a string, in quotes; one without escapes is what it looks like, which is much faster to see."""
    plain = text[1:-1]
    if plain.isascii() and b"\\" not in plain:
        return plain.decode()
    return str(strict_json(text, "the header", HeaderError))


def _match(pattern: re.Pattern[bytes], text: bytes, position: int) -> re.Match[bytes]:
    found = pattern.match(text, position)
    if found is None:
        raise _broken(position)
    return found


def _broken(position: int) -> HeaderError:
    return HeaderError(f"the header is not valid JSON (byte {position})")


def _flat(text: bytes, position: int, name: str) -> bytes:
    found = _FLAT.match(text, position)
    if found is None:
        raise HeaderError(f"{name}: its header entry must have dtype, shape and data_offsets, and nothing else")
    return found[0]


def _free(text: bytes, position: int, name: str, largest: int) -> bytes:
    part = text[position : position + largest]
    if not part.startswith(b"{"):
        raise HeaderError(f"`{name}` is not an object of strings")
    end = end_of_object(part, 0)
    if end is None:
        raise HeaderError(f"`{name}` has more than {largest:,} bytes, or does not end")
    return part[:end]
