"""Which files are read, how more than 8 bits become 8, and that nothing but images is ever opened."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskco.data import kinds
from maskco.data.images import EncodedImage, ImageError, read_image, stretch
from maskco.data.sources import SourceError, open_source
from maskco.data.sources.files import FolderSource
from maskco.report.sheet import write_sheet
from maskco.training.loop import pretrain
from maskco.view_options import ViewConfig


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write: uint16 [H, W, C]."""
    height, width, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


RAMP = np.linspace(0, 1, 60)[None].repeat(40, 0)


# ---- which files


def test_what_a_folder_leaves_out_is_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "formats", lambda: ("JPEG", "PNG"))
    kinds.readable.cache_clear()
    try:
        for name in ("a.jpg", "b.MPO", "sub/c.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 40)).save(tmp_path / name, "jpeg")
        for name in ("1.HEIC", "2.heic", "x.nef", "clip.mov", "labels.txt", "README", ".DS_Store", "._a.jpg"):
            (tmp_path / name).touch()
        os.mkfifo(tmp_path / "fifo.jpg")
        os.symlink(tmp_path / "nowhere.jpg", tmp_path / "dangling.jpg")
        os.symlink("circle.jpg", tmp_path / "circle.jpg")
        os.symlink(tmp_path, tmp_path / "sub/loop")
        (tmp_path / "run").mkdir()
        for name in ("metrics.jsonl", "config.json", "report.png"):
            (tmp_path / "run" / name).touch()
        source = open_source(tmp_path)
    finally:
        monkeypatch.undo()
        kinds.readable.cache_clear()
    assert source.names == ["a.jpg", "b.MPO", "sub/c.png"]
    circle = next(reason for reason, first in source.left_out.first.items() if first == "circle.jpg")
    assert "symbolic links" in circle.lower() and dict(source.left_out) == {
        ".heic (run pip install pillow-heif)": 2,
        ".nef (convert camera raw to TIFF or JPEG)": 1,
        ".mov (extract the frames of films)": 1,
        ".txt": 1,
        "without an extension": 1,
        "hidden (the name begins with a dot)": 2,
        "pipes, sockets or devices": 1,
        "links to nothing": 1,
        "links to folders already read": 1,
        "folders of runs": 1,
        circle: 1,
    }
    (line,) = source.left_out.lines()
    assert (
        line.startswith("left out of the data: 2 ") and "2 .heic (run pip install pillow-heif), first '1.HEIC'" in line
    )


def test_a_run_says_at_its_start_what_is_left_out(tmp_path: Path) -> None:
    for index in range(8):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / f"photos/{index}.png")
    (tmp_path / "photos/a.nef").touch()
    (tmp_path / "photos" / os.fsdecode(b"odd.\xff\n")).touch()
    tiny = {"encoder": "test_resnet", "image_size": 32, "dim": 8, "queue_size": 12, "workers": 0, "device": "cpu"}
    pretrain(tmp_path / "photos", tmp_path / "run", epochs=1, batch_size=4, **tiny)
    log = (tmp_path / "run/log.txt").read_text().splitlines()
    assert "on 8 images" in log[0] and "left out of the data: 1 " in log[2]
    assert "1 .nef (convert camera raw to TIFF or JPEG), first 'a.nef'" in log[2]
    assert "1 without a known extension, first 'odd.\\udcff\\n'" in log[2]


def test_views_say_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    write_sheet(tmp_path, ViewConfig(image_size=32, regions=2), tmp_path / "sheet.png", count=1)
    assert "left out of the data: 1 .txt, first 'a.txt'" in caplog.text


def test_a_folder_of_nothing_but_heic_says_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    kinds.formats.cache_clear(), kinds.readable.cache_clear()
    (tmp_path / "a.heic").touch()
    try:
        with pytest.raises(SourceError, match=r"1 \.heic \(run pip install pillow-heif\), first 'a\.heic'") as caught:
            FolderSource(tmp_path)
    finally:
        kinds.formats.cache_clear(), kinds.readable.cache_clear()
    assert "\n" not in str(caught.value)


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = (RAMP * 255).astype(np.uint8)[..., None].repeat(3, -1)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.HEIC")
    program = "import sys; from maskco.data.sources import open_source; print(open_source(sys.argv[1])[0].size)"
    told = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True).stdout
    assert told == "(60, 40)\n", "in a process that has registered nothing before"
    np.testing.assert_allclose(np.asarray(open_source(tmp_path)[0]), pixels, atol=6)


@pytest.mark.parametrize("suffix", ["jfi", "jif", "j2k", "jpx", "qoi", "pfm", "apng", "avif"])
def test_other_names_that_pillow_opens(tmp_path: Path, suffix: str) -> None:
    form = {"jfi": "jpeg", "jif": "jpeg", "j2k": "jpeg2000", "jpx": "jpeg2000", "pfm": "ppm", "apng": "png"}
    image = Image.fromarray((RAMP * 255).astype(np.uint8))
    image = image.convert("F") if suffix == "pfm" else image.convert("RGB")
    try:
        image.save(tmp_path / f"a.{suffix}", form.get(suffix, suffix))
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow cannot write it: {error}")
    source = FolderSource(tmp_path)
    np.testing.assert_allclose(np.asarray(source[0])[..., 0], RAMP * 255, atol=6)


def test_postscript_is_never_opened(tmp_path: Path) -> None:
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").format == "EPS"
    with pytest.raises(ImageError, match="cannot identify"):
        read_image(tmp_path / "a.jpg")


# ---- more than 8 bits


def read(tmp_path: Path, image: Image.Image, suffix: str = "tif") -> np.ndarray:
    image.save(tmp_path / f"a.{suffix}")
    return np.asarray(read_image(tmp_path / f"a.{suffix}"))


@pytest.mark.parametrize("kind", ["<u2 png", "<u2 tif", ">u2 tif", "<i4 tif", "<f4 tif"])
@pytest.mark.parametrize("hot", [1, 9])
def test_hot_pixels_do_not_turn_an_image_black(tmp_path: Path, kind: str, hot: int) -> None:
    dtype, suffix = kind.split()
    values = (RAMP * 1000 + 100).astype(dtype)
    values[3, 7 : 7 + hot] = 65535
    big_endian = dtype == ">u2"
    image = Image.frombytes("I;16B", (60, 40), values.tobytes()) if big_endian else Image.fromarray(values)
    result = read(tmp_path, image, suffix)
    expected = np.round(RAMP * 255)
    expected[3, 7 : 7 + hot] = 255
    np.testing.assert_allclose(result, expected[..., None].repeat(3, -1), atol=1)


def test_cold_pixels_do_not_turn_an_image_white(tmp_path: Path) -> None:
    values = (RAMP * 100).astype(np.float32)
    values[0, 0] = -9999
    assert 100 < read(tmp_path, Image.fromarray(values)).mean() < 150


def test_the_whole_range_in_use_stays_as_it_is(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (200, 200)).astype(np.uint16)
    values[0, :2] = 0, 65535
    result = read(tmp_path, Image.fromarray(values), "png")[..., 0]
    np.testing.assert_allclose(result, values / 257, atol=1)


def test_stars_stay_in_a_black_sky_and_noise_shows_in_a_dim_one(tmp_path: Path) -> None:
    sky = np.zeros((100, 100), np.uint16)
    sky[10, 10], sky[50, 60] = 40000, 20000
    result = read(tmp_path, Image.fromarray(sky), "png")[..., 0]
    assert (result[10, 10], result[50, 60], result[0, 0]) == (255, 128, 0)
    noise = np.random.default_rng(0).integers(0, 30, sky.shape).astype(np.uint16)
    result = read(tmp_path, Image.fromarray(np.maximum(sky, noise)), "png")[..., 0]
    assert result[10, 10] == 255 and result.std() > 50


def test_infinite_values_are_the_brightest_and_the_darkest(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.inf, -np.inf, np.nan
    result = read(tmp_path, Image.fromarray(values))[..., 0]
    assert result[0, :3].tolist() == [255, 0, 0]
    np.testing.assert_allclose(result[1:], RAMP[1:] * 255, atol=1)


def test_stretch_of_few_and_of_extreme_values() -> None:
    assert stretch(np.array([5.0])).tolist() == [0] and stretch(np.array([1, 2])).tolist() == [0, 255]
    assert stretch(np.array([-3e38, 3e38], np.float32)).tolist() == [0, 255]
    with pytest.raises(ValueError, match="no finite value"):
        stretch(np.array([np.nan, np.inf]))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colors_of_16_bits_are_stretched_together(tmp_path: Path, channels: int) -> None:
    """A camera's 10 bits in 16, with a hot pixel."""
    values = np.stack([RAMP * 1000, RAMP * 500, RAMP[:, ::-1] * 1000], -1).astype(np.uint16)
    if channels == 2:
        values = values[..., :1]
    expected = np.round(values / values.max() * 255).repeat(3 if channels == 2 else 1, -1)
    if channels != 3:
        values = np.concatenate([values, np.full((40, 60, 1), 65535, np.uint16)], -1)
    values[5, 5, 0], expected[5, 5, 0] = 65535, 255
    if channels == 2:
        expected[5, 5] = 255
    (tmp_path / "a.png").write_bytes(png16(values))
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "a.png")), expected, atol=1)


def test_colors_of_8_bits_stay_as_they_are() -> None:
    dark = Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40, 3), dtype=np.uint8))
    file = io.BytesIO()
    dark.save(file, "png")
    assert EncodedImage(file.getvalue(), "a.png").decode().tobytes() == dark.tobytes()
