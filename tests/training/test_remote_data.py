"""Runs on shards in a store: on any number of ranks, resumed on another, killed, and through faults, they see the
images of the unbroken run in its order.

MASKCO_RESUMES=50 kills the soak so often; the slow tests, 20 times.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from faulty_store import QUICK, RandomFaults, faulty_store, jpeg, make_shards, pack
from kills import kill_after
from maskco.config import PretrainConfig
from maskco.data.samples import EpochBatches
from maskco.data.sources import remote_shards
from maskco.errors import UserError
from maskco.runs.checkpoint import read_checkpoint
from maskco.training.loop import pretrain
from maskco.training.totals import Totals
from resuming import same
from tiny_runs import TINY, rows

pytest.importorskip("obstore")
pytest.importorskip("braceexpand")
pytestmark = pytest.mark.distributed

RESUMES = int(os.environ.get("MASKCO_RESUMES", "20"))
OPTIONS: dict[str, Any] = {
    **TINY,
    "batch_size": 6,
    "key_group": 0,
    "queue_size": 12,
    "log_every": 1,
    "shuffle": "window:2",
}
FORKS = mp.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "maskco.training.loop", "maskco.data.loading", "torch.utils.tensorboard"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def note_images(log: Path) -> None:
    """Appends the steps' images to a file, as this rank takes them: epoch, step, rank, and their numbers."""
    iterate = EpochBatches.__iter__

    def noted(self: EpochBatches):
        for step, keys in enumerate(iterate(self), self.start_step):
            with open(log, "a") as file:
                file.write(json.dumps([self.epoch, step, self.rank, [index for _, index in keys]]) + "\n")
            yield keys

    EpochBatches.__iter__ = noted


def train(
    rank: int, ranks: int, store: str, cache: str, data: str, out: str, log: str, options: dict[str, Any]
) -> None:
    """One rank of a run that goes on, if it was begun."""
    os.environ["MASKCO_CACHE"] = cache
    remote_shards.Ranges.__init__.__defaults__ = (None, QUICK)
    torch.set_num_threads(1)
    note_images(Path(log))
    os.dup2(os.open(f"{out}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if ranks > 1:
        os.environ |= {"LOCAL_WORLD_SIZE": str(ranks)}
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    victim, *moment = options.pop("kill", (None,))
    if rank == victim:
        kill_after(Totals, "add", *moment)
    pretrain(data, out, resume=True, **options)
    if ranks > 1:
        dist.destroy_process_group()


def run(ranks: int, tmp_path: Path, data: str, out: str, **options: Any) -> list[int]:
    """The exit codes of all ranks."""
    store = tmp_path / f"group-{random.getrandbits(60):x}"
    shared = (str(store), str(tmp_path / "cache"), data, str(tmp_path / out), str(tmp_path / f"{out}.images"))
    processes = [
        FORKS.Process(target=train, args=(rank, ranks, *shared, {**OPTIONS, **options})) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        process.kill()
    return [process.exitcode for process in processes]


def images(tmp_path: Path, out: str) -> dict[tuple[int, int], list[int]]:
    """The images of each (epoch, step), all ranks' in a row. A step that was made twice had the same ones."""
    parts: dict[tuple[int, int], dict[tuple[int, int], list[int]]] = {}
    for line in (tmp_path / f"{out}.images").read_text().splitlines():
        epoch, step, rank, numbers = json.loads(line)
        place = parts.setdefault((epoch, step), {})
        assert place.setdefault((len(numbers), rank), numbers) == numbers
    joined = {}
    for step, place in parts.items():
        for size in {size for size, _ in place}:
            whole = [index for (length, _), numbers in sorted(place.items()) if length == size for index in numbers]
            if len(whole) == OPTIONS["batch_size"]:
                assert joined.setdefault(step, whole) == whole
    return dict(sorted(joined.items()))


@pytest.mark.slow
def test_ranks_share_the_order_and_resume_on_another_number(tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "store", shards=5, images=5)
    with faulty_store(tmp_path / "store", RandomFaults(1, 0.1)) as server:
        data = f"{server.address}/{pattern}"
        assert run(1, tmp_path, data, "whole") == [0], (tmp_path / "whole.stderr").read_text()
        assert run(3, tmp_path, data, "other", epochs=1) == [0, 0, 0], (tmp_path / "other.stderr").read_text()
        assert run(2, tmp_path, data, "other", epochs=2) == [0, 0], (tmp_path / "other.stderr").read_text()
    whole, other = images(tmp_path, "whole"), images(tmp_path, "other")
    assert whole == other and len(whole) == 8
    for epoch in range(2):
        seen = [index for (of, _), numbers in whole.items() if of == epoch for index in numbers]
        assert len(set(seen)) == len(seen) == 24 and set(seen) <= set(range(25))
    assert read_checkpoint(tmp_path / "other" / "last.pt")["step"] == 8


def test_another_order_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = make_shards(tmp_path / "store", shards=4, images=4)
    with faulty_store(tmp_path / "store") as server:
        data = f"http://me:secret1@{server.address[7:]}/{pattern}?key=secret2"
        default = {name: value for name, value in OPTIONS.items() if name != "shuffle"}
        pretrain(data, tmp_path / "run", **{**default, "epochs": 1})
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config["run"]["shuffle"] == "window:16" and config["run"]["data"] == f"{server.address}/{pattern}"
        for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
            assert b"secret" not in path.read_bytes()
        with pytest.raises(UserError, match=r"other options \(shuffle: window:16, not full\)"):
            pretrain(data, tmp_path / "run", resume=True, epochs=2, shuffle="full")
        with pytest.raises(UserError, match="must be named"):
            pretrain(out=tmp_path / "run", resume=True, epochs=2)
        assert pretrain(data, tmp_path / "run", resume=True, epochs=2).steps == 4
        # the same shards on a local disk are the same data
        assert pretrain(tmp_path / "store" / pattern, tmp_path / "run", resume=True, epochs=3).steps == 6
    for wrong in ("window", "window:0", "windows:3", "window:-1"):
        with pytest.raises(UserError, match="shuffle must be full or window:N"):
            pretrain("demo", tmp_path / "other", **{**OPTIONS, "shuffle": wrong})


def test_a_shard_that_changes_stops_the_run_in_one_line(tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "store", shards=4, images=4, filler=1 << 20)
    with faulty_store(tmp_path / "store") as server:
        pretrain(f"{server.address}/{pattern}", tmp_path / "run", **{**OPTIONS, "epochs": 1})
        pack(tmp_path / "store" / "2.tar", {f"002{index:05}.jpg": jpeg(index) for index in range(5)})
        with pytest.raises(UserError, match="its run has 16 images"):
            pretrain(f"{server.address}/{pattern}", tmp_path / "run", resume=True, epochs=2)


def test_old_configurations_were_of_the_full_order() -> None:
    stored = PretrainConfig.of(data="x", out="y").to_dict()
    assert stored["run"].pop("shuffle") is None
    assert PretrainConfig.from_stored(stored).run.shuffle == "full"


@pytest.mark.slow
@pytest.mark.timeout(60 + 15 * RESUMES)
def test_soak(tmp_path: Path) -> None:
    """Killed at random moments, resumed on 1 to 3 ranks, while a fifth of all answers fail and blocks are damaged."""
    pattern = make_shards(tmp_path / "store", shards=8, images=12, filler=100_000)
    moments = random.Random(0)
    epochs = max(2 * RESUMES // 5, 1)  # more steps than are made until the last kill
    options = {"epochs": epochs, "save_every_steps": 1, "keep_best": "off"}
    with faulty_store(tmp_path / "store") as server:
        data = f"{server.address}/{pattern}"
        assert run(1, tmp_path, data, "whole", **options) == [0], (tmp_path / "whole.stderr").read_text()
        server.fault = RandomFaults(2, 0.2)
        resumes, done, began = 0, False, time.monotonic()
        while not done:
            ranks = 1 if resumes % 3 else moments.choice((2, 3))
            last = resumes >= RESUMES
            moment = (
                (0, moments.uniform(0, 1)) if resumes % 4 == 3 else (moments.randint(1, 3), moments.uniform(0, 0.04))
            )
            kill = {} if last else {"kill": (moments.randrange(ranks), *moment)}
            codes = run(ranks, tmp_path, data, "broken", workers=int(resumes % 4 == 1), **options, **kill)
            done = codes == [0] * ranks
            assert last or codes[kill["kill"][0]] == -signal.SIGKILL, (tmp_path / "broken.stderr").read_text()
            assert done or not last, (tmp_path / "broken.stderr").read_text()
            resumes += 1
            blocks = list((tmp_path / "cache" / "blocks").glob("??/*"))
            for path in moments.sample(blocks, len(blocks) // 3):
                path.write_bytes(path.read_bytes()[: moments.choice((0, 50, 5000, 200_000))])
        print(resumes, "resumes in", time.monotonic() - began, "s;", server.requests, "answers")
    assert images(tmp_path, "whole") == images(tmp_path, "broken")
    assert resumes == RESUMES + 1
    assert len(rows(tmp_path / "whole")) == len(rows(tmp_path / "broken")) == 16 * epochs


@pytest.mark.slow
def test_a_killed_run_on_one_rank_is_bit_for_bit_the_unbroken_one(tmp_path: Path) -> None:
    pattern = make_shards(tmp_path / "store", shards=4, images=12)
    options = {"epochs": 4, "save_every_steps": 1}
    with faulty_store(tmp_path / "store", RandomFaults(3, 0.2)) as server:
        data = f"{server.address}/{pattern}"
        assert run(1, tmp_path, data, "whole", **options) == [0]
        for kill in range(2):
            codes = run(1, tmp_path, data, "broken", kill=(0, 2 + 3 * kill, 0.02 * kill), workers=kill % 2, **options)
            assert codes == [-signal.SIGKILL]
        assert run(1, tmp_path, data, "broken", **options) == [0], (tmp_path / "broken.stderr").read_text()
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")
    assert same(*(read_checkpoint(tmp_path / out / "last.pt") | {"config": 0} for out in ("whole", "broken")))
