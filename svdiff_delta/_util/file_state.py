"""The state of a file: what tells it from any other, and from itself before a change.

A state is a doubt as much as an answer. Modification times are whatever the last program wants them to be: archives and
copies bring theirs along, editors put them back. The change time is the system's own and nobody can set it, but

- it has a granule: a file may change again within it (git calls such an entry *racy*), so one that is young tells
  nothing;
- a program that maps a file moves it with the first byte that it writes, and not with the next ones, until what it
  wrote is flushed: so a file is flushed before its state counts for the first time, and on a file system that has
  nothing to flush to (tmpfs), or gives the time late (ZFS), it tells nothing;
- file systems without it show another time in its place (FAT, sshfs, most of FUSE, archives that are mounted), as does
  Windows; over a network it may be an old one, by another clock.

So only local file systems of Linux that are known to keep it are trusted, and only with a time that a clock has made:
it has more digits than a millisecond. All others cost a hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

RACY: Final = 2_000_000_000
"""Nanoseconds in which a file may change once more without a new time: one that young tells nothing."""

TRUSTED: Final = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "xfs"})
"""File systems that keep a change time that nobody can set, and move it when a mapped page is written to."""

UNNUMBERED: Final = frozenset({"bcachefs", "btrfs", "overlay"})
"""Those of them whose files have other device numbers than their mounts."""

MILLISECOND: Final = 1_000_000  # nanoseconds
BLOCKS: Final = 32
BLOCK: Final = 4096

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class State(NamedTuple):
    """What the system says of a file: device, inode, size, and the times of modification and change."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    def saved_as(self, other: State) -> bool:
        """Tell whether a file was not saved again: its names and rights may have changed."""
        return self._replace(changed=0) == other._replace(changed=0)


def state(about: os.stat_result) -> State:
    """Return the state of a file."""
    return State(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def tells(path: Path, found: State) -> bool:
    """Tell whether a file whose state stays the same cannot have changed.

    Args:
        path: the file, without links.
        found: its state, now.
    """
    if time.time_ns() - found.changed < RACY or found.changed % MILLISECOND == 0:
        return False
    return file_system(path, found.device) in TRUSTED


def flush(path: Path, expected: State) -> bool:
    """Flush a file, so that whatever is written to it from now on moves its change time.

    Args:
        path: the file.
        expected: its state.

    Returns:
        Whether it was flushed, and its state is still that one.
    """
    try:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            return state(os.fstat(stream.fileno())) == expected
    except OSError:
        return False


def sample(path: Path, header: int, expected: State) -> str | None:
    """Return a digest of a file's header and of blocks that are spread over it.

    It is a second witness beside the state: it tells another model under the same name, whatever the system says.

    Args:
        path: the file.
        header: how many bytes to take from its beginning.
        expected: its state.

    Returns:
        The digest; None if the file cannot be read, or its state is another one.
    """
    last = max(0, expected.size - BLOCK)
    try:
        with path.open("rb", buffering=0) as stream:
            digest = hashlib.sha256(stream.read(header))
            for index in range(BLOCKS):
                stream.seek(last * index // (BLOCKS - 1))
                digest.update(stream.read(BLOCK))
            return digest.hexdigest()[:32] if state(os.fstat(stream.fileno())) == expected else None
    except OSError:
        return None


@lru_cache(maxsize=256)
def file_system(path: Path, device: int) -> str:
    """Return the type of the file system that a file lies on, "" where the system does not say.

    Args:
        path: the file, without links.
        device: its device.
    """
    found = ("", "", -1)  # type, device, depth
    for line in _mounts():
        fields, _, rest = line.partition(" - ")
        _, _, number, _, written, *_ = fields.split(" ")
        place = Path(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), written))
        if len(place.parts) >= found[2] and path.is_relative_to(place):  # of two in one place the later hides the other
            found = (rest.partition(" ")[0], number, len(place.parts))
    if not found[0]:
        return ""
    exact = found[1] == f"{os.major(device)}:{os.minor(device)}" or found[0] in UNNUMBERED
    return found[0] if exact else ""


def _mounts() -> list[str]:
    if not sys.platform.startswith("linux"):
        return []
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
