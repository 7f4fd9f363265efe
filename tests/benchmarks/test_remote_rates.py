"""benchmarks.remote: the server keeps its latency and bandwidth, and rates and index come out as rows."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks import blocks, remote, remote_index
from benchmarks.range_server import RangeServer

pytest.importorskip("obstore")
pytest.importorskip("braceexpand")


def test_the_server_is_as_slow_as_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(400_000))
    with RangeServer(tmp_path, latency=0.02, bandwidth=4e6) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        request = urllib.request.Request(f"{server.address}/a", headers={"Range": "bytes=7-16"})
        began = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 206 and len(answer.read()) == 10
            assert answer.headers["Content-Range"] == "bytes 7-16/400000" and answer.headers["ETag"]
        assert time.perf_counter() - began >= 0.02
        began = time.perf_counter()
        with urllib.request.urlopen(f"{server.address}/a") as answer:
            assert answer.status == 200 and len(answer.read()) == 400_000
        assert 0.1 <= time.perf_counter() - began < 2
        assert server.requests == 2 and server.bytes_sent == 400_010
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_index_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = remote_index.measure_index(25_000)
    assert 24.9 < row["bytes_per_image"] < 25.1 and row["private_mib"] < 5 and 0 < row["lookup_us"] < 1000
    assert "25,000 images" in capsys.readouterr().out


@pytest.mark.slow
def test_rates_of_all_ways_to_the_same_images(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "rows.json"
    command = [
        "remote",
        "--images",
        "600",
        "--image-size",
        "64",
        "--workers",
        "1",
        "--repeats",
        "1",
        "--json",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path))
    monkeypatch.setattr(remote.read_ahead, "AHEAD", remote.AHEAD)
    remote.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["impl"] for row in rows] == [remote.LOCAL, remote.COPIED, remote.COLD, remote.WARM, remote.ALONE]
    assert all(row["images_per_s"] > 0 and row["worker_mib"] > 0 for row in rows)
    assert {row["impl"]: row["targets"][0]["limit"] for row in rows if "targets" in row} == remote.TARGETS


def test_the_table_has_a_line_for_each_number_of_workers() -> None:
    local = [remote.Figures(100.0, 50, 40), remote.Figures(120.0, 50, 40)]
    cold = [remote.Figures(75.0, 60, 41), remote.Figures(84.0, 60, 43)]
    rows = [
        remote.row_of("a case", 2, name, found, local) for name, found in ((remote.LOCAL, local), (remote.COLD, cold))
    ]
    assert blocks.ranged_reads({"meta": {"device": "A CPU"}, "rows": rows}).splitlines() == [
        "A CPU, a case:",
        "",
        "| workers | local shards, images/s | ranges, cold cache, of that | MiB, main + each worker |",
        "| ---: | ---: | ---: | ---: |",
        "| 2 | 110 | 0.72 ✗ | 60 + 42 |",
    ]
