"""A stand-in for W&B's server, which keeps what runs send it: enough for `wandb.init`, to resume, and `wandb sync`."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OWNER = {"id": "entity", "name": "me"}
PROJECT = {"id": "project", "name": "maskco", "entity": OWNER}


class Server(ThreadingHTTPServer):
    """`runs`: history lines, summary and config of each, by id. `files`: names of what was uploaded."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: list[str] = []

    def handle_error(self, *_: object) -> None:
        pass  # W&B closes connections as it ends

    def rows(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.runs[run]["history"]]

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            run = self.runs.setdefault(values["name"], {"history": [], "summary": "{}", "config": "{}"})
            run["config"] = values.get("config") or run["config"]
            bucket = {"id": "bucket", "name": values["name"], "historyLineCount": len(run["history"]), **fields(run)}
            return {"upsertBucket": {"bucket": {**bucket, "project": PROJECT}, "inserted": not run["history"]}}
        if "RunResumeStatus" in query:
            run = self.runs.get(values["name"])
            return {"model": {**PROJECT, "bucket": run and {"id": "bucket", "name": values["name"], **fields(run)}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            teams = {"edges": []}
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": teams}}
        return {}


def fields(run: dict[str, Any]) -> dict[str, Any]:
    lines = {f"{kind}LineCount": 0 for kind in ("log", "events")} | {"historyLineCount": len(run["history"])}
    tails = {"historyTail": json.dumps(run["history"][-1:]), "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
    return {"summaryMetrics": run["summary"], "config": run["config"], "tags": [], **lines, **tails}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.body() or b"{}")
        if self.path.endswith("/graphql"):
            return self.send({"data": self.server.answer(body["query"], body.get("variables") or {})})
        if match := re.fullmatch(r"/files/me/maskco/([^/]+)/file_stream", self.path):
            run = self.server.runs[match[1]]
            for name, part in body.get("files", {}).items():
                if name == "wandb-history.jsonl":
                    run["history"][part["offset"] :] = part["content"]
                elif name == "wandb-summary.json":
                    run["summary"] = part["content"][-1]
            run["exit_code"] = body.get("exitcode", run.get("exit_code"))
        self.send({})

    def do_PUT(self) -> None:
        self.body()
        self.server.files.append(self.path.removeprefix("/upload/"))
        self.send({})

    def body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def send(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
