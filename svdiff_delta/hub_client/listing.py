"""List the Hub's repositories that say that they change a base: by the tags that the Hub makes of their cards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from svdiff_delta.errors import HubError, InputError

from .errors import client_errors, explain
from .names import REPOSITORY, is_repository
from .watch import LARGEST_ANSWER, watched

RELATION: Final = "base_model:adapter:"
"""How the tag begins by which the Hub relates an adapter to its base."""

DELTA, LORA = "svdiff", "lora"
"""Tags of cards that say what there is."""

PAGE: Final = 100
"""Repositories that are asked for at a time."""

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")

LONGEST: Final = 200
"""Characters of a stranger's word that are passed on."""


@dataclass(frozen=True)
class Listed:
    """A repository that changes a base.

    Attributes:
        repository: its name.
        kind: "δ", "LoRA", or "adapter" where its tags say neither.
        size: the bytes that all of it takes on the Hub; None if the Hub does not say it.
        changed: the day of its last commit, as 2026-11-28; empty if the Hub does not say it.
        downloads: of the last month; None if the Hub does not say it.
    """

    repository: str
    kind: str
    size: int | None
    changed: str
    downloads: int | None


def list_adapters(base: str, most: int) -> list[Listed]:
    """Return the repositories that say that they are adapters of a base: deltas first, then those changed last.

    Args:
        base: the repository of the base.
        most: how many are asked for.

    Raises:
        InputError: that is no name of a repository.
        HubError: the Hub cannot be reached, or does not answer as a Hub does.
    """
    if not is_repository(base):
        raise InputError(f"{base}: names no repository", fix=f"write {REPOSITORY}")
    try:
        with watched(base, LARGEST_ANSWER):
            rows = [_listed(base, row) for row in _rows(base, most)]
    except client_errors() as error:
        raise explain(base, error) from None
    latest = sorted(rows, key=lambda row: (row.changed, row.repository), reverse=True)
    return sorted(latest, key=lambda row: row.kind != "δ")


def _rows(base: str, most: int) -> list[Any]:
    """Return what the Hub says of repositories, page by page; its library would ask again and again, and log it."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    place: str = f"{constants.ENDPOINT}/api/models"
    asked: dict[str, Any] | None = {
        "filter": f"{RELATION}{base}",
        "sort": "lastModified",
        "limit": min(most, PAGE),
        "expand": ["tags", "lastModified", "downloads", "usedStorage"],
    }
    found: list[Any] = []
    while len(found) < most:
        answer = get_session().get(place, params=asked, headers=build_hf_headers())
        hf_raise_for_status(answer)
        rows = answer.json()
        if not isinstance(rows, list):
            raise _no_hub(base)
        found += rows
        place, asked = answer.links.get("next", {}).get("url", ""), None
        if not rows or not place.startswith(f"{constants.ENDPOINT}/"):  # no token goes anywhere else
            break
    return found[:most]


def _listed(base: str, row: Any) -> Listed:
    name = row.get("id") if isinstance(row, dict) else None
    if not isinstance(name, str):
        raise _no_hub(base)
    said = row.get("tags")
    tags = {tag.lower() for tag in said if isinstance(tag, str)} if isinstance(said, list) else set()
    kind = "δ" if DELTA in tags else "LoRA" if LORA in tags else "adapter"
    changed = _DAY.match(str(row.get("lastModified")))
    day = "" if changed is None else changed[0]
    return Listed(name[:LONGEST], kind, _natural(row.get("usedStorage")), day, _natural(row.get("downloads")))


def _no_hub(base: str) -> HubError:
    return HubError(f"{base}: the server does not answer as a Hub does", fix="check HF_ENDPOINT and the proxy")


def _natural(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
