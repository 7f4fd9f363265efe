"""Hugging Face data sets: saved ones, parquet files and names of the Hub, for pretraining and with their classes."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from labelled import NAMES, make_class_folders
from maskco.data.images import ImageError
from maskco.data.samples import EpochBatches, PretrainDataset, collate
from maskco.data.sources import SourceError, fingerprint, locate, open_source
from maskco.data.sources.files import FolderSource
from maskco.data.sources.huggingface import HuggingFaceSource
from maskco.data.views import TwoViews, ViewConfig
from maskco.errors import UserError
from maskco.evaluate.datasets import open_labelled
from maskco.evaluate.options import Knn, Linear
from maskco.evaluate.run import evaluate
from maskco.runs.trust import ForeignRunError, stored_data
from maskco.training.loop import pretrain
from tiny_runs import TINY

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def noise(seed: int, kind: str = "png", **options: object) -> bytes:
    """An encoded image of 60 × 48 pixels."""
    file = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def table(images: list[bytes | None], labels: list[int | None] | None = None, **columns: list) -> datasets.Dataset:
    """Columns `image` and, if there are labels, `label` of three colors; others as given."""
    features: dict = {"image": datasets.Image()}
    values: dict = {"image": [image and {"bytes": image, "path": None} for image in images]}
    if labels is not None:
        features["label"], values["label"] = datasets.ClassLabel(names=list(NAMES)), labels
    for name, (feature, column) in columns.items():
        features[name], values[name] = feature, column
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def colors(tmp_path: Path, **parts: int) -> datasets.DatasetDict:
    """Images of three colors with their class, as `make_class_folders` draws them."""
    root = make_class_folders(tmp_path / "colors", parts)
    found = {}
    for part in parts:
        files = sorted((root / part).glob("*/*.png"))
        labels = [NAMES.index(file.parent.name) for file in files]
        found[part] = table([file.read_bytes() for file in files], labels)
    return datasets.DatasetDict(found)


def names_of(source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def refusal(data: str, opener=open_source) -> str:
    with pytest.raises(SourceError) as caught:
        opener(data)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("data: ")
    return message


# ---- opening


def test_a_saved_set_is_recognised_and_its_training_split_is_read(tmp_path: Path) -> None:
    images = [noise(seed) for seed in range(4)]
    datasets.DatasetDict(train=table(images[:3]), test=table(images[3:])).save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    assert isinstance(source, HuggingFaceSource) and names_of(source) == ["train/0", "train/1", "train/2"]
    assert np.array_equal(source[2], Image.open(io.BytesIO(images[2]))) and not source.left_out
    both = open_source(f"hf:{tmp_path}/set?split=test+train")
    assert names_of(both) == ["test/0", "train/0", "train/1", "train/2"]
    assert np.array_equal(both[0], Image.open(io.BytesIO(images[3])))
    moved = (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert fingerprint(open_source(moved)) == fingerprint(source) != fingerprint(both)


def test_a_set_without_splits(tmp_path: Path) -> None:
    table([noise(0), noise(1)]).save_to_disk(tmp_path / "set")
    assert names_of(open_source(tmp_path / "set")) == ["all/0", "all/1"]


def test_parquet_files_by_the_splits_they_are_named_for(tmp_path: Path) -> None:
    for folder in ("flat", "nested/data"):
        root = tmp_path / folder
        root.mkdir(parents=True)
        (root / "README.md").touch()
        table([noise(0), noise(1)]).to_parquet(root / "train-00000-of-00002.parquet")
        table([noise(2)]).to_parquet(root / "train-00001-of-00002.parquet")
        table([noise(3)]).to_parquet(root / "test-00000-of-00001.parquet")
    for folder in ("flat", "nested"):
        source = open_source(tmp_path / folder)
        assert names_of(source) == ["train/0", "train/1", "train/2"]
        assert np.array_equal(source[2], Image.open(io.BytesIO(noise(2))))
    assert len(open_source(tmp_path / "flat/test-00000-of-00001.parquet")) == 1
    (tmp_path / "flat/part.parquet").write_bytes((tmp_path / "flat/test-00000-of-00001.parquet").read_bytes())
    assert len(open_source(tmp_path / "flat")) == 5  # one of them names no split, so none does


def test_a_parquet_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    table([noise(0), noise(1)]).to_parquet(tmp_path / "a.parquet")
    assert len(open_source(tmp_path / "a.parquet")) == 2
    table([noise(5)]).to_parquet(tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    assert len(source) == 1 and np.array_equal(source[0], Image.open(io.BytesIO(noise(5))))


def test_folders_of_images_stay_folders_of_images(tmp_path: Path) -> None:
    for name in ("a", "b/deep", "c/data"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/0.png", "b/deep/0.png", "c/data/0.png"):
        (tmp_path / name).write_bytes(noise(0))
    for name in ("a/metadata.parquet", "b/captions.parquet", "c/metadata.parquet"):
        table([noise(0)]).to_parquet(tmp_path / name)
    assert all(isinstance(open_source(tmp_path / name), FolderSource) for name in "abc")
    (tmp_path / "a/0.png").rename(tmp_path / "a/0.tar")
    assert "For shards, give" in refusal(str(tmp_path / "a"))


def test_images_are_read_as_anywhere_else(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = io.BytesIO()
    ramp = np.linspace(0, 4095, 60).astype(np.uint16)[None].repeat(48, 0)
    Image.fromarray(ramp).save(deep, "png")
    images = [noise(0, "jpeg", exif=turned), deep.getvalue(), b"broken", b""]
    table(images).save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    assert source[0].size == (48, 60)
    assert np.asarray(source[1])[0, [0, -1], 0].tolist() == [0, 255], "12 of 16 bits are stretched"
    assert source.open(0).tensor(shrink=4).shape == (3, 15, 12)
    for index in (2, 3):
        with pytest.raises(ImageError, match=f"all/{index}: cannot identify"):
            source[index]


def test_rows_without_an_image_are_counted(tmp_path: Path) -> None:
    table([noise(0), None, noise(1), None]).save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    assert names_of(source) == ["all/0", "all/2"]
    assert source.left_out.lines() == ["left out of the data: 2 rows without an image, first 'all/1'"]
    assert np.array_equal(source[1], Image.open(io.BytesIO(noise(1))))
    table([None, None]).save_to_disk(tmp_path / "none")
    assert "holds no image (left out of the data: 2 rows" in refusal(str(tmp_path / "none"))


def test_the_column_of_images_is_found_or_chosen(tmp_path: Path) -> None:
    more = {"photo": (datasets.Image(), [{"bytes": noise(1), "path": None}]), "id": (datasets.Value("int64"), [7])}
    table([noise(0)], **more).save_to_disk(tmp_path / "two")
    told = refusal(str(tmp_path / "two"))
    assert "several columns of images. Choose, as hf:" in told and told.endswith("from image (Image), photo (Image)")
    source = open_source(f"hf:{tmp_path}/two?column=photo")
    assert np.array_equal(source[0], Image.open(io.BytesIO(noise(1))))
    datasets.DatasetDict(a=table([noise(0)]), b=table([noise(0)]).rename_column("image", "photo")).save_to_disk(
        tmp_path / "unlike"
    )
    assert "in different columns" in refusal(f"hf:{tmp_path}/unlike?split=a+b")
    assert "no column 'pixels'" in refusal(f"hf:{tmp_path}/two?column=pixels")
    told = refusal(f"hf:{tmp_path}/two?column=id")
    assert "no images in the column 'id'. Choose from image (Image), photo (Image)" in told and "int64" not in told

    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"jpg": [noise(2)], "text": ["a word"]}), tmp_path / "plain.parquet")  # of another tool
    assert "no column of the type Image" in refusal(str(tmp_path / "plain.parquet"))
    pq.write_table(pa.table({"url": ["a.jpg"], "size": [7]}), tmp_path / "urls.parquet")
    for name in ("urls.parquet", "urls.parquet?column=url"):
        told = refusal(f"hf:{tmp_path}/{name}")
        assert told.endswith("has no column that can hold images. Its columns: url (string), size (int64)")
    source = open_source(f"hf:{tmp_path}/plain.parquet?column=jpg")
    assert np.array_equal(source[0], Image.open(io.BytesIO(noise(2))))


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    datasets.DatasetDict(a=table([noise(0)]), b=table([noise(1)])).save_to_disk(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    os.mkfifo(tmp_path / "pipe.parquet")
    table([noise(0)]).save_to_disk(tmp_path / "cut")
    (tmp_path / "cut/data-00000-of-00001.arrow").write_bytes(b"cut off")
    cases = {
        f"{tmp_path}/set": "has the splits a, b. Choose one, as hf:",
        f"hf:{tmp_path}/set?split=c": "has no split 'c'. Choose from a, b",
        f"hf:{tmp_path}/set?parts=a": "has the unknown option 'parts'. Use one of split, column",
        f"hf:{tmp_path}/set?split": "has no value",
        f"hf:{tmp_path}/nowhere": "no such file or folder",
        f"hf:{tmp_path}/empty": "holds neither",
        f"{tmp_path}/bad.parquet": "cannot be read: ",
        f"{tmp_path}/pipe.parquet": "is a pipe",
        f"{tmp_path}/none.parquet": "no such file",
        f"{tmp_path}/cut": "cannot be read: ",
        "hf:": "hf: names no data set. Give NAME or USER/NAME",
        "hf:../set": "hf:../set names no data set. Give NAME or USER/NAME",
    }
    for data, message in cases.items():
        assert message in refusal(data), data


# ---- training


def test_workers_give_what_none_gives(tmp_path: Path) -> None:
    images = [noise(seed, "jpeg") for seed in range(9)]
    table([*images[:4], b"broken", None, *images[4:]]).save_to_disk(tmp_path / "set")
    dataset = PretrainDataset(open_source(tmp_path / "set"), TwoViews(ViewConfig(image_size=32, regions=2)), seed=3)

    def load(**workers) -> list:
        batches = EpochBatches(len(dataset), 5, seed=1, epoch=5)
        return list(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **workers))

    alone = load()
    assert {name for batch in alone for name, _ in batch.failures} == {"all/4"}
    for method in ("fork", "spawn"):
        for a, b in zip(alone, load(num_workers=1, multiprocessing_context=method), strict=True):
            assert all(map(torch.equal, a.views, b.views)) and a.failures == b.failures


def test_a_run_goes_on_with_the_same_rows_in_another_form(tmp_path: Path) -> None:
    whole = table([noise(seed) for seed in range(16)])
    whole.to_parquet(tmp_path / "train.parquet")
    run = pretrain(tmp_path / "train.parquet", tmp_path / "run", **{**TINY, "epochs": 1}).out
    assert pretrain(out=run, resume=True, epochs=2).steps == 8
    datasets.DatasetDict(train=whole, test=table([noise(0)])).save_to_disk(tmp_path / "set")
    assert pretrain(tmp_path / "set", run, resume=True, epochs=3).steps == 12
    whole.to_parquet(tmp_path / "other.parquet")  # which names no split
    with pytest.raises(UserError, match="of other names"):
        pretrain(f"hf:{tmp_path}/other.parquet", run, resume=True, epochs=4)


# ---- classes


@pytest.mark.parametrize("task", [Knn, Linear])
@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_three_colors_are_told_apart(tmp_path: Path, task, form: str) -> None:
    found, root = colors(tmp_path, train=24, test=12), tmp_path / "set"
    if form == "saved":
        found.save_to_disk(root)
    else:
        root.mkdir()
        for split, part in found.items():
            part.to_parquet(root / f"{split}-00000-of-00001.parquet")
    options = {"image_size": 32, "workers": 0, "device": "cpu", "out": str(tmp_path / "rows.json")}
    (row,) = evaluate(task(encoders=("untrained:test_resnet",), data=str(root), **options), verbose=False)
    assert row.data == "set" and row.details["pictures"] == {"train": 24, "test": 12}
    assert max(value for name, value in row.scores.items() if "top-1" in name) >= 90
    assert row.scores["chance"] == pytest.approx(100 / 3)


def test_splits_are_parts_and_one_is_divided(tmp_path: Path) -> None:
    colors(tmp_path, train=9, validation=6, test=3).save_to_disk(tmp_path / "set")
    found = open_labelled(str(tmp_path / "set"))
    assert found.classes == NAMES and not found.has_boxes
    assert [scene.labels.tolist() for scene in found.train] == [[2]] * 3 + [[1]] * 3 + [[0]] * 3  # blue, green, red
    assert len(found.test) == 6 and found.notes == ("learned from train, tested on validation. Not used: test",)
    only = open_labelled(f"hf:{tmp_path}/set?split=train")
    assert (len(only.train), len(only.test)) == (8, 1) and "train is the only part" in only.notes[0]


def test_images_without_a_class_are_left_out(tmp_path: Path) -> None:
    images = [noise(seed) for seed in range(6)]
    found = datasets.DatasetDict(train=table([*images, None], [0, None, 2, -1, 1, 0, 1]), test=table(images, [1] * 6))
    found.save_to_disk(tmp_path / "set")
    labelled = open_labelled(str(tmp_path / "set"))
    assert [scene.labels.item() for scene in labelled.train] == [0, 2, 1, 0]
    assert np.array_equal(labelled.train[1].image.permute(1, 2, 0), Image.open(io.BytesIO(images[2])))
    assert labelled.notes == (
        "train: left out of the data: 2 images without a class, first 'train/1'; "
        "1 rows without an image, first 'train/6'",
    )
    datasets.DatasetDict(train=found["test"], test=table(images, [-1] * 6)).save_to_disk(tmp_path / "hidden")
    assert "'test' of" in refusal(str(tmp_path / "hidden"), open_labelled)
    assert "holds no image with a class" in refusal(str(tmp_path / "hidden"), open_labelled)


def test_the_column_of_classes_is_found_or_chosen(tmp_path: Path) -> None:
    images, coarse = [noise(seed) for seed in range(5)], datasets.ClassLabel(names=["warm", "cold"])
    table(images, [0, 1, 2, 0, 1], coarse=(coarse, [0, 0, 1, 0, 1])).save_to_disk(tmp_path / "two")
    told = refusal(str(tmp_path / "two"), open_labelled)
    assert "several columns of classes (label, coarse). Choose one, as hf:" in told
    assert open_labelled(f"hf:{tmp_path}/two?label=coarse").classes == ("warm", "cold")
    assert "no column 'image' of the type ClassLabel" in refusal(f"hf:{tmp_path}/two?label=image", open_labelled)
    table(images, word=(datasets.Value("string"), list("abcde"))).save_to_disk(tmp_path / "none")
    assert "no column of the type ClassLabel. Make one by class_encode_column" in refusal(
        str(tmp_path / "none"), open_labelled
    )


# ---- the Hub, and what comes from others


def test_a_name_of_the_hub_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = refusal("hf:nobody/nothing?split=train")
    assert told.startswith("data: 'hf:nobody/nothing?split=train' cannot be read: Couldn't reach 'nobody/nothing'")
    assert told.endswith("Go online once, or give a copy that save_to_disk wrote")


def test_a_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a reader of parquet stands for the Hub; what has another reader is not read."""
    (tmp_path / "hub").mkdir()
    table([noise(0), noise(1)], [0, 1]).to_parquet(tmp_path / "hub/train.parquet")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/train.csv").write_text("a,b\n1,2\n")
    asked, load = [], datasets.load_dataset_builder

    def builder(name: str, config: str | None, *, revision: str | None):
        asked.append((name, config, revision))
        return load(str(tmp_path / name.partition("/")[2]), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    data = "hf:user/hub?split=train&name=small&revision=v1"
    assert locate(data) == data and names_of(open_source(data)) == ["train/0", "train/1"]
    assert asked == [("user/hub", "small", "v1")] and open_labelled("hf:user/hub").name == "user/hub"
    assert "is stored as csv, and only parquet, arrow" in refusal("hf:user/words")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "hf:here is also a path here" in refusal("hf:here")


def test_a_missing_package_is_named_with_the_command_to_install_it(tmp_path: Path, monkeypatch) -> None:
    table([noise(0)]).save_to_disk(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for data in (str(tmp_path / "set"), "hf:beans"):
        assert refusal(data) == f"data: {data!r} needs datasets. Run pip install 'maskco[hf]'"


def test_a_foreign_set_reads_no_files_elsewhere(tmp_path: Path) -> None:
    """It may name images by their paths, and its own files."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(noise(0))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/own.png").write_bytes(noise(1))
    paths = [secret, tmp_path / "set/own.png", tmp_path / "set/../secret.png", "own.png", "https://host/x.png"]
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": None, "path": str(path)} for path in paths]
    pq.write_table(pa.table({"image": images}), tmp_path / "set/train.parquet")
    source = open_source(f"hf:{tmp_path}/set?column=image")
    assert np.array_equal(source[1], Image.open(io.BytesIO(noise(1))))
    for index in (0, 2, 3, 4):
        with pytest.raises(ImageError, match="which is no file of this data set"):
            source[index]

    table([noise(0)]).save_to_disk(tmp_path / "own")
    table([noise(0)]).save_to_disk(tmp_path / "theirs")
    state = json.loads((tmp_path / "theirs/state.json").read_text())
    state["_data_files"] = [{"filename": str(tmp_path / "own/data-00000-of-00001.arrow")}]
    (tmp_path / "theirs/state.json").write_text(json.dumps(state))
    assert "which lies outside. Write the folder by save_to_disk" in refusal(str(tmp_path / "theirs"))


def test_a_stored_name_of_the_hub_is_not_opened(tmp_path: Path) -> None:
    for data in ("hf:user/name", "hf://datasets/user/name/a.tar"):
        with pytest.raises(ForeignRunError, match=rf"its images must be named: .* --data {data}"):
            stored_data(tmp_path, data, "report RUN")
