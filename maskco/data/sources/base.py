"""Where pictures come from, and how they become batches of views.

    source = open_source("photos/")                       # or "demo", COCO, tar shards, torchvision's sets
    dataset = PretrainDataset(source, TwoViews(ViewConfig()), seed=0)
    batches = EpochBatches(len(source), batch_size=256, seed=0, epoch=0)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=8)

All randomness follows from (seed, epoch, index), so neither the number of workers nor a resumed run changes a pixel.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from maskco.data.images import Picture, PictureError
from maskco.data.kinds import is_image, readable, why_not
from maskco.data.sources.left_out import LeftOut
from maskco.data.views import RawViews, Views

__all__ = [
    "Batch",
    "EpochBatches",
    "FolderSource",
    "PictureError",
    "PretrainDataset",
    "Sample",
    "Source",
    "SourceError",
    "collate",
    "fingerprint",
    "is_remote",
    "locate",
    "open_source",
    "seed_from",
]

REPLACEMENT_TRIES = 32  # pictures tried in place of a broken one before giving up


class SourceError(ValueError):
    """The place that should hold pictures does not."""


class Source(Protocol):
    """A numbered collection of pictures."""

    left_out: LeftOut  # what there is besides, and why it is not used: said before it is learned from

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image | Tensor:
        """RGB PIL picture or uint8 tensor [3, H, W]. Raises PictureError."""

    def name(self, index: int) -> str:
        """What to call the picture in a log."""

    # Sources of files also have `open(index) -> Picture`: views that show little of a large picture decode less of it.


def open_source(data: str | Path) -> Source:
    """The pictures that --data names::

        demo                            the built-in scenes
        torchvision:NAME?option=value   a set of torchvision's, downloaded if need be
        an address, ….tar               shards; braces and, if local, * expand
        ….npy                           a NumPy array of small pictures
        ….json                          a COCO annotation file: the pictures that it lists
        a folder with annotations/instances_*.json    the same; of several files, the one for training
        any other folder                every picture below it

    Addresses are http://, https:// and what `maskco.data.sources.remote` lists. Raises SourceError.
    """
    if _is_of_windows(str(data)):
        raise SourceError(f"data: {str(data)!r} is a path of Windows, and this is {sys.platform}: give a path as here")
    if not str(data):
        raise SourceError("data: nothing is named: give a folder, or use 'demo' for the built-in scenes")
    data = locate(str(data))
    if data == "demo":
        from maskco.data.sources.demo import DemoSource

        return DemoSource()
    if data.startswith("torchvision:"):
        from maskco.data.sources.torchvision import NamedSource

        return NamedSource(data)
    ending = "" if os.path.isdir(data) else data.lower()
    if is_remote(data) or ending.endswith((".tar", ".tar.gz", ".tgz")):
        from maskco.data.sources.shards import ShardSource

        return ShardSource(data)
    check_regular(Path(data))
    if ending.endswith(".npy"):
        from maskco.data.sources.arrays import ArraySource

        return ArraySource(data)
    from maskco.data.sources.coco import CocoSource, annotation_files

    files = [Path(data)] if ending.endswith(".json") else annotation_files(data)
    if len(files) > 1:
        files = [file for file in files if file.stem.startswith("instances_train")] or files
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise SourceError(f"data: {data!r} holds several annotation files ({names}): name one of them")
    return CocoSource(files[0]) if files else FolderSource(data)


def is_remote(data: str) -> bool:
    """Whether --data is no path, and lies outside this machine's file system. (pipe: too, which is always refused.)"""
    return not data.lower().startswith("file://") and ("://" in data or data.lower().startswith("pipe:"))


def locate(data: str) -> str:
    """--data with an absolute path, if it is one, so that a run can be resumed from any folder. file:// is a path."""
    if data in ("", "demo") or data.startswith("torchvision:") or is_remote(data) or _is_of_windows(data):
        return data
    if data.lower().startswith("file://"):
        data = "/" + unquote(data[len("file://") :].removeprefix("localhost")).lstrip("/")
    # Links stay: what they lead to may lack the name's ending, as in the caches of Hugging Face.
    return os.path.abspath(os.path.expanduser(data))


def _is_of_windows(data: str) -> bool:
    return os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", data) is not None


def check_regular(path: Path) -> None:
    """Raises SourceError if something is there that is neither file nor folder: reading a named pipe would wait for
    ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise SourceError(f"data: {str(path)!r} is a pipe, socket or device: give a file or a folder")


def fingerprint(source: Source) -> str:
    """A hash of the names of all pictures in their order: equal if a run can go on with them as with the same data."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


class PictureFiles:
    """What the sources of picture files share: each has a name, which is its path below a folder."""

    root: Path
    names: list[str]
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        return self.open(index).decode()

    def open(self, index: int) -> Picture:
        return Picture(self.root / self.names[index])

    def name(self, index: int) -> str:
        return self.names[index]


class FolderSource(PictureFiles):
    """Every picture below a folder, sorted by path. Names that begin with a dot are left out, as are run folders and
    any folder already visited, so links may form loops. Raises SourceError if there is nothing to read."""

    def __init__(self, root: str | Path) -> None:
        self.root, self.left_out = Path(root), LeftOut()
        if not self.root.exists():
            raise SourceError(
                f"data: no such folder {str(root)!r}: check the path, or use 'demo' for the built-in scenes"
            )
        check_regular(self.root)
        if not self.root.is_dir():
            raise SourceError(
                f"data: {str(root)!r} is a file: give the folder that holds the pictures, a .tar or a COCO .json"
            )
        files = sorted(_files_below(self.root, self.left_out))
        self.names = [name for name in files if is_image(name)]
        for name in files:
            if not is_image(name):
                self.left_out.add(why_not(name), name)
        if not files:
            others = "".join(f" of files that can be used ({line})" for line in self.left_out.lines())
            raise SourceError(f"data: {str(root)!r} is empty{others}: give a folder that holds pictures")
        if not self.names and any(name.endswith(".tar") for name in files):
            raise SourceError(f"data: {str(root)!r} holds tar files and no pictures: for shards, give '{root}/*.tar'")
        if not self.names:
            raise SourceError(
                f"data: none of the {len(files)} files below {str(root)!r} is a picture ({self.left_out.lines()[0]}): "
                f"convert them to one of {' '.join(sorted(readable()))}"
            )


def _files_below(root: Path, left_out: LeftOut) -> Iterator[str]:
    """Paths of all regular files below root, relative to it, but for hidden ones and those in run folders of ours."""
    visited = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(root / folder)
            entries = list(os.scandir(root / folder))
        except OSError as error:
            left_out.add(f"folders that cannot be read ({error.strerror})", folder or str(root))
            continue
        if (status.st_dev, status.st_ino) in visited:
            left_out.add("links to folders already read", folder)
            continue
        visited.add((status.st_dev, status.st_ino))
        if {"metrics.jsonl", "config.json"} <= {entry.name for entry in entries}:
            left_out.add("folders of runs", folder or str(root))  # a run's report.png is no picture to learn from
            continue
        subfolders = []
        for entry in entries:
            name = os.path.join(folder, entry.name)
            try:
                if entry.name.startswith("."):
                    left_out.add("hidden (the name begins with a dot)", name)
                elif entry.is_dir():
                    subfolders.append(name)
                elif entry.is_file():
                    yield name
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    left_out.add("links to nothing", name)
                else:  # opening a named pipe would wait for ever
                    left_out.add("pipes, sockets or devices", name)
            except OSError as error:  # of a link in a circle, for example
                left_out.add(f"not readable ({error.strerror})", name)
        folders += sorted(subfolders, reverse=True)


class Sample(NamedTuple):
    """One picture's views, and the (name, reason) of every picture that failed on the way to it."""

    views: Views | RawViews
    failures: list[tuple[str, str]]


class Batch(NamedTuple):
    """Samples stacked: views with a leading B, all failures in one list."""

    views: Views | RawViews
    failures: list[tuple[str, str]]


class PretrainDataset(Dataset):
    """Source and transform as a map from (epoch, index), or index alone for epoch 0, to `Sample`. The transform is a
    `TwoViews`, or its method `raw` to leave the colours for whole batches.

    A picture that fails is replaced by one drawn at random, which keeps batches full and the run reproducible;
    the failure is reported with the sample. Raises SourceError after 32 failures in a row.
    """

    def __init__(
        self, source: Source, transform: Callable[[Picture | Image.Image | Tensor], Views | RawViews], seed: int = 0
    ) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        failures: list[tuple[str, str]] = []
        for step in range(REPLACEMENT_TRIES):
            # Not a neighbour: whole folders may be broken, and the share of failures should be that of all pictures.
            chosen = _mix(self.seed, epoch, index, step) % len(self) if step else index
            try:
                # Seeded by the index asked for: a replacement must not repeat its own views of this epoch.
                return Sample(self.views(epoch, index, chosen), failures)
            except PictureError as error:
                if (cause := error.__cause__) and lacks_resources(cause):
                    raise cause from None
                failures.append((self.source.name(chosen), error.reason))
        name, reason = failures[0]
        raise SourceError(
            f"{len(failures)} pictures in a row cannot be used, the first {name!r} ({reason}): check the data folder"
        )

    def views(self, epoch: int, index: int, shown: int | None = None) -> Views | RawViews:
        """The views of the picture `index`, or, drawn as those, of the picture `shown`. Raises PictureError."""
        shown = index if shown is None else shown
        picture = self.source.open(shown) if hasattr(self.source, "open") else self.source[shown]
        with seed_from(self.seed, epoch, index):
            return self.transform(picture)


def lacks_resources(error: BaseException) -> bool:
    """Whether the process lacks memory or files, which is no fault of the picture that it was about to read."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    )


@contextmanager
def seed_from(*numbers: int) -> Iterator[None]:
    """Random numbers of torch that follow from these numbers; whoever calls this keeps their own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_mix(*numbers))
        yield


def collate(samples: list[Sample]) -> Batch:
    """Samples -> Batch."""
    kind = type(samples[0].views)
    views = kind(*(torch.stack(parts) for parts in zip(*(sample.views for sample in samples), strict=True)))
    return Batch(views, [failure for sample in samples for failure in sample.failures])


class EpochBatches:
    """Batch sampler of one epoch: lists of (epoch, index), shuffled by (seed, epoch). The last, incomplete batch is
    dropped. `start_step` leaves out the batches a resumed run has already seen.

    The order is the same for any number of ranks: of each batch, rank r of n takes the r-th of n equal slices, which it
    gives in `parts` equal lists, one after the other.

    Raises ValueError if not even one batch can be filled, or one cannot be divided by ranks and parts.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        epoch: int,
        start_step: int = 0,
        *,
        rank: int = 0,
        ranks: int = 1,
        parts: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > length:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data ({length} pictures): "
                f"lower it to {length} or less, or add pictures"
            )
        if batch_size % (ranks * parts):
            raise ValueError(f"batch_size {batch_size} cannot be divided by {ranks} ranks × {parts} parts")
        self.length, self.batch_size, self.seed, self.epoch, self.start_step = (
            length,
            batch_size,
            seed,
            epoch,
            start_step,
        )
        self.rank, self.ranks, self.parts = rank, ranks, parts

    def __len__(self) -> int:
        return self.parts * max(self.length // self.batch_size - self.start_step, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        size = self.batch_size // (self.ranks * self.parts)
        for step in range(self.start_step, self.length // self.batch_size):
            for part in range(self.parts):
                first = step * self.batch_size + (self.rank * self.parts + part) * size
                yield [(self.epoch, index) for index in order[first : first + size]]


def _mix(*numbers: int) -> int:
    """One 32-bit seed from several numbers; torch's CPU generator uses no more bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
