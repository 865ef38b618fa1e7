"""Repositories on the Hub: what a reference names, and its files in the local cache, fetched where they lack."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from svdiff_delta.errors import HubError, InputError

from .blobs import blobs_of, is_sound, remove_blob
from .errors import client_errors, explain, guard_logs, is_unreachable
from .names import is_repository
from .watch import LARGEST_ANSWER, watched

SCHEME: Final = "hf://"
DESCRIPTIONS: Final = ("*.json", "*.txt", "*.jinja", "LICENSE*")
"""Files that describe a model: configurations, tokenizers, the licence. With safetensors files, all ever fetched."""

_REFERENCE: Final = re.compile(
    r"(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/@]+))?(?:/(?P<path>[^@]+))?",
    re.ASCII,
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """What `owner/repo[@revision][/path]` names.

    Attributes:
        repository: the repository's name.
        revision: a branch, tag or commit; None for the main branch.
        path: a folder or file in it, "" for all of it.
    """

    repository: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository in the local cache.

    Attributes:
        folder: where its files lie; only those that were fetched are there.
        repository: the repository's name.
        revision: the commit.
    """

    folder: Path
    repository: str
    revision: str


def parse_reference(text: str) -> Reference | None:
    """Return what `[hf://]owner/repo[@revision][/path]` names; None if the text can only be a path.

    A slash in a revision is written %2F, but in `refs/pr/1`. Only with `hf://` may the owner be left out.
    """
    forced = text.startswith(SCHEME)
    match = _REFERENCE.fullmatch(text.removeprefix(SCHEME).strip("/") if forced else text)
    if match is None:
        return None
    repository, revision, path = match["repository"], match["revision"], match["path"] or ""
    revision = unquote(revision) if revision else None
    if not all(map(_is_plain, [*repository.split("/"), *(revision or "x").split("/"), *(path or "x").split("/")])):
        return None
    if repository.startswith("."):
        return None
    if not forced and ("/" not in repository or (not path and Path(repository).suffix in (".safetensors", ".json"))):
        return None
    return Reference(repository, revision, path)


def _is_plain(part: str) -> bool:
    """Tell whether a part of a path stays where it is put, on any system."""
    return part not in ("", ".", "..") and part.isprintable() and not set(part) & set('\\:*?"<>|')


def locate(text: str | PathLike[str], folder: Path | None = None) -> Path | Reference:
    """Return what a text leads to: a path if one exists, else what it names on the Hub, else a path that is not there.

    Args:
        text: what was written; anything but a string is a path.
        folder: what a relative path is relative to; the working folder if not given.

    Raises:
        HubError: it begins with `hf://` and names nothing on the Hub.
    """
    path = (folder or Path()) / text
    if not isinstance(text, str) or (not text.startswith(SCHEME) and _may_exist(path)):
        return path
    reference = parse_reference(text)
    if reference is None and text.startswith(SCHEME):
        raise HubError(f"{text}: names no file of a repository", fix="write hf://owner/repo[@revision][/file]")
    return path if reference is None else reference


def exists(path: Path) -> bool:
    """Tell whether there is something at a path; what cannot be one is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a file's name, in a folder that may not be searched, with a NUL
        return False


def _may_exist(path: Path) -> bool:
    """Tell whether there is something at a path, or nobody may look."""
    try:
        return path.exists()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def describe(reference: Reference) -> Snapshot:
    """Return the snapshot of a repository with the files that describe its models, which are small.

    Where the Hub cannot be reached, that is what the local cache has of it.

    Raises:
        HubError: there is no such repository or revision, it is restricted, or it is neither here nor reachable.
    """
    prefix = f"{glob.escape(reference.path)}/" if reference.path and not Path(reference.path).suffix else ""
    patterns = [prefix + pattern for pattern in DESCRIPTIONS] + (["model_index.json"] if prefix else [])
    try:
        folder = Path(_download(reference.repository, reference.revision, patterns))
    except client_errors() as error:
        found = find_cached(reference) if is_unreachable(error) else None
        if found is None:
            raise explain(reference, error) from None
        return found
    return Snapshot(folder, reference.repository, folder.name)


def find_cached(reference: Reference) -> Snapshot | None:
    """Return the snapshot of a repository that is in the local cache, with whatever of it is there."""
    if not is_repository(reference.repository):  # in the cache the owner's `a/b` and a name `a--b` are one folder
        return None
    revision = reference.revision or "main"
    store, commit = _store(reference.repository), revision
    if not is_commit(revision):
        try:
            commit = (store / "refs" / revision).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
    folder = store / "snapshots" / commit
    return Snapshot(folder, reference.repository, commit) if is_commit(commit) and folder.is_dir() else None


def is_commit(revision: str | None) -> bool:
    """Tell whether a revision is a whole commit, which never changes."""
    return _COMMIT.fullmatch(revision or "") is not None


def fetch_files(snapshot: Snapshot, choose: Callable[[frozenset[str]], Iterable[str]]) -> None:
    """Fetch files of a snapshot that are not in the local cache yet; where the Hub cannot be reached, do nothing.

    Args:
        snapshot: from `describe`.
        choose: given the paths of all files of the commit, returns those that are needed.

    Raises:
        HubError: the Hub refused, or was lost on the way.
    """
    reference = Reference(snapshot.repository, snapshot.revision)
    try:
        names = frozenset(list_files(reference))
    except client_errors() as error:
        if is_unreachable(error):
            return
        raise explain(reference, error) from None
    wanted = sorted(set(choose(names)))
    try:
        if lacking := [name for name in wanted if not (snapshot.folder / name).exists()]:
            _download(snapshot.repository, snapshot.revision, [glob.escape(name) for name in lacking])
    except client_errors() as error:
        raise explain(reference, error) from None


def list_files(reference: Reference) -> list[str]:
    """Return the paths of all files of a repository, sorted; what the Hub's library raises is passed on."""
    from huggingface_hub import HfApi

    with watched(reference, LARGEST_ANSWER):
        about = HfApi().model_info(reference.repository, revision=reference.revision)
    return sorted(file.rfilename for file in about.siblings or ())


def cached_revisions(repository: str) -> dict[str, Path]:
    """Return the folders of a repository's commits in the local cache by commit, the latest first."""
    root = _store(repository) / "snapshots"
    there = is_repository(repository) and root.is_dir()
    found = [folder for folder in root.iterdir() if folder.is_dir()] if there else []
    return {folder.name: folder for folder in sorted(found, key=lambda folder: (-folder.stat().st_mtime, folder.name))}


def _store(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _download(repository: str, revision: str | None, patterns: list[str]) -> str:
    """Fetch files into the local cache, compare what is new with the hash that the Hub gives, and return their folder.

    What is damaged is removed, also where the connection was lost afterwards, so that it is fetched again.

    Raises:
        HubError: a download is damaged.
    """
    from huggingface_hub import snapshot_download

    guard_logs()
    store = _store(repository)
    before, copies = blobs_of(store), _copies(store)
    damaged: list[str] = []
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=patterns)
    finally:
        damaged += _remove_damaged(store, sorted(blobs_of(store) - before))
    if new := _copies(store) - copies:
        damaged += _remove_unlike(Path(folder), repository, new)
    if damaged:
        raise HubError(
            f"{repository}: the download of {damaged[0]} is damaged: its hash is not the one that the Hub says",
            fix="fetch it again",
        )
    return folder


def _remove_damaged(store: Path, names: Iterable[str]) -> list[str]:
    """Remove those of a repository's blobs that do not hold what their names say; return what led to them."""
    damaged: list[str] = []
    for name in names:
        with suppress(OSError):
            if not is_sound(store / "blobs" / name, name):
                damaged.append(name)
                damaged[-1:] = remove_blob(store, name) or [name]
    return damaged


def _copies(store: Path) -> frozenset[Path]:
    """Return the files of a repository's snapshots that are no links: all of them where a system has none."""
    return frozenset(path for path in (store / "snapshots").rglob("*") if path.is_file() and not path.is_symlink())


def _remove_unlike(folder: Path, repository: str, paths: Iterable[Path]) -> list[str]:
    """Remove those files of a commit's folder whose hash is not the one that the Hub says; return their names."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    damaged = []
    rows = HfApi().list_repo_tree(repository, recursive=True, revision=folder.name)
    said = {folder / row.path: row for row in rows if isinstance(row, RepoFile)}
    for path in sorted(set(paths) & said.keys()):
        row = said[path]
        if not is_sound(path, row.lfs.sha256 if row.lfs else row.blob_id):
            path.unlink()
            damaged.append(row.path)
    return damaged


def read_reference(text: str) -> Reference:
    """Return what a text names on the Hub, whatever stands at a path of that name.

    Raises:
        InputError: it names nothing there.
    """
    reference = parse_reference(f"{SCHEME}{text.removeprefix(SCHEME)}")
    if reference is None:
        raise InputError(f"{text}: names no repository, or no file of one", fix="write owner/repo[@revision][/file]")
    return reference
