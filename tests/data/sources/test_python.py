"""Any object with a length and items as data: which items are images, what a run tells, and how it resumes."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskco import pretrain
from maskco.data.images import ImageError, read_image
from maskco.data.sources import SourceError, fingerprint, open_source
from maskco.data.sources.python import PythonSource
from maskco.errors import ConfigError, UserError
from maskco.training.signals import StopSignals
from small_pictures import picture
from tiny_runs import TINY, rows


class Photos:
    """What anybody writes for a DataLoader."""

    def __init__(self, count: int = 12, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index in self.broken:
            raise OSError(f"photo {index}\nis gone")
        return picture(index), index % 3


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_items_of_every_kind_are_the_same_image() -> None:
    image = picture(1)
    array = np.asarray(image)
    forms: list[Any] = [image, array, torch.from_numpy(array.copy()), torch.from_numpy(array.copy()).permute(2, 0, 1)]
    forms += [encoded(image), bytearray(encoded(image)), (image, 3), [encoded(image), {"caption": "a"}]]
    for form in forms:
        (found,) = (PythonSource([form])[0],)
        values = found.numpy() if isinstance(found, torch.Tensor) else np.asarray(found).transpose(2, 0, 1)
        assert values.shape == (3, 40, 60) and (values == array.transpose(2, 0, 1)).all()
    grey = PythonSource([array[..., 0], array[None, ..., 0], image.convert("L")])
    for index in range(3):
        assert np.asarray(grey[index]).shape in ((3, 40, 60), (40, 60, 3))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pil_images_are_upright_as_their_files_are(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"class/a.{suffix}"
    path.parent.mkdir()
    picture(0).resize((30, 20)).save(path, exif=exif)
    with Image.open(path) as image:
        loaded = image.convert("RGB")
    expected = np.asarray(read_image(path))
    kept = PythonSource([loaded, Image.open(path), path.read_bytes()])
    images = [kept[index] for index in (0, 1, 2, 0)]
    images += [open_source(f"torchvision:ImageFolder?root={tmp_path}")[0]]
    assert expected.shape == (30, 20, 3) and all(np.array_equal(image, expected) for image in images)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (torch.rand(3, 9, 9), r"Tensor torch.float32 \[3, 9, 9\] is no image\. Return .*without augmentations"),
        (np.zeros((9, 9, 4), np.uint8), r"\[9, 9, 4\] is no image"),
        ({"pixels": picture(0)}, r"a dict with the keys pixels is no image\. Return a PIL image"),
        (7, "int is no image"),
        (b"no image", "cannot identify"),
    ],
)
def test_what_is_no_image_says_what_to_return(item: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        PythonSource([item])[0]
    assert caught.value.path == "list/0"


@pytest.mark.parametrize(
    ("dataset", "words"),
    [(iter([1]), "needs __len__ and __getitem__"), ([], "list is empty"), ({}, "dict is empty")],
)
def test_what_is_no_data_set_is_refused(dataset: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        PythonSource(dataset)


def test_fingerprints_tell_length_and_pixels() -> None:
    own = fingerprint(PythonSource(Photos()))
    assert own == fingerprint(PythonSource(Photos()))
    others = [Photos(13), Photos(broken=(3,)), [picture(index + 1) for index in range(12)]]
    assert own not in [fingerprint(PythonSource(other)) for other in others]
    many = PythonSource(Photos(100_000))
    many.dataset.__class__.__getitem__, before = (
        lambda self, index: seen.append(index) or picture(0),
        Photos.__getitem__,
    )
    seen: list[int] = []
    try:
        assert fingerprint(many) and len(seen) == 16 and seen[0] == 0 and seen[-1] == 99_999
    finally:
        Photos.__getitem__ = before


def test_a_run_on_python_data_resumes_with_the_same_data(tmp_path: Path) -> None:
    options = {**TINY, "log_every": 1}
    whole = pretrain(Photos(broken=(5,)), tmp_path / "whole", **options)
    assert whole.broken_images == 1 and "photo 5 is gone" in (tmp_path / "whole" / "log.txt").read_text()
    pretrain(Photos(broken=(5,)), tmp_path / "run", **{**options, "epochs": 1})
    with pytest.raises(UserError, match=r"of other names or content than python:Photos holds"):
        pretrain(Photos(), tmp_path / "run", resume=True, epochs=2)
    with pytest.raises(UserError, match=r"maskco.pretrain\(data=…, out=…, resume=True\), or name images: .* FOLDER$"):
        pretrain(out=tmp_path / "run", resume=True, epochs=2)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["data"] == "python:Photos"
    result = pretrain(Photos(broken=(5,)), tmp_path / "run", resume=True, **{**options, "lr": TINY["lr"]})
    assert result.steps == whole.steps == 6 and len(rows(tmp_path / "run")) == 6


def test_an_interrupted_run_on_python_data_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopSignals, "signal", signal.SIGTERM)  # as if it came during the first step
    assert pretrain(Photos(), tmp_path, **TINY).interrupted
    how = f"SIGTERM: saved step 1 of 6, continue with: maskco.pretrain(data=…, out='{tmp_path}', resume=True)"
    assert how in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_workers_read_a_python_data_set(tmp_path: Path) -> None:
    results = [pretrain(Photos(), tmp_path / str(workers), **{**TINY, "workers": workers}) for workers in (0, 2)]
    assert results[0].loss == results[1].loss and rows(tmp_path / "0") == rows(tmp_path / "2")


def test_its_name_alone_opens_nothing() -> None:
    with pytest.raises(SourceError, match=r"was made in Python\. Give it there, as maskco.pretrain\(data=…\)"):
        open_source("python:Photos")


def test_it_has_no_shards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shuffle window:4 is for tar shards, and python:Photos has none"):
        pretrain(Photos(), tmp_path / "run", **TINY, shuffle="window:4")
