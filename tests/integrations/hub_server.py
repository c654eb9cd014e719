"""A stand-in for the Hugging Face hub on this machine, with repositories in memory.

It answers what huggingface_hub sends when a folder is uploaded (create, branch, validate,
preupload, LFS batch and put, commit) and when a snapshot is downloaded (info, tree, resolve), and
refuses unknown tokens, repositories and revisions with the headers by which the package knows them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Repository:
    """Branches, each with its commit and files; private ones need the token."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Put a branch to these files; return the commit."""
        text = json.dumps([len(self.commits), sorted(files)]).encode()
        oid = hashlib.sha1(text).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def find(self, revision: str) -> str | None:
        """The commit of a branch, or a commit itself."""
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


@dataclass
class Hub:
    """What the server holds, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision, by path."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches[revision]]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{_NAME}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)", "put"),
    ("POST", rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", rf"/api/models/{_NAME}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    # -- requests ----------------------------------------------------------------------------------

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for kind, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path)
            if kind == method and found:
                self.hub.calls.append(name)
                getattr(self, f"_{name}")(**{k: v for k, v in found.groupdict().items() if v})
                return
        self._send(404, {"error": f"no route {method} {path}"})

    def _send(
        self, status: int, content: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        headers.setdefault("X-Error-Message", message)
        self._send(status, {"error": message}, headers)

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return None if given is None else given.removeprefix("Bearer ")

    def _allowed(self, write: bool) -> bool:
        """Whether the token is good; a wrong one is refused even where none is needed."""
        token = self._token()
        if token == TOKEN or (token is None and not write):
            return True
        self._refuse(401, "", "Invalid credentials in Authorization header")
        return False

    def _repository(self, repo: str, write: bool = False) -> Repository | None:
        if not self._allowed(write):
            return None
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and self._token() != TOKEN):
            self._refuse(404, "RepoNotFound", "Repository not found")
            return None
        return repository

    # -- pushing -----------------------------------------------------------------------------------

    def _create(self) -> None:
        if not self._allowed(write=True):
            return
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        private = asked.get("visibility") == "private" or asked.get("private") is True
        there = repo in self.hub.repositories
        if not there:
            self.hub.repositories[repo] = Repository(private)
            self.hub.repositories[repo].commit("main", {})
        self._send(409 if there else 200, {"url": f"{self.hub.url}/{repo}"})

    def _validate(self) -> None:
        card = json.loads(self.body)["content"]
        errors = [] if card.startswith("---\n") else [{"message": "no header"}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _branch(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        if repository is not None:
            there = revision in repository.branches
            repository.branches.setdefault(revision, repository.branches["main"])
            self._send(409 if there else 201, {})

    def _preupload(self, repo: str, revision: str) -> None:
        if self._repository(repo, write=True) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if file["path"].endswith((".safetensors", ".gz"))
                else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": files})

    def _batch(self, repo: str) -> None:
        if self._repository(repo, write=True) is None:
            return
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self._send(200, {"objects": objects, "transfer": "basic"})

    def _put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._refuse(400, "", "another checksum")
            return
        self.hub.blobs[oid] = self.body
        self._send(200, {})

    def _commit(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        if repository is None:
            return
        files = dict(self.hub.files(repo, revision))
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        oid = repository.commit(revision, files)
        address = f"{self.hub.url}/{repo}/commit/{oid}"
        self._send(200, {"commitUrl": address, "commitOid": oid, "success": True})

    # -- pulling -----------------------------------------------------------------------------------

    def _revision(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(repo)
        if repository is None:
            return None
        oid = repository.find(revision)
        if oid is None:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return None
        return oid, repository.commits[oid]

    def _info(self, repo: str, revision: str = "main") -> None:
        found = self._revision(repo, revision)
        if found is not None:
            siblings = [{"rfilename": path} for path in found[1]]
            self._send(200, {"id": repo, "modelId": repo, "sha": found[0], "siblings": siblings})

    def _tree(self, repo: str, revision: str) -> None:
        found = self._revision(repo, revision)
        if found is not None:
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": _etag(data)}
                for path, data in found[1].items()
            ]
            self._send(200, files)

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        found = self._revision(repo, revision)
        if found is None:
            return
        oid, files = found
        if path not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"ETag": f'"{_etag(files[path])}"', "X-Repo-Commit": oid}
        self._send(200, files[path], headers)


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
