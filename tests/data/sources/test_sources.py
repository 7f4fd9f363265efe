"""Folders of pictures of every kind, and batches that depend on (seed, epoch, index) alone."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from maskco.data.images import Picture, PictureError, read_picture
from maskco.data.samples import EpochBatches, PretrainDataset, collate
from maskco.data.sources import SourceError, open_source
from maskco.data.sources.files import FolderSource
from maskco.data.views import TwoViews, ViewConfig

RAMP = np.linspace(0, 255, 60).round().astype(np.uint8)[None].repeat(40, 0)  # [40, 60], brighter to the right


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def folder_of_pictures(root: Path, count: int) -> Path:
    for i in range(count):
        picture(i).save(root / f"{i:03}.png")
    return root


# ---- reading one picture


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(path)  # 12 of 16 bits in use
    np.testing.assert_allclose(np.asarray(read_picture(path)), RAMP[..., None].repeat(3, -1), atol=1)


def test_float_tiff_is_scaled_and_nan_is_the_darkest(tmp_path: Path) -> None:
    values = RAMP / 255 * 3 - 1.5
    values[0, 59] = np.nan
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tiff")
    result = np.asarray(read_picture(tmp_path / "a.tiff"))
    np.testing.assert_allclose(result[1:, :, 1], RAMP[1:], atol=1)
    assert (result[0, 59] == 0).all()


def test_constant_and_all_nan_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 7.0, np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(read_picture(tmp_path / "a.tif")).std() == 0
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(PictureError, match="no finite value"):
        read_picture(tmp_path / "b.tif")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "YCbCr"])
def test_opaque_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.png")
    Image.fromarray(RAMP).convert("RGB").convert(mode, dither=Image.Dither.NONE).save(path)
    result = read_picture(path)
    assert result.mode == "RGB" and result.size == (60, 40)
    expected = (RAMP >= 128) * 255 if mode == "1" else RAMP
    np.testing.assert_allclose(np.asarray(result)[..., 0], expected, atol=4)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (250, 20, 30)).convert("CMYK").save(tmp_path / "a.jpg")
    red, green, blue = read_picture(tmp_path / "a.jpg").getpixel((20, 20))
    assert red > 230 and green < 45 and blue < 55


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_mid_grey(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (255, 255, 255, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 40))
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        transparent = image.getpixel((5, 5))
        image.save(tmp_path / "a.png", transparency=transparent)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    result = read_picture(tmp_path / "a.png")
    assert result.getpixel((5, 5)) == (128, 128, 128)
    assert result.getpixel((35, 5)) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (255, 0, 0, 128)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_picture(tmp_path / "a.png").getpixel((5, 5)), (191.5, 63.8, 63.8), atol=1)


def test_colour_key_of_an_rgb_png_is_transparency(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), (1, 2, 3))
    image.paste((200, 0, 0), (20, 0, 40, 40))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    result = read_picture(tmp_path / "a.png")
    assert result.getpixel((5, 5)) == (128, 128, 128) and result.getpixel((30, 5)) == (200, 0, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "bright_corner"), [(1, (55, 4)), (3, (4, 35)), (6, (35, 55)), (8, (4, 4))])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int, bright_corner: tuple) -> None:
    image = Image.new("RGB", (60, 40))
    ImageDraw.Draw(image).rectangle((45, 0, 59, 12), fill=(255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    result = read_picture(tmp_path / f"a.{suffix}")
    assert result.size == ((60, 40) if orientation in (1, 3) else (40, 60))
    corners = [(4, 4), (result.width - 5, 4), (4, result.height - 5), (result.width - 5, result.height - 5)]
    assert max(corners, key=lambda corner: sum(result.getpixel(corner))) == bright_corner


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animated_picture_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    red, green, blue = read_picture(tmp_path / f"a.{suffix}").getpixel((20, 20))
    assert red > 240 and green < 15 and blue < 15


def test_broken_files_name_themselves_and_the_reason(tmp_path: Path) -> None:
    picture(0, (300, 200)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "noise.png").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "empty.gif").write_bytes(b"")
    for name, reason in [("cut.jpg", "truncated"), ("noise.png", "cannot identify"), ("empty.gif", "cannot identify")]:
        with pytest.raises(PictureError, match=reason) as caught:
            read_picture(tmp_path / name)
        assert caught.value.path == str(tmp_path / name) and "\n" not in str(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.path, again.reason) == (caught.value.path, caught.value.reason)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_as_a_tensor_is_the_picture(tmp_path: Path, mode: str) -> None:
    picture(5, (301, 203)).convert(mode).save(tmp_path / "a.jpg")
    whole = np.asarray(read_picture(tmp_path / "a.jpg"))
    pixels = Picture(tmp_path / "a.jpg").tensor()
    assert pixels.shape == (3, 203, 301)
    # (CMYK has no one way to RGB)
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), whole, atol=3 if mode == "CMYK" else 0)
    assert Picture(tmp_path / "a.jpg").tensor(shrink=4).shape == (3, 51, 76)


def test_a_cut_off_jpeg_fails_as_a_tensor_too(tmp_path: Path) -> None:
    picture(0, (300, 200)).save(tmp_path / "a.jpg")
    opened = Picture((tmp_path / "a.jpg").read_bytes()[:-500], name="shard.tar/a.jpg")
    with pytest.raises(PictureError, match=r"^shard\.tar/a\.jpg: .*truncated"):
        opened.tensor()


# ---- folders


def test_folder_is_read_recursively_in_order_and_in_any_case_of_extension(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("z.JPG", "a.png", "b/x.Webp", "b/deep/y.TIFF", ".hidden/no.png", "._resource.jpg"):
        picture(0).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    source = open_source(str(tmp_path))
    assert [source.name(i) for i in range(len(source))] == ["a.png", "b/deep/y.TIFF", "b/x.Webp", "z.JPG"]
    assert source[1].size == (60, 40)


def test_links_to_folders_are_followed_once_even_in_a_loop(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir(), (root / "inner").mkdir(parents=True)
    picture(0).save(root / "inner" / "a.png")
    picture(1).save(outside / "b.png")
    os.symlink(root, root / "inner" / "loop")
    os.symlink(outside, root / "link")
    os.symlink(outside, root / "second_link")
    os.symlink(tmp_path / "nowhere", root / "dangling")
    assert FolderSource(root).names == ["inner/a.png", "link/b.png"]


@pytest.mark.parametrize("ending", ["tar", "npy", "json"])
def test_a_folder_may_be_called_as_it_likes(tmp_path: Path, ending: str) -> None:
    root = tmp_path / f"photos.{ending}"
    root.mkdir()
    assert len(open_source(folder_of_pictures(root, 2))) == 2


def test_folders_without_pictures_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty" / "still").mkdir(parents=True)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("")
    with pytest.raises(SourceError, match="nothing is named"):
        open_source("")
    cases = {"missing": "no such folder", "empty": "is empty", "text": "is a picture", "text/a.txt": "is a file"}
    for name, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            open_source(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


# ---- samples and batches


@pytest.fixture
def dataset(tmp_path: Path) -> PretrainDataset:
    source = FolderSource(folder_of_pictures(tmp_path, 9))
    return PretrainDataset(source, TwoViews(ViewConfig(image_size=32, regions=2)), seed=3)


def same(a: tuple, b: tuple) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_views_depend_on_seed_epoch_and_index_only(dataset: PretrainDataset) -> None:
    first = dataset[(2, 4)]
    torch.rand(7)
    assert same(dataset[(2, 4)].views, first.views) and first.failures == []
    assert same(dataset[4].views, dataset[(0, 4)].views)
    assert not same(dataset[(3, 4)].views, first.views)
    assert not same(PretrainDataset(dataset.source, dataset.transform, seed=4)[(2, 4)].views, first.views)


def test_drawing_views_leaves_the_callers_random_numbers_alone(dataset: PretrainDataset) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_two_workers_give_what_none_gives(dataset: PretrainDataset, start_method: str) -> None:
    (dataset.source.root / "004.png").write_bytes(b"broken")

    def load(**workers) -> list:
        batches = EpochBatches(len(dataset), 3, seed=1, epoch=5)
        return list(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **workers))

    alone, together = load(), load(num_workers=2, multiprocessing_context=start_method)
    assert len(alone) == len(together) == 3
    for a, b in zip(alone, together, strict=True):
        assert same(a.views, b.views) and a.failures == b.failures
        assert a.views.query.shape == (3, 3, 32, 32) and a.views.key_boxes.shape == (3, 2, 4)
    assert {name for batch in alone for name, _ in batch.failures} == {"004.png"}


def test_broken_or_small_picture_is_replaced_and_named(tmp_path: Path) -> None:
    folder_of_pictures(tmp_path, 4)
    (tmp_path / "003.png").write_bytes(b"broken")
    picture(0, (60, 8)).save(tmp_path / "000.png")
    dataset = PretrainDataset(FolderSource(tmp_path), TwoViews(ViewConfig(image_size=32)))
    sample = dataset[(1, 3)]
    assert sample.failures[0][0] == "003.png" and "cannot identify" in sample.failures[0][1]
    assert "60x8 pixels" in dataset[(1, 0)].failures[0][1]
    for shown in (1, 2):
        assert not same(sample.views, dataset[(1, shown)].views), "another is shown, in views of its own"
    batch = collate([sample, dataset[(1, 1)]])
    assert batch.failures == sample.failures and batch.views.query.shape[0] == 2


def test_nothing_but_broken_pictures_stops(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    dataset = PretrainDataset(FolderSource(tmp_path), TwoViews(ViewConfig()))
    with pytest.raises(SourceError, match=r"32 pictures in a row.*1\.png.*check the data"):
        dataset[1]


def test_epoch_batches_are_a_shuffle_that_seed_and_epoch_fix() -> None:
    batches = list(EpochBatches(23, 5, seed=0, epoch=2))
    assert len(batches) == len(EpochBatches(23, 5, seed=0, epoch=2)) == 4
    seen = [index for batch in batches for _, index in batch]
    assert len(set(seen)) == 20 and set(seen) <= set(range(23)) and seen != sorted(seen)
    assert {epoch for batch in batches for epoch, _ in batch} == {2}
    assert batches == list(EpochBatches(23, 5, seed=0, epoch=2))
    assert [i for b in EpochBatches(23, 5, seed=0, epoch=3) for _, i in b] != seen
    assert [i for b in EpochBatches(23, 5, seed=1, epoch=2) for _, i in b] != seen


def test_epoch_batches_resume_after_the_steps_already_made() -> None:
    rest = EpochBatches(23, 5, seed=0, epoch=2, start_step=3)
    assert len(rest) == 1 and list(rest) == list(EpochBatches(23, 5, seed=0, epoch=2))[3:]
    assert len(EpochBatches(23, 5, seed=0, epoch=2, start_step=4)) == 0


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size 24 .*23 pictures.*lower it to 23"):
        EpochBatches(23, 24, seed=0, epoch=0)
    with pytest.raises(ValueError, match="at least 1"):
        EpochBatches(23, 0, seed=0, epoch=0)
