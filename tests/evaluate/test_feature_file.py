"""Features in a file: those of an evaluation, in the order of their names, however many there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from commands import run_main
from labelled import NAMES, make_class_folders, make_coco
from maskco.errors import UserError
from maskco.evaluate import feature_file
from maskco.evaluate.encoders import OpenedEncoder, open_encoder
from maskco.evaluate.errors import EvaluationError
from maskco.evaluate.feature_file import read_features, write_features
from maskco.evaluate.knn import knn_accuracy
from maskco.evaluate.options import FeatureOptions, Knn
from maskco.evaluate.run import evaluate
from maskco.nn import Encoder
from peak_memory import peak_mib
from saved_runs import make_run
from tiny_runs import make_pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", encoder="test_resnet")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("colors"), {"train": 30, "val": 15})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("photos") / "photos", count=9)


def options(encoder: object, data: object, out: Path, **more) -> FeatureOptions:
    small = {"image_size": 32, "workers": 0, "device": "cpu", "batch_size": 4} | more
    return FeatureOptions(encoder=str(encoder), data=str(data), out=str(out), **small)


def write(encoder: object, data: object, out: Path, **more) -> Path:
    return write_features(options(encoder, data, out, **more), verbose=False).path


class Passing(nn.Module):
    """Returns the images, so often one after the other."""

    def __init__(self, times: int = 1, factor: float = 1.0) -> None:
        super().__init__()
        self.times, self.factor = times, nn.Parameter(torch.tensor(factor))

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.factor).repeat(1, self.times, 1, 1)


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch):
    """An encoder that passes on what it sees, unnormalised, in place of any."""

    def replace(times: int = 1, factor: float = 1.0) -> None:
        encoder = Encoder(Passing(times, factor), 3 * times, 1)
        opened = OpenedEncoder("passing", encoder, "passing", mean=(0.0,) * 3, std=(1.0,) * 3)
        monkeypatch.setattr(feature_file, "open_encoder", lambda *arguments: opened)

    return replace


def test_neighbours_in_the_files_score_as_the_evaluation_does(run: Path, colors: Path, tmp_path: Path) -> None:
    labels = {name: index for index, name in enumerate(sorted(NAMES))}
    parts = []
    for part in ("train", "val"):
        found = read_features(write(run, colors / part, tmp_path / f"{part}.safetensors"))
        parts += [found.features, torch.tensor([labels[name.split("/")[0]] for name in found.names])]
    knn = Knn(encoders=(str(run),), data=str(colors), image_size=32, batch_norm="stored", workers=0, device="cpu")
    row = evaluate(Knn(**{**vars(knn), "out": str(tmp_path / "x.json")}), verbose=False)[0]
    assert 100 / 3 < knn_accuracy(*parts) == row.scores["kNN top-1"]
    assert parts[0].shape == (30, row.details["channels"])
    assert found.facts["encoder_sha256"] == row.details["encoder_sha256"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_belong_to_their_names(passing, photos: Path, tmp_path: Path, dtype: str) -> None:
    """Of images that differ in brightness, each row is its own image's, seen in the middle and in its proportions."""
    from PIL import Image

    values = {}
    for index in range(5):
        path = tmp_path / "photos" / ("nested" if index % 2 else "") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((32, 64, 3), 255, np.uint8)
        pixels[:, 16:48] = 40 * index  # the middle
        Image.fromarray(pixels).save(path)
        values[str(path.relative_to(tmp_path / "photos"))] = 40 * index / 255
    passing()
    found = read_features(write("x", tmp_path / "photos", tmp_path / "x.safetensors", dtype=dtype, batch_size=2))
    assert found.features.shape == (5, 3) and found.features.dtype == getattr(torch, dtype) and not found.skipped
    assert set(found.names) == set(values)
    for name, row in zip(found.names, found.features.float(), strict=True):
        torch.testing.assert_close(row, torch.full((3,), values[name]), atol=4e-3, rtol=0)


def test_cells_are_the_map(run: Path, photos: Path, tmp_path: Path) -> None:
    cells = read_features(write(run, photos, tmp_path / "cells.safetensors", cells=True, image_size=64))
    pooled = read_features(write(run, photos, tmp_path / "pooled.safetensors", image_size=64))
    assert cells.features.shape == (9, 96, 2, 2) and cells.names == pooled.names
    torch.testing.assert_close(cells.features.mean((2, 3)), pooled.features)
    assert (cells.facts["features"], pooled.facts["features"]) == ("map", "mean of the map")


def test_maps_with_channels_last_are_turned(photos: Path, tmp_path: Path, monkeypatch) -> None:
    class Last(Passing):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).permute(0, 2, 3, 1)

    for is_last in (False, True):
        encoder = Encoder(Last() if is_last else Passing(), 3, 1, channels_last=is_last)
        opened = OpenedEncoder("x", encoder, "x")
        monkeypatch.setattr(feature_file, "open_encoder", lambda *arguments, opened=opened: opened)
        write("x", photos, tmp_path / f"{is_last}.safetensors", cells=True)
    one, other = (load_file(tmp_path / f"{is_last}.safetensors")["features"] for is_last in (False, True))
    assert torch.equal(one, other)


def test_workers_and_batches_change_nothing(run: Path, photos: Path, tmp_path: Path) -> None:
    one = read_features(write(run, photos, tmp_path / "a.safetensors", batch_size=9))
    other = read_features(write(run, photos, tmp_path / "b.safetensors", batch_size=2, workers=2))
    assert one.names == other.names
    torch.testing.assert_close(one.features, other.features)


def test_the_lines_in_the_documentation_read_it(run: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    path = write(run, photos, tmp_path / "features.safetensors")
    monkeypatch.chdir(tmp_path)
    lines = feature_file.__doc__.split("Without this package:\n\n")[1].split("\n\n")[0].splitlines()
    found: dict = {"safe_open": safe_open}
    exec("\n".join(line[4:] for line in lines), found)
    assert found["names"] == read_features(path).names
    assert torch.equal(found["features"], read_features(path).features)


def test_images_that_cannot_be_read_have_no_row_and_are_named(run: Path, tmp_path: Path, capsys) -> None:
    data = make_pictures(tmp_path / "photos", count=9, broken=3)
    out = tmp_path / "x.safetensors"
    assert run_main("features", run, "--data", data, "--out", out, "--workers", 0, "--image-size", 32) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}  6 × 96\n"
    assert re.search(r"3 of the 9 images could not be read and have no row. The first: .*000\.png: ", printed.err)
    found = read_features(out)
    assert sorted(Path(name).name for name in found.names) == [f"{index:03}.png" for index in range(3, 9)]
    assert sorted(re.search(r"(\d+)\.png: ", line)[1] for line in found.skipped) == ["000", "001", "002"]
    whole = read_features(write(run, data, tmp_path / "y.safetensors", batch_size=1))
    torch.testing.assert_close(whole.features, found.features)


def test_most_images_unreadable_is_an_error(run: Path, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "photos", count=9, broken=5)
    refused("only 4 of the 9 images could be read. The first that could not: ", run, data, tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_all_kinds_of_encoders(run: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    model = timm.create_model("test_convnext")
    torch.save({"encoder_q.0." + name: value for name, value in model.state_dict().items()}, tmp_path / "x.pth")
    for encoder, more, channels in (
        (run, {}, 96),
        (run / "last.pt", {}, 96),
        (f"untrained:{run}", {}, 96),
        ("untrained:test_efficientnet", {}, 64),
        (tmp_path / "x.pth", {"architecture": "test_convnext", "prefix": "encoder_q.0"}, 64),
    ):
        found = read_features(write(encoder, photos, tmp_path / "x.safetensors", overwrite=True, **more))
        assert found.features.shape == (9, channels) and found.facts["encoder"] == str(encoder)
    assert found.facts["prefix"] == "encoder_q.0." and found.facts["architecture"] == "test_convnext"


def test_all_kinds_of_data(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8))
    coco = make_coco(tmp_path / "coco", {"train2017": 4})
    for data, names in (
        (tmp_path / "x.npy", [f"x.npy/{index}" for index in range(5)]),
        (coco / "annotations/instances_train2017.json", [f"{index:03}.png" for index in range(4)]),
    ):
        found = read_features(write(run, data, tmp_path / "x.safetensors", overwrite=True))
        assert [Path(name).name for name in found.names] == [Path(name).name for name in names]
        assert found.facts["data"] == str(data)


def test_the_file_says_what_it_holds(run: Path, photos: Path, tmp_path: Path) -> None:
    facts = read_features(write(run, photos, tmp_path / "x.safetensors", image_size=48)).facts
    opened = open_encoder(str(run))
    assert (facts["architecture"], facts["stage"], facts["step"], facts["image_size"]) == ("test_resnet", -1, 1234, 48)
    assert tuple(facts["mean"]) == opened.mean and facts["channels"] == 96 and facts["stride"] == 32
    assert "middle square" in facts["preparation"] and facts["versions"]["torch"] == torch.__version__
    assert read_features(write(run, photos, tmp_path / "y.safetensors", image_size=None)).facts["image_size"] == 96


def test_an_encoder_of_one_size_gets_that_and_says_so(photos: Path, tmp_path: Path) -> None:
    asked = options("untrained:test_vit", photos, tmp_path / "x.safetensors", image_size=64)
    assert write_features(asked, verbose=False).notes == [
        "untrained:test_vit takes images of 160 pixels only, which these are resized to"
    ]
    assert read_features(tmp_path / "x.safetensors").facts["image_size"] == 160


def test_odd_names_survive(passing, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "photos", count=4)
    odd = ["line\nbreak.png", 'quote".png', "ü✗ .png", b"\xff.png"]
    for path, name in zip(sorted(data.rglob("*.png")), odd, strict=True):
        path.rename(data / (name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")))
    passing()
    found = read_features(write("x", data, tmp_path / "x.safetensors"))
    assert sorted(found.names) == sorted(path.name for path in data.iterdir() if path.is_file())
    assert len(found.features) == 4


def test_memory_does_not_grow_with_the_number_of_images(passing, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((8, 32, 32, 3), np.uint8))
    np.save(tmp_path / "many.npy", np.zeros((400, 32, 32, 3), np.uint8))
    passing(times=32)
    more = {"cells": True, "batch_size": 4, "overwrite": True}
    write("x", tmp_path / "few.npy", tmp_path / "x.safetensors", **more)
    peak = peak_mib(lambda: write("x", tmp_path / "many.npy", tmp_path / "x.safetensors", **more))
    size = (tmp_path / "x.safetensors").stat().st_size / 1024**2
    assert size > 150 and peak < 40


def test_an_interrupted_file_never_appears(passing, photos: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out" / "x.safetensors"
    passing()
    write("x", photos, out)
    before = out.read_bytes()
    batches = feature_file.feature_maps

    def interrupted(*arguments, **more):
        yield next(batches(*arguments, **more))
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_file, "feature_maps", interrupted)
    for name in (out.name, "y.safetensors"):
        with pytest.raises(KeyboardInterrupt):
            write("x", photos, out.with_name(name), overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == [out.name] and out.read_bytes() == before


def test_a_file_in_the_way_is_not_replaced(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    refused("exists. Name another file, or replace it with `overwrite=True`", run, photos, out)
    assert out.read_text() == "mine"
    assert len(read_features(write(run, photos, out, overwrite=True)).names) == 9
    refused("is a folder. Name a file in it, such as", run, photos, tmp_path)
    refused("expected a name that ends in .safetensors, got 'x.pt'", run, photos, tmp_path / "x.pt")


def test_what_does_not_fit_the_disk_or_the_dtype(passing, photos: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "x.safetensors"
    passing(factor=1e6)
    refused(
        "float16 cannot hold the features of .*. Take `dtype=bfloat16` or float32", "x", photos, out, dtype="float16"
    )
    write("x", photos, out, dtype="bfloat16")
    out.unlink()
    passing(factor=float("nan"))
    refused(r"the features of .*\.png are not finite. The encoder passing may have diverged", "x", photos, out)
    passing()
    monkeypatch.setattr(feature_file.shutil, "disk_usage", lambda path: SimpleNamespace(free=50))
    refused("would take 1.08e-07 GB, and .* has 5e-08 GB. Free some, lower image_size", "x", photos, out)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "x.safetensors"
    for encoder, data, more, message in (
        ("nothing", photos, [], "encoder 'nothing' is neither a run folder, nor"),
        ("timm:resnet5", photos, [], "is not a timm model. Did you mean"),
        (run, tmp_path / "none", [], "--data: "),
        (run, photos, ["--prefix", "x"], f"--prefix: {run} is no file of weights. Leave it out"),
        (run, photos, ["--architecture", "resnet50"], f"--architecture: {run} is of test_resnet. Leave it out"),
        (run, photos, ["--device", "nope"], "--device: 'nope' cannot be used here"),
        (run, photos, ["--batch-size", "0"], "--batch-size must be at least 1"),
    ):
        assert run_main("features", encoder, "--data", data, "--out", out, *more) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and message in printed and printed.count("\n") == 1, printed
    assert not list(tmp_path.iterdir())


def test_other_files_are_no_features(tmp_path: Path) -> None:
    save_file({"features": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    save_file({"features": torch.zeros(2)}, tmp_path / "part.safetensors", {"maskco_features": json.dumps({})})
    (tmp_path / "text.safetensors").write_text("text")
    for name in ("other", "part", "text"):
        with pytest.raises(EvaluationError, match="is not a file of features, or damaged"):
            read_features(tmp_path / f"{name}.safetensors")
    with pytest.raises(EvaluationError, match="does not exist"):
        read_features(tmp_path / "none.safetensors")


def refused(message: str, encoder: object, data: object, out: Path, **more) -> None:
    with pytest.raises(UserError, match=message) as error:
        write(encoder, data, out, **more)
    assert "\n" not in str(error.value)
