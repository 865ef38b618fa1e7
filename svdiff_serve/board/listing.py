"""List what a board shows: the base, its deltas with their cards, and why those that are grey cannot be used."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from svdiff_delta._util.json import JSON
from svdiff_serve.mixes import TERMS
from svdiff_serve.settings import Defaults, Limits
from svdiff_serve.store.store import Entry

from .card import NONE, Card, card_of
from .mix import PARTS
from .shelf import Shelf

PICTURES: Final = 16
"""Pictures of one preview."""

STAGES: Final = 3
"""Numbers of steps of one preview."""

LORA: Final = ("kohya", "comfyui")
"""Dialects of LoRA that the board saves."""

LARGEST_OPENED: Final = 64 << 20
"""Bytes of a δ that is sent to be opened."""

FRESH: Final = 1.0
"""Seconds for which a list is not made anew."""


class Listing:
    """The base and the deltas of a shelf as JSON.

    Args:
        shelf: the deltas.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._lock = shelf, threading.Lock()
        self._cards: dict[str, tuple[object, Card]] = {}
        self._made: tuple[float, str, bytes] | None = None
        self._started = time.time_ns()

    def base(self, limits: Limits, defaults: Defaults) -> JSON:
        """Return what the board says of the base."""
        service = self._shelf.service
        height, width = service.own_size
        return {
            "name": service.name,
            "repository": service.base.info.repository,
            "width": width,
            "height": height,
            "bytes": sum(_size(file) for component in service.base.components.values() for file in component.files),
            "layers": service.live.layers,
            "dtype": {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}.get(dtype_of(service.pipeline), "other"),
            "steps": defaults.steps,
            "guidance": defaults.guidance,
            "started": self._started // 1_000_000,
            "version": 1,
            "limits": {
                "steps": limits.steps,
                "pixels": limits.pixels,
                "prompt": limits.prompt,
                "pictures": PICTURES,
                "stages": STAGES,
                "terms": TERMS,
                "parts": PARTS,
                "open": LARGEST_OPENED,
            },
            "lora": list(LORA),
        }

    def deltas(self) -> tuple[str, bytes]:
        """Return the version of the list of deltas, and the list; it is made anew at most once a second."""
        with self._lock:  # who asks meanwhile waits for the same list
            if self._made is None or time.monotonic() - self._made[0] > FRESH:
                rows = list(self._rows())
                self._shelf.forget()
                about = {"started": self._started // 1_000_000, "deltas": rows}
                version = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
                body = json.dumps({"version": version, **about}, ensure_ascii=False, separators=(",", ":"))
                self._made = time.monotonic(), version, body.encode()
            return self._made[1:]

    def _rows(self) -> Iterator[dict[str, Any]]:
        entries = self._shelf.service.store.all()
        cards = {entry.path: self._card(entry) for entry in entries}
        self._cards = {path: kept for path, kept in self._cards.items() if path in cards}
        for entry in entries:
            about, card = self._shelf.about(entry), cards[entry.path]
            yield {
                **about,
                "name": entry.name,
                "sha256": entry.digest or None,
                "changed": entry.changed,
                "bytes": entry.size,
                "fault": entry.fault,
                "prompt": card.prompt or about["prompt"],
                "pictures": len(card.pictures),
                "captions": [picture.caption for picture in card.pictures],
            }

    def _card(self, entry: Entry) -> Card:
        """Return a δ's card, read again only where something in its folder has changed."""
        path = Path(entry.path)
        try:
            folder = path.parent.stat()
            readme = path.parent / "README.md"
            seen = (folder.st_mtime_ns, readme.stat().st_mtime_ns if readme.exists() else 0, entry.digest)
        except OSError:
            return NONE
        kept = self._cards.get(entry.path)
        if kept is None or kept[0] != seen:
            kept = seen, card_of(path)
            self._cards[entry.path] = kept
        return kept[1]

    def card(self, name: str) -> Card:
        """Return the card of a δ; raise UnknownDeltaError if there is none of this name."""
        return self._card(self._shelf.service.store.known(name))


def dtype_of(pipeline: Any) -> str:
    """Return the number format that a pipeline's denoiser computes in, such as `float16`."""
    model = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    return str(getattr(model, "dtype", "")).rpartition(".")[2]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
