"""The files of a delta's repository: what a push sends, and what it takes away."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from svdiff_delta._util.json import JSON
from svdiff_delta.format.metadata import FORMAT, VERSION
from svdiff_delta.hub_client.download import CONFIG, WEIGHTS

from .card import LIBRARY, LORA, make_card
from .license import CARD, Licence
from .private import check_private
from .publication import Publication
from .remote import Remote

_SAMPLE: Final = re.compile(r"images/sample-[1-9]\d*\.(?:png|jpg)")


@dataclass(frozen=True)
class Contents:
    """What a push sends.

    Attributes:
        files: bytes, or where they are, by path in the repository.
        deleted: paths that are taken away.
        remarks: what to know about it.
    """

    files: Mapping[str, bytes | Path]
    deleted: tuple[str, ...]
    remarks: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file by path."""
        return {name: len(raw) if isinstance(raw, bytes) else raw.stat().st_size for name, raw in self.files.items()}


def make_contents(about: Publication, licence: Licence, remote: Remote) -> Contents:
    """Return what is sent to a repository, given what it holds; the same of both is the same bytes.

    A LoRA copy of another delta, and pictures that new ones take the place of, are taken away: only those that an
    earlier push made.

    Raises:
        InputError: the metadata of the card that is there are broken, or what is sent holds something private.
    """
    card, remarks = make_card(about, licence, remote.card)
    same = remote.config.get("sha256") == about.sha256
    kept = about.lora is None and same and remote.config.get("lora") == LORA and LORA in remote.files
    config = _config(about, lora=kept or about.lora is not None)
    files: dict[str, bytes | Path] = {
        WEIGHTS: about.content,
        CONFIG: config,
        CARD: card.encode(),
        **{sample.name: sample.content for sample in about.samples},
    }
    deleted: list[str] = []
    if about.lora is not None:
        files[LORA] = about.lora
    elif remote.config.get("lora") == LORA and LORA in remote.files and not kept:
        deleted.append(LORA)
        remarks += (f"{LORA} there is a copy of another delta, and is taken away",)
    if about.samples:
        deleted += sorted(name for name in remote.files - files.keys() if _SAMPLE.fullmatch(name))
    known = {*(remote.card or "").splitlines()}  # the owner's text, which is public already
    check_private([line for line in card.splitlines() if line not in known], CARD)
    check_private([config.decode()], CONFIG)
    return Contents(files, tuple(deleted), remarks)


def _config(about: Publication, *, lora: bool) -> bytes:
    """Return config.json: by it the Hub counts downloads, and a next push knows what is there."""
    base = about.delta.metadata.base
    fields: dict[str, JSON] = {
        "format": FORMAT,
        "version": VERSION,
        "library_name": LIBRARY,
        "weights": WEIGHTS,
        "sha256": about.sha256,
        "parameters": len(about.delta),
        "numbers": about.delta.metadata.numbers,
        "base": {"repository": about.model, "revision": base.revision, "components": dict(base.components)},
    }
    if lora:
        fields["lora"] = LORA
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
