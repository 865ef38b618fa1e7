"""Deltas in and out: load a path or something on the Hub, pull it from there, save.

What a file that is here does not need of the Hub is not imported for it: that would take longer than a small sum.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ._util.atomic import check_output, replace_file
from .format.delta import Delta
from .format.file import open_file
from .format.file import save as save

if TYPE_CHECKING:
    from .hub_client.download import Found

__all__ = ["load", "pull", "save", "take"]


def load(path: str | PathLike[str]) -> Delta:
    """Open a delta file; the header is checked at once, each tensor when it is read.

    Args:
        path: a file, or `[hf://]owner/repo[@revision][/file]` on the Hub, whose `svdiff.safetensors` is fetched into
            the local Hub cache and, without network, opened from there. What exists as a path is one; `hf://` in
            front forces the Hub. Only a string may name something on the Hub.

    Raises:
        InputError: there is no such file, or it cannot be read.
        HubError: the Hub refused, was not reached, or has no such delta.
        FormatError: its bytes are not a valid delta file; the message names the file.
    """
    if isinstance(path, str) and (path.startswith("hf://") or not os.path.exists(path)):  # noqa: PTH110 - never raises
        from .hub_client.download import fetch_delta
        from .hub_client.reference import Reference, locate

        place = locate(path)
        return open_file(fetch_delta(place) if isinstance(place, Reference) else place, str(place))
    return open_file(Path(path), str(path))


def pull(repository: str, output: str | PathLike[str] | None = None, *, overwrite: bool = False) -> Delta:
    """Fetch a delta from the Hub, and check every byte of it.

    Only that file is fetched, into the local Hub cache; without network it is opened from there. Nothing is run.

    Args:
        repository: `owner/repo[@revision][/file]`; without a file, its `svdiff.safetensors`.
        output: where to write a copy of the file.
        overwrite: whether an existing output may be replaced.

    Raises:
        HubError: there is no such repository or delta, or the Hub refused or was not reached.
        FormatError: what is there is no valid delta.
        OutputError: the output exists, or the disk refused.
    """
    from .hub_client.download import find_delta
    from .hub_client.reference import read_reference

    reference = read_reference(repository)
    if output is not None:
        check_output(Path(output), overwrite=overwrite)
    return take(find_delta(reference), output, overwrite=overwrite)


def take(found: Found, output: str | PathLike[str] | None = None, *, overwrite: bool = False) -> Delta:
    """Fetch a delta that was looked up with `find_delta`; otherwise as `pull`."""
    from .hub_client.download import fetch

    path = fetch(found)
    delta = open_file(path, str(found.asked))
    for name in delta:
        delta[name]  # reading checks it
    if output is not None:
        with replace_file(Path(output), overwrite=overwrite) as stream:
            stream.write(path.read_bytes())
    return delta
