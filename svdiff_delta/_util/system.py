"""Wrap calls that differ between systems: changing places, forcing to the disk, locks. Each has a way without it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, Final

AT_FDCWD: Final = -100
NEW, EXCHANGE = 1, 2
"""Flags of Linux's renameat2."""
SWAP, EXCLUSIVE = 2, 4
"""Flags of macOS's renamex_np."""

_LACKING: Final = frozenset({errno.ENOSYS, errno.EINVAL, getattr(errno, "ENOTSUP", errno.EINVAL), errno.EOPNOTSUPP})
"""What systems and file systems answer that do not know the call."""


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at one moment; return False where the system or file system cannot.

    Raises:
        OSError: it can, and refused.
    """
    return _rename(one, other, EXCHANGE, SWAP)


def rename_new(source: Path, target: Path) -> None:
    """Rename a folder, never over what is there: not even over an empty folder, where the system can.

    Raises:
        FileExistsError: the target is there.
        OSError: the system refuses.
    """
    if not _rename(source, target, NEW, EXCLUSIVE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _rename(source: Path, target: Path, linux: int, darwin: int) -> bool:
    """Rename with a flag by the system's own call; return False where there is none."""
    from ctypes import get_errno

    call = _call("renameat2") if sys.platform == "linux" else _call("renamex_np") if sys.platform == "darwin" else None
    if call is None:
        return False
    a, b = os.fsencode(source), os.fsencode(target)
    done = call(AT_FDCWD, a, AT_FDCWD, b, linux) if sys.platform == "linux" else call(a, b, darwin)
    if done == 0:
        return True
    if (number := get_errno()) in _LACKING:
        return False
    raise OSError(number, os.strerror(number), str(target))


def _call(name: str) -> Any:
    """Return a function of the C library; None where it lacks it."""
    try:
        import ctypes

        return getattr(ctypes.CDLL(None, use_errno=True), name, None)
    except (ImportError, OSError, TypeError):
        return None


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk, where the system can.

    Raises:
        OSError: the disk refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force all that is in a folder to the disk; what links lead to is not followed.

    Raises:
        OSError: the disk refuses.
    """
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not (path := Path(root, name)).is_symlink():
                sync(path)
        sync(Path(root))


class Claim:
    """A lock on a file or folder that ends with the process, however that ends.

    Args:
        path: a file or folder.
        wait: whether to wait for it.

    Attributes:
        held: whether it was got; None where the system or file system has no such locks.
    """

    def __init__(self, path: Path, *, wait: bool) -> None:
        self._descriptor = -1
        self.held: bool | None = None
        try:
            import fcntl
        except ImportError:  # no POSIX
            return
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            self.held = False
        except OSError:  # such as a network's file system
            self.held = None

    def is_of(self, path: Path) -> bool:
        """Tell whether what is locked has this name, and was not removed meanwhile."""
        if self._descriptor < 0:
            return path.exists()
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(path))
        except OSError:
            return False

    def release(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
