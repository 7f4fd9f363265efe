"""The registry is open: a source is one file and one entry, for training and evaluation alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskco.data
from labelled import NAMES
from maskco.data import sources
from maskco.data.sources import Kind, SourceError, locate, open_labelled, open_source, registry
from maskco.evaluate.options import Knn, Regions
from maskco.evaluate.run import evaluate
from maskco.training.loop import pretrain
from tiny_runs import TINY

ANOTHER = '''
"""A source of another package."""

from labelled import NAMES, colored
from maskco.data.sources.labelled import LabelledData, LabelledPart
from maskco.data.sources.left_out import LeftOut


class Colored:
    def __init__(self, count, seed):
        self.scenes, self.left_out = colored(count, seed), LeftOut()

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return self.scenes[index].image

    def name(self, index):
        return f"colored/{index}"


def open_source(data):
    return Colored(int(data.removeprefix("colored:")), 0)


def open_labelled(data, wanted):
    parts = []
    for seed, name in enumerate(("train", "test")):
        source = Colored(int(data.removeprefix("colored:")), seed)
        labels, boxes = [s.labels for s in source.scenes], [s.boxes for s in source.scenes]
        parts.append(LabelledPart(name, source, labels, boxes, in_memory=True))
    return LabelledData("colored squares", NAMES, tuple(parts))
'''


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`colored:COUNT` names images, in a module that nobody has imported yet."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/another_source.py").write_text(ANOTHER)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(registry, "SOURCES", [*registry.SOURCES])
    sources.register(Kind("another_source", lambda data: data.startswith("colored:"), is_path=False))
    yield
    sys.modules.pop("another_source", None)


def test_a_run_trains_on_a_registered_source(another: None, tmp_path: Path) -> None:
    assert locate("colored:8") == "colored:8" and "another_source" not in sys.modules
    assert len(open_source("colored:8")) == 8
    result = pretrain("colored:8", tmp_path / "run", **{**TINY, "epochs": 1, "workers": 1, "image_size": 24})
    assert result.steps == 2
    assert pretrain("colored:8", tmp_path / "run", resume=True, epochs=2).steps == 4


@pytest.mark.parametrize("task", [Knn, Regions])
def test_an_encoder_is_evaluated_on_a_registered_source(another: None, tmp_path: Path, task) -> None:
    found = open_labelled("colored:24")
    assert found.classes == NAMES and [part.name for part in found.parts] == ["train", "test"]
    options = {"image_size": 32, "workers": 0, "device": "cpu", "out": str(tmp_path / "rows.json")}
    (row,) = evaluate(task(encoders=("untrained:test_resnet",), data="colored:24", **options), verbose=False)
    assert row.data == "colored squares" and row.details["pictures"] == {"train": 24, "test": 24}
    assert row.scores["kNN top-1"] > row.scores["chance"] + 15


def test_without_an_entry_it_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("colored:8") == str(tmp_path / "colored:8")
    with pytest.raises(SourceError, match="no such folder"):
        open_source("colored:8")


@pytest.mark.parametrize("data", ["photos.npy", "shard.tar", "https://host/{0..9}.tar"])
def test_sources_without_labels_say_which_have_some(data: str) -> None:
    with pytest.raises(SourceError, match=r"has no labels\. Give a folder by class, COCO, .* or 'demo'$"):
        open_labelled(data)


def test_every_module_can_be_imported_first() -> None:
    """None needs another one to be there already, as modules in a circle do."""
    root = Path(maskco.data.__file__).parent
    modules = [".".join(("maskco.data", *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py")]
    modules = [name.removesuffix(".__init__") for name in modules if "demo_assets" not in name]
    program = (
        "import importlib, sys\n"
        "import numpy, torch, PIL, torchvision.transforms.v2  # once for all\n"
        "before = set(sys.modules)\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    for other in [other for other in sys.modules if other.startswith('maskco')]:\n"
        "        del sys.modules[other]\n"
    )
    assert len(modules) > 20
    subprocess.run([sys.executable, "-c", program, *modules], check=True)


def test_asking_what_data_are_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from maskco.data.sources import SourceError, is_remote, locate, open_source\n"
        "assert locate('photos').startswith('/') and locate('hf:a/b') == 'hf:a/b' and is_remote('s3://bucket')\n"
        "print([name for name in ('torch', 'torchvision', 'PIL', 'datasets', 'numpy') if name in sys.modules])\n"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert told == "[]\n"
