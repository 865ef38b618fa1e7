"""One file of a repository: looked up, fetched into the local Hub cache, and compared with what the Hub says it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from svdiff_delta.errors import HubError, SlowError

from .blobs import HASH, blob_name, is_sound, remove_linked
from .errors import answered, client_errors, explain, is_unreachable
from .reference import Reference, find_cached, is_commit, list_files
from .watch import LARGEST_ANSWER, watched

WEIGHTS: Final = "svdiff.safetensors"
"""The name that a delta has in a repository of its own."""

CONFIG: Final = "config.json"
LARGEST: Final = 2**30
"""Bytes of a file beyond which it is not fetched: the largest models' deltas have some tens of megabytes."""

_SUFFIX: Final = ".safetensors"
_NEVER: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".py"})
_SHOWN: Final = 8


@dataclass(frozen=True)
class Found:
    """A file on the Hub, or in the local cache of it.

    Attributes:
        reference: the file, at its commit.
        size: its bytes.
        digest: the SHA-256 that the Hub gives, or git's SHA-1 of it as a blob; None where the cache does not keep it.
        path: where it is in the local cache; None if it has to be fetched.
        asked: the file as it was asked for; its branch is remembered in the cache, for when there is no network.
    """

    reference: Reference
    size: int
    digest: str | None
    path: Path | None
    asked: Reference


def fetch_delta(reference: Reference) -> Path:
    """Return the path of a delta file on the Hub, in the local cache, fetched where it lacks.

    Args:
        reference: a repository, a folder in it, or a safetensors file in it. Of the first two, `svdiff.safetensors`.

    Raises:
        HubError: there is no such repository, revision or file, what is there is no delta, is too large or damaged,
            or it is neither here nor reachable.
    """
    return fetch(find_delta(reference))


def find_delta(reference: Reference) -> Found:
    """Look a delta file up, without fetching it; as `fetch_delta`."""
    path = PurePosixPath(reference.path)
    if path.suffix in _NEVER:
        raise HubError(f"{reference}: files of this kind are never fetched", fix="name a safetensors file")
    wanted = reference if path.suffix == _SUFFIX else replace(reference, path=(path / WEIGHTS).as_posix())
    return find(wanted)


def find(reference: Reference, *, largest: int = LARGEST) -> Found:
    """Look a file of a repository up: in the cache if it names a whole commit, else on the Hub, else in the cache.

    Args:
        reference: the file.
        largest: bytes beyond which it is refused.

    Raises:
        HubError: there is no such file, it is too large, or it is neither here nor reachable.
    """
    cached = _find_cached(reference)
    if cached is not None and is_commit(reference.revision):
        return cached  # a commit never changes
    try:
        return _ask(reference, largest, patient=False)
    except SlowError:
        if cached is None:
            raise
        return cached
    except client_errors() as error:
        if not is_unreachable(error):
            raise _explain(reference, error) from None
        if cached is not None:
            return cached
        if not answered(error):
            raise _explain(reference, error) from None
    try:  # once more, as long as the Hub's library thinks fit, since there is nothing else
        return _ask(reference, largest, patient=True)
    except client_errors() as error:
        raise _explain(reference, error) from None


def fetch(found: Found) -> Path:
    """Return where a file is, once it is in the local cache and what the Hub says it is.

    Raises:
        HubError: the download failed, sends more than the Hub said or too slowly (see `watch`), or is damaged; then it
            is removed.
    """
    reference, asked = found.reference, found.asked
    if found.path is not None:
        if not _is_whole(found.path, found.digest):
            remove_linked(found.path)
        elif is_commit(asked.revision) or _commit_of(asked) == reference.revision:
            return found.path
    elif PurePosixPath(reference.path).name == WEIGHTS:
        _count(reference)
    from huggingface_hub import hf_hub_download

    try:
        with watched(asked, found.size):
            path = Path(hf_hub_download(asked.repository, asked.path, revision=asked.revision))
    except client_errors() as error:
        raise _explain(reference, error) from None
    if reference.revision not in path.parts:
        raise HubError(f"{asked}: it was changed meanwhile", fix="fetch it again")
    if not _is_whole(path, found.digest):
        remove_linked(path)
        raise HubError(
            f"{reference}: the download is damaged: its hash is not the one that the Hub says", fix="fetch it again"
        )
    return path


def _commit_of(reference: Reference) -> str | None:
    """Return the commit that a revision names in the local cache."""
    snapshot = find_cached(reference)
    return None if snapshot is None else snapshot.revision


def _ask(reference: Reference, largest: int, *, patient: bool) -> Found:
    """Ask the Hub about a file.

    Args:
        reference: the file.
        largest: as in `find`.
        patient: whether to ask again after an error that may pass.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    name, repository = reference.path, reference.repository
    url = hf_hub_url(repository, name, revision=reference.revision)
    with watched(reference, LARGEST_ANSWER):
        about = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, retry_on_errors=patient)
    commit, digest, size = about.commit_hash, about.etag, about.size
    # These become names of files in the cache.
    if not is_commit(commit) or digest is None or not HASH.fullmatch(digest) or size is None:
        raise HubError(f"{reference}: the server does not answer as a Hub does", fix="check HF_ENDPOINT and the proxy")
    if size > largest:
        raise HubError(
            f"{reference}: has {size:,} bytes, and no delta has more than {largest:,}", fix="name a delta file"
        )
    here = replace(reference, revision=commit)
    cached = _find_cached(here)
    return Found(here, size, digest, None if cached is None else cached.path, reference)


def _find_cached(reference: Reference) -> Found | None:
    snapshot = find_cached(reference)
    path = None if snapshot is None else snapshot.folder / reference.path
    if snapshot is None or path is None or not path.is_file():
        return None
    here = replace(reference, revision=snapshot.revision)
    return Found(here, path.stat().st_size, blob_name(path), path, reference)


def _is_whole(path: Path, digest: str | None) -> bool:
    return digest is None or is_sound(path, digest)


def _count(reference: Reference) -> None:
    """Ask for the head of `config.json`: the Hub counts downloads by that file, whatever else is fetched."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(reference.repository, CONFIG, revision=reference.revision)
    try:
        with watched(reference, LARGEST_ANSWER):
            get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HubError:
        return
    except client_errors():
        return  # nobody waits for the answer


def _explain(reference: Reference, error: BaseException) -> HubError:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
        return explain(replace(reference, path=reference.path.removesuffix(WEIGHTS).rstrip("/")), error)
    try:
        names = list_files(reference)
    except client_errors() as lost:
        return explain(reference, lost)
    deltas = [name for name in names if name.endswith(_SUFFIX)]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    whole = Reference(reference.repository, reference.revision)
    fix = f"name one of its files, such as {whole}/{deltas[0]}" if deltas else "name a repository with a delta"
    return HubError(f"{whole}: has no {reference.path}; it has {shown or 'no files'}", fix=fix)
