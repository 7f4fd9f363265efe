"""torchvision's sets by name, and what --data means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from torchvision import datasets

from maskco.data.coco import CocoSource
from maskco.data.named import NamedSource
from maskco.data.pictures import PictureError
from maskco.data.sources import FolderSource, SourceError, fingerprint, locate, open_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_set_that_needs_no_download() -> None:
    source = open_source("torchvision:FakeData?size=5")
    assert len(source) == 5 and source[3].size == (224, 224) and source.name(3) == "FakeData/3"


def test_options_reach_the_set_and_paths_stay_its_own(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "set" / label).mkdir(parents=True)
        Image.new("LA", (40, 40), (9, 255)).save(tmp_path / "set" / label / "a.png")
    data = f"torchvision:ImageFolder?root={tmp_path}/set"
    assert locate(data) == data
    source = open_source(data)
    assert len(source) == 2 and source[1].mode == "RGB"
    (tmp_path / "set/dog/a.png").write_bytes(b"broken")
    with pytest.raises(PictureError, match="ImageFolder/1: cannot identify"):
        source[1]


def test_sets_are_downloaded_into_the_cache_unless_told_otherwise(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}

    class Downloads(datasets.FakeData):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            given.update(root=root, split=split, download=download)
            super().__init__(size=1)

    monkeypatch.setattr(datasets, "STL10", Downloads)
    NamedSource("torchvision:STL10?split=unlabeled")
    assert given == {"root": str(cache / "torchvision"), "split": "unlabeled", "download": True}
    NamedSource("torchvision:STL10?download=false&root=here")
    assert given == {"root": "here", "split": "train", "download": False}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("torchvision:CIFAR1O", "no data set 'CIFAR1O'; did you mean CIFAR10"),
        ("torchvision:STL10?split=all&download=false", "cannot be opened: Unknown value 'all'"),
        ("torchvision:STL10?part=1", "cannot be opened: .*unexpected keyword argument 'part'"),
        ("torchvision:CIFAR10?download=false", "cannot be opened: Dataset not found"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(data: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)


def test_a_folder_in_cocos_layout_gives_the_pictures_of_its_training_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / split / f"{split}.png")
        content = {"images": [{"id": 1, "file_name": f"{split}.png"}]}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    source = open_source(tmp_path)
    assert isinstance(source, CocoSource) and source.names == ["train2017.png"], "validation pictures stay unseen"
    assert open_source(tmp_path / "annotations/instances_val2017.json").names == ["val2017.png"]
    assert isinstance(open_source(tmp_path / "val2017"), FolderSource)
    (tmp_path / "annotations/instances_train2017.json").rename(tmp_path / "annotations/instances_minival.json")
    with pytest.raises(SourceError, match=r"several annotation files .*name one"):
        open_source(tmp_path)


def test_fingerprints_tell_names_and_their_order(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    source = FolderSource(tmp_path)
    before = fingerprint(source)
    assert fingerprint(FolderSource(tmp_path)) == before
    source.names.reverse()
    assert fingerprint(source) != before
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert fingerprint(FolderSource(tmp_path)) != before
