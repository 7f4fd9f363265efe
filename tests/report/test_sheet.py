"""The contact sheet: it shows the views of a run, and outlines what they really show."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from drawn import boxes, image_names
from maskco import cli
from maskco.data.sources import open_source
from maskco.data.views import denormalize
from maskco.errors import ConfigError
from maskco.report import sheet
from maskco.report.page import Page
from maskco.report.views import Samples, read_samples
from maskco.view_options import MaskOptions, ViewConfig


def coordinates(root: Path, count: int, width: int = 90, height: int = 60) -> Path:
    """Images whose red grows to the right and whose green grows downward."""
    x, y = torch.arange(width).expand(height, width), torch.arange(height)[:, None].expand(height, width)
    pixels = torch.stack((x, y, torch.zeros_like(x))).mul(2).to(torch.uint8)
    root.mkdir()
    for index in range(count):
        F.to_pil_image(pixels).save(root / f"{index}.png")
    return root


def test_outlines_surround_what_the_views_show(tmp_path: Path) -> None:
    config = ViewConfig(image_size=64, jitter=0, grayscale=0, blur=0, flip=0)
    source = open_source(coordinates(tmp_path / "set", 5))
    samples, _ = read_samples(source, config, 3, seed=4)
    assert [name for name, *_ in samples] == ["0.png", "1.png", "3.png"]
    for _, _, crops, views in samples:
        for crop, view in zip(crops, views[:2], strict=True):
            corners = denormalize(view)[:2, [0, -1], [0, -1]] * 255 / 2  # x, y of the first and the last pixel
            expected = [[crop.left, crop.left + crop.width], [crop.top, crop.top + crop.height]]
            torch.testing.assert_close(corners, torch.tensor(expected).float(), atol=1.5, rtol=0)


def test_colors_of_a_batch_are_those_of_its_images(tmp_path: Path) -> None:
    source, config = open_source(coordinates(tmp_path / "set", 5)), ViewConfig(image_size=32, jitter=1)
    single, batched = (read_samples(source, config, 3, seed=0, augment=augment)[0] for augment in ("workers", "device"))
    assert len(single) == 3
    for (*_, alone), (*_, together) in zip(single, batched, strict=True):
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize("masks", [MaskOptions(), None])
def test_regions_are_outlined_where_they_are_masked(tmp_path: Path, masks: MaskOptions | None) -> None:
    config = ViewConfig(image_size=32, regions=3)
    samples, _ = read_samples(open_source(coordinates(tmp_path / "set", 2)), config, 2, seed=0)
    figure = Page([Samples(samples, masks, 2)]).figure
    names = image_names(figure)
    assert names[3:] == ["image 1", "query view 1", "key view 1"]
    regions = 3 if masks else 0
    counts = [len(boxes(figure, of=name)) for name in names]
    assert counts == [2, regions, regions] * 2  # an image shows the outlines of its two views


def test_views_without_regions_are_drawn_without_masks(tmp_path: Path) -> None:
    assert not sheet.write_sheet(coordinates(tmp_path / "set", 1), ViewConfig(regions=0), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_command_writes_a_png_and_names_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    coordinates(tmp_path / "set", 3)
    (tmp_path / "set/1.png").write_bytes(b"broken")
    arguments = ["views", "--data", tmp_path / "set", "--out", tmp_path / "a.png", "--image-size=32", "--regions=2"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert stopped.value.code == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(tmp_path / "a.png")
    assert output.err.startswith("1.png cannot be used: cannot identify") and output.err.count("\n") == 1
    assert Image.open(tmp_path / "a.png").width == 1680


def test_names_of_any_bytes_are_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture, recwarn) -> None:
    folder = coordinates(tmp_path / "set", 1)
    (folder / "0.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    for name in (os.fsdecode(b"\xff.png"), "two\nlines.png"):
        (folder / name).write_bytes(b"broken")
    (folder / "\u753b\u50cf.png").write_bytes((folder / os.fsdecode(b"caf\xe9.png")).read_bytes())  # no such glyph
    with pytest.raises(SystemExit) as stopped:
        cli.main(["views", "--data", str(folder), "--out", str(tmp_path / "a.png"), "--image-size=32"])
    assert stopped.value.code == 0 and (tmp_path / "a.png").exists()
    lines = capsys.readouterr().err.splitlines()
    names = [line.partition(" cannot be used: ")[0] for line in lines]
    assert sorted(names) == ["\\udcff.png", "two\\nlines.png"]
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "PNG"), ("A.PNG", "PNG"), ("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP"), ("a.tif", "TIFF"),
     ("new/folder/a.png", "PNG")],
)  # fmt: skip
def test_the_suffix_says_the_format(tmp_path: Path, name: str, kind: str) -> None:
    sheet.write_sheet(coordinates(tmp_path / "set", 1), ViewConfig(image_size=32), tmp_path / name)
    with Image.open(tmp_path / name) as drawn:
        assert drawn.format == kind


def test_a_file_that_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    data = coordinates(tmp_path / "set", 2)
    photograph = next(data.iterdir())
    before = photograph.read_bytes()
    with pytest.raises(ConfigError, match=r"^out: .* exists\. Name another file, or replace it with `overwrite=True`$"):
        sheet.write_sheet(data, ViewConfig(image_size=32), photograph)
    assert photograph.read_bytes() == before
    for overwrite in (False, True):
        sheet.write_sheet(data, ViewConfig(image_size=32), tmp_path / "a.png", overwrite=overwrite)


def test_vector_formats_are_written(tmp_path: Path) -> None:
    data = coordinates(tmp_path / "set", 1)
    sheet.write_sheet(data, ViewConfig(image_size=32), tmp_path / "a.pdf")
    sheet.write_sheet(data, ViewConfig(image_size=32), tmp_path / "a.svg")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF") and b"<svg" in (tmp_path / "a.svg").read_bytes()


def test_home_folders_and_numpy_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    coordinates(tmp_path / "set", 2)
    options = {"count": np.int64(1), "seed": torch.tensor(3), "epoch": np.array(1)}
    sheet.write_sheet(Path("~/set"), ViewConfig(image_size=np.int32(32)), Path("~/a.png"), **options)
    assert (tmp_path / "a.png").exists()
    for arguments in (["--data=~/set", "--out=~/b.png"], ["--data", "~/set", "--out", "~/c.png"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["views", *arguments, "--image-size=32"])
        assert stopped.value.code == 0
    assert (tmp_path / "b.png").exists() and (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "{}/missing"], "data: no such folder"),
        (["--data", "{}/broken"], "data: none of 2 images can be used (first: 0.png: cannot identify"),
        (["--data", "demo", "--regions", "-1"], "regions must be between 0 and 1000, got -1"),
        (["--data", "demo", "--seed", "-1"], "seed must be at least 0"),
        (["--data", "demo", "--seed", str(2**64)], "seed must be between 0 and"),
        (["--data", "demo", "--crop-aspect", "0.001", "0.001"], "--crop-aspect must be"),
        (["--data", "demo", "--region-aspect", "1", "inf"], "--region-aspect must be"),
        (["--data", "demo", "--image-size", "100000", "--count", "1000"], "image_size 100000 would take 240 TB"),
        (["--data", "demo", "--count", "0"], "count must be between 1 and 1000"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path, capsys, options, message) -> None:
    (tmp_path / "broken").mkdir()
    for index in range(2):
        (tmp_path / f"broken/{index}.png").write_bytes(b"broken")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["views", *(option.format(tmp_path) for option in options), "--out", str(tmp_path / "a.png")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("name", ["a", "a.bmp", "a.txt", "set", "folder.png"])
def test_what_is_no_file_of_an_image_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=r"out: .* is no file name of an image"):
        sheet.write_sheet(coordinates(tmp_path / "set", 1), ViewConfig(image_size=32), tmp_path / name)
