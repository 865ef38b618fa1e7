"""Text that may be shown: names in a broken or hostile file may hold anything."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with control characters, line breaks and half surrogates escaped: one harmless line."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
