"""Atomic writing: a crash at any moment leaves the old file (or folder) or the new one, never a part.

What is being written lies beside its place, in a hidden file or folder with a lock that ends with its process. What
killed processes left is removed by the next one that writes into the same folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Final

from svdiff_delta.errors import OutputError

from .system import Claim, exchange, rename_new, sync, sync_tree

MARKER: Final = ".svdiff-output"
"""A file in every folder that this program wrote: it names all others, so that nothing else is ever removed."""

WORKING: Final = ".svdiff-tmp"
"""The suffix of what is being written."""

STRAYS: Final = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""What systems put into folders by themselves; it never stands in the way."""

WEEK: Final = 604_800.0
"""Seconds after which leftovers are removed where no lock tells whether their process lives."""

SHOWN: Final = 3
LARGEST: Final = 1 << 26
NAME: Final = 200  # bytes of a name that working names may repeat


def check_output(path: Path, *, overwrite: bool, folder: bool | None = None) -> None:
    """Refuse early what `replace_file` or `replace_folder` would refuse late.

    Args:
        path: the output.
        overwrite: whether it may be replaced.
        folder: whether it will be a folder; None if that is not known yet.

    Raises:
        OutputError: `path` exists and may not be overwritten, is a device, pipe or socket, or a folder that holds what
            this program did not write; or the folder around it does not exist or is not writable.
    """
    parent = path.absolute().parent
    try:
        mode, in_folder = _mode(path), parent.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be searched, a NUL
        why = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{path}: could not be written ({why})", fix="choose another output") from None
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OutputError(f"{path}: is a device, pipe or socket", fix="name a file or folder to write")
    if mode and not overwrite:
        raise _exists(path)
    if stat.S_ISDIR(mode):
        _check_folder(path, folder=folder)
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
    sweep(path.absolute().parent)
    check_output(path, overwrite=overwrite, folder=False)
    with _said(path), _working(path, folder=False) as place:
        with place.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if overwrite:
            place.replace(path)
        else:
            _link_new(place, path)
        sync(path.absolute().parent)


@contextmanager
def replace_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a new folder beside `path`; it takes the name `path` when the block ends well.

    Only an empty folder, or one that this program wrote and to which nothing was added, is ever replaced.

    Raises:
        OutputError: as `replace_file`.
    """
    sweep(path.absolute().parent)
    check_output(path, overwrite=overwrite, folder=True)
    with _said(path), _working(path, folder=True) as place:
        new = place / "new"
        new.mkdir()
        yield new
        _mark(new)
        sync_tree(new)
        _put(new, path.absolute(), overwrite=overwrite)
        sync(path.absolute().parent)


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder, and put back what they had taken out of its place."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(".") and entry.name.endswith(WORKING):
                with suppress(OSError):
                    _sweep(Path(entry.path))


def drop_lock(path: Path) -> None:
    """Remove the file of a lock that nobody holds: a process was killed that did."""
    if not path.exists():
        return
    with suppress(OSError):
        claim = Claim(path, wait=False)
        try:
            if claim.held and claim.is_of(path):
                path.unlink()
        finally:
            claim.release()


def _sweep(place: Path) -> None:
    about = place.lstat()
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        return
    claim = Claim(place, wait=False)
    try:
        left = claim.held if claim.held is not None else about.st_mtime < time.time() - WEEK
        if left and claim.is_of(place):
            _clear(place)
    finally:
        claim.release()


@contextmanager
def _working(path: Path, *, folder: bool) -> Iterator[Path]:
    """Make a hidden file or folder beside a path, locked; remove it in the end."""
    made: list[Path] = []
    claim: Claim | None = None
    try:
        while claim is None or not claim.is_of(made[-1]):  # one that sweeps may have taken it for a leftover
            made.append(_working_name(path))  # noted first: a signal may come at any moment
            _make(made[-1], folder=folder)
            claim = Claim(made[-1], wait=True)
        yield made[-1]
    finally:
        try:
            _clear_all(made)
        except BaseException:  # a signal came just now; it raises only once
            _clear_all(made)
            raise
        finally:
            if claim is not None:
                claim.release()


def _clear_all(made: Iterable[Path]) -> None:
    for place in made:
        _clear(place)


def _working_name(path: Path) -> Path:
    whole, raw = path.absolute(), os.fsencode(path.name)
    name = path.name if len(raw) <= NAME else sha256(raw).hexdigest()[:32]
    return whole.with_name(f".{name}.{os.urandom(4).hex()}{WORKING}")


def _make(place: Path, *, folder: bool) -> None:
    if folder:
        place.mkdir(0o700)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _put(new: Path, path: Path, *, overwrite: bool) -> None:
    """Give a new folder its name, and take over the place of an old one."""
    if not (overwrite and os.path.lexists(path)):
        rename_new(new, path)
        return
    check_output(path, overwrite=True, folder=True)  # something may have been added meanwhile
    if not exchange(new, path):
        aside = new.with_name("old")
        aside.mkdir()
        path.rename(aside / path.name)
        rename_new(new, path)


def _clear(place: Path) -> None:
    """Remove a working file or folder; what it had taken out of its place, and nothing replaced, is put back."""
    if place.is_dir() and (aside := place / "old").is_dir():
        for old in aside.iterdir():
            with suppress(FileExistsError):
                rename_new(old, place.with_name(old.name))
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """Return the kind of what is at a path, 0 if nothing is; a link that leads nowhere counts as a file."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return stat.S_IFREG if path.is_symlink() else 0


def _check_folder(path: Path, *, folder: bool | None) -> None:
    """Refuse to replace a folder by a file, the working folder, and what this program did not write."""
    if folder is False:
        why = os.strerror(errno.EISDIR)
        raise OutputError(f"{path}: could not be written ({why})", fix="choose another output")
    with suppress(OSError):
        if Path.cwd().is_relative_to(path.resolve()):
            raise OutputError(f"{path}: the working folder is in it", fix="run this from elsewhere")
    there = _listing(path)
    known = _marked(path)
    if there and known is None:
        raise OutputError(
            f"{path}: is no folder that this program wrote (it has no {MARKER}, which older versions did not write)",
            fix="choose another output, or remove the folder yourself if nothing in it is needed",
        )
    if more := [name for name in there if name not in (known or ()) and Path(name).name not in STRAYS]:
        shown = ", ".join(more[:SHOWN]) + (f" and {len(more) - SHOWN} more" if len(more) > SHOWN else "")
        raise OutputError(
            f"{path}: holds what this program did not write there: {shown}",
            fix="move that elsewhere, or choose another output",
        )


def _mark(folder: Path) -> None:
    """Write into a folder that this program wrote it, and which files."""
    said = "this folder was written by svdiff-delta; what is not named here is never overwritten with it"
    text = json.dumps({"about": said, "files": [*_listing(folder), MARKER]}, indent=1, ensure_ascii=True)
    (folder / MARKER).write_text(f"{text}\n", "ascii")


def _marked(folder: Path) -> frozenset[str] | None:
    """Return the files that the marker in a folder names; None if it has no marker."""
    try:
        about = (folder / MARKER).lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            return None
        return frozenset(json.loads((folder / MARKER).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _listing(folder: Path) -> list[str]:
    """Return the relative paths of all files and links below a folder, sorted.

    Raises:
        OutputError: a folder in it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise OutputError(f"{error.filename}: could not be read ({error.strerror})", fix="choose another output")

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [Path(root, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn what the system says into an OutputError."""
    try:
        yield
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error})", fix="free some space or choose another output"
        ) from error


def _exists(path: Path) -> OutputError:
    return OutputError(f"{path}: exists already", fix="choose another output, or overwrite it with `overwrite=True`")


def _link_new(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`; unlike a rename, a hard link never replaces a file that appeared meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        temporary.replace(path)
