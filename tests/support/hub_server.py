"""The HTTP interface of the Hub, as far as its library uses it for models, on the loopback interface."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .hub import Fault, Hub, blob_id

STALL = 0.6  # seconds, more than tests wait for an answer
DRIP = 0.02  # seconds between bytes
LONGEST = 5.0  # seconds after which a server that drips or never ends does end, so that a test that waits fails
BOMB = 2**25  # zeros


@contextmanager
def listen(hub: Hub) -> Iterator[str]:
    """Serve a hub; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", *, message: str = "", body: Mapping[str, Any] | None = None):
        super().__init__(status)
        self.status, self.body = status, json.dumps(body if body is not None else {"error": message}).encode()
        self.headers = {name: said for name, said in (("X-Error-Code", code), ("X-Error-Message", message)) if said}


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.tokens.append((self.headers["Host"].partition(":")[0], self.token))
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self._fault()
        if fault is not None and fault.kind == "status":
            return self.send(fault.status, b"", fault.headers)
        if fault is not None and fault.kind == "echo":
            said = f"you said Authorization: Bearer {self.token} \x1b[2J"
            heads = {"X-Error-Message": said.replace("\x1b", ""), "X-HF-Warning": f"token; {said}", **fault.headers}
            return self.send(fault.status, json.dumps({"error": said}).encode(), heads)
        try:
            status, body, headers = self.answer()
        except RefusedError as refused:
            status, body, headers = refused.status, refused.body, refused.headers
        return self.send(status, body, headers, fault)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _fault(self) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and re.search(fault.where, f"{self.command} {self.path}"):
                fault.times -= 1
                return fault
        return None

    def send(self, status: int, body: bytes, headers: Mapping[str, str], fault: Fault | None = None) -> None:
        kind = fault.kind if fault else ""
        headers = {"Content-Length": str(len(body)), **headers, **(fault.headers if fault else {})}
        if kind == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if kind == "grow":
            body, headers = body + bytes(1000), {**headers, "Content-Length": str(len(body) + 1000)}
        if kind == "bomb":
            body = gzip.compress(bytes(BOMB))
            headers = {**headers, "Content-Encoding": "gzip", "Content-Length": str(len(body))}
        if kind == "endless":
            del headers["Content-Length"]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "drip heads":
            self.on_and_on(lambda: self.wfile.write(b"X"), DRIP)
            return
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("drip", "endless"):
            pieces = iter(body) if kind == "drip" else None
            self.on_and_on(
                lambda: self.wfile.write(bytes([next(pieces, 0)]) if pieces else bytes(2**16)), DRIP if pieces else 0
            )
            return
        half = len(body) // 2
        if kind in ("cut", "stall"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            if kind == "cut":
                return
            time.sleep(STALL)
            body = body[half:]
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            return  # whoever asked did not wait

    def on_and_on(self, write: Callable[[], object], pause: float) -> None:
        """Write again and again, until whoever asked has gone."""
        self.flush_headers()
        end = time.monotonic() + LONGEST
        try:
            while time.monotonic() < end:
                write()
                self.wfile.flush()
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers."""
        path = urlsplit(self.path).path.strip("/")
        parts = [unquote(part) for part in path.split("/")]
        if path == "api/repos/create":
            return self.create()
        if path == "api/validate-yaml":
            return self.validate()
        if path == "api/whoami-v2":
            return self.whoami()
        if parts[0] == "lfs":
            return self.upload(parts[1])
        if parts[0] == "cdn":
            return self.sent(parts[1], self.hub.blobs[parts[1]], {})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch("/".join(parts[:2]).removesuffix(".git"))
        if path == "api/models":
            return self.listed(parse_qs(urlsplit(self.path).query))
        if parts[:2] == ["api", "models"]:
            return self.model("/".join(parts[2:4]), *parts[4:])
        if len(parts) < 5 or parts[2] != "resolve":
            raise RefusedError(404)
        repository, commit, _ = self.seen("/".join(parts[:2]), parts[3])
        return self.resolve(repository, commit, "/".join(parts[4:]))

    def model(
        self, repository: str, action: str = "", revision: str = "main", *rest: str
    ) -> tuple[int, bytes, dict[str, str]]:
        if action == "branch":
            self.seen(repository, "main")
            return self.branch(repository, revision)
        _, commit, files = self.seen(repository, revision)
        if action == "refs":
            refs = self.hub.refs[repository].items()
            branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in refs]
            return found({"branches": branches, "converts": [], "tags": []})
        if action == "preupload":
            return self.preupload(files)
        if action == "commit":
            return self.commit(repository, revision, files)
        if action == "tree":
            return found([self.about(name, raw) for name, raw in files.items()])
        siblings = [{"rfilename": name} for name in files]
        private = repository in self.hub.private
        return found({"id": repository, "sha": commit, "private": private, "siblings": siblings})

    def listed(self, query: Mapping[str, list[str]]) -> tuple[int, bytes, dict[str, str]]:
        """Return the repositories that have all tags of the filter, as the Hub makes tags of cards."""
        rows = []
        for repository, commits in self.hub.commits.items():
            if "main" not in self.hub.refs[repository]:
                continue
            files = commits[self.hub.refs[repository]["main"]]
            match = re.match(r"---\n(.*?)\n---\n", files.get("README.md", b"").decode(), re.DOTALL)
            card = yaml.safe_load(match[1]) if match else {}
            base, relation = card.get("base_model"), card.get("base_model_relation", "adapter")
            tags = [*card.get("tags", []), *([f"base_model:{base}", f"base_model:{relation}:{base}"] if base else [])]
            if repository not in self.hub.private and {*query.get("filter", [])} <= {*tags}:
                size = sum(map(len, files.values()))
                rows.append(
                    {"id": repository, "tags": tags, "usedStorage": size, "downloads": 3, **card.get("said", {})}
                )
        return found(rows)

    # Who may

    def seen(self, repository: str, revision: str) -> tuple[str, str, dict[str, bytes]]:
        """Return a repository, the commit that a revision names and its files, for whoever may see them."""
        owner = repository.partition("/")[0]
        hidden = repository in self.hub.private and owner not in self.hub.rights.get(self.token, ())
        if repository not in self.hub.commits or hidden:
            raise RefusedError(404 if self.token else 401, "RepoNotFound")
        commit = self.hub.refs[repository].get(revision, revision)
        if commit not in self.hub.commits[repository]:
            raise RefusedError(404, "RevisionNotFound")
        return repository, commit, self.hub.commits[repository][commit]

    def check_right(self, owner: str) -> None:
        if not self.token or self.token not in self.hub.rights:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        if owner not in self.hub.rights[self.token]:
            raise RefusedError(403, message=f"You don't have the rights to write for {owner}")

    def whoami(self) -> tuple[int, bytes, dict[str, str]]:
        if self.token not in self.hub.rights:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        return found({"type": "user", "name": min(self.hub.rights[self.token]), "orgs": []})

    # Reading

    def is_large(self, name: str) -> bool:
        return bool(self.hub.large) and name.endswith(self.hub.large)

    def about(self, name: str, raw: bytes) -> dict[str, Any]:
        row: dict[str, Any] = {"type": "file", "path": name, "size": len(raw), "oid": blob_id(raw)}
        if self.is_large(name):
            row["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 134}
        return row

    def resolve(self, repository: str, commit: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        if repository in self.hub.gated:
            raise RefusedError(403, "GatedRepo")
        files = self.hub.commits[repository][commit]
        if name not in files:
            raise RefusedError(404, "EntryNotFound")
        raw = files[name]
        heads = {"X-Repo-Commit": commit}
        if self.is_large(name):
            oid = hashlib.sha256(raw).hexdigest()
            self.hub.blobs[oid] = raw
            # Another host, as the Hub does: tokens do not go there.
            heads |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(raw))}
            place = self.hub.url.replace("127.0.0.1", "localhost")
            return 302, b"", {**heads, "Location": f"{place}/cdn/{oid}"}
        return self.sent(name, raw, {**heads, "ETag": f'"{blob_id(raw)}"'})

    def sent(self, name: str, raw: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        if self.command == "GET":
            self.hub.sent.append(name)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first = int(match[1])
            last = min(int(match[2] or len(raw)), len(raw) - 1)
            return 206, raw[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(raw)}"}
        return 200, raw, headers

    # Writing

    def create(self) -> tuple[int, bytes, dict[str, str]]:
        wanted = json.loads(self.content)
        self.check_right(wanted["organization"])
        repository = f"{wanted['organization']}/{wanted['name']}"
        about = {"url": f"{self.hub.url}/{repository}", "name": repository}
        if repository in self.hub.commits:
            raise RefusedError(409, body={"error": "You already created this model repo", **about})
        if wanted.get("visibility") == "private":
            self.hub.private.add(repository)
        self.hub.add(repository, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return found(about)

    def branch(self, repository: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        self.check_right(repository.partition("/")[0])
        if name in self.hub.refs[repository]:
            raise RefusedError(409, message="Reference already exists")
        self.hub.refs[repository][name] = self.hub.refs[repository]["main"]
        return found({})

    def validate(self) -> tuple[int, bytes, dict[str, str]]:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.content)["content"], re.DOTALL)
        fields = yaml.safe_load(match[1]) if match else {}
        errors = []
        if not re.fullmatch(r"[a-z0-9.-]+", str(fields.get("license", "other"))):
            errors.append({"message": f'"license" must be one of the known ones, not {fields["license"]}'})
        if errors:
            raise RefusedError(400, body={"errors": errors, "warnings": []})
        return found({"errors": [], "warnings": []})

    def preupload(self, files: Mapping[str, bytes]) -> tuple[int, bytes, dict[str, str]]:
        rows = []
        for file in json.loads(self.content)["files"]:
            mode, raw = "lfs" if self.is_large(file["path"]) else "regular", files.get(file["path"])
            oid = raw and (hashlib.sha256(raw).hexdigest() if mode == "lfs" else blob_id(raw))
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return found({"files": rows})

    def batch(self, repository: str) -> tuple[int, bytes, dict[str, str]]:
        self.check_right(repository.partition("/")[0])
        rows = []
        for wanted in json.loads(self.content)["objects"]:
            place = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
            known = wanted["oid"] in self.hub.blobs
            rows.append(wanted if known else {**wanted, "actions": {"upload": place}})
        return found({"transfer": "basic", "objects": rows})

    def upload(self, oid: str) -> tuple[int, bytes, dict[str, str]]:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise RefusedError(400, message="the content is not what it should be")
        self.hub.blobs[oid] = self.content
        return found({})

    def commit(self, repository: str, branch: str, files: Mapping[str, bytes]) -> tuple[int, bytes, dict[str, str]]:
        self.check_right(repository.partition("/")[0])
        result, lines = dict(files), [json.loads(line) for line in self.content.splitlines()]
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "header":
                self.hub.summaries.append(value["summary"])
                if value.get("parentCommit") not in (None, self.hub.refs[repository][branch]):
                    raise RefusedError(412, message="A commit has happened since. Please refresh and try again.")
            elif key == "file":
                result[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                result[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del result[value["path"]]
        about: dict[str, Any] = {}
        if "create_pr" in parse_qs(urlsplit(self.path).query):
            branch = "refs/pr/1"
            about["pullRequestUrl"] = f"{self.hub.url}/{repository}/discussions/1"
        commit = self.hub.add(repository, result, ref=branch)
        place = self.hub.address or f"{self.hub.url}/{repository}/commit/{commit}"
        return found({"commitUrl": place, "commitOid": commit, **about})


def found(body: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(body).encode(), {"Content-Type": "application/json"}
