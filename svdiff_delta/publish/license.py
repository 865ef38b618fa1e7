"""The licence under which a delta is published: that of its base, unless its owner says another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from svdiff_delta.errors import HubError, InputError
from svdiff_delta.hub_client.download import fetch, find
from svdiff_delta.hub_client.reference import Reference

from .card_metadata import parse_card

CARD: Final = "README.md"
LARGEST_CARD: Final = 2**20
"""Bytes of a card beyond which it is not read."""


@dataclass(frozen=True)
class Licence:
    """A licence as model cards name it.

    Attributes:
        identifier: the Hub's name for it, such as `apache-2.0`, or `other`.
        name: what another one is called.
        link: where its text is.
    """

    identifier: str
    name: str | None = None
    link: str | None = None


def licence_in(fields: Mapping[str, Any]) -> Licence | None:
    """Return the licence that a card's metadata names, if they name one."""
    found = [fields.get(key) for key in ("license", "license_name", "license_link")]
    identifier, name, link = (value if isinstance(value, str) and value else None for value in found)
    return None if identifier is None else Licence(identifier, name, link)


def licence_of_base(repository: str) -> Licence:
    """Return the licence of a base, as its card on the Hub says.

    Raises:
        InputError: it says none, or cannot be read.
    """
    fix = "name one with `license`"
    try:
        path = fetch(find(Reference(repository, None, CARD), largest=LARGEST_CARD))
        licence = licence_in(parse_card(path.read_text("utf-8-sig")).fields)
    except (HubError, InputError, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.message
        raise InputError(f"the licence could not be taken from the base's card ({reason})", fix=fix) from None
    if licence is None:
        raise InputError(f"the licence could not be taken from the base: the card of {repository} names none", fix=fix)
    if licence.link is not None and not licence.link.startswith(("https://", "http://")):
        link = f"https://huggingface.co/{repository}/blob/main/{licence.link.lstrip('/')}"
        return Licence(licence.identifier, licence.name, link)
    return licence
