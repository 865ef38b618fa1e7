"""A model on the Hub: which of a repository's files make it up, and where they lie once they are here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from svdiff_delta.errors import BaseError, HubError
from svdiff_delta.hub_client.errors import not_here
from svdiff_delta.hub_client.reference import Reference, Snapshot, describe, fetch_files, find_cached, is_commit

from .layout import PICKLE_SUFFIXES, check_variant, model_folders, weight_files, weight_names


@dataclass(frozen=True)
class Origin:
    """A model of the Hub in the local cache.

    Attributes:
        path: its folder or file.
        repository: the repository it came from.
        revision: the commit.
    """

    path: Path
    repository: str
    revision: str


def find_model(reference: Reference, variant: str | None = None, *, fetch: bool = True) -> Origin:
    """Return a model on the Hub as files in the local cache, fetched where they lack.

    Args:
        reference: the repository, and a folder or safetensors file in it.
        variant: which weights.
        fetch: whether the Hub may be asked.

    Raises:
        BaseError: the repository has no such model or weights, or it is neither here nor reachable.
    """
    try:
        return _find(reference, variant, fetch=fetch)
    except HubError as error:
        raise BaseError(error.message, fix=error.fix) from None


def _find(reference: Reference, variant: str | None, *, fetch: bool) -> Origin:
    if PurePosixPath(reference.path).suffix in PICKLE_SUFFIXES:
        raise BaseError(f"{reference}: is a pickle, which is never fetched", fix="name safetensors weights")
    snapshot = find_cached(reference)
    # Nobody need be asked about a commit that is here as a whole: it never changes.
    if fetch and not (snapshot and is_commit(reference.revision) and _is_whole(snapshot, reference, variant)):
        found = snapshot = describe(reference)
        fetch_files(found, lambda names: _needed(found, reference, names, variant))
    if snapshot is None:
        raise not_here(reference)
    path = snapshot.folder / reference.path
    if not path.exists():
        raise BaseError(f"{reference}: the repository has no {reference.path}", fix="name one of its folders")
    return Origin(path, snapshot.repository, snapshot.revision)


def _folders(path: Path) -> list[Path]:
    if (path / "model_index.json").is_file():
        return list(model_folders(path).values())
    return [path] if (path / "config.json").is_file() else []


def _is_whole(snapshot: Snapshot, reference: Reference, variant: str | None) -> bool:
    path = snapshot.folder / reference.path
    if path.is_file():
        return True
    folders = _folders(path)
    try:
        for folder in folders:
            weight_files(folder, variant)
    except BaseError:
        return False
    return bool(folders)


def _needed(snapshot: Snapshot, reference: Reference, names: Collection[str], variant: str | None) -> list[str]:
    """Return the paths in the repository of a model's weights."""
    if reference.path in names:
        return [reference.path]
    listings = {
        folder: {
            PurePosixPath(name).name
            for name in names
            if PurePosixPath(name).parent == PurePosixPath(folder.relative_to(snapshot.folder).as_posix())
        }
        for folder in _folders(snapshot.folder / reference.path)
    }
    if not listings:
        raise BaseError(
            f"{reference}: holds neither model_index.json nor config.json", fix="name a repository or folder of a model"
        )
    check_variant(reference, listings.values(), variant)
    return [
        (folder / name).relative_to(snapshot.folder).as_posix()
        for folder, there in listings.items()
        for name in weight_names(folder, there, variant)
    ]
