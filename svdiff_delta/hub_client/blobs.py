"""Blobs of the Hub's local cache: files that are named by a hash of what they hold, so that damage can be told."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from svdiff_delta._util.parallel import check_stopped

HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Names of blobs: the SHA-256 of a large file, else git's SHA-1 of it."""

_CHUNK: Final = 1 << 20


_MOST_LINKS: Final = 8


def find_blob(path: Path) -> Path | None:
    """Return the blob on the way of links that a path of a Hub cache leads along; None if there is none.

    It may be a link itself: huggingface_hub 2 keeps what several repositories have once, under a name that is no hash
    of ours, and the blobs of each lead there.
    """
    for _ in range(_MOST_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if path.parent.name == "blobs" and path.parent.parent.name.startswith("models--") and HASH.fullmatch(path.name):
            return path
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def blob_name(path: Path) -> str | None:
    """Return the hash that names the blob behind a path of a Hub cache; None if there is no blob behind it."""
    blob = find_blob(path)
    return None if blob is None else blob.name


def is_sound(path: Path, name: str) -> bool:
    """Tell whether a file holds what a hash says; all of it is read.

    Args:
        path: the file.
        name: its SHA-256; or git's SHA-1 of it as a blob, in place of which mirrors of the Hub give the plain one.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        short = (hashlib.sha1(b"blob %d\0" % size), hashlib.sha1())  # noqa: S324 - it finds damage, not forgers
        digests = (hashlib.sha256(),) if len(name) == 64 else short
        room = memoryview(bytearray(_CHUNK))
        while count := stream.readinto(room):
            check_stopped()
            for digest in digests:
                digest.update(room[:count])
    return name in [digest.hexdigest() for digest in digests]


def blobs_of(store: Path) -> frozenset[str]:
    """Return the names of the blobs that a repository has in the local cache."""
    with suppress(OSError):
        return frozenset(path.name for path in (store / "blobs").iterdir() if HASH.fullmatch(path.name))
    return frozenset()


def remove_blob(store: Path, name: str) -> list[str]:
    """Remove a blob of a repository, what it leads to, and the links that lead to it, so that it is fetched again.

    Returns:
        The paths in the repository that led to it.

    Raises:
        OSError: the system refuses.
    """
    blob, names = Path(os.path.realpath(store)) / "blobs" / name, set()
    for commit in (store / "snapshots").glob("*"):
        for link in commit.rglob("*"):
            if link.is_symlink() and find_blob(link) == blob:
                names.add(link.relative_to(commit).as_posix())
                link.unlink(missing_ok=True)
    remove_linked(blob)
    return sorted(names)


def remove_linked(path: Path) -> None:
    """Remove a file and all links on the way to it.

    Raises:
        OSError: the system refuses.
    """
    for _ in range(_MOST_LINKS):
        following = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if following is None:
            return
        path = following
