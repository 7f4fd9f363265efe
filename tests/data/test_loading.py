"""What goes wrong in loading workers is told as what it is: the user's own exception, a death, memory, files."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

import maskco.training.loop
import maskco.training.start
from maskco.data.images import ImageError
from maskco.data.loading import LoadingTraceback
from maskco.data.samples import PretrainDataset
from maskco.data.sources import SourceError
from maskco.data.sources.files import FolderSource
from maskco.errors import TrainingError, UserError
from maskco.training.loop import pretrain
from tiny_runs import TINY

ONE_EPOCH = {**TINY, "epochs": 1}


class Stubborn(Exception):
    """Cannot be made from one text, nor pickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("of two\nlines")
        self.held = open(os.devnull)  # noqa: SIM115


def failing_with(make) -> type[PretrainDataset]:
    class Failing(PretrainDataset):
        def __getitem__(self, key):
            if key[1] == 3:
                raise make()
            return super().__getitem__(key)

    return Failing


def error_of(pictures: Path, out: Path, **options: object) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        pretrain(pictures, out, **{**ONE_EPOCH, **options})
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    return caught.value


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RuntimeError("my own words"), "006.png cannot be loaded: RuntimeError: my own words"),
        (
            lambda: RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. gloo NCCL"),
            "RuntimeError: Data",
        ),
        (lambda: KeyError("color"), "006.png cannot be loaded: KeyError: 'color' is missing"),
        (lambda: Stubborn(1, 2), "006.png cannot be loaded: Stubborn: of two lines"),
        (lambda: ZeroDivisionError(), "006.png cannot be loaded: ZeroDivisionError"),
        (lambda: PermissionError(errno.EACCES, "Permission denied", "x"), "PermissionError: [Errno 13] Permission"),
        (lambda: SourceError("the disk is gone: mount it"), "the disk is gone: mount it"),
        (lambda: MemoryError(), "006.png: out of memory while loading (MemoryError). Lower `workers`"),
        (lambda: OSError(errno.EMFILE, "Too many open files"), "too many open files (the limit is "),
    ],
)
def test_an_exception_keeps_its_type_text_and_image(pictures, tmp_path, monkeypatch, make, told, workers):
    monkeypatch.setattr(maskco.training.start, "PretrainDataset", failing_with(make))
    error = error_of(pictures, tmp_path / "run", workers=workers)
    assert told in str(error) and "loading worker died" not in str(error)
    assert isinstance(error.__cause__, LoadingTraceback) and "__getitem__" in str(error.__cause__)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_picture_is_not_broken_because_the_process_lacks_something(pictures, tmp_path, monkeypatch, error):
    def open_(self, index):
        raise ImageError(self.name(index), str(error)) from error

    monkeypatch.setattr(FolderSource, "open", open_)
    told = str(error_of(pictures, tmp_path / "run"))
    assert "too many open files" in told or "out of memory" in told


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "a loading worker died of SIGKILL, usually sent by the system for want of memory",
        ),
        (
            lambda: os.kill(os.getpid(), signal.SIGBUS),
            "a loading worker died of SIGBUS, usually for want of shared mem",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "a loading worker died of SIGSEGV, in a decoder"),
        (lambda: os._exit(7), "a loading worker ended with status 7"),
    ],
)
def test_a_worker_that_dies_is_told_by_how_it_ended(pictures, tmp_path, monkeypatch, end, told):
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    monkeypatch.setattr(maskco.training.start, "PretrainDataset", failing_with(end))
    assert str(error_of(pictures, tmp_path / "run", workers=1)).startswith(told)


def test_a_death_in_the_midst_of_a_step_is_told_as_well(pictures, tmp_path, monkeypatch):
    """torch tells of it from a signal handler, wherever the training process is."""

    def step(*arguments: object) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        time.sleep(5)  # the signal interrupts it

    monkeypatch.setattr(maskco.training.loop, "to_device", step)
    assert "a loading worker died of SIGKILL" in str(error_of(pictures, tmp_path / "run", workers=1))


def test_too_few_files_are_told_at_once(pictures, tmp_path):
    gc.collect()  # (what former tests have left open would be closed in the middle of this one)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 512
    held = [os.open(os.devnull, os.O_RDONLY)]
    while held[-1] < few - 20:
        held.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    started = time.monotonic()
    try:
        told = str(error_of(pictures, tmp_path / "run", workers=16))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for file in held:
            os.close(file)
    assert told == (
        "16 loading workers cannot be started: "
        f"too many open files (the limit is {few}). Raise the limit by ulimit -n 4096, or lower `workers`"
    )
    assert time.monotonic() - started < 10 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EROFS, r"shared memory (/dev/shm) cannot be used (Read-only file system). Make it writable"),
        (errno.ENOSPC, r"shared memory (/dev/shm) cannot be used (No space left on device). Make it writable"),
        (errno.EACCES, r"shared memory (/dev/shm) cannot be used (Permission denied). Make it writable"),
        (errno.EAGAIN, "this user may run no more processes (ulimit -u). Lower `workers`"),
        (errno.ENOMEM, "there is no memory left. Lower `workers`"),
    ],
)
def test_workers_that_cannot_be_started_say_why(pictures, tmp_path, monkeypatch, number, told):
    def refused() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing, "Lock", refused)
    error = str(error_of(pictures, tmp_path / "run", workers=2))
    assert error.startswith("2 loading workers cannot be started: ") and told in error
    monkeypatch.undo()
    assert pretrain(pictures, tmp_path / "run", **ONE_EPOCH).steps == 4


def test_shared_memory_that_fills_up_is_named(pictures, tmp_path, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    told = str(error_of(pictures, tmp_path / "run", workers=1))
    assert told.startswith("shared memory (/dev/shm) cannot take a batch (RuntimeError: unable to allocate")
    assert "--shm-size" in told and "`workers=0`" in told


def test_other_errors_of_the_loop_stay_as_they_are(pictures, tmp_path, monkeypatch):
    def wrong(*arguments: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(maskco.training.loop, "to_device", wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        pretrain(pictures, tmp_path / "run", **{**ONE_EPOCH, "workers": 1})
    assert not isinstance(caught.value, UserError)
