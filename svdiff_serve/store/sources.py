"""Say where deltas come from: a folder's files, or one file of a repository on the Hub, each under a name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from svdiff_delta._util.file_state import State, state
from svdiff_delta.errors import DeltaError, InputError, refusal
from svdiff_delta.hub_client.reference import Reference, locate

SUFFIX: Final = ".safetensors"
DEEPEST: Final = 16
"""Folders within one another that are walked."""

ASKED_EVERY: Final = 300.0
"""Seconds after which the Hub is asked again for a branch."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file of δ.

    Attributes:
        name: what mixes call it.
        path: where it is.
        seen: its state now.
        reference: what commands and recipes call it: its path, its path below its source's folder, or its place on
            the Hub.
    """

    name: str
    path: str
    seen: State
    reference: str


class Source(Protocol):
    """Where deltas come from."""

    def places(self, say: Callable[[str], None]) -> Iterator[Place]:
        """Yield all of its files; what cannot be looked at is said, and left out."""


class FolderSource:
    """All safetensors files below a folder, without hidden ones, each under its path there without the ending.

    Args:
        folder: the folder; it may be empty.
        by_path: whether clients may know where it is on this machine, and recipes name paths.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(self, folder: Path, *, by_path: bool = False) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: is no folder", fix="name a folder of deltas, or owner/repo on the Hub")
        self._folder, self._by_path = folder, by_path

    def places(self, say: Callable[[str], None]) -> Iterator[Place]:
        """Yield its files."""
        yield from self._walk(str(self._folder), "", say, 0)

    def _walk(self, folder: str, prefix: str, say: Callable[[str], None], depth: int) -> Iterator[Place]:
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            say(refusal(folder, error))
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth < DEEPEST:
                        yield from self._walk(entry.path, f"{prefix}{entry.name}/", say, depth + 1)
                elif entry.name.endswith(SUFFIX) and entry.is_file():
                    name = prefix + entry.name.removesuffix(SUFFIX)
                    reference = entry.path if self._by_path else name + SUFFIX
                    yield Place(name, entry.path, state(entry.stat()), reference)
            except FileNotFoundError:
                continue  # it went while we looked
            except OSError as error:
                say(refusal(entry.path, error))


class FileSource:
    """One file of δ, under its name without the ending.

    Args:
        path: the file.
        by_path: as a folder's.

    Raises:
        InputError: there is no such file, or it is none of safetensors.
    """

    def __init__(self, path: Path, *, by_path: bool = False) -> None:
        if not path.is_file() or path.suffix != SUFFIX:
            raise InputError(f"{path}: is no file of δ", fix=f"name a file that ends in {SUFFIX}, or a folder of them")
        self._path, self._reference = path, str(path) if by_path else path.name
        self.name = path.stem

    def places(self, say: Callable[[str], None]) -> Iterator[Place]:
        """Yield its file."""
        try:
            yield Place(self.name, str(self._path), state(self._path.stat()), self._reference)
        except FileNotFoundError:
            return  # it comes back, or it is gone
        except OSError as error:
            say(refusal(self._path, error))


class HubSource:
    """One δ of a repository, fetched into the local Hub cache; a branch is asked for again now and then.

    Args:
        reference: the repository, and the file in it; `svdiff.safetensors` if it names none.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        inner = PurePosixPath(reference.path)
        path = inner.with_suffix("") if inner.suffix == SUFFIX else inner
        self.name = "/".join(filter(None, [reference.repository, "" if path == PurePosixPath() else str(path)]))
        self._path: Path | None = None
        self._asked = float("-inf")

    def places(self, say: Callable[[str], None]) -> Iterator[Place]:
        """Yield its file; the former one where the Hub cannot be asked."""
        from svdiff_delta.hub_client.download import fetch_delta

        if time.monotonic() - self._asked >= ASKED_EVERY:
            try:
                self._path = fetch_delta(self._reference)
            except DeltaError as error:
                say(str(error))
            self._asked = time.monotonic()
        if self._path is not None:
            try:
                yield Place(self.name, str(self._path), state(self._path.stat()), str(self._reference))
            except OSError as error:
                say(refusal(self._path, error))
                self._asked = float("-inf")


def source_of(text: str, *, own: bool = False) -> Source:
    """Return the source that a text names: a folder, or `owner/repo[@revision][/file]` on the Hub.

    Args:
        text: the text.
        own: whether it is of whoever looks: then it may be a single file, too, and recipes name paths.

    Raises:
        InputError: it is neither.
        HubError: it begins with `hf://` and names nothing on the Hub.
    """
    place = locate(text)
    if isinstance(place, Reference):
        return HubSource(place)
    return FileSource(place, by_path=True) if own and not place.is_dir() else FolderSource(place, by_path=own)


def check_names(sources: Sequence[Source]) -> None:
    """Check that single files among sources have names of their own.

    Raises:
        InputError: two of them would be called the same; the message names it.
    """
    names = [source.name for source in sources if isinstance(source, FileSource)]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise InputError(f"{twice}{SUFFIX}: two files have this name", fix="rename one, or give the folder they are in")
