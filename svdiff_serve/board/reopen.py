"""Open a δ with its sliders: from its lineage back to the mix that it was saved from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from svdiff_delta._text.printable import counted, printable
from svdiff_delta._util.json import JSON
from svdiff_delta.errors import DeltaError
from svdiff_delta.format.delta import Delta
from svdiff_delta.format.file import loads
from svdiff_delta.format.lineage import Lineage, Record
from svdiff_delta.ops.replay import recorded_weights
from svdiff_delta.ops.weights import Weight
from svdiff_serve.errors import RefusedError
from svdiff_serve.mixes import TERMS

from .mix import Mix, Term, term_of
from .shelf import Shelf

SHOWN = 3
"""Deltas that a message names."""


class _Unknown(Exception):  # noqa: N818 - it says why, and nobody else sees it
    """A lineage is no sum with weights."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def opened_again(shelf: Shelf, delta: Delta) -> JSON:
    """Return the mix that a δ was saved from, as the page takes it.

    What its lineage names and the store does not have is listed beside; the mix then holds the rest.
    """
    about: dict[str, JSON] = {"title": delta.metadata.title, "mix": None, "missing": [], "message": ""}
    lineage = delta.metadata.lineage
    try:
        if lineage is None:
            raise _Unknown("it was not mixed of others: there are no sliders to open")
        pairs = _pairs(lineage.record)
        names = {entry.digest: entry.name for entry in shelf.service.store.entries()}
        terms = [(sha256, term_of(names.get(sha256, sha256[:12]), weight)) for sha256, weight in pairs]
    except _Unknown as unknown:
        return about | {"message": unknown.reason}
    except DeltaError as error:
        return about | {"message": str(error)}
    found = [term for sha256, term in terms if sha256 in names]
    missing = [_missing(sha256, term, lineage) for sha256, term in terms if sha256 not in names]
    return about | {
        "mix": msgspec.to_builtins(Mix(terms=tuple(found))),
        "missing": missing,
        "message": _said(missing, len(terms)),
    }


def read_again(shelf: Shelf, raw: bytes) -> JSON:
    """Return the mix that the bytes of a δ file were saved from.

    Raises:
        RefusedError: they are no δ.
    """
    try:
        return opened_again(shelf, loads(raw))
    except DeltaError as error:
        raise RefusedError(f"the file is no δ that can be opened: {error.message}", fix=error.fix) from None


def _pairs(record: Record) -> list[tuple[str, Weight]]:
    """Return the inputs of an operation by SHA-256, with their weights.

    Raises:
        _Unknown: it is no sum with weights.
    """
    arguments, operation = record.arguments, printable(record.operation)
    if "sample_size" in arguments:
        raise _Unknown("its recipe counts addresses from a sample size of its own, which sliders have no place for")
    if operation == "merge" and arguments.get("method") != "linear":
        method = printable(str(arguments.get("method")))
        raise _Unknown(f"it was merged by {method}, which is no sum with weights: run its recipe with `svdiff merge`")
    weights = recorded_weights(record)
    if weights is None:
        raise _Unknown(f"it was made by {operation}, which sliders do not do")
    if len(weights) != len(record.inputs):
        raise _Unknown("its lineage has not as many weights as inputs")
    if len(set(record.inputs)) < len(record.inputs):
        raise _Unknown("its lineage takes one δ twice, which has one slider here")
    if len(weights) > TERMS:
        raise _Unknown(f"it was mixed of {len(weights)} deltas, and the board mixes {TERMS}")
    return list(zip(record.inputs, weights, strict=True))


def _missing(sha256: str, term: Term, lineage: Lineage) -> dict[str, JSON]:
    source = lineage.files.get(sha256)
    return {
        "sha256": sha256,
        "title": None if source is None else source.title,
        "weight": term.weight,
        "parts": [list(part) for part in term.parts],
    }


def _said(missing: Sequence[Mapping[str, JSON]], count: int) -> str:
    if not missing:
        return ""
    called = [repr(each["title"]) if each["title"] else each["sha256"][:12] for each in missing[:SHOWN]]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    what = f"{counted(len(missing), 'delta')} of the {count} that it was mixed of"
    verb = "is" if len(missing) == 1 else "are"
    return f"{what} {verb} not here: {', '.join(called)}{more}; put them into the folder of deltas to have all sliders"
