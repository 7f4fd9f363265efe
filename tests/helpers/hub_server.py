"""A stand-in for the Hugging Face Hub: what its client asks for when models are published and loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

OWNER = "hf_owner"  # the token that may write for "user"
READER = "hf_reader"  # one that may only read


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)  # their messages

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((sorted(self.files.items()), self.commits)).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories by "USER/NAME", in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()  # of all requests
        self.objects: dict[str, bytes] = {}  # large files (git LFS) by their SHA-256
        self.breaks_off = False  # refuses large files

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path.startswith("/objects/"):  # (such addresses are signed, and need no token)
            self.server.objects[path.removeprefix("/objects/")] = body
            return self._refuse(400, "storage is full") if self.server.breaks_off else self._answer({})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.server.tokens.add(token)
        if token not in ("", OWNER, READER):
            return self._refuse(401, "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            is_fine = "license: nonsense" not in json.loads(body)["content"]
            errors = [] if is_fine else [{"message": '"license" must be one of [apache-2.0, …]'}]
            return self._answer({"errors": errors, "warnings": []}, 200 if is_fine else 400)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if token != OWNER or asked["organization"] != "user":
                return self._refuse(403, "You don't have the rights to create a model under this namespace")
            is_private = asked.get("private") or asked.get("visibility") == "private"
            self.server.repositories.setdefault(name, Repository(bool(is_private)))
            return self._answer({"url": f"{self.server.url}/{name}"})
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?(/.*)?", path)
        repository = self.server.repositories.get(found[1]) if found else None
        if repository is None or (repository.private and token != OWNER):
            return self._refuse(404, "Repository not found", "RepoNotFound")
        rest = found[2] or ""
        if rest in ("", "/revision/main") and path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in repository.files]
            facts = {"id": found[1], "modelId": found[1], "sha": repository.sha, "private": repository.private}
            return self._answer({**facts, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
        if rest.startswith("/resolve/"):
            return self._file(repository, rest.split("/", 3)[3])
        if token != OWNER:
            return self._refuse(403, "You have read access but not the required permissions")
        if rest.startswith("/preupload/"):
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self._answer({"files": files})
        if rest == "/info/lfs/objects/batch":
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/objects/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if rest.startswith("/commit/"):
            for line in filter(None, body.splitlines()):
                entry = json.loads(line)
                if entry["key"] == "header":
                    repository.commits.append(entry["value"]["summary"])
                elif entry["key"] == "file":
                    repository.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                else:
                    assert entry["key"] == "lfsFile", entry["key"]
                    repository.files[entry["value"]["path"]] = self.server.objects[entry["value"]["oid"]]
            url = f"{self.server.url}/{found[1]}/commit/{repository.sha}"
            return self._answer({"commitUrl": url, "commitOid": repository.sha, "success": True})
        return self._refuse(404, f"the stand-in knows no {self.command} {self.path}")

    def _file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        content = repository.files[name]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": repository.sha})

    def _answer(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        more = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Message": message, **more})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path, token: str | None = OWNER) -> Iterator[Hub]:
    """A stand-in that the client of this process uses in place of the hub, with a cache of its own."""
    from huggingface_hub import constants, file_download

    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    for module in (constants, file_download):  # (before its version 1 the client had it in both)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose server is another one
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setenv("HF_TOKEN", token or "")
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
