"""The members of many shards in one table of arrays on the disk, which every process maps into its memory.

A member takes 12 bytes and its name: place and size, each of 4, and the start of its name. So 100 million members of
20 letters take 3.2 GB of disk. Processes share the pages that they touch, and the system may drop these at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

UNIT = 512  # bytes: members of a tar file start at multiples of it
LARGEST = (1 << 32) - 1  # size of a member, and of a shard in units
COLUMNS: dict[str, Any] = {
    "places": np.uint32,  # [members]: first byte / 512
    "sizes": np.uint32,  # [members]: bytes
    "names": np.uint32,  # [members]: first letter among its shard's
    "letters": np.uint8,  # all names, UTF-8
    "starts": np.int64,  # [shards + 1]: number of the first member
    "name_starts": np.int64,  # [shards + 1]: its first letter
}
FACTS = "facts.json"


class Members(NamedTuple):
    """The members of one shard."""

    names: list[bytes]
    offsets: np.ndarray  # int64 [n]
    sizes: np.ndarray  # int64 [n]


class Table:
    """A table that `Table.write` made. Only the name of its folder is pickled.

    Raises OSError or ValueError if it is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.places, self.sizes, self.names, self.letters, self.starts, self.name_starts = (
            _mapped(folder / name, kind) for name, kind in COLUMNS.items()
        )
        if (
            not len(self.starts)
            or not len(self.places) == len(self.sizes) == len(self.names) == self.starts[-1] == self.facts["members"]
        ):
            raise ValueError("columns of different length")

    def __reduce__(self) -> tuple[type[Table], tuple[Path]]:
        return Table, (self.folder,)

    def __len__(self) -> int:
        return len(self.places)

    def find(self, member: int) -> tuple[int, int, int]:
        """Shard, first byte and size of a member."""
        return self.shard_of(member), UNIT * int(self.places[member]), int(self.sizes[member])

    def shard_of(self, member: int) -> int:
        return int(self.starts.searchsorted(member, side="right")) - 1

    def name(self, member: int) -> bytes:
        shard = self.shard_of(member)
        base, end = (int(self.name_starts[number]) for number in (shard, shard + 1))
        if member + 1 < self.starts[shard + 1]:
            end = base + int(self.names[member + 1])
        return self.letters[base + int(self.names[member]) : end].tobytes()

    @classmethod
    def write(cls, folder: Path, shards: Iterable[tuple[bytes, Members]], facts: dict[str, Any]) -> Table:
        """Makes the table of all shards' members, one shard after the other. The folder appears when it is whole.

        Args:
            shards: name of each, and its members.
            facts: other values to keep, as JSON knows them, read after the last shard. Added are the number of members
                and the `digest` of all names, "shard/member" in their order, as `maskco.data.sources.fingerprint` has
                it.
        """
        partial = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        digest, members, letters = hashlib.sha256(), [0], [0]
        try:
            files = {name: open(partial / name, "wb") for name in list(COLUMNS)[:4]}  # noqa: SIM115
            try:
                for shard, (names, offsets, sizes) in shards:
                    lengths = np.fromiter(map(len, names), np.int64, len(names))
                    first_letters = np.cumsum(lengths) - lengths
                    files["places"].write((np.asarray(offsets) // UNIT).astype(np.uint32).tobytes())
                    files["sizes"].write(np.asarray(sizes).astype(np.uint32).tobytes())
                    files["names"].write(first_letters.astype(np.uint32).tobytes())
                    files["letters"].write(b"".join(names))
                    digest.update(b"".join(b"%s/%s\0" % (shard, name) for name in names))
                    members.append(members[-1] + len(names))
                    letters.append(letters[-1] + int(lengths.sum()))
            finally:
                for file in files.values():
                    file.close()
            np.array(members, np.int64).tofile(partial / "starts")
            np.array(letters, np.int64).tofile(partial / "name_starts")
            facts = {**facts, "members": members[-1], "digest": digest.hexdigest()}
            (partial / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return cls(folder)


def _mapped(path: Path, kind: Any) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.memmap(path, kind, mode="r").view(np.ndarray)  # whose elements are read several times faster
