"""The head of a model card: the metadata in YAML above its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ._limits import CARD_HEAD
from ._yaml import check_yaml
from .errors import InputError


class ParsedCard(NamedTuple):
    """A card in its parts.

    Attributes:
        head: the metadata as they are written, with the lines around them; "" if there are none.
        fields: what they say, in their order.
        text: all that is below.
    """

    head: str
    fields: Mapping[str, Any]
    text: str


def parse_card(content: str) -> ParsedCard:
    """Return a card in its parts.

    Raises:
        InputError: its metadata are broken.
    """
    import yaml
    from huggingface_hub import RepoCard

    if not content.lstrip().startswith("---"):
        return ParsedCard("", {}, content)
    try:
        check_yaml(content.lstrip().partition("---")[2].partition("\n---")[0], "README.md", CARD_HEAD)
        card = RepoCard(content)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, InputError) as error:
        raise InputError(
            f"README.md: its metadata are broken ({' '.join(str(error).split())})", fix="mend them on the Hub"
        ) from None
    head = content[: len(content) - len(card.text)]
    return ParsedCard(head, card.data.to_dict(), card.text)


def write_card(fields: Mapping[str, Any], text: str, old: ParsedCard | None = None) -> str:
    """Return a card; metadata that say what they said stay as they were written.

    Args:
        fields: the metadata.
        text: what is below them.
        old: the card that this one follows.
    """
    from huggingface_hub import CardData

    if old is not None and dict(old.fields) == dict(fields):
        return old.head + text
    return f"---\n{CardData(**fields).to_yaml()}\n---\n{text}"
