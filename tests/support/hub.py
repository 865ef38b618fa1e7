"""A Hub on this machine: a server on the loopback interface, and the local cache it is fetched into."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the server offers: files by path, for each commit of each repository, and what it was asked for."""

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, repository: str, files: Mapping[str, bytes], *, ref: str = "main") -> str:
        """Commit these files, move the branch there, and return the commit."""
        commit = hashlib.sha1(json.dumps({name: hashlib.sha1(raw).hexdigest() for name, raw in files.items()}).encode())
        self.commits.setdefault(repository, {})[commit.hexdigest()] = dict(files)
        self.refs.setdefault(repository, {})[ref] = commit.hexdigest()
        return commit.hexdigest()


def folder_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Offer a hub on the loopback interface; `hub.url` says where."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, hub)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
    hub.asked.append(f"{request.command} {request.path}")
    api = parts[:2] == ["api", "models"]
    repository = "/".join(parts[2:4] if api else parts[:2])
    action, revision, rest = (*(parts[4:] if api else parts[2:]), "", "")[0], "main", ""
    if len(tail := parts[5:] if api else parts[3:]):
        revision, rest = tail[0], "/".join(tail[1:])
    if repository not in hub.commits:
        return send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
    commit = hub.refs[repository].get(revision, revision)
    files = hub.commits[repository].get(commit)
    if files is None:
        return send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
    if api and action == "tree":
        rows = [{"type": "file", "path": name, "size": len(raw), "oid": blob_id(raw)} for name, raw in files.items()]
        return send(request, 200, json.dumps(rows).encode())
    if api:
        about = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return send(request, 200, json.dumps(about).encode())
    if repository in hub.gated:
        return send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
    if rest not in files:
        return send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
    if request.command == "GET":
        hub.sent.append(rest)
    return send(request, 200, files[rest], {"ETag": f'"{blob_id(files[rest])}"', "X-Repo-Commit": commit})


def blob_id(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)
