"""The head of a model card: the metadata in YAML above its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from svdiff_delta._util.limits import CARD_HEAD
from svdiff_delta._util.yaml import check_yaml
from svdiff_delta.errors import InputError

_OPEN: Final = re.compile(r"\s*---[\r\n]")
_CLOSE: Final = re.compile(r"[\r\n]---[ \t]*(?:\r\n|\n|\Z)")
_GAP: Final = re.compile(r"[\r\n]{200}")  # of which some releases of the Hub's library take quadratic time


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

    opened = _OPEN.match(content)
    closed = _CLOSE.search(content, opened.end()) if opened else None
    if closed is None:
        return ParsedCard("", {}, content)
    head = content[: closed.end()]
    try:
        if _GAP.search(head):
            raise ValueError("they have too many empty lines")
        check_yaml(head.lstrip().removeprefix("---").partition("\n---")[0], "README.md", CARD_HEAD)
        card = RepoCard(head)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, InputError) as error:
        raise InputError(
            f"README.md: its metadata are broken ({' '.join(str(error).split())})", fix="mend them on the Hub"
        ) from None
    return ParsedCard(head, card.data.to_dict(), content[closed.end() :])


def write_card(fields: Mapping[str, Any], text: str, old: ParsedCard | None = None) -> str:
    """Return a card; metadata that say what they said stay as they were written.

    Where a value has characters that are not shown, such as those that turn the direction of writing, YAML's escapes
    stand for them.

    Args:
        fields: the metadata.
        text: what is below them.
        old: the card that this one follows.
    """
    import yaml
    from huggingface_hub import CardData

    if old is not None and dict(old.fields) == dict(fields):
        return old.head + text
    head = CardData(**fields).to_yaml()
    if not head.replace("\n", "").isprintable():
        head = yaml.dump(CardData(**fields).to_dict(), sort_keys=False).strip()
    return f"---\n{head}\n---\n{text}"
