"""What people write for a DELTA or a BASE, and what it stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from svdiff_delta.errors import InputError

from .printing import echo
from .threads import compute_on_one
from .wording import spelled

if TYPE_CHECKING:
    from svdiff_delta import Base, Delta

TINY = "tiny"

_VARIANT = re.compile(r"(?P<base>[^:]{2,}|hf://[^:]+):(?P<variant>[A-Za-z_][\w-]*)")


def split_weight(reference: str) -> tuple[str, float]:
    """Return DELTA and weight of `DELTA[:WEIGHT]`; a path that exists as it is has weight 1.

    Raises:
        InputError: the weight is not a finite number.
    """
    if ":" not in reference or is_path(reference):
        return reference, 1.0
    path, _, text = reference.rpartition(":")
    try:
        weight = float(text)
    except ValueError:
        return reference, 1.0
    if not isfinite(weight):
        raise InputError(f"{reference}: the weight {text} is not a finite number", fix="write it as FILE:0.8")
    return path, weight


def is_path(reference: str) -> bool:
    """Tell whether there is something at a path; a reference to the Hub is none."""
    try:
        return Path(reference).exists()
    except OSError:  # too long for a file's name, or in a folder that may not be searched
        return False


def open_deltas(references: Sequence[str]) -> tuple[list[Delta], list[float]]:
    """Open every `DELTA[:WEIGHT]`, and return deltas and weights."""
    from svdiff_delta.io import load

    pairs = [split_weight(reference) for reference in references]
    return [load(path) for path, _ in pairs], [weight for _, weight in pairs]


def local_file(reference: str) -> str:
    """Return the path of a file: as it was written, or where it is in the local Hub cache once it was fetched."""
    from svdiff_delta.hub_client.download import fetch_delta
    from svdiff_delta.hub_client.reference import Reference, locate

    place = locate(reference)
    return str(fetch_delta(place)) if isinstance(place, Reference) else reference


def open_reference(reference: str, component: str | None = None, variant: str | None = None) -> Base:
    """Open a BASE: the word `tiny`, a path, or `owner/repo[@revision][/path]` on the Hub, which `hf://` forces.

    Args:
        reference: what was written.
        component: what to call a base that is a single model.
        variant: which of its files to read, such as fp16. It may also stand behind the reference: `BASE:fp16`.
    """
    needs("torch", "torch")
    if reference == TINY and not Path(reference).exists():
        from svdiff_train.tiny import open_tiny

        return open_tiny()
    from svdiff_delta.base_model.base import open_base

    if variant is None:
        reference, variant = split_variant(reference)
    context = click.get_current_context(silent=True)
    kept = {} if context is None else context.meta
    config, dequantize = kept.get("svdiff_cli.base_config"), bool(kept.get("svdiff_cli.dequantize"))
    return open_base(reference, component=component, variant=variant, config=config, dequantize=dequantize)


def open_to_paint(reference: str) -> Base:
    """Open a BASE whose model is going to run: the embedded one computes on one thread, as it is fastest."""
    opened = open_reference(reference)
    if reference == TINY and not Path(reference).exists():
        compute_on_one()
    return opened


def split_variant(reference: str) -> tuple[str, str | None]:
    """Return reference and variant of `BASE[:VARIANT]`; a path that exists as it is has none."""
    match = _VARIANT.fullmatch(reference)
    return (match["base"], match["variant"]) if match and not is_path(reference) else (reference, None)


def sole_component(deltas: Sequence[Delta]) -> str | None:
    """Return the component that all deltas shift, if it is only one: what a BASE that is a single file is called."""
    found = {name.partition(".")[0] for delta in deltas for name in delta}
    return found.pop() if len(found) == 1 else None


def keep_apart(outputs: Path | Sequence[Path | None] | None, *inputs: Base | Path | str | None) -> None:
    """Refuse an output that is, holds or lies in what a command reads.

    Args:
        outputs: what it writes.
        inputs: bases, paths, and what was written for a DELTA[:WEIGHT]; what only the Hub has is passed over.

    Raises:
        InputError: it does.
    """
    from svdiff_delta._util.paths import check_apart

    found: list[Path] = []
    for given in inputs:
        if isinstance(given, str):
            found.append(Path(split_weight(given)[0]))
        elif given is not None:
            found += [given] if isinstance(given, Path) else given.files
    for output in filter(None, [outputs] if isinstance(outputs, Path) else outputs or ()):
        check_apart(output, found)


def needs(package: str, extra: str) -> None:
    """Raise MissingExtraError, which names the extra to install, if a package is not there."""
    from importlib.util import find_spec

    from svdiff_delta.errors import MissingExtraError

    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


def say(message: str, *, quiet: bool = False) -> None:
    """Print a remark, which may be the library's, to standard error."""
    if not quiet:
        echo(spelled(message), err=True)
