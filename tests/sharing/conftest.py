"""A Hub on this machine: as much of its protocol as a push and a download take."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import close_session, constants

TOKENS = {"hf_of_ann": "ann", "hf_of_bob": "bob"}


class Hub:
    """What the server holds.

    Attributes:
        repositories: Name -> branch -> path -> bytes.
        private: Names of private repositories.
        gated: Names of gated repositories.
        seen: Method and path of every request.
        down: Whether it answers every request with 503.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private, self.gated, self.seen = set[str](), set[str](), list[str]()
        self.large: dict[str, bytes] = {}
        self.down = False
        self.address = ""

    def files(self, name: str) -> dict[str, bytes]:
        """Files of a repository's main branch."""
        return self.repositories[name]["main"]


class Refused(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(status)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        path, length = self.path.partition("?")[0], int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.hub.seen.append(f"{self.command} {path}")
        try:
            content, headers = self._route(path, body)
            status = 200
        except Refused as refused:
            status, content = refused.status, b"{}"
            headers = {"X-Error-Code": refused.code, "X-Error-Message": "no"}
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _route(self, path: str, body: bytes) -> tuple[bytes, dict[str, Any]]:
        if self.hub.down:
            raise Refused(503)
        routes = {
            r"GET /api/whoami-v2": self._whoami,
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": lambda _: {},
            r"POST /api/models/([^/]+/[^/]+)/preupload/([^/]+)": self._preupload,
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"PUT /large/(\w+)": self._store,
            r"POST /api/models/([^/]+/[^/]+)/commit/([^/]+)": self._commit,
        }
        for pattern, route in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return json.dumps(route(body, *found.groups())).encode(), {"Content-Type": "application/json"}
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*found.groups())
        raise Refused(404)

    def _user(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in TOKENS:
            raise Refused(401)
        return TOKENS[token]

    def _whoami(self, _: bytes) -> Any:
        return {"name": self._user(), "type": "user"}

    def _create(self, body: bytes) -> Any:
        told = json.loads(body)
        name = f"{told.get('organization') or self._user()}/{told['name']}"
        if name.partition("/")[0] != self._user():
            raise Refused(403)
        self.hub.repositories.setdefault(name, {"main": {}})
        if told.get("private") or told.get("visibility") == "private":
            self.hub.private.add(name)
        return {"url": f"{self.hub.address}/{name}"}

    def _writable(self, name: str, branch: str = "main") -> dict[str, bytes]:
        if name not in self.hub.repositories or name.partition("/")[0] != self._user():
            raise Refused(403)
        if branch not in self.hub.repositories[name]:
            raise Refused(404, "RevisionNotFound")
        return self.hub.repositories[name][branch]

    def _preupload(self, body: bytes, name: str, branch: str) -> Any:
        self._writable(name, branch)
        paths = [file["path"] for file in json.loads(body)["files"]]
        mode = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return {"files": [{"path": path, "uploadMode": mode[path], "shouldIgnore": False} for path in paths]}

    def _batch(self, body: bytes, name: str) -> Any:
        self._writable(name)
        objects = json.loads(body)["objects"]
        actions = [{"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}} for one in objects]
        return {"objects": [one | {"actions": own} for one, own in zip(objects, actions, strict=True)]}

    def _store(self, body: bytes, oid: str) -> Any:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        return {}

    def _commit(self, body: bytes, name: str, branch: str) -> Any:
        files = self._writable(name, branch)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        return {"commitUrl": f"{self.hub.address}/{name}/commit/{_hash(files)}", "commitOid": _hash(files)}

    def _resolve(self, name: str, revision: str, path: str) -> tuple[bytes, dict[str, Any]]:
        hidden = name in self.hub.private and self.headers.get("Authorization") is None
        if name not in self.hub.repositories or hidden:
            raise Refused(401, "RepoNotFound")
        if name in self.hub.gated:
            raise Refused(403, "GatedRepo")
        branches = self.hub.repositories[name]
        files = branches.get(revision) or next((own for own in branches.values() if _hash(own) == revision), None)
        if files is None:
            raise Refused(404, "RevisionNotFound")
        if path not in files:
            raise Refused(404, "EntryNotFound")
        etag = hashlib.sha256(files[path]).hexdigest()
        return files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": _hash(files), "Accept-Ranges": "bytes"}


def _hash(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, where ann is logged in; what is downloaded is cached in a folder of the test."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_TOKEN", "hf_of_ann")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "AGENT_HARNESSES_PATH": str(tmp_path / "harnesses.json"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    close_session()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield hub
    close_session()
    server.shutdown()
    thread.join()
    server.server_close()
