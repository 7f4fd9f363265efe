"""torchvision's sets by name, and what --data means."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from maskco.data.images import ImageError
from maskco.data.sources import SourceError, fingerprint, is_remote, locate, open_source
from maskco.data.sources.coco import CocoSource
from maskco.data.sources.files import FolderSource
from maskco.data.sources.torchvision import NamedSource
from maskco.evaluate.datasets import open_labelled


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
    (tmp_path / "set").rename(tmp_path / "a+b & c")
    data = f"torchvision:ImageFolder?root={tmp_path}/a+b %26 c"
    assert locate(data) == data
    source = open_source(data)
    assert len(source) == 2 and source[1].mode == "RGB"
    (tmp_path / "a+b & c/dog/a.png").write_bytes(b"broken")
    with pytest.raises(ImageError, match="ImageFolder/1: cannot identify"):
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
        ("torchvision:CIFAR1O", r"no data set 'CIFAR1O'\. Did you mean CIFAR10\?$"),
        ("torchvision:STL10?split=all&download=false", "cannot be opened: Unknown value 'all'"),
        ("torchvision:STL10?part=1", "cannot be opened: .*unexpected keyword argument 'part'"),
        ("torchvision:CIFAR10?download=false", "cannot be opened: Dataset not found"),
        ("torchvision:STL10?unlabeled", "option 'unlabeled' of .* has no value"),
        ("torchvision:FakeData?size=5&size=6", "option 'size' of .* is given twice"),
        ("torchvision:FakeData?size=0", r"holds no images\. Name another part or data set$"),
        ("torchvision:FakeData?size=-1", "cannot be opened: "),
        ("torchvision:FakeData?size=many", "cannot be opened: "),
        ("torchvision:FakeData?transform=os.system", "cannot be opened: .* not callable"),
        ("torchvision:FakeData?image_size=32", "cannot be opened: "),
        ("torchvision:", "no data set ''"),
        ("torchvision:os", "no data set 'os'"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(data: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        open_source(data)
    assert "\n" not in str(caught.value)


class Numbers(datasets.FakeData):
    """Images of known classes, in parts of several sizes."""

    parts = ("train", "val", "test")
    classes = ("zero", "one", "two")

    def __init__(self, root: str, split: str = "train") -> None:
        if split not in self.parts:
            raise ValueError(f"Unknown value '{split}' for argument split")
        super().__init__(size=4 + 2 * self.parts.index(split), image_size=(3, 40, 40), num_classes=3)


def test_both_parts_of_a_set_by_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "STL10", Numbers)
    found = open_labelled("torchvision:STL10")
    assert (found.name, found.classes, found.has_boxes) == ("STL10", Numbers.classes, False)
    assert (len(found.train), len(found.test)) == (4, 6)
    assert found.notes == ("learned from split=train, tested on split=val",)
    own = Numbers("", "val")
    assert [scene.labels.tolist() for scene in found.test] == [[own[i][1]] for i in range(6)]
    monkeypatch.setattr(Numbers, "parts", ("train", "test"))
    assert open_labelled("torchvision:STL10").notes == ("learned from split=train, tested on split=test",)
    chosen = open_labelled("torchvision:STL10?split=test")
    assert (len(chosen.train), len(chosen.test)) == (5, 1) and "STL10 is the only part" in chosen.notes[0]
    monkeypatch.setattr(Numbers, "parts", ("train",))
    with pytest.raises(SourceError, match="cannot be opened: Unknown value 'test'"):
        open_labelled("torchvision:STL10")


def test_parts_by_train_and_classes_that_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digits(datasets.FakeData):
        def __init__(self, root: str, train: bool = True) -> None:
            super().__init__(size=4 if train else 3, image_size=(3, 40, 40))
            self.targets = np.arange(len(self)) + 5

        def __getitem__(self, index: int):
            return super().__getitem__(index)[0], "no number"

    monkeypatch.setattr(datasets, "MNIST", Digits)
    found = open_labelled("torchvision:MNIST")
    assert [scene.labels.item() for scene in found.train] == [5, 6, 7, 8] and found.classes == tuple("012345678")
    assert len(found.test) == 3 and found.notes == ("learned from train=True, tested on train=False",)


def test_a_set_without_one_class_for_each_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for target, message in (
        ({"boxes": []}, r"no class for each image \(.*\)\. Name a data set of classes"),
        (-1, "some images of torchvision:CelebA are not labelled"),
    ):

        class Attributes(datasets.FakeData):
            def __init__(self, root: str) -> None:
                super().__init__(size=3, image_size=(3, 40, 40))

            def __getitem__(self, index: int):
                return super().__getitem__(index)[0], target  # noqa: B023

        monkeypatch.setattr(datasets, "CelebA", Attributes)
        with pytest.raises(SourceError, match=message) as caught:
            open_labelled("torchvision:CelebA")
        assert "\n" not in str(caught.value)


def test_a_folder_in_cocos_layout_gives_the_pictures_of_its_training_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / split / f"{split}.png")
        content = {"images": [{"id": 1, "file_name": f"{split}.png"}]}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    source = open_source(tmp_path)
    assert isinstance(source, CocoSource) and source.names == ["train2017.png"], "validation images stay unseen"
    assert open_source(tmp_path / "annotations/instances_val2017.json").names == ["val2017.png"]
    assert isinstance(open_source(tmp_path / "val2017"), FolderSource)
    (tmp_path / "annotations/instances_train2017.json").rename(tmp_path / "annotations/instances_minival.json")
    with pytest.raises(SourceError, match=r"several annotation files .*\. Name one"):
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


def test_pipes_devices_and_paths_of_windows_are_no_data(tmp_path: Path) -> None:
    cases = {
        "/dev/null": "is a pipe, socket or device",
        "C:\\photos": "a path of Windows",
        "D:/photos": "a path of Windows",
    }
    for name in ("fifo", "fifo.jpg", "fifo.json", "fifo.npy"):
        os.mkfifo(tmp_path / name)
        cases[str(tmp_path / name)] = "is a pipe, socket or device"
    os.mkfifo(tmp_path / "fifo.tar")
    cases[str(tmp_path / "fifo.tar")] = "is no regular file"
    for data, message in cases.items():
        for given in (data, locate(data)):
            with pytest.raises(SourceError, match=message) as caught:
                open_source(given)
            assert "\n" not in str(caught.value)


def test_a_file_address_is_a_path_and_a_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "my photos/a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for data in (f"file://{tmp_path}/my%20photos", f"FILE://localhost{tmp_path}/my photos", "~/my photos"):
        assert not is_remote(data) and locate(data) == str(tmp_path / "my photos")
        assert open_source(data).names == ["a.png"]
    monkeypatch.chdir(tmp_path)
    assert locate("my photos") == str(tmp_path / "my photos")
    assert locate("~nobody-of-this-name/x") == str(tmp_path / "~nobody-of-this-name/x")


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    """The caches of Hugging Face hold links that end in .npy to files that do not."""
    np.save(tmp_path / "blob.npy", np.zeros((2, 40, 40, 3), np.uint8))
    (tmp_path / "blob.npy").rename(tmp_path / "blob")
    os.symlink("blob", tmp_path / "photos.npy")
    assert len(open_source(locate(str(tmp_path / "photos.npy")))) == 2
