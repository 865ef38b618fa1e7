"""Keep deltas of a store open for the board: those that were used last, and what each is in a few words."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from svdiff_delta._util.json import JSON
from svdiff_delta._util.reading import read_bytes
from svdiff_delta.errors import DeltaError, InputError, SelectionError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import loads
from svdiff_delta.ops.weights import Weight
from svdiff_delta.selectors.match import match
from svdiff_serve.errors import RefusedError, UnknownDeltaError
from svdiff_serve.service import Service
from svdiff_serve.store.digest import LARGEST
from svdiff_serve.store.store import Entry

from .mix import Mix, Term

OPEN: Final = 256 << 20
"""Bytes of the files of deltas that are kept open; the one that was used last stays in any case."""


class Opened:
    """A δ of the store that is open.

    Args:
        entry: what the store knows of it.
        delta: all of it.
    """

    def __init__(self, entry: Entry, delta: Delta) -> None:
        self.entry, self.delta = entry, delta
        self._names: dict[str, tuple[str, ...]] = {}

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: parameter.shape for name, parameter in self.delta.metadata.parameters.items()}

    def named(self, selector: str) -> tuple[str, ...]:
        """Return the parameters that a selector names; each selector is looked up once.

        Raises:
            RefusedError: it is unknown, or names nothing.
        """
        if selector not in self._names:
            base = self.delta.metadata.base
            try:
                found = match(self._shapes, [selector], sample_size=base.sample_size, layout=base.attentions)
            except (SelectionError, InputError) as error:
                raise RefusedError(f"{self.entry.name}: {error.message}", fix=error.fix, field="mix") from None
            if len(self._names) > 1000:  # a page names a few hundred; whoever makes them up does not fill the memory
                self._names.clear()
            self._names[selector] = tuple(found)
        return self._names[selector]

    def factors(self, weight: Weight, share: float = 1.0) -> dict[str, float]:
        """Return the factor of each parameter, as `Weight.by_name` does, times a share."""
        factors = dict.fromkeys(self._shapes, weight.default * share)
        for selector, factor in weight.where.items():
            factors |= dict.fromkeys(self.named(selector), factor * share)
        return factors


class Shelf:
    """The deltas of a service as the board shows and uses them; threads may share it.

    Args:
        service: whose deltas.
        room: bytes of files that are kept open.
    """

    def __init__(self, service: Service, room: int = OPEN) -> None:
        self.service, self._room = service, room
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Opened] = OrderedDict()
        self._bytes = 0
        self._about: dict[str, Mapping[str, JSON]] = {}

    def open(self, name: str, *, any_base: bool = False) -> Opened:
        """Return a δ.

        Args:
            name: of the δ.
            any_base: whether it may be one that cannot be used, such as of another base, as long as it is a δ.

        Raises:
            UnknownDeltaError: it is not there, or cannot be used or read.
        """
        store = self.service.store
        entry = store.known(name) if any_base else store.entry(name)
        with self._lock:
            if (found := self._open.get(entry.digest)) is not None and entry.digest:
                self._open.move_to_end(entry.digest)
                return found if found.entry == entry else Opened(entry, found.delta)
        opened = Opened(entry, self._read(entry) if any_base else store.open(entry))
        with self._lock:
            if entry.digest not in self._open:
                self._open[entry.digest] = opened
                self._bytes += entry.size
            while self._bytes > self._room and len(self._open) > 1:
                _, dropped = self._open.popitem(last=False)
                self._bytes -= dropped.entry.size
        return opened

    @staticmethod
    def _read(entry: Entry) -> Delta:
        """Return a δ that may be one for another base."""
        try:
            raw = read_bytes(Path(entry.path), LARGEST)
            if hashlib.sha256(raw).hexdigest() == entry.digest:
                return loads(raw, name=entry.name)
            reason = "its file was changed, and has not been looked at again yet"
        except DeltaError as error:
            reason = error.message.removeprefix(f"{entry.path}: ")
        raise UnknownDeltaError(f"the delta {entry.name!r} cannot be read: {reason}", field="name")

    def terms(self, mix: Mix) -> list[tuple[Opened, Term]]:
        """Return the deltas of a mix, open, each with its part of the mix.

        Raises:
            UnknownDeltaError: one is not there, or cannot be used.
        """
        return [(self.open(term.name), term) for term in mix.terms]

    def about(self, entry: Entry) -> Mapping[str, JSON]:
        """Return what a δ says of itself, in a few words; of what is no δ, nothing.

        It is kept by content, so that a list of hundreds costs their files once.
        """
        if entry.digest not in self._about or not entry.digest:
            try:
                found = _about(self.open(entry.name, any_base=True).delta)
            except DeltaError:
                found = _about(None)
            if not entry.digest:
                return found
            self._about[entry.digest] = found
        return self._about[entry.digest]

    def forget(self) -> None:
        """Forget words about what is not in the store any more."""
        there = {entry.digest for entry in self.service.store.all()}
        for digest in self._about.keys() - there:
            self._about.pop(digest, None)


def _about(delta: Delta | None) -> Mapping[str, JSON]:
    if delta is None:
        empty = {"title": None, "prompt": None, "made": None, "opens": False}
        return {**empty, "parameters": 0, "numbers": 0, "kinds": {}, "components": []}
    metadata = delta.metadata
    kinds = Counter(f"{len(parameter.shape)}-D" for parameter in metadata.parameters.values())
    prompt = (metadata.training or {}).get("prompt")
    record = metadata.lineage.record if metadata.lineage else None
    return {
        "title": metadata.title,
        "prompt": prompt if isinstance(prompt, str) else None,
        "made": record.operation if record else None,
        "opens": record is not None and record.operation in OPENS,
        "parameters": len(delta),
        "numbers": metadata.numbers,
        "kinds": dict(sorted(kinds.items())),
        "components": sorted({name.partition(".")[0] for name in delta}),
    }


OPENS: Final = ("merge", "add", "scale", "interpolate")
"""Operations whose results are sums with weights, which sliders show."""
