"""Blobs of the Hub's local cache: files that are named by a hash of what they hold, so that damage can be told."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Names of blobs: the SHA-256 of a large file, else git's SHA-1 of it."""

_CHUNK: Final = 1 << 20


def blob_name(path: Path) -> str | None:
    """Return the hash that names the blob behind a path of a Hub cache; None if there is no blob behind it."""
    real = Path(os.path.realpath(path))
    in_cache = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    return real.name if in_cache and HASH.fullmatch(real.name) else None


def is_sound(path: Path, name: str) -> bool:
    """Tell whether a file holds what a hash says; all of it is read.

    Args:
        path: the file.
        name: its SHA-256, or git's SHA-1 of it as a blob, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256() if len(name) == 64 else hashlib.sha1(b"blob %d\0" % size)  # noqa: S324
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == name


def blobs_of(store: Path) -> frozenset[str]:
    """Return the names of the blobs that a repository has in the local cache."""
    with suppress(OSError):
        return frozenset(path.name for path in (store / "blobs").iterdir() if HASH.fullmatch(path.name))
    return frozenset()


def remove_blob(store: Path, name: str) -> list[str]:
    """Remove a blob of a repository, and the links that led to it, so that it is fetched again.

    Returns:
        The paths in the repository that led to it.
    """
    blob, names = store / "blobs" / name, set()
    for commit in (store / "snapshots").glob("*"):
        for link in commit.rglob("*"):
            if link.is_symlink() and os.path.realpath(link) == os.path.realpath(blob):
                names.add(link.relative_to(commit).as_posix())
                link.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    return sorted(names)
