"""The article before a noun, in captions and in what a detector is asked for."""

from __future__ import annotations

PLURAL = frozenset({"grapes", "fries", "glasses", "jeans", "scissors", "corn", "broccoli"})
"""Names that take no article."""

_SPELT_AGAINST_SOUND = {"hourglass": "an ", "unicorn": "a "}


def article(phrase: str, name: str) -> str:
    """Return the phrase with "a", "an" or nothing before it, by its first letter and the subject's name."""
    if name in PLURAL:
        return phrase
    first = phrase.split()[0]
    return _SPELT_AGAINST_SOUND.get(first, "an " if first[0] in "aeiou" else "a ") + phrase
