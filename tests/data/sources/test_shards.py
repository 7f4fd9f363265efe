"""Tar shards: read as the folder they were packed from, damaged or remote ones too."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskco.data.images import ImageError
from maskco.data.samples import PretrainDataset
from maskco.data.sources import SourceError, locate, open_source, shard_index, shards
from maskco.data.sources.files import FolderSource
from maskco.data.sources.shard_index import DAMAGE
from maskco.data.sources.shards import ShardSource
from maskco.data.views import TwoViews, ViewConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((60, 50)).save(file, "jpeg")
    return file.getvalue()


def pack(path: Path, members: dict[str, bytes], *, format: int = tarfile.PAX_FORMAT) -> list[int]:
    """Writes a shard and returns where each member's header begins."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def names(source: ShardSource) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def two_shards(root: Path) -> str:
    """Six images in two shards as img2dataset writes them, with captions and metadata."""
    for shard in range(2):
        keys = [f"{shard:05}{index:04}" for index in range(3)]
        content = {
            f"{key}.{kind}": jpeg(int(key)) if kind == "jpg" else b"{}" for key in keys for kind in ("jpg", "json")
        }
        pack(root / f"{shard:05}.tar", content)
    return str(root / "{00000..00001}.tar")


def test_shards_give_what_the_folder_gives_that_they_were_packed_from(tmp_path: Path) -> None:
    pattern = two_shards(tmp_path)
    source = open_source(locate(pattern))
    folder = tmp_path / "unpacked"
    for shard in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(folder, filter="data")
    assert names(source)[::5] == ["00000.tar/000000000.jpg", "00001.tar/000010002.jpg"]
    transform = TwoViews(ViewConfig(image_size=32))
    packed, loose = (PretrainDataset(s, transform, seed=1) for s in (source, FolderSource(folder)))
    assert len(packed) == len(loose) == 6
    for key in [(0, 0), (3, 5)]:
        assert all(torch.equal(a, b) for a, b in zip(packed[key].views, loose[key].views, strict=True))
    assert source[4].tobytes() == Image.open(io.BytesIO(jpeg(10001))).tobytes()


def test_patterns_of_every_kind(tmp_path: Path) -> None:
    pattern = two_shards(tmp_path)
    everything = names(ShardSource(pattern))
    assert len(everything) == 6
    assert names(open_source(tmp_path / "*.tar")) == everything
    assert names(open_source(tmp_path / "0000?.tar")) == everything
    assert names(open_source(tmp_path / "00001.tar")) == everything[3:]
    for wrong in ("{00000..00007}.tar", "*7.tar", "none.tar"):
        with pytest.raises(SourceError, match=r"no such shards .*(6 of 8|nothing fits|1 of 1)") as caught:
            open_source(tmp_path / wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"For shards, give '.*/\*\.tar'"):
        open_source(tmp_path)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_one_picture_a_sample_and_names_of_any_kind(tmp_path: Path, format: int) -> None:
    long = "d" * 90 + "/" + "f" * 90 + ".jpg"
    members = ["a/1.mask.png", "a/1.jpg", "a/2.jpg", "a/2.seg.png", "b/1.JPG", "._c.jpg", "notes.txt", "ü.webp", long]
    pack(tmp_path / "a.tar", dict.fromkeys(members, b"x"), format=format)
    kept = [name.removeprefix("a.tar/") for name in names(ShardSource(str(tmp_path / "a.tar")))]
    assert kept == ["a/1.jpg", "a/2.jpg", "b/1.JPG", "ü.webp", long]


def test_a_shard_that_was_cut_between_two_pictures_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    headers = pack(path, {f"{index}.jpg": jpeg(index) for index in range(4)})
    assert not ShardSource(str(path)).left_out
    path.write_bytes(path.read_bytes()[: headers[2]])
    source = ShardSource(str(path))
    assert len(source) == 2
    assert source.left_out.lines() == [f"left out of the data: 1 {DAMAGE}, first 'a.tar at byte {headers[2]}'"]


def test_damaged_shards_keep_their_other_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    headers = pack(path, {f"{index}.jpg": jpeg(index) for index in range(6)})
    data = bytearray(path.read_bytes())
    data[headers[1] : headers[1] + 512] = b"\x55" * 512  # a header
    data[headers[3] + 512 : headers[3] + 700] = b"\x55" * 188  # an image's first bytes
    path.write_bytes(data[: headers[5] + 900])  # and the end
    source = ShardSource(str(path))
    assert names(source) == [f"a.tar/{index}.jpg" for index in (0, 2, 3, 4, 5)]
    assert source.left_out.lines() == [f"left out of the data: 2 {DAMAGE}, first 'a.tar at byte {headers[1]}'"]
    broken = {}
    for index in range(len(source)):
        try:
            assert source[index].size == (60, 50)
        except ImageError as error:
            broken[error.path] = error.reason
    assert list(broken) == ["a.tar/3.jpg", "a.tar/5.jpg"] and "truncated" in broken["a.tar/5.jpg"].lower()


def test_the_last_header_may_be_the_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    headers = pack(path, {f"{index}.jpg": jpeg(index) for index in range(3)})
    data = bytearray(path.read_bytes())
    data[headers[2]] ^= 255
    path.write_bytes(data)
    source = ShardSource(str(path))
    assert len(source) == 2


def test_what_is_no_shard_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "noise.tar").write_bytes(np.random.default_rng(0).bytes(5000))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "noise.tar")
    pack(tmp_path / "text.tar", {"a.txt": b"no image"})
    pack(tmp_path / "empty.tar", {})
    (tmp_path / "zero.tar").write_bytes(b"")
    cases = {"noise.tar": r"is no tar file\. Check the file$", "a.tar.gz": r"is compressed\. Unpack it first"}
    (tmp_path / "lfs.tar").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "page.tar").write_text("<!DOCTYPE html><html>not found</html>")
    cases |= {"lfs.tar": "is a pointer of git-lfs", "page.tar": "is a web page"}
    cases |= {"zero.tar": r"is empty\. Restore it$"} | dict.fromkeys(
        ("text.tar", "empty.tar"), "none of the 1 shards .* holds an image"
    )
    for name, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            open_source(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_is_made_once_for_each_state_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    pack(path, {"0.jpg": jpeg(0)})
    before = names(ShardSource(str(path)))
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)
        assert names(ShardSource(str(path))) == before
    pack(path, {"0.jpg": jpeg(0), "1.jpg": jpeg(1)})
    assert len(ShardSource(str(path))) == 2


def test_a_missing_braceexpand_is_named_with_the_command_to_install_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    for data in (two_shards(tmp_path), "https://host/{0..1}.tar"):
        with pytest.raises(SourceError, match=r"needs braceexpand\. Run pip install 'maskco\[shards\]'"):
            open_source(data)
    assert len(open_source(tmp_path / "*.tar")) == 6


@pytest.mark.parametrize("pattern", ["{0..99999999999}.tar", "{0..9999}{0..9999}.tar", "{00000..00001.tar"])
def test_braces_that_make_no_list_are_refused_at_once(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(
        SourceError, match=r"Check its numbers|the braces of .* cannot be read|no such shards"
    ) as caught:
        open_source(tmp_path / pattern)
    assert "\n" not in str(caught.value)


def test_a_file_whose_name_has_signs_of_patterns_is_that_file(tmp_path: Path) -> None:
    for name in ("a [1].tar", "b{0..1}.tar", "c*.tar", "UPPER.TAR"):
        pack(tmp_path / name, {"0.jpg": jpeg(0)})
        assert names(open_source(tmp_path / name)) == [f"{name}/0.jpg"]


# ---- which members are images of their own


DOTTED = [
    *(f"2021.05.{day:02}_{number:04}.jpg" for day in range(1, 5) for number in range(5)),
    *(f"photo v1.{number}.jpg" for number in range(10)),
    *(f"www.host.org_{number}.jpg" for number in range(10)),
]


@pytest.mark.parametrize(
    ("members", "second"),
    [
        (DOTTED, []),
        ([f"{name[:-4]}.{kind}" for name in DOTTED for kind in ("jpg", "mask.png")], "all masks"),
        (["1.mask.png", "1.jpg"], ["1.mask.png"]),
        (["1.jpg", "1.left.seg.png", "1.png"], ["1.left.seg.png", "1.png"]),
        (["1.png", "1.jpg"], ["1.png"]),
        (["1.jpg", "2.jpg", "1.seg.png"], ["1.seg.png"]),  # not side by side
        (["1.image.png", "1.mask.png", "2.mask.png", "2.img.jpg"], ["1.mask.png", "2.mask.png"]),
        (["1.left.jpg", "1.right.jpg"], []),
        (["clip.0.jpg", "clip.1.jpg", "clip.jpg"], []),
        (["a/1.jpg", "b/1.mask.png"], []),
        (["a.JPG", "a.jpg"], []),
        (["cat.jpg", "cat.1.jpg", "cat.v2.jpg"], ["cat.v2.jpg"]),
    ],
)
def test_only_what_belongs_to_another_image_is_no_image_of_its_own(tmp_path, members: list, second) -> None:
    pack(tmp_path / "a.tar", dict.fromkeys(members, b"x"))
    source = ShardSource(str(tmp_path / "a.tar"))
    second = [name for name in members if "mask" in name] if second == "all masks" else second
    assert names(source) == [f"a.tar/{name}" for name in members if name not in second]
    assert dict(source.left_out) == ({"second images of a sample": len(second)} if second else {})


def test_whatever_a_shard_leaves_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(data) if kind == tarfile.REGTYPE else 0
            member.linkname = "1.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(member, io.BytesIO(data))

        add("1.jpg", b"first"), add("1.json"), add("1.txt"), add("2.txt"), add("clip.mp4")
        add("._1.jpg"), add("__MACOSX/._1.jpg"), add(".git/x.jpg"), add("empty.jpg", b""), add("noname")
        add("folder.jpg", kind=tarfile.DIRTYPE), add("soft.jpg", kind=tarfile.SYMTYPE)
        add("hard.jpg", kind=tarfile.LNKTYPE), add("fifo.jpg", kind=tarfile.FIFOTYPE)
        add("2.jpg"), add("./1.jpg", b"second")
    for source in (ShardSource(str(path)), ShardSource(str(path))):  # scanned, and from the cache
        assert names(source) == ["a.tar/2.jpg", "a.tar/./1.jpg"]
        assert dict(source.left_out) == {
            ".json": 1,
            ".txt": 2,
            ".mp4 (extract the frames of films)": 1,
            "hidden (the name begins with a dot)": 3,
            "empty": 1,
            "without an extension": 1,
            "links": 2,
            "pipes or devices": 1,
            "replaced by a later member of the same name": 1,
        }
        assert source.left_out.first[".txt"] == "a.tar/1.txt"
    assert source._sizes[1] == len(b"second")


def test_indices_of_other_versions_and_damaged_ones_are_made_again(tmp_path, cache: Path, monkeypatch) -> None:
    path = tmp_path / "a.tar"
    pack(path, {"photo v1.1.jpg": jpeg(0), "photo v1.2.jpg": jpeg(1)})
    monkeypatch.setattr(shards, "INDEX_VERSION", 1)
    monkeypatch.setattr(shard_index, "second_images", lambda paths: paths[1:])  # as it once was
    assert len(ShardSource(str(path))) == 1
    monkeypatch.undo()
    monkeypatch.setenv("MASKCO_CACHE", str(cache))
    assert len(ShardSource(str(path))) == 2
    for stored in (cache / "indices").glob("*.npz"):
        stored.write_bytes(stored.read_bytes()[:100])
    assert len(ShardSource(str(path))) == 2
