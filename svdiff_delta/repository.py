"""Repositories on the Hub: what a reference names, and its files in the local cache, fetched where they lack."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from .errors import BaseError

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
    parts = [*repository.split("/"), *path.split("/")]
    if any(part in (".", "..") or (part.startswith(".") and part == parts[0]) for part in parts):
        return None
    if not forced and ("/" not in repository or (not path and Path(repository).suffix in (".safetensors", ".json"))):
        return None
    return Reference(repository, unquote(revision) if revision else None, path)


def describe(reference: Reference) -> Snapshot:
    """Return the snapshot of a repository with the files that describe its models, which are small.

    Where the Hub cannot be reached, that is what the local cache has of it.

    Raises:
        BaseError: there is no such repository or revision, it is restricted, or it is neither here nor reachable.
    """
    prefix = f"{glob.escape(reference.path)}/" if reference.path and not Path(reference.path).suffix else ""
    patterns = [prefix + pattern for pattern in DESCRIPTIONS] + (["model_index.json"] if prefix else [])
    try:
        folder = Path(_download(reference.repository, reference.revision, patterns))
    except _errors() as error:
        found = find_cached(reference) if _is_unreachable(error) else None
        if found is None:
            raise _explain(reference, error) from None
        return found
    return Snapshot(folder, reference.repository, folder.name)


def find_cached(reference: Reference) -> Snapshot | None:
    """Return the snapshot of a repository that is in the local cache, with whatever of it is there."""
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
        BaseError: the Hub refused, or was lost on the way.
    """
    reference = Reference(snapshot.repository, snapshot.revision)
    try:
        names = frozenset(_list(snapshot.repository, snapshot.revision))
    except _errors() as error:
        if _is_unreachable(error):
            return
        raise _explain(reference, error) from None
    wanted = sorted(set(choose(names)))
    try:
        if lacking := [name for name in wanted if not (snapshot.folder / name).exists()]:
            _download(snapshot.repository, snapshot.revision, [glob.escape(name) for name in lacking])
    except _errors() as error:
        raise _explain(reference, error) from None


def cached_revisions(repository: str) -> dict[str, Path]:
    """Return the folders of a repository's commits in the local cache by commit, the latest first."""
    root = _store(repository) / "snapshots"
    found = [folder for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
    return {folder.name: folder for folder in sorted(found, key=lambda folder: (-folder.stat().st_mtime, folder.name))}


def _store(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _download(repository: str, revision: str | None, patterns: list[str]) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(repository, revision=revision, allow_patterns=patterns)


def _list(repository: str, revision: str) -> list[str]:
    from huggingface_hub import HfApi

    return [file.rfilename for file in HfApi().model_info(repository, revision=revision).siblings or ()]


def _errors() -> tuple[type[BaseException], ...]:
    """Return what the Hub's library raises, and the HTTP client under it, which differs between its versions."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    return (OSError, ValueError, EntryNotFoundError, *HfHubHTTPError.__bases__)


def _is_unreachable(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return isinstance(error, LocalEntryNotFoundError) or not isinstance(error, HfHubHTTPError | ValueError)


def _explain(reference: Reference, error: BaseException) -> BaseError:
    """Return one line for what the Hub's library says in many."""
    from huggingface_hub import errors

    name, login = reference.repository, "log in with `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        return BaseError(f"{name}: access to it is restricted", fix=f"ask for it on the model's page, and {login}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return BaseError(
            f"{reference}: there is no such file or folder, and no such repository on the Hub",
            fix=f"check the name; for a private repository {login}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return BaseError(
            f"{reference}: the repository has no revision {reference.revision!r}", fix="name a branch, tag or commit"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status: Any = getattr(error.response, "status_code", "an error")
        return BaseError(f"{reference}: the Hub answered with {status}", fix="try again later")
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return BaseError(f"{reference}: there is no such file or folder, and this names no repository")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return BaseError(f"{reference}: could not be fetched ({error.strerror})", fix="free some space")
    return not_here(reference)


def not_here(reference: Reference) -> BaseError:
    """Return the error for a repository that is neither in the local cache nor to be fetched."""
    return BaseError(
        f"{reference}: there is no such file or folder, it is not in the local Hub cache, and the Hub was not reached",
        fix="go online without HF_HUB_OFFLINE, or name a local folder",
    )
