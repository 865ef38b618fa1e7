"""Text that may be shown: names and values in a broken or hostile file may hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

SHOWN: Final = 80
"""Characters of a value that an error quotes."""


def printable(text: str) -> str:
    """Return `text` with control characters, line breaks and half surrogates escaped: one harmless line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with a noun, in the plural where it is not 1: the noun with s, if no other is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def plain(value: object) -> str:
    """Return a value of a file's metadata as one line for people."""
    if isinstance(value, dict):
        return ", ".join(f"{printable(str(key))} {plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def shown(value: Any) -> str:
    """Return a value as an error quotes it: short, whatever it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}…"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in ASCII without control characters: a terminal shows what names hold, and does nothing else."""
    return ascii_json(json.dumps(value, indent=indent))


def ascii_json(text: str) -> str:
    """Return a JSON text with all escaped that is not a printable character of ASCII; line breaks stay."""
    plain = text.isascii() and text.isprintable()
    return text if plain else "".join(c if " " <= c <= "~" or c == "\n" else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1].replace("\x7f", "\\u007f")


def harmless(text: str) -> str:
    """Return lines with all escaped that is not printable; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char in "\n\t" or char.isprintable() else printable(char) for char in text)
