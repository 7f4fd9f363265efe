"""Places of the images in a tar shard, found from its headers, or read from an index file next to the shard."""

from __future__ import annotations

import os
import re
import tarfile
from typing import BinaryIO, NamedTuple

import numpy as np

from maskco.data.kinds import is_image, why_not
from maskco.data.sources.base import SourceError
from maskco.data.sources.left_out import LeftOut

DAMAGE = "places where a shard is damaged (restore it to get all of its images)"
INDEX_VERSION = 3  # of what `scan` finds: indices that an older one has left in the cache are made again


class Index(NamedTuple):
    """Places of the images in one shard."""

    names: np.ndarray  # bytes [n]: names of the members, UTF-8
    offsets: np.ndarray  # int64 [n]: first byte
    sizes: np.ndarray  # int64 [n]
    damage: np.ndarray  # int64: places where a header, or the end of the archive, should be and none is
    reasons: np.ndarray  # str [m]: why members were left out
    counts: np.ndarray  # int64 [m]: how many
    firsts: np.ndarray  # bytes [m]: the first of them, UTF-8


def scan(file: BinaryIO, length: int, shard: str) -> Index:
    """Reads all headers of a tar file of so many bytes. Raises SourceError if it is none."""
    left_out = LeftOut()
    members: dict[str, tuple[str, int, int]] = {}  # by the path that unpacking gives: name, first byte, size
    damage: list[int] = []
    end = 0
    try:
        # (continuing after zeros also finds the next good header after a bad one)
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
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
            if _any_byte(tar.fileobj, end, length) or 0 < end == length:  # a whole tar ends in zeros
                damage.append(end)
    except tarfile.ReadError:
        damage.append(length)  # cut off within the last member, which will say so itself when it is read
    if not end and (damage or not length):
        check_tar(file, shard)
        raise SourceError(f"data: {shard!r} is no tar file. Check the file")
    return _index(members, left_out, damage)


def read_idx(text: bytes, length: int) -> Index | None:
    """The index of a shard of so many bytes from the `.idx` that DALI's wds2idx writes next to it.

    Returns None if the file is of another version, or has impossible values. Then the headers have to be read.

    Its first line is "v1.2" and the number of samples. Then each line is one sample: for every member the extension,
    first byte, size and name.
    """
    lines = text.decode("utf-8", "surrogateescape").splitlines()
    if not lines or lines[0].split() != ["v1.2", str(len(lines) - 1)]:
        return None
    left_out = LeftOut()
    members: dict[str, tuple[str, int, int]] = {}
    for line in lines[1:]:
        fields = line.split(" ")
        if len(fields) % 4:
            return None  # a name with a space, for example
        for offset, size, name in zip(fields[1::4], fields[2::4], fields[3::4], strict=True):
            if not (offset.isdecimal() and size.isdecimal()):
                return None
            first, count = int(offset), int(size)
            if first < tarfile.BLOCKSIZE or first % tarfile.BLOCKSIZE or first + count > length:
                return None
            member = tarfile.TarInfo(name)
            member.size = count
            if reason := _reason(member):
                left_out.add(reason, name)
                continue
            path = os.path.normpath(name)
            if path in members:
                left_out.add("replaced by a later member of the same name", name)
                del members[path]
            members[path] = (name, first, count)
    return _index(members, left_out, [])


def is_member(header: bytes, size: int) -> bool:
    """Whether these 512 bytes are the header of a file of so many bytes."""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return member.isreg() and member.size == size


def _index(members: dict[str, tuple[str, int, int]], left_out: LeftOut, damage: list[int]) -> Index:
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
    """Why a member cannot be used. None if it can."""
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

    In webdataset the sample's key ends at the first dot, so `2021.05.01.jpg` and `2021.05.02.jpg` are one sample. Here
    a name ends at its last dot. An image belongs to another one in the same folder in three cases:

    - Both have the same name but for the extension. Of `1.jpg` and `1.png` the JPEG stays, else the first.
    - Its name is the other's and a word. `1.mask.png` and `1.left.seg.png` belong to `1.jpg`, but `1.5.jpg` does not.
    - The other's last word is `image`, `img` or `rgb`. `1.mask.png` belongs to `1.image.png`.
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


def text_of(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _any_byte(file, start: int, end: int) -> bool:
    """Whether there is anything but zeros."""
    if end <= start:
        return False
    place = file.tell()
    file.seek(start)
    found = any(file.read(end - start))
    file.seek(place)
    return found


def check_tar(file: BinaryIO, name: str) -> None:
    """Raises SourceError, which says what came in its place, unless the file is an uncompressed tar."""
    file.seek(0)
    start = file.read(512)
    if not start:
        what = "is empty. Restore it"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a pointer of git-lfs. Fetch the file itself"
    elif start.lstrip().startswith(b"<"):
        what = "is a web page or XML, such as an error or a log-in. Check the address"
    elif start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        what = "is compressed. Unpack it first, since images cannot be read from their places in it"
    elif _is_tar(file):
        return
    else:
        what = "is no tar file. Check the file"
    raise SourceError(f"data: {name!r} {what}")


def _is_tar(file: BinaryIO) -> bool:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:"):
            return True
    except tarfile.TarError:
        return False
