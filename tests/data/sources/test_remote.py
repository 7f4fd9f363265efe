"""Shards from afar: copied once and whole, refused in one line without secrets, and never by way of a shell."""

from __future__ import annotations

import base64
import io
import logging
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from maskco.data.sources import SourceError, fingerprint, is_remote, locate, open_source, remote
from maskco.data.sources.remote import redact


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shard() -> bytes:
    image, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (60, 50)).save(image, "jpeg")
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("0.jpg")
        member.size = len(image.getvalue())
        tar.addfile(member, io.BytesIO(image.getvalue()))
    return archive.getvalue()


class Server(ThreadingHTTPServer):
    """Says what it is told to: path -> (status, headers, body). `seen` holds (path, headers) of what was asked for."""

    daemon_threads = True

    def __init__(self, name: str = "127.0.0.1") -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"{name}:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        status, headers, body = server.answers.get(self.path.split("?")[0], (404, {}, b"<html>nothing here</html>"))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *rest: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def refusal(data: str) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(locate(data))
    message = str(caught.value)
    assert "\n" not in message and "secret" not in message and message.startswith("data: ")
    return message


def test_shards_are_copied_once(server: Server, cache: Path) -> None:
    pytest.importorskip("braceexpand")
    for name in ("a 0", "a 1"):
        server.answers[f"/{name.replace(' ', '%20')}.tar"] = (200, {}, shard())
    url = f"HTTP://{server.address}/a {{0..1}}.tar?token=secret"
    source = open_source(locate(url))
    assert len(source) == 2 and source[1].size == (60, 50) and len(server.seen) == 2
    assert server.seen[0][0] == "/a%20" + "0.tar?token=secret"
    server.answers.clear()
    assert fingerprint(open_source(url)) == fingerprint(source) and len(server.seen) == 2
    assert not any("secret" in path.name for path in cache.rglob("*"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {}, b"gone"), "cannot be read: HTTP Error 404"),
        ((403, {}, b"no"), "cannot be read: HTTP Error 403"),
        ((200, {}, b""), "is empty"),
        ((200, {}, b"<html>log in, please</html>"), "is a web page or XML"),
        ((200, {}, b"\n  <?xml version='1.0'?><Error/>"), "is a web page or XML"),
        ((200, {}, b"\x1f\x8b" + bytes(600)), "is compressed: unpack it first"),
        ((200, {}, b"version https://git-lfs.github.com/spec/v1\n"), "is a pointer of git-lfs"),
        ((200, {}, b"x" * 2000), "is no tar file"),
        (
            (200, {"Content-Length": str(len(shard()) + 5)}, shard()),
            f"came short: {len(shard())} of {len(shard()) + 5}",
        ),
        ((302, {"Location": "file:///etc/passwd"}, b""), "cannot be read: HTTP Error 302"),
    ],
)
def test_what_is_no_whole_shard_is_refused_and_not_kept(server: Server, cache: Path, answer, words: str) -> None:
    server.answers["/a.tar"] = answer
    message = refusal(f"http://me:secret1@{server.address}/a.tar?key=secret2#secret3")
    assert words in message and f"http://{server.address}/a.tar" in message
    assert [path.name for path in (cache / "shards").iterdir() if not path.name.endswith(".lock")] == []


def test_nobody_there(cache: Path) -> None:
    with Server() as server:
        address = server.address
    assert "cannot be read" in refusal(f"http://me:secret@{address}/a.tar?secret")


def test_passwords_reach_their_host_alone(server: Server) -> None:
    with Server("localhost") as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        other.answers["/b.tar"] = (200, {}, shard())
        server.answers["/a.tar"] = (302, {"Location": f"http://{other.address}/b.tar"}, b"")
        assert len(open_source(f"http://me:a%40b@{server.address}/a.tar")) == 1
        other.shutdown()
    sent = base64.b64encode(b"me:a@b").decode()
    assert server.seen[0][1]["Authorization"] == f"Basic {sent}" and "Authorization" not in other.seen[0][1]


@pytest.mark.parametrize("data", ["pipe:touch {}", "PIPE:touch {}", "pipe: touch {} #.tar", "pipe:touch {} ://x.tar"])
def test_pipes_run_nothing(tmp_path: Path, data: str) -> None:
    assert is_remote(data) and locate(data) == data
    assert "'pipe:' is no longer supported" in refusal(data.format(tmp_path / "made"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("scheme", ["http", "s3", "gs", "hf", "az", "ftp", "https"])
def test_no_part_of_an_address_reaches_a_shell(tmp_path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset handed these to curl, gsutil or aws by way of a shell."""
    for package in set(remote.PACKAGES.values()) - {"fsspec"}:
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: 1 / 0)
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(os, "system", None)
    assert "cannot be read" in refusal(f"{scheme}://127.0.0.1:9/$(touch {tmp_path}/made)`touch {tmp_path}/made`;x.tar")
    assert not (tmp_path / "made").exists()


def test_what_is_missing_for_a_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme, package in (
        ("s3", "s3fs"),
        ("GS", "gcsfs"),
        ("az", "adlfs"),
        ("abfs", "adlfs"),
        ("hf", "huggingface_hub"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        message = refusal(f"{scheme}://bucket/a.tar")
        assert message == f"data: {scheme.lower()}:// needs {package}: pip install {package}"


@pytest.mark.parametrize("data", ["foo://x/a.tar", "memory://a.tar", "github://x:y@/a.tar", "ssh://h/a", "://a.tar"])
def test_other_schemes_are_refused_with_those_that_can_be_read(data: str) -> None:
    assert "use one of http:// https:// ftp:// s3:// gs://" in refusal(data)
    assert "has a scheme that cannot be read" in refusal(f"simplecache::{data}" if "x" in data else data)


def test_one_store_does_not_lead_to_another(tmp_path: Path) -> None:
    assert "holds '::'" in refusal(f"ftp://host/a.tar::file://{tmp_path}/a.tar")


@pytest.mark.parametrize("data", ["http://", "https:///a.tar", "http://[::1/a.tar"])
def test_addresses_without_a_host(data: str) -> None:
    assert "names no host" in refusal(data)


def test_stars_are_for_local_shards() -> None:
    assert "name those of an address by braces" in refusal("s3://bucket/*.tar") or "needs s3fs" in refusal(
        "s3://b/*.tar"
    )
    assert "name those of an address by braces" in refusal("https://host/*.tar?secret")


def test_hugging_face_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be read: " in refusal("hf://datasets/nobody/nothing/a.tar")


def test_stores_are_read_through_fsspec(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Its store in memory stands for the others."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setitem(remote.PACKAGES, "memory", "fsspec")
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.tar", shard())
    try:
        assert len(open_source("memory://bucket/a.tar")) == 1
        assert "cannot be read" in refusal("memory://bucket/b.tar")
        info = type(store).info
        monkeypatch.setattr(type(store), "info", lambda self, path, **rest: info(self, path, **rest) | {"size": 10**6})
        store.pipe("/bucket/c.tar", shard())
        assert f"came short: {len(shard())} of 1000000 bytes" in refusal("memory://bucket/c.tar")
    finally:
        store.rm("/bucket", recursive=True)
    assert len([path for path in (cache / "shards").iterdir() if path.suffix == ".tar"]) == 1


def test_addresses_are_told_without_passwords(caplog: pytest.LogCaptureFixture) -> None:
    assert redact("s3://key:se/cr@et@host/a.tar?X-Amz-Signature=1#f") == "s3://host/a.tar"
    assert redact("https://host:80/a@b.tar") == "https://host:80/a@b.tar"
    assert redact("https://me:secret@host:80/a@b.tar?sig=1") == "https://host:80/a@b.tar"
    with caplog.at_level(logging.DEBUG):
        refusal("http://me:secret@127.0.0.1:9/a.tar?secret")
    assert "secret" not in caplog.text
