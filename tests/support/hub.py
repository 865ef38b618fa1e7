"""A Hub on this machine: what it keeps, and the local cache that is filled from it. `hub_server` offers it by HTTP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "hf_OwnersToken"
"""The token of `owner`, who may write to repositories of that name."""


@dataclass
class Fault:
    """Something that goes wrong: how an answer to a request is spoilt, and how often.

    Attributes:
        where: a regular expression, searched in method and path.
        kind: "status" answers with it; "cut" closes the connection half-way; "stall" waits half-way; "flip" changes a
            byte; "grow" sends more than it said; "heads" changes headers; "drip" sends byte by byte, and "drip heads"
            the headers so; "endless" sends on and on; "bomb" sends zeros, compressed; "echo" is a status that says the
            token again, in its body and in headers.
        status: of the answer.
        headers: that come with it.
        times: how often.
    """

    where: str
    kind: str = "status"
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    times: int = 1_000


@dataclass
class Hub:
    """What the server offers: files by path, for each commit of each repository, and what it was asked for.

    Attributes:
        commits: files by path, by commit, by repository.
        refs: the commit of each branch, by repository.
        gated, private: repositories that not everybody sees.
        rights: the owners that a token may write for.
        large: suffixes of files that are kept apart, as LFS.
        blobs: those, by SHA-256.
        faults: what goes wrong.
        sent: files that were downloaded.
        asked: every request.
        tokens: the token that came with each request, by host.
        summaries: the messages of commits.
        address: where it says that a commit is; its own address if empty.
    """

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    rights: dict[str, set[str]] = field(default_factory=lambda: {TOKEN: {"owner"}})
    large: tuple[str, ...] = ()
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    tokens: list[tuple[str, str]] = field(default_factory=list)
    summaries: list[str] = field(default_factory=list)
    url: str = ""
    address: str = ""

    def add(self, repository: str, files: Mapping[str, bytes], *, ref: str = "main") -> str:
        """Commit these files, move the branch there, and return the commit."""
        about = [self.refs.get(repository, {}).get(ref), {n: hashlib.sha1(raw).hexdigest() for n, raw in files.items()}]
        commit = hashlib.sha1(json.dumps(about).encode()).hexdigest()
        self.commits.setdefault(repository, {})[commit] = dict(files)
        self.refs.setdefault(repository, {})[ref] = commit
        return commit

    def files(self, repository: str, ref: str = "main") -> dict[str, bytes]:
        """Return what a branch holds now."""
        return self.commits[repository][self.refs[repository][ref]]

    def fail(self, where: str, kind: str = "status", **how: object) -> None:
        """Let something go wrong from now on."""
        self.faults.append(Fault(where, kind, **how))  # type: ignore[arg-type]


def folder_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob_id(raw: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def fill_cache(cache: Path, repository: str, files: Mapping[str, bytes], *, ref: str | None = "main") -> str:
    """Lay a commit out in a Hub cache as the Hub's library does, blobs and all, and return the commit."""
    commit = Hub().add(repository, files)
    store = cache / f"models--{repository.replace('/', '--')}"
    for name, raw in files.items():
        blob = store / "blobs" / hashlib.sha256(raw).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(raw)
        path = store / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(blob)
    if ref is not None:
        (store / "refs").mkdir(exist_ok=True)
        (store / "refs" / ref).write_text(commit)
    return commit


def share_blobs(cache: Path) -> None:
    """Keep the blobs of a Hub cache as huggingface_hub 2 does those that came by xet: once, under another hash."""
    for blob in cache.glob("models--*/blobs/*"):
        other = hashlib.sha256(b"xet" + blob.read_bytes()).hexdigest()
        kept = cache / "blobs" / other[:2] / other
        kept.parent.mkdir(parents=True, exist_ok=True)
        blob.rename(kept)
        blob.symlink_to(Path("../../blobs") / other[:2] / other)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Offer a hub on the loopback interface; `hub.url` says where."""
    from .hub_server import listen

    with listen(hub) as hub.url:
        yield hub
