"""What W&B wrote offline: the records of a .wandb file, which is a LevelDB log of protobuf messages."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # bytes: of a block, and of what is before each chunk: checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(path: Path) -> Iterator[Any]:
    """The records of the file in order, as `wandb_internal_pb2.Record`."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, message = path.read_bytes(), HEADER, b""
    assert content[:4] == b":W&B"
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # too short for a chunk
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        if kind == 0:
            break
        chunk = content[at + HEADER : at + HEADER + length]
        message = chunk if kind in (FULL, FIRST) else message + chunk
        at += HEADER + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(message)
            yield record


def items(updates: Any) -> dict[str, Any]:
    return {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in updates}


class WandbRun:
    """One offline folder of W&B."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.metrics: list[Any] = []
        self.exit_code: int | None = None
        self.kinds: set[str] = set()  # of records
        for record in messages(next(folder.glob("*.wandb"))):
            kind = record.WhichOneof("record_type")
            self.kinds.add(kind)
            if kind == "history":
                self.rows.append(items(record.history.item))
            elif kind == "run":
                self.id, self.name, self.project = record.run.run_id, record.run.display_name, record.run.project
                self.config |= items(record.run.config.update)
            elif kind == "config":
                self.config |= items(record.config.update)
            elif kind == "metric":
                self.metrics.append(record.metric)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    @property
    def pictures(self) -> list[str]:
        return [path.name for path in self.folder.glob("files/media/images/*")]


def wandb_runs(folder: Path) -> list[WandbRun]:
    """All below WANDB_DIR, oldest first."""
    return [WandbRun(each) for each in sorted((folder / "wandb").glob("offline-run-*"))]
