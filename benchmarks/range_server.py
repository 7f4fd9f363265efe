"""A web server of one folder that answers ranges of bytes, with a set latency and bandwidth, as a distant store has.

    python -m benchmarks.range_server FOLDER --latency-ms 20 --mb-per-s 100      # prints its port

It stands for an object store in the benchmarks, and with faults in the tests.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

CHUNK = 1 << 16  # bytes sent at a time


class RangeServer(ThreadingHTTPServer):
    """Serves the files of a folder at 127.0.0.1.

    Args:
        latency: seconds before each answer.
        bandwidth: bytes per second of all answers together; None: as fast as it goes.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, latency: float = 0.0, bandwidth: float | None = None) -> None:
        self.root, self.latency, self.bandwidth = root, latency, bandwidth
        self.requests = self.bytes_sent = 0
        self._lock, self._free_at = threading.Lock(), 0.0
        super().__init__(("127.0.0.1", 0), RangeHandler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def tag(self, path: Path) -> str:
        status = path.stat()
        return f'"{status.st_size:x}-{status.st_mtime_ns:x}"'

    def pace(self, count: int) -> None:
        """Waits until the line has room for so many bytes."""
        with self._lock:
            self.bytes_sent += count
            if self.bandwidth is None:
                return
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.bandwidth
            wait = self._free_at - now
        if wait > 0.002:
            time.sleep(wait)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that went away are no news."""


class RangeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: else the second waits for the first one's receipt
    disable_nagle_algorithm = True
    server: RangeServer

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.latency:
            time.sleep(self.server.latency)
        path = self.server.root / unquote(self.path.partition("?")[0]).lstrip("/")
        if not path.is_file():
            return self.refuse(404)
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
        if first >= last:
            return self.refuse(416)
        with open(path, "rb") as file:
            data = os.pread(file.fileno(), last - first, first)
        more = {"Content-Range": f"bytes {first}-{last - 1}/{size}"} if wanted else {}
        self.send(206 if wanted else 200, data, {"ETag": self.server.tag(path), **more})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for at in range(0, len(data), CHUNK):
            part = data[at : at + CHUNK]
            self.server.pace(len(part))
            self.wfile.write(part)

    def refuse(self, status: int) -> None:
        self.send(status, b"", {})

    def log_message(self, *rest: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.range_server")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--mb-per-s", type=float)
    options = parser.parse_args()
    bandwidth = None if options.mb_per_s is None else 1e6 * options.mb_per_s
    with RangeServer(options.folder, options.latency_ms / 1000, bandwidth) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
