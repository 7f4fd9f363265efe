"""Shards in a store, read by ranges: the images of local shards, whatever the server does, and no secret told."""

from __future__ import annotations

import base64
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from faulty_store import QUICK, FaultyStore, RandomFaults, faulty_store, jpeg, make_shards, pack
from maskco.data.images import ImageError
from maskco.data.loading import Loading
from maskco.data.order import WindowShuffle
from maskco.data.samples import EpochBatches, PretrainDataset
from maskco.data.sources import SourceError, fingerprint, is_remote, locate, open_source
from maskco.data.sources.remote_shards import RemoteShardSource
from maskco.data.sources.shards import ShardSource
from maskco.data.store import addresses
from maskco.data.store.blocks import BLOCK, BlockCache
from maskco.data.store.ranges import Ranges
from maskco.data.store.retry import Retry
from maskco.data.views import TwoViews, ViewConfig

pytest.importorskip("obstore")
pytest.importorskip("braceexpand")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyStore]:
    with faulty_store(tmp_path / "store") as server:
        yield server


def open_remote(pattern: str, retry: Retry = QUICK) -> RemoteShardSource:
    return RemoteShardSource(pattern, Ranges(retry=retry))


def read_all(source: RemoteShardSource | ShardSource) -> list[bytes]:
    return [source[index].tobytes() for index in range(len(source))]


def forget_blocks(source: RemoteShardSource, folder: Path) -> None:
    """Nothing that the index has read is in the cache any more."""
    source.ranges.cache = BlockCache(folder, 1 << 30)


def refusal(data: str) -> str:
    with pytest.raises(SourceError) as caught:
        open_remote(locate(data), Retry(tries=2, first=0.001, timeout=0.5))
    message = str(caught.value)
    assert "\n" not in message and "secret" not in message and message.startswith("data: ")
    return message


def test_remote_shards_are_the_local_ones(server: FaultyStore, tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "store", shards=3, images=4, filler=300_000)
    (local, remote) = ShardSource(f"{tmp_path}/store/{pattern}"), open_remote(f"{server.address}/{pattern}")
    assert [remote.name(i) for i in range(12)] == [local.name(i) for i in range(12)] and len(remote) == 12
    assert read_all(remote) == read_all(local)
    assert fingerprint(remote) == fingerprint(local) and remote.left_out == local.left_out
    assert remote.shard_starts.tolist() == local.shard_starts.tolist() == [0, 4, 8, 12]
    asked = len(server.seen)
    assert read_all(open_remote(f"{server.address}/{pattern}")) == read_all(remote)
    assert len(server.seen) == asked + 3, "only each shard's tag is asked for again"


def test_large_members_are_jumped_over(server: FaultyStore, tmp_path: Path) -> None:
    """The index takes headers alone."""
    make_shards(tmp_path / "store", shards=1, images=3, filler=5 * BLOCK)
    source = open_remote(f"{server.address}/0.tar")
    assert server.bytes_sent < 8 * BLOCK < 15 * BLOCK and len(source) == 3


@pytest.mark.parametrize("stale", [False, True])
def test_an_idx_beside_the_shard_is_used_and_never_believed(server: FaultyStore, tmp_path: Path, stale: bool) -> None:
    make_shards(tmp_path / "store", shards=1, images=4, filler=3 * BLOCK)
    local = ShardSource(f"{tmp_path}/store/0.tar")
    parts = zip(local._names, local._offsets, local._sizes, strict=True)
    members = [(name.decode(), int(first) + 512 * stale, int(size)) for name, first, size in parts]
    samples = [f"jpg {first} {size} {name} txt {first + 10240} 5 {name[:-3]}txt" for name, first, size in members]
    (tmp_path / "store" / "0.idx").write_text(f"v1.2 {len(samples)}\n" + "\n".join(samples) + "\n")
    source = open_remote(f"{server.address}/0.tar")
    assert len(source) == 4 and server.bytes_sent < 1000, "no header was read"
    if stale:
        with pytest.raises(ImageError, match="its header is not where the index says"):
            source[2]
    else:
        assert read_all(source) == read_all(local)
        assert source.left_out[".txt"] == 4


@pytest.mark.parametrize("text", ["v1.1 1\njpg 512 9\n", "v1.2 2\njpg 512 9 a.jpg\n", "v1.2 1\njpg 512 999999 a.jpg\n"])
def test_an_idx_that_cannot_be_is_passed_over(server: FaultyStore, tmp_path: Path, text: str) -> None:
    make_shards(tmp_path / "store", shards=1, images=4)
    (tmp_path / "store" / "0.idx").write_text(text)
    assert len(read_all(open_remote(f"{server.address}/0.tar"))) == 4


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_change_nothing(server: FaultyStore, tmp_path: Path, seed: int) -> None:
    pattern = make_shards(tmp_path / "store", shards=4, images=3, filler=200_000)
    server.fault = RandomFaults(seed, 0.4)
    source = open_remote(f"{server.address}/{pattern}")
    assert read_all(source) == [
        image.tobytes() for image in map(ShardSource(f"{tmp_path}/store/{pattern}").__getitem__, range(12))
    ]


def test_a_slow_answer_is_asked_for_again(server: FaultyStore, tmp_path: Path) -> None:
    make_shards(tmp_path / "store", shards=1)
    faults = iter(["", "", "slow"])
    server.fault = lambda path: next(faults, "")
    assert len(read_all(open_remote(f"{server.address}/0.tar"))) == 5


def test_after_bounded_tries_images_are_unusable(server: FaultyStore, tmp_path: Path) -> None:
    """Those of one shard: the first is tried for, the others once, and the rest of the data goes on."""
    pattern = make_shards(tmp_path / "store", shards=3, filler=2 * BLOCK)
    source = open_remote(f"{server.address}/{pattern}?token=secret", Retry(tries=3, first=0.001, timeout=0.5))
    forget_blocks(source, tmp_path / "empty")
    first = source[0].tobytes()
    server.fault = lambda path: "503" if path.startswith("/1.tar") else ""
    for index, tries in ((6, 3), (7, 1), (8, 1)):
        asked = len(server.seen)
        with pytest.raises(ImageError, match=r"the store fails: .*503") as caught:
            source[index]
        assert len(server.seen) == asked + tries and caught.value.path == f"1.tar/0010000{index - 5}.jpg"
        assert "secret" not in str(caught.value)
    assert source[1].size == (60, 50) and source[0].tobytes() == first
    server.fault = lambda path: ""
    assert source[6].size == (60, 50)


@pytest.mark.parametrize(("shards", "indices"), [(4, (0, 5, 10)), (2, (0, 5)), (1, (0, 1, 2, 3, 4, 0, 1, 2))])
def test_a_store_that_is_gone_stops_the_run_in_one_line(server, tmp_path: Path, shards: int, indices) -> None:
    """After images of three shards, or all, or after eight images."""
    pattern = make_shards(tmp_path / "store", shards=shards)
    source = open_remote(
        f"{server.address}/{pattern if shards > 1 else '0.tar'}?token=secret", Retry(tries=1, timeout=0.5)
    )
    forget_blocks(source, tmp_path / "empty")
    server.fault = lambda path: "503"
    for index in indices[:-1]:
        with pytest.raises(ImageError):
            source[index]
    with pytest.raises(SourceError, match=r"nor the \d images before .*\. Resume when the store answers") as stopped:
        source[indices[-1]]
    assert "secret" not in str(stopped.value) and "\n" not in str(stopped.value)


def test_a_shard_that_changes_during_the_run_stops_it(server: FaultyStore, tmp_path: Path) -> None:
    make_shards(tmp_path / "store", shards=1, filler=2 * BLOCK)
    source = open_remote(f"{server.address}/0.tar?token=secret")
    forget_blocks(source, tmp_path / "empty")
    pack(tmp_path / "store" / "0.tar", {f"{i}.jpg": jpeg(i + 70) for i in range(9)})
    with pytest.raises(SourceError, match="was changed during the run") as caught:
        read_all(source)
    assert "secret" not in str(caught.value)
    assert len(open_remote(f"{server.address}/0.tar?token=secret")) == 9, "another run reads the new one"


def test_without_tags_a_changed_shard_still_gives_no_wrong_image(server: FaultyStore, tmp_path: Path) -> None:
    make_shards(tmp_path / "store", shards=1, filler=2 * BLOCK)
    server.tags["0.tar"] = '"always"'
    source = open_remote(f"{server.address}/0.tar")
    kept, before = (tmp_path / "store" / "0.tar").read_bytes(), read_all(source)
    (tmp_path / "store" / "0.tar").write_bytes(bytes(512) + kept[:-512])
    forget_blocks(source, tmp_path / "empty")
    for index in range(5):
        with pytest.raises(ImageError, match="its header is not where"):
            source[index]
    (tmp_path / "store" / "0.tar").write_bytes(kept)
    forget_blocks(source, tmp_path / "other")
    assert read_all(source) == before


def test_workers_read_in_other_processes_and_read_ahead(server: FaultyStore, tmp_path: Path) -> None:
    """The parent has used its client, which would hang in a forked worker."""
    pattern = make_shards(tmp_path / "store", shards=6, images=6, filler=100_000)
    source = open_remote(f"{server.address}/{pattern}")
    dataset = PretrainDataset(source, TwoViews(ViewConfig(image_size=32, regions=2)), seed=1)
    order = WindowShuffle(source.shard_starts, 2)
    server.fault = RandomFaults(0, 0.1)
    seen = []
    for workers in (0, 2):
        forget_blocks(source, tmp_path / f"blocks{workers}")
        with Loading(dataset, EpochBatches(36, 4, 0, 0, order=order), workers=workers, pin_memory=False) as loading:
            seen.append([batch.views.query.clone() for batch in loading])
            assert loading._ahead._pool._max_workers == 16
    assert len(seen[0]) == 9 and all((a == b).all() for a, b in zip(*seen, strict=True))


def test_a_forked_process_gets_an_error_and_does_not_hang(server: FaultyStore, tmp_path: Path) -> None:
    make_shards(tmp_path / "store", shards=1, filler=2 * BLOCK)
    source = open_remote(f"{server.address}/0.tar")
    forget_blocks(source, tmp_path / "empty")
    receiver, sender = multiprocessing.Pipe(False)

    def read() -> None:
        try:
            read_all(source)
        except SourceError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    assert receiver.poll(20) and "Start its workers by 'forkserver'" in receiver.recv()
    process.join()


def test_a_copy_in_another_process_is_small(server: FaultyStore, tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "store", shards=2, images=300)
    source = open_remote(f"{server.address}/{pattern}")
    data = pickle.dumps(source)
    assert len(data) < 2000 and read_all(pickle.loads(data)) == read_all(source)
    assert isinstance(source.table.places.base, np.memmap)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: there is no such object"),
        (b"", "is empty"),
        (b"<html>log in, please</html>", "is a web page or XML"),
        (b"\n  <?xml version='1.0'?><Error/>", "is a web page or XML"),
        (b"\x1f\x8b" + bytes(600), "is compressed. Unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        (b"x" * 2000, "is no tar file"),
    ],
)
def test_what_is_no_shard_is_refused(server: FaultyStore, tmp_path: Path, content: bytes | None, words: str) -> None:
    (tmp_path / "store").mkdir()
    if content is not None:
        (tmp_path / "store" / "a.tar").write_bytes(content)
    message = refusal(f"http://me:secret1@{server.address[7:]}/a.tar?key=secret2#secret3")
    assert words in message and f"{server.address}/a.tar" in message


@pytest.mark.parametrize("status", ["401", "403", "400"])
def test_what_another_try_would_not_help_is_refused_at_once(server: FaultyStore, status: str) -> None:
    server.fault = lambda path: status
    assert "cannot be read" in refusal(f"{server.address}/a.tar?secret") and len(server.seen) == 1


def test_nobody_there() -> None:
    assert "cannot be read" in refusal("http://me:secret@127.0.0.1:9/a.tar?secret")


def test_secrets_reach_the_server_and_nothing_else(
    server: FaultyStore, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_shards(tmp_path / "store", shards=1)
    (tmp_path / "store" / "0.tar").rename(tmp_path / "store" / "a 0.tar")
    with caplog.at_level(logging.DEBUG):
        source = open_remote(f"HTTP://me:sec%40ret@{server.address[7:]}/a 0.tar?token=secret2")
        assert len(read_all(source)) == 5
    path, headers = server.seen[0]
    sent = {name.lower(): value for name, value in headers.items()}
    assert path == "/a%200.tar?token=secret2"
    assert sent["authorization"] == f"Basic {base64.b64encode(b'me:sec@ret').decode()}"
    kept = b"".join(path.name.encode() + path.read_bytes() for path in cache.rglob("*") if path.is_file())
    for secret in (b"secret2", b"sec@ret", b"sec%40ret"):
        assert secret not in kept and secret.decode() not in caplog.text + source.name(0)


def test_passwords_reach_their_host_alone(server: FaultyStore, tmp_path: Path) -> None:
    make_shards(tmp_path / "store", shards=1)
    with faulty_store(tmp_path / "store") as other:
        elsewhere = other.address.replace("127.0.0.1", "localhost")

        class Redirecting(server.RequestHandlerClass):
            def refuse(self, status: int) -> None:
                self.send(302, b"", {"Location": f"{elsewhere}/0.tar"})

        server.RequestHandlerClass, server.fault = Redirecting, lambda path: "302"
        assert len(open_remote(f"http://me:secret@{server.address[7:]}/0.tar")) == 5
    assert any(name.lower() == "authorization" for name in server.seen[0][1])
    assert other.seen and not any(name.lower() == "authorization" for _, headers in other.seen for name in headers)


@pytest.mark.parametrize("data", ["pipe:touch {}", "PIPE:touch {}", "pipe: touch {} #.tar", "pipe:touch {} ://x.tar"])
def test_pipes_run_nothing(tmp_path: Path, data: str) -> None:
    assert is_remote(data) and locate(data) == data
    assert "'pipe:' is no longer supported" in refusal(data.format(tmp_path / "made"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("scheme", ["http", "hf", "ftp"])
def test_no_part_of_an_address_reaches_a_shell(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset handed these to curl, gsutil or aws by way of a shell."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: 1 / 0)
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(os, "system", None)
    assert "cannot be read" in refusal(f"{scheme}://127.0.0.1:9/$(touch {tmp_path}/made)`touch {tmp_path}/made`;x.tar")
    assert not (tmp_path / "made").exists()


def test_what_is_missing_for_a_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = dict.fromkeys(("http", "s3", "GS", "az", "abfs"), ("obstore", "'maskco[cloud]'"))
    for scheme, (package, install) in {**wanted, "hf": ("huggingface_hub", "huggingface_hub")}.items():
        monkeypatch.setitem(sys.modules, package, None)
        message = refusal(f"{scheme}://bucket/a.tar")
        assert message == f"data: {scheme.lower()}:// needs {package}. Run pip install {install}"


@pytest.mark.parametrize("data", ["foo://x/a.tar", "memory://a.tar", "github://x:y@/a.tar", "ssh://h/a", "://a.tar"])
def test_other_schemes_are_refused_with_those_that_can_be_read(data: str) -> None:
    assert "Use one of http:// https:// s3:// gs://" in refusal(data)
    assert "has a scheme that cannot be read" in refusal(f"simplecache::{data}" if "x" in data else data)


def test_one_store_does_not_lead_to_another(tmp_path: Path) -> None:
    assert "holds '::'" in refusal(f"ftp://host/a.tar::file://{tmp_path}/a.tar")


@pytest.mark.parametrize("data", ["http://", "https:///a.tar", "http://[::1/a.tar", "s3:///a.tar"])
def test_addresses_without_a_host(data: str) -> None:
    assert "names no host" in refusal(data) or "names no bucket" in refusal(data) or "holds '::'" in refusal(data)


@pytest.mark.parametrize("data", ["s3://bucket/*.tar", "https://host/*.tar?secret"])
def test_stars_are_for_local_shards(data: str) -> None:
    assert "Name those of an address by braces" in refusal(data)


def test_hugging_face_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be read: " in refusal("hf://datasets/nobody/nothing/a.tar")


def test_other_schemes_are_read_through_fsspec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its store in memory stands for ftp and hf."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setitem(addresses.FSSPEC, "memory", "fsspec")
    pattern = make_shards(tmp_path / "shards", shards=2)
    store = fsspec.filesystem("memory")
    for path in (tmp_path / "shards").iterdir():
        store.pipe(f"/bucket/{path.name}", path.read_bytes())
    try:
        source = open_remote(f"memory://bucket/{pattern}")
        assert read_all(source) == [
            image.tobytes() for image in map(ShardSource(f"{tmp_path}/shards/{pattern}").__getitem__, range(10))
        ]
        assert "cannot be read" in refusal("memory://bucket/b.tar")
    finally:
        store.rm("/bucket", recursive=True)


def test_a_window_larger_than_the_cache_is_said(server: FaultyStore, tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "store", shards=4, images=2, filler=BLOCK)
    source = open_remote(f"{server.address}/{pattern}")
    assert source.window_note(16) is None is source.window_note(None)
    source.ranges.cache.limit = 6 * BLOCK
    assert source.window_note(2) is None
    assert "the order draws from 4 shards at a time" in source.window_note(None)


def test_registered_under_its_addresses(server: FaultyStore, tmp_path: Path) -> None:
    make_shards(tmp_path / "store", shards=1)
    source = open_source(f"{server.address}/0.tar")
    assert isinstance(source, RemoteShardSource) and source.ranges.retry == Retry()
    assert json.loads((source.table.folder / "facts.json").read_text())["members"] == 5
