"""Shards in a bucket: moto's server stands for S3. Credentials come from the environment and are kept nowhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faulty_store import QUICK, make_shards
from maskco.data.sources import SourceError
from maskco.data.sources.remote_shards import RemoteShardSource
from maskco.data.sources.shards import ShardSource
from maskco.data.store import clients
from maskco.data.store.ranges import Ranges
from maskco.training.loop import pretrain
from tiny_runs import TINY

pytest.importorskip("obstore")
pytest.importorskip("braceexpand")
pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
pytestmark = pytest.mark.slow

SECRETS = {"AWS_ACCESS_KEY_ID": "secretid", "AWS_SECRET_ACCESS_KEY": "secretkey"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**SECRETS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    clients._store.cache_clear()
    pattern = make_shards(tmp_path / "shards", shards=3, images=4, filler=200_000)
    store = boto3.client("s3", endpoint_url=endpoint)
    store.create_bucket(Bucket="photos")
    for path in (tmp_path / "shards").iterdir():
        store.upload_file(str(path), "photos", f"cc 3m/{path.name}")
    return f"s3://photos/cc 3m/{pattern}"


def test_a_bucket_holds_the_local_shards(bucket: str, tmp_path: Path) -> None:
    source = RemoteShardSource(bucket, Ranges(retry=QUICK))
    local = ShardSource(str(tmp_path / "shards" / "{0..2}.tar"))
    assert [source[i].tobytes() for i in range(12)] == [local[i].tobytes() for i in range(12)]
    assert source.fingerprint and source.shards[0].tag


def test_credentials_of_a_profile_are_taken(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name)
    text = f"[default]\naws_access_key_id = {SECRETS['AWS_ACCESS_KEY_ID']}\naws_secret_access_key = secretkey\n"
    (tmp_path / "credentials").write_text(text)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    clients._store.cache_clear()
    assert "credential_provider" in clients._s3_credentials()
    assert len(RemoteShardSource(bucket, Ranges(retry=QUICK))) == 12


def test_what_is_missing_is_one_line(bucket: str) -> None:
    for address in ("s3://photos/none.tar", "s3://nobodys/0.tar"):
        with pytest.raises(SourceError) as caught:
            RemoteShardSource(address, Ranges(retry=QUICK))
        assert "\n" not in str(caught.value) and "there is no such object" in str(caught.value)


def test_a_run_on_a_bucket_keeps_no_credentials(bucket: str, tmp_path: Path) -> None:
    result = pretrain(bucket, tmp_path / "run", **{**TINY, "epochs": 1, "workers": 1})
    assert result.steps == 3 and result.broken_images == 0
    kept = [path for root in ("run", "cache") for path in (tmp_path / root).rglob("*") if path.is_file()]
    assert kept and not any(value.encode() in path.read_bytes() for path in kept for value in SECRETS.values())
