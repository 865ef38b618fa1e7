"""Names that stand in files, as paths below a folder; links that leave a folder; paths that contain each other."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from svdiff_delta.errors import DeltaError, InputError

LONGEST: Final = 255
"""Bytes of one name, on every file system in use."""

RESERVED: Final = frozenset(
    {
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        *(f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³"),
    }
)
"""Names that are devices on Windows, with any suffix."""

_SPECIAL: Final = frozenset('/\\:*?"<>|')


def below(
    folder: Path, name: object, *, source: object, error: type[DeltaError] = InputError, deep: bool = False
) -> Path:
    """Return the path of what a file names, which lies below a folder on every system.

    Args:
        folder: where it lies.
        name: what the file says.
        source: what says it, for the message.
        error: the error to raise.
        deep: whether it may lie in sub-folders, with `/` between their names.

    Raises:
        DeltaError: it is no text, or no plain name.
    """
    parts = name.split("/") if isinstance(name, str) and deep else [name]
    for part in parts:
        if why := complaint(part):
            raise error(
                f"{source}: {name!r} is no name of a file in {folder}: {why}",
                fix="fetch it again, from where you trust",
            )
    return folder.joinpath(*map(str, parts))


def complaint(name: object) -> str:
    """Return why something is no plain name of a file or folder; "" if it is one."""
    if not isinstance(name, str):
        return "it is no text"
    if name in ("", ".", ".."):
        return "it names a folder above, or nothing"
    if not name.isprintable():
        return "it has control characters"  # NUL and halves of surrogates too
    if found := next((char for char in name if char in _SPECIAL), ""):
        return f"it has a {found}"
    if len(name.encode()) > LONGEST:
        return f"it has more than {LONGEST} bytes"
    if name[-1] in ". " or name.partition(".")[0].rstrip(" ").casefold() in RESERVED:
        return "it is reserved on some systems"
    return ""


def check_links(folder: Path, path: Path, *, error: type[DeltaError] = InputError) -> None:
    """Refuse what lies in a folder only as a link to a place outside: to copy it would publish that.

    In the local cache of the Hub every file of a snapshot is a link to a blob of its repository. That is no outside.

    Args:
        folder: the folder.
        path: a file or folder that is found in it.
        error: the error to raise.

    Raises:
        DeltaError: links lead out of the folder.
    """
    whole, real = _real(folder), _real(path)
    if not any(real.is_relative_to(root) for root in (whole, *_blobs(whole))):
        raise error(
            f"{path}: is a link that leads out of {folder}, to {real}",
            fix=f"if that is meant, copy it with all that its links lead to (cp -rL {folder} COPY) and name the copy",
        )


def _blobs(folder: Path) -> list[Path]:
    """Return where the content of a snapshot in the Hub's cache lies; nothing for any other folder."""
    stores = (up.parent.parent for up in (folder, *folder.parents) if up.parent.name == "snapshots")
    return [store / "blobs" for store in stores if store.name.startswith("models--")]


def contains(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to the same place, or one lies in the other, whichever way round."""
    a, b = _real(one), _real(other)
    short, long = sorted((a, b), key=lambda path: len(path.parts))
    return any(_same(short, up) for up in (long, *long.parents))


class Places:
    """Many paths, by where they lead: among them one that contains another is found at once."""

    def __init__(self) -> None:
        self._at: dict[str, str] = {}
        self._above: dict[str, str] = {}

    def add(self, path: Path, label: str) -> None:
        """Note a path and what it is called; of two that lead to one place the first one counts."""
        real = _real(path)
        self._at.setdefault(os.path.normcase(real), label)
        for up in real.parents:
            self._above.setdefault(os.path.normcase(up), label)

    def meet(self, path: Path) -> str | None:
        """Return what a noted path is called that a path is the same as, holds, or lies in; None if there is none."""
        real = _real(path)
        ups = (self._at.get(os.path.normcase(up)) for up in (real, *real.parents))
        return next(filter(None, ups), None) or self._above.get(os.path.normcase(real))


def check_apart(output: Path, others: Iterable[Path]) -> None:
    """Check that an output is none of what it is made of, lies in none of it, and holds none of it.

    Raises:
        InputError: it does.
    """
    for other in others:
        if os.path.lexists(other) and contains(output, other):
            lies = len(_real(output).parts) > len(_real(other).parts)
            what = "is" if _same(output, other) else "lies in" if lies else "holds"
            raise InputError(
                f"{output}: {what} what it would be made of ({other})", fix="choose another output, outside of it"
            )


def _real(path: Path) -> Path:
    """Return where a path leads; of what cannot be a path, where it would."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # a NUL
        return path.absolute()


def _same(one: Path, other: Path) -> bool:
    if os.path.normcase(one) == os.path.normcase(other):
        return True
    try:
        return one.samefile(other)  # names in another case, folders mounted twice
    except (OSError, ValueError):
        return False
