"""Two ranks over gloo that serve one test after the other."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Ranks = Callable[..., list[Any]]


def serve(number: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    while (job := pipe.recv()) is not None:
        function, arguments = job
        try:
            pipe.send((function(*arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
    dist.destroy_process_group()


@contextmanager
def two_ranks(folder: Path) -> Iterator[Ranks]:
    """Gives a function that runs what it is called with, (function, *arguments), on both ranks: both results."""
    context, store = mp.get_context("spawn"), str(folder / "store")
    pipes, ends = zip(*(context.Pipe() for _ in range(2)), strict=True)
    processes = [context.Process(target=serve, args=(rank, store, ends[rank]), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()

    def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for pipe in pipes:
            pipe.send((function, arguments))
        answers = []
        for pipe in pipes:
            if not pipe.poll(60):
                for process in processes:
                    process.kill()
                pytest.fail("a rank hangs")
            answers.append(pipe.recv())
        assert not any(error for _, error in answers), "\n".join(error for _, error in answers if error)
        return [result for result, _ in answers]

    yield run
    for pipe in pipes:
        pipe.send(None)
    for process in processes:
        process.join(10)
        process.kill()
