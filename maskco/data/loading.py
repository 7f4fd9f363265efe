"""Batches from loading processes, whose errors keep their type.

torch raises a worker's exception again in the training process, with the worker's traceback as the message. Its type is
kept only if it can be made from a text. So only the text separates a broken decoder from a worker that the system
killed. Here workers return errors as values. So torch's own errors are about processes and memory, and exit codes and
errno say what happened.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from maskco.data.memory import keep_freed_memory
from maskco.data.samples import Batch, PretrainDataset, Sample, collate
from maskco.data.sources import SourceError
from maskco.errors import TrainingError, UserError, one_line

GRACE_SECONDS = 30  # that loading workers outlive a SIGTERM
FILES_A_WORKER = 4  # that the training process opens for each
SPARE_FILES = 8  # that handing over a batch opens for a moment, besides one for each tensor
SHARED_MEMORY = "shared memory (/dev/shm)"


class LoadingTraceback(Exception):
    """Traceback of an error in a loading worker, as the cause of the TrainingError."""


@dataclass(frozen=True)
class Failure:
    """Takes the place of a sample or batch that an exception prevented."""

    where: str  # image, or part of the work
    error: str  # type and text of the exception
    kind: str  # "source", "memory", "files", "shared" or "other"
    trace: str

    @classmethod
    def of(cls, error: Exception, where: str, *, shared: bool = False) -> Failure:
        kind = "shared" if shared else "source" if isinstance(error, SourceError) else "other"
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            kind = "memory"
        elif getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or (shared and not _can_open(1)):
            kind = "files"
        text = one_line(error)
        named = text if kind == "source" or text == type(error).__name__ else f"{type(error).__name__}: {text}"
        return cls(where, named, kind, traceback.format_exc())

    def raised(self) -> TrainingError:
        text = self.error.rstrip(".")
        reason = {
            "source": self.error,
            "memory": f"{self.where}: out of memory while loading ({self.error}). Lower `workers` or `batch_size`",
            "files": too_many_files(),
            "shared": f"{SHARED_MEMORY} cannot take a batch ({self.error}). {shared_memory_remedy()}",
            "other": f"{self.where} cannot be loaded: {text}. Correct the data, or the code that reads it",
        }[self.kind]
        error = TrainingError(reason)
        error.__cause__ = LoadingTraceback(f"\n{self.trace}")
        return error


class HandOver(Dataset):
    """Wraps a dataset: an item that raises becomes a `Failure`."""

    def __init__(self, dataset: PretrainDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        try:
            return self.dataset[key]
        except Exception as error:
            return Failure.of(error, self.dataset.source.name(key[1]))


def hand_over(samples: list[Sample | Failure]) -> Batch | Failure:
    """`collate`, and from a worker into shared memory: here, where an error can still be handed over."""
    whole = [sample for sample in samples if not isinstance(sample, Failure)]
    if len(whole) < len(samples):
        return next(sample for sample in samples if isinstance(sample, Failure))
    try:
        batch = collate(whole)
    except Exception as error:
        return Failure.of(error, "a batch")
    if get_worker_info() is not None:
        try:
            for tensor in batch.views:
                tensor.share_memory_()
            if not _can_open(len(batch.views) + SPARE_FILES):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        except Exception as error:
            return Failure.of(error, "a batch", shared=True)
    return batch


class Loading:
    """The batches of a dataset, one for each list of keys. A context manager, since torch raises the death of a worker
    at any moment of the training step.

    Raises TrainingError, then or while it is iterated over, if a worker dies, fails, or cannot be started.
    """

    def __init__(
        self, dataset: PretrainDataset, keys: Iterable[list[tuple[int, int]]], *, workers: int, pin_memory: bool
    ) -> None:
        self.workers = workers
        read_ahead = getattr(dataset.source, "read_ahead", None)
        self._ahead = read_ahead(keys) if read_ahead else None
        self._started_by = start_method(dataset.source)
        self._loader: Any = DataLoader(
            HandOver(dataset),
            batch_sampler=self._ahead or keys,
            multiprocessing_context=self._started_by if workers else None,
            collate_fn=hand_over,
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else starting the loader would draw from the run's random numbers
        )
        self._processes: list[Any] = []
        self._batches: Generator[Batch, None, None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self._batches = self._iterate()
        return self._batches

    def _iterate(self) -> Generator[Batch, None, None]:
        try:
            if self.workers:  # with half of them started, torch takes a minute to give up
                if not _can_open(FILES_A_WORKER * self.workers + SPARE_FILES):
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                multiprocessing.Lock()  # lies in shared memory, as those of the workers' queues
            batches = iter(self._loader)
        except OSError as error:
            if not self.workers:
                raise
            raise TrainingError(self._not_started(error)) from error
        self._processes = getattr(batches, "_workers", [])
        try:
            for batch in batches:
                if isinstance(batch, Failure):
                    raise batch.raised()
                yield batch
        except (ConnectionError, EOFError):  # a worker that was handing over a tensor is gone: how did it end?
            ended = wait([process.sentinel for process in self._processes], timeout=5)
            for process in self._processes:
                if process.sentinel in ended:
                    process.join(5)
            raise
        finally:
            del batches  # which ends the workers: an error's traceback must not hold them

    def __enter__(self) -> Loading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._batches is not None:
            self._batches.close()
        if self._ahead is not None:
            self._ahead.close()
        if isinstance(error, UserError) or error is None or not self.workers:
            return
        codes = [process.exitcode for process in self._processes if process.exitcode]
        traceback.clear_frames(trace)  # as above
        if isinstance(error, (RuntimeError, ConnectionError, EOFError)) and codes:
            raise TrainingError(self._died(codes[0])) from error
        full = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
        if full or (isinstance(error, (RuntimeError, EOFError, ConnectionError)) and not _can_open(SPARE_FILES)):
            raise TrainingError(too_many_files()) from error

    def _died(self, code: int) -> str:
        if code > 0:
            hint = "" if self._started_by is None else '. Scripts need `if __name__ == "__main__":` to read from stores'
            return f"a loading worker ended with status {code}. Its own message is above{hint}"
        name = signal.Signals(-code).name
        why = {
            signal.SIGKILL: "usually sent by the system for want of memory. Lower `workers` or `batch_size`",
            signal.SIGBUS: f"usually for want of {SHARED_MEMORY}. {shared_memory_remedy()}",
            signal.SIGSEGV: "in a decoder or another library. Take `workers=0` to see at which image",
        }
        other = "sent by another process. Look for the cause in the system's log, then continue with `resume=True`"
        return f"a loading worker died of {name}, {why.get(signal.Signals(-code), other)}"

    def _not_started(self, error: OSError) -> str:
        start = f"{self.workers} loading workers cannot be started: "
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return start + too_many_files()
        if error.errno == errno.ENOMEM:
            return start + "there is no memory left. Lower `workers`"
        if error.errno == errno.EAGAIN:
            return start + "this user may run no more processes (ulimit -u). Lower `workers`"
        return start + f"{SHARED_MEMORY} cannot be used ({error.strerror}). {shared_memory_remedy()}"


def start_method(source: object) -> str | None:
    """How workers that read this source must be started. None: in the usual way. A fork server that is not running yet
    imports torch once, for all workers."""
    method = getattr(source, "start_method", None)
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", "maskco.data.loading"])
    return method


def start_worker(worker: int) -> None:
    """Ctrl-C and schedulers signal every process. Workers must continue until the parent has finished its step."""
    keep_freed_memory()
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))  # then SIGALRM ends it
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """End this worker with the training process.

    torch's workers look at the id of their parent. That fails if a fork server started them, as Python does on Linux
    from 3.14 on.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)


def too_many_files() -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"too many open files (the limit is {limit}). Raise the limit by ulimit -n 4096, or lower `workers`"


def shared_memory_remedy() -> str:
    return "Make it writable and larger (in Docker: --shm-size=8g), lower `workers`, or take `workers=0`"


def _can_open(count: int) -> bool:
    """Whether the process may open so many files more."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    finally:
        for file in opened:
            os.close(file)
    return True
