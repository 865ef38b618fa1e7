"""Atomic writing: a crash at any moment leaves the old file (or folder) or the new one, never a part."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import OutputError


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse early what `replace_file` or `replace_folder` would refuse late.

    Raises:
        OutputError: `path` exists and may not be overwritten, or its folder does not exist or is not writable.
    """
    parent = path.absolute().parent
    try:
        exists, in_folder = path.exists(), parent.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise OutputError(f"{path}: could not be written ({error.strerror})", fix="choose another output") from None
    if exists and not overwrite:
        raise _exists(path)
    if not in_folder:
        raise OutputError(f"{path}: the folder {parent} does not exist", fix="create it first")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{path}: the folder {parent} is not writable", fix="choose another output")


@contextmanager
def replace_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Open a temporary sibling of `path` for writing; it takes the name `path` when the block ends well.

    Raises:
        OutputError: as `check_output`, or the disk refused (the message carries its reason).
    """
    check_output(path, overwrite=overwrite)
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            yield stream.file
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        if overwrite:
            temporary.replace(path)
        else:
            _link_new(temporary, path)
    except FileExistsError:
        raise OutputError(
            f"{path}: exists already", fix="choose another output, or overwrite it with --force"
        ) from None
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error})", fix="free some space or choose another output"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary sibling folder; it takes the name `path` when the block ends well.

    Raises:
        OutputError: as `replace_file`.
    """
    check_output(path, overwrite=overwrite)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=path.absolute().parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if overwrite and path.exists():
            old = temporary.with_name(temporary.name + ".old")
            path.rename(old)
            temporary.rename(path)
            _remove(old)
        else:
            temporary.rename(path)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error})", fix="free some space or choose another output"
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path}: exists already", fix="choose another output, or overwrite it with --force")


def _link_new(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`; unlike a rename, a hard link never replaces a file that appeared meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
