"""Text that may be shown: names and values in a broken or hostile file may hold anything."""

from __future__ import annotations


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
