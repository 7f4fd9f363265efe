"""Pictures in tar shards, as webdataset and img2dataset write them (Conceptual Captions, LAION …).

    ShardSource("shards/cc3m-{0000..0331}.tar")          # or "shards/*.tar", or a single file
    ShardSource("https://host/cc3m-{0000..0331}.tar")    # or s3, gs, hf, or "pipe:aws s3 cp s3://bucket/{00..99}.tar -"

Shards are read by index, not as a stream: headers are scanned once, and from then on any picture is one read at a known
place. So shards behave as a folder does: a true shuffle of the whole set, the same for any number of ranks and workers,
equal shares for all, and a run resumes at the very picture where it stopped. A stream with a shuffle buffer has none of
this. It takes local files: remote shards are copied to the cache first, once for all epochs and runs.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.pictures import EXTENSIONS, Picture, PictureError
from maskco.data.sources import SourceError, is_remote
from maskco.files import write_atomically

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """Where the pictures of one shard lie."""

    names: np.ndarray  # bytes [n]: names of the members, UTF-8
    offsets: np.ndarray  # int64 [n]: first byte
    sizes: np.ndarray  # int64 [n]
    damage: np.ndarray  # int64: places where a header should be and none is


class ShardSource:
    """Every picture in the shards of a pattern, in the order of shards and members; a `maskco.data.sources.Source`.

    A sample, which is what is named alike up to the first dot, has one picture: of `1.jpg` and `1.mask.png` the first.
    Damaged headers are passed over and warned of; pictures whose own bytes are damaged raise PictureError when read.

    Raises SourceError if there is no such shard, one cannot be copied or is no tar file, or all hold no picture.
    """

    def __init__(self, pattern: str) -> None:
        urls = expand(pattern)
        self.shards = [_local(url) for url in tqdm(urls, "shards", delay=2, disable=None)]
        indices = [_index(shard) for shard in tqdm(self.shards, "indices", delay=2, disable=None)]
        for shard, index in zip(self.shards, indices, strict=True):
            if len(index.damage):
                log.warning("%s is damaged at byte %s", shard, _some(index.damage))
        counts = [len(index.names) for index in indices]
        if not sum(counts):
            raise SourceError(f"data: none of the {len(urls)} shards {pattern!r} holds a picture (first: {urls[0]!r})")
        self._shard_of = np.repeat(np.arange(len(urls), dtype=np.int32), counts)
        self._names, self._offsets, self._sizes = (
            np.concatenate([index[part] for index in indices]) for part in range(3)
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Image.Image:
        return self.open(index).decode()

    def open(self, index: int) -> Picture:
        try:
            with open(self.shards[self._shard_of[index]], "rb") as file:
                file.seek(self._offsets[index])
                return Picture(file.read(self._sizes[index]), name=self.name(index))
        except OSError as error:
            raise PictureError(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard_of[index]].name}/{self._names[index].decode('utf-8', 'surrogateescape')}"


def expand(pattern: str) -> list[str]:
    """The shards of a pattern with braces (`{000..331}`, `{a,b}`) or, if they are local, * and ?; existing ones."""
    urls = [pattern]
    if "{" in pattern:
        urls = _webdataset("a pattern with braces").shardlists.expand_urls(pattern)
    if is_remote(pattern):
        return urls
    found = [path for url in urls for path in (sorted(glob.glob(url)) if glob.has_magic(url) else [url])]
    missing = [path for path in found if not os.path.isfile(path)]
    if missing or not found:
        which = f"{len(missing)} of {len(found)} missing, first {missing[0]!r}" if missing else "nothing fits"
        raise SourceError(f"data: no such shards: {pattern!r} ({which}): check path and numbers")
    return found


def _webdataset(purpose: str):
    try:
        import webdataset
    except ImportError as error:
        raise SourceError(f"data: {purpose} needs webdataset: pip install 'maskco[shards]'") from error
    return webdataset


def _local(url: str) -> Path:
    """The shard as a file: itself, or its copy in the cache."""
    if not is_remote(url):
        return Path(url)
    basename = url.split("?")[0].rstrip("- ").rpartition("/")[2] or "shard.tar"
    path = cache_folder("shards") / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{basename}"
    with one_at_a_time(path):
        if not path.exists():

            def download(file: BinaryIO) -> None:
                with _webdataset("a remote shard").gopen(url) as stream:
                    shutil.copyfileobj(stream, file, 1 << 20)
                if not file.tell():
                    raise SourceError(f"data: shard {url!r} is empty, or there is none")

            try:
                write_atomically(path, download)
            except SourceError:
                raise
            except (OSError, ValueError) as error:
                raise SourceError(
                    f"data: shard {url!r} cannot be read: {str(error) or type(error).__name__}"
                ) from error
    return path


def _index(shard: Path) -> Index:
    """The shard's index, from the cache if it has been made before and the file has not changed since."""
    status = shard.stat()
    key = f"{shard.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    path = cache_folder("indices") / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"
    with one_at_a_time(path):
        if path.exists():
            with np.load(path, allow_pickle=False) as stored:
                return Index(*(stored[name] for name in Index._fields))
        index = scan(shard)
        write_atomically(path, lambda file: np.savez(file, **index._asdict()))
    return index


def scan(shard: Path) -> Index:
    """Reads all headers of a tar file. Raises SourceError if it is none."""
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    damage: list[int] = []
    previous, end = None, 0
    length = shard.stat().st_size
    try:
        # (to go on after zeros is also to look for the next good header after a bad one)
        with tarfile.open(shard, "r:", ignore_zeros=True) as tar:
            for member in tar:
                if _any_byte(tar.fileobj, end, member.offset):
                    damage.append(end)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isreg() or not stem or os.path.splitext(base)[1].lower() not in EXTENSIONS:
                    continue
                if (folder, stem) == previous:  # the sample's second picture
                    if len(extension) > len(names[-1].rpartition("/")[2].partition(".")[2]):
                        continue
                    names.pop()
                    offsets.pop()
                    sizes.pop()
                previous = (folder, stem)
                names.append(member.name)
                offsets.append(member.offset_data)
                sizes.append(member.size)
            if _any_byte(tar.fileobj, end, length):
                damage.append(end)
    except tarfile.ReadError:
        damage.append(length)  # cut off within the last member, which will say so itself when it is read
    if damage and not end:
        hint = ": unpack it first, since pictures cannot be read from their places in it" * (shard.suffix != ".tar")
        raise SourceError(f"data: {str(shard)!r} is no tar file{hint}")
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    return Index(
        np.array(encoded, dtype=bytes) if encoded else np.empty(0, "S1"),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array(damage, np.int64),
    )


def _any_byte(file, start: int, end: int) -> bool:
    """Whether anything but zeros stands there."""
    if end <= start:
        return False
    place = file.tell()
    file.seek(start)
    found = any(file.read(end - start))
    file.seek(place)
    return found


def _some(places: np.ndarray) -> str:
    return ", ".join(map(str, places[:3])) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
