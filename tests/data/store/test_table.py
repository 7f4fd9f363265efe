"""The table of all members: what was put in, from arrays that are mapped and not read."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from maskco.data.store.table import Members, Table


def members_of(names: list[str], first: int = 512) -> Members:
    sizes = np.arange(1, len(names) + 1) * 100
    offsets = first + 1024 * np.arange(len(names))
    return Members([name.encode() for name in names], offsets, sizes)


SHARDS = [("a.tar", ["1.jpg", "zwölf.jpg"]), ("empty.tar", []), ("b.tar", ["x.png", "", "y/z.png"])]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    shards = [(name.encode(), members_of(names, 512 << (30 if name == "b.tar" else 0))) for name, names in SHARDS]
    return Table.write(tmp_path / "table", iter(shards), {"left_out": [["x", 1, "y"]]})


def test_members_are_found_by_their_number(table: Table) -> None:
    assert len(table) == 5 and table.starts.tolist() == [0, 2, 2, 5]
    assert table.find(1) == (0, 1536, 200) and table.find(2) == (2, 512 << 30, 100)
    assert [table.name(i).decode() for i in range(5)] == ["1.jpg", "zwölf.jpg", "x.png", "", "y/z.png"]
    text = b"".join(f"{shard}/{name}\0".encode() for shard, names in SHARDS for name in names)
    assert table.facts == {"left_out": [["x", 1, "y"]], "members": 5, "digest": hashlib.sha256(text).hexdigest()}


def test_it_is_mapped_and_travels_by_name(table: Table) -> None:
    columns = (table.places, table.sizes, table.names, table.letters)
    assert all(isinstance(column.base, np.memmap) for column in columns)
    assert sum(column.itemsize for column in columns[:3]) == 12
    data = pickle.dumps(table)
    assert len(data) < 300 and pickle.loads(data).find(4) == table.find(4)


def test_what_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    def shards():
        yield b"a.tar", members_of(["1.jpg"])
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        Table.write(tmp_path / "table", shards(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["facts.json", "places", "starts"])
def test_a_damaged_table_is_noticed_and_replaced(table: Table, damage: str) -> None:
    path = table.folder / damage
    path.write_bytes(path.read_bytes()[:-4] if damage != "starts" else b"")
    with pytest.raises((ValueError, OSError)):
        Table(table.folder)
    again = Table.write(table.folder, [(b"a.tar", members_of(["1.jpg"]))], {})
    assert len(again) == 1 and len(list(table.folder.parent.iterdir())) == 1
