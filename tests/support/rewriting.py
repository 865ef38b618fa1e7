"""Ways to put another content in the place of a file, with the same size and times."""

from __future__ import annotations

import io
import mmap
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path


def rewrite(path: Path, other: bytes) -> None:
    """Write over a file, and put its time back, as an editor may."""
    about = path.stat()
    with path.open("r+b") as stream:
        stream.write(other)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def through_a_map(path: Path, other: bytes) -> None:
    """Write through a map of the file, and put its time back."""
    about = path.stat()
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as pages:
        pages[:] = other
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def unpack(path: Path, other: bytes) -> None:
    """Unpack an archive with fixed times over the file."""
    archive, about = io.BytesIO(), tarfile.TarInfo(path.name)
    about.size, about.mtime = len(other), int(path.stat().st_mtime)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(about, io.BytesIO(other))
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        trusted = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 brought it
        tar.extractall(path.parent, **trusted)


def rename(path: Path, other: bytes) -> None:
    """Put another file with the same times in the place."""
    about, new = path.stat(), path.with_name("new")
    new.write_bytes(other)
    os.utime(new, ns=(about.st_atime_ns, about.st_mtime_ns))
    new.replace(path)


def relink(path: Path, other: bytes) -> None:
    """Make a link to another file of it."""
    about, elsewhere = path.stat(), path.parent.parent / path.name
    elsewhere.write_bytes(other)
    os.utime(elsewhere, ns=(about.st_atime_ns, about.st_mtime_ns))
    path.unlink()
    path.symlink_to(elsewhere)


def through_a_hard_link(path: Path, other: bytes) -> None:
    """Write over the file by another name that it has."""
    twin = path.with_name("twin")
    twin.hardlink_to(path)
    rewrite(twin, other)


def copy(path: Path, other: bytes) -> None:
    """Copy another file over it, with all that a copy brings along."""
    source = path.with_name("source")
    source.write_bytes(other)
    shutil.copystat(path, source)
    shutil.copy2(source, path)


WAYS: dict[str, Callable[[Path, bytes], None]] = {
    "edited": rewrite,
    "edited through a map": through_a_map,
    "edited by another name": through_a_hard_link,
    "unpacked over": unpack,
    "renamed over": rename,
    "linked to another": relink,
    "copied over": copy,
}
