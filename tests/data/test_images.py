"""One image file of any mode, read as 8-bit RGB."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from maskco.data.images import EncodedImage, ImageError, read_image
from small_pictures import picture

RAMP = np.linspace(0, 255, 60).round().astype(np.uint8)[None].repeat(40, 0)  # [40, 60], brighter to the right


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(path)  # 12 of 16 bits in use
    np.testing.assert_allclose(np.asarray(read_image(path)), RAMP[..., None].repeat(3, -1), atol=1)


def test_float_tiff_is_scaled_and_nan_is_the_darkest(tmp_path: Path) -> None:
    values = RAMP / 255 * 3 - 1.5
    values[0, 59] = np.nan
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tiff")
    result = np.asarray(read_image(tmp_path / "a.tiff"))
    np.testing.assert_allclose(result[1:, :, 1], RAMP[1:], atol=1)
    assert (result[0, 59] == 0).all()


def test_constant_and_all_nan_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 7.0, np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif")).std() == 0
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ImageError, match="no finite value"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "YCbCr"])
def test_opaque_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.png")
    Image.fromarray(RAMP).convert("RGB").convert(mode, dither=Image.Dither.NONE).save(path)
    result = read_image(path)
    assert result.mode == "RGB" and result.size == (60, 40)
    expected = (RAMP >= 128) * 255 if mode == "1" else RAMP
    np.testing.assert_allclose(np.asarray(result)[..., 0], expected, atol=4)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (250, 20, 30)).convert("CMYK").save(tmp_path / "a.jpg")
    red, green, blue = read_image(tmp_path / "a.jpg").getpixel((20, 20))
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
    result = read_image(tmp_path / "a.png")
    assert result.getpixel((5, 5)) == (128, 128, 128)
    assert result.getpixel((35, 5)) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (255, 0, 0, 128)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png").getpixel((5, 5)), (191.5, 63.8, 63.8), atol=1)


def test_color_key_of_an_rgb_png_is_transparency(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), (1, 2, 3))
    image.paste((200, 0, 0), (20, 0, 40, 40))
    image.save(tmp_path / "a.png", transparency=(1, 2, 3))
    result = read_image(tmp_path / "a.png")
    assert result.getpixel((5, 5)) == (128, 128, 128) and result.getpixel((30, 5)) == (200, 0, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "bright_corner"), [(1, (55, 4)), (3, (4, 35)), (6, (35, 55)), (8, (4, 4))])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int, bright_corner: tuple) -> None:
    image = Image.new("RGB", (60, 40))
    ImageDraw.Draw(image).rectangle((45, 0, 59, 12), fill=(255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    result = read_image(tmp_path / f"a.{suffix}")
    assert result.size == ((60, 40) if orientation in (1, 3) else (40, 60))
    corners = [(4, 4), (result.width - 5, 4), (4, result.height - 5), (result.width - 5, result.height - 5)]
    assert max(corners, key=lambda corner: sum(result.getpixel(corner))) == bright_corner


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animated_picture_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    red, green, blue = read_image(tmp_path / f"a.{suffix}").getpixel((20, 20))
    assert red > 240 and green < 15 and blue < 15


def test_broken_files_name_themselves_and_the_reason(tmp_path: Path) -> None:
    picture(0, (300, 200)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "noise.png").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "empty.gif").write_bytes(b"")
    for name, reason in [("cut.jpg", "truncated"), ("noise.png", "cannot identify"), ("empty.gif", "cannot identify")]:
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(tmp_path / name)
        assert caught.value.path == str(tmp_path / name) and "\n" not in str(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.path, again.reason) == (caught.value.path, caught.value.reason)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_as_a_tensor_is_the_picture(tmp_path: Path, mode: str) -> None:
    picture(5, (301, 203)).convert(mode).save(tmp_path / "a.jpg")
    whole = np.asarray(read_image(tmp_path / "a.jpg"))
    pixels = EncodedImage(tmp_path / "a.jpg").tensor()
    assert pixels.shape == (3, 203, 301)
    # (CMYK has no one way to RGB)
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), whole, atol=3 if mode == "CMYK" else 0)
    assert EncodedImage(tmp_path / "a.jpg").tensor(shrink=4).shape == (3, 51, 76)


def test_a_cut_off_jpeg_fails_as_a_tensor_too(tmp_path: Path) -> None:
    picture(0, (300, 200)).save(tmp_path / "a.jpg")
    opened = EncodedImage((tmp_path / "a.jpg").read_bytes()[:-500], name="shard.tar/a.jpg")
    with pytest.raises(ImageError, match=r"^shard\.tar/a\.jpg: .*truncated"):
        opened.tensor()
