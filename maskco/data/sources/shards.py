"""Images in tar shards, as webdataset and img2dataset write them (Conceptual Captions, LAION …).

    ShardSource("shards/cc3m-{0000..0331}.tar")          # or "shards/*.tar", or a single file
    ShardSource("https://host/cc3m-{0000..0331}.tar")    # or s3, gs, az, hf or ftp, see remote.py

Shards are read by index, not as a stream: headers are scanned once, and from then on any image is one read at a known
place. So shards behave as a folder does: a true shuffle of the whole set, the same for any number of ranks and workers,
equal shares for all, and a run resumes at the very image where it stopped. A stream with a shuffle buffer has none of
this. It takes local files: remote shards are copied to the cache first, once for all epochs and runs.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.images import EncodedImage, ImageError
from maskco.data.kinds import is_image, readable, why_not
from maskco.data.sources.base import SourceError, import_package, is_remote
from maskco.data.sources.left_out import LeftOut
from maskco.data.sources.remote import check_address, check_tar, copy, redact
from maskco.files import write_atomically

INDEX_VERSION = 2  # of what `scan` finds: indices that an older one has left in the cache are made again
MOST_SHARDS = 1_000_000

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """Where the images of one shard lie."""

    names: np.ndarray  # bytes [n]: names of the members, UTF-8
    offsets: np.ndarray  # int64 [n]: first byte
    sizes: np.ndarray  # int64 [n]
    damage: np.ndarray  # int64: places where a header should be and none is
    reasons: np.ndarray  # str [m]: why members were left out
    counts: np.ndarray  # int64 [m]: how many
    firsts: np.ndarray  # bytes [m]: the first of them, UTF-8


def open_source(data: str) -> ShardSource:
    return ShardSource(data)


class ShardSource:
    """Every image in the shards of a pattern, in the order of shards and members; a `Source`.

    A sample has one image: of `1.jpg` and `1.mask.png` the first, see `second_images`. Whatever else is left out is
    counted in `left_out`. Damaged headers are passed over and warned of; images whose own bytes are damaged raise
    ImageError when read.

    Raises SourceError if there is no such shard, one cannot be copied or is no tar file, or all hold no image.
    """

    def __init__(self, pattern: str) -> None:
        urls = expand(pattern)
        self.left_out = LeftOut()
        self.shards = [_local(url) for url in tqdm(urls, "shards", delay=2, disable=None)]
        indices = [_index(shard) for shard in tqdm(self.shards, "indices", delay=2, disable=None)]
        for shard, index in zip(self.shards, indices, strict=True):
            if len(index.damage):
                log.warning("%s is damaged at byte %s", shard, _some(index.damage))
            for reason, count, first in zip(index.reasons, index.counts, index.firsts, strict=True):
                self.left_out.add(str(reason), f"{shard.name}/{_text(first)}", int(count))
        counts = [len(index.names) for index in indices]
        if not sum(counts):
            others = "".join(f"; {line}" for line in self.left_out.lines())
            raise SourceError(
                f"data: none of the {len(urls)} shards {redact(pattern)!r} holds an image "
                f"(first: {redact(urls[0])!r}){others}"
            )
        self._shard_of = np.repeat(np.arange(len(urls), dtype=np.int32), counts)
        self._names, self._offsets, self._sizes = (
            np.concatenate([index[part] for index in indices]) for part in range(3)
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Image.Image:
        return self.open(index).decode()

    def open(self, index: int) -> EncodedImage:
        try:
            with open(self.shards[self._shard_of[index]], "rb") as file:
                file.seek(self._offsets[index])
                return EncodedImage(file.read(self._sizes[index]), name=self.name(index))
        except OSError as error:
            raise ImageError(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard_of[index]].name}/{_text(self._names[index])}"


def expand(pattern: str) -> list[str]:
    """The shards of a pattern with braces (`{000..331}`, `{a,b}`) or, if they are local, * and ?; existing ones."""
    if is_remote(pattern):
        check_address(pattern)
        if "*" in redact(pattern):
            raise SourceError(f"data: {redact(pattern)!r}: * is for local shards: name those of an address by braces")
        return _braces(pattern)
    if os.path.isfile(pattern):
        return [pattern]  # whatever signs are in its name
    found = [path for url in _braces(pattern) for path in (sorted(glob.glob(url)) if glob.has_magic(url) else [url])]
    missing = [path for path in found if not os.path.isfile(path)]
    if missing or not found:
        which = f"{len(missing)} of {len(found)} missing, first {missing[0]!r}" if missing else "nothing fits"
        if missing and os.path.exists(missing[0]):
            which = f"{missing[0]!r} is no regular file"
        raise SourceError(f"data: no such shards: {pattern!r} ({which}): check path and numbers")
    return found


def _braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    braceexpand = import_package("braceexpand", "a pattern with braces", "'maskco[shards]'").braceexpand
    count = 1
    for low, high in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern):
        count *= abs(int(high) - int(low)) + 1
    if count > MOST_SHARDS:
        raise SourceError(f"data: {redact(pattern)!r} names {count} shards, more than {MOST_SHARDS}: check its numbers")
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise SourceError(f"data: {redact(pattern)!r}: its braces cannot be read: {error}") from error


def _local(url: str) -> Path:
    """The shard as a file: itself, or its copy in the cache."""
    if not is_remote(url):
        return Path(url)
    basename = redact(url).rpartition("/")[2][-100:] or "shard.tar"
    return copy(url, cache_folder("shards") / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{basename}")


def _index(shard: Path) -> Index:
    """The shard's index, from the cache if it has been made before and the file has not changed since."""
    status = shard.stat()
    kinds = " ".join(sorted(readable()))  # a package installed since may read more
    key = f"{INDEX_VERSION}\0{kinds}\0{shard.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    path = cache_folder("indices") / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.npz"
    with one_at_a_time(path):
        if path.exists():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    return Index(*(stored[name] for name in Index._fields))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                log.warning("%s is damaged and made again", path)
        index = scan(shard)
        write_atomically(path, lambda file: np.savez(file, **index._asdict()))
    return index


def scan(shard: Path) -> Index:
    """Reads all headers of a tar file. Raises SourceError if it is none."""
    left_out = LeftOut()
    members: dict[str, tuple[str, int, int]] = {}  # by the path that unpacking gives: name, first byte, size
    damage: list[int] = []
    end = 0
    length = shard.stat().st_size
    try:
        # (to go on after zeros is also to look for the next good header after a bad one)
        with tarfile.open(shard, "r:", ignore_zeros=True) as tar:
            for member in tar:
                if _any_byte(tar.fileobj, end, member.offset):
                    damage.append(end)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isdir():
                    continue
                if reason := _reason(member):
                    left_out.add(reason, member.name)
                    continue
                path = os.path.normpath(member.name)
                if path in members:  # as unpacking would have it, the last one stays
                    left_out.add("replaced by a later member of the same name", member.name)
                    del members[path]
                members[path] = (member.name, member.offset_data, member.size)
            if _any_byte(tar.fileobj, end, length):
                damage.append(end)
    except tarfile.ReadError:
        damage.append(length)  # cut off within the last member, which will say so itself when it is read
    if not end and (damage or not length):
        check_tar(shard, str(shard))
        raise SourceError(f"data: {str(shard)!r} is no tar file")
    for path in second_images(list(members)):
        left_out.add("second images of a sample", members.pop(path)[0])
    names, offsets, sizes = zip(*members.values(), strict=True) if members else ((), (), ())
    return Index(
        _bytes(names),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array(damage, np.int64),
        np.array(list(left_out), dtype=str),
        np.array(list(left_out.values()), np.int64),
        _bytes([left_out.first[reason] for reason in left_out]),
    )


def _reason(member: tarfile.TarInfo) -> str | None:
    """Why a member cannot be used; None if it can."""
    if any(part.startswith(".") for part in member.name.split("/") if part not in (".", "..")):
        return "hidden (the name begins with a dot)"
    if member.issym() or member.islnk():
        return "links"
    if not member.isreg():
        return "pipes or devices"
    if not is_image(member.name):
        return why_not(member.name)
    if not member.size:
        return "empty"
    return "sparse" if member.issparse() else None  # its bytes do not lie in a row


def second_images(paths: list[str]) -> list[str]:
    """Those images of a shard that belong to another one's sample, such as its mask.

    webdataset takes a name up to the first dot for the sample's key, and there `2021.05.01.jpg` and `2021.05.02.jpg`
    are one sample. Here a name's last dot ends it, and an image belongs to another one in the same folder only if

    - both have the same name but for the extension: of `1.jpg` and `1.png` the JPEG stays, else the first;
    - its name is the other's and a word: `1.mask.png` and `1.left.seg.png` belong to `1.jpg`, but `1.5.jpg` does not;
    - the other's last word is `image`, `img` or `rgb`: `1.mask.png` belongs to `1.image.png`.
    """
    stems: dict[str, list[str]] = {}
    for path in paths:
        stems.setdefault(os.path.splitext(path)[0], []).append(path)
    second = []
    for stem, alike in stems.items():
        kinds = [os.path.splitext(path)[1].lower() for path in alike]
        kept = next((kind for kind in kinds if kind in (".jpg", ".jpeg")), kinds[0])
        keeps = not any(owner in stems and owner != stem for owner in _owners(stem))
        second += [path for path, kind in zip(alike, kinds, strict=True) if kind != kept or not keeps]
    return second


def _owners(stem: str) -> list[str]:
    """The names, without extension, of images that one of this name would belong to."""
    folder, slash, base = stem.rpartition("/")
    words = base.split(".")
    owners = []
    while len(words) > 1 and re.fullmatch(r"[^\W\d]\w*", words[-1]):
        is_main = words.pop() in MAIN_WORDS
        name = f"{folder}{slash}{'.'.join(words)}"
        owners += [name, *([] if is_main else [f"{name}.{word}" for word in MAIN_WORDS])]
    return owners


MAIN_WORDS = ("image", "img", "rgb")


def _bytes(names) -> np.ndarray:
    return np.array([name.encode("utf-8", "surrogateescape") for name in names] or np.empty(0, "S1"), dtype=bytes)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


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
