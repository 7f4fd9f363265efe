"""The kinds of sources, and the choice among them by `data`. A new one is a file and an entry here.

Pretraining and evaluation open their data by the same entries. Nothing heavy is imported before a source is opened.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import unquote

from maskco.data.sources.base import Source, SourceError, is_remote
from maskco.data.sources.labelled import LabelledData, Wanted


class Kind(NamedTuple):
    """One way to name a source."""

    module: str  # with `open_source(data)` and perhaps `open_labelled(data, wanted)`; imported when it is needed
    names: Callable[[str], bool]  # whether `data` names such a source; of a path, it gets the absolute one
    is_path: bool = True  # else `data` is kept as it is given


def _is_file_ending_in(*endings: str) -> Callable[[str], bool]:
    """(Folders may be called as they like.)"""
    return lambda data: data.lower().endswith(endings) and not os.path.isdir(data)


def _is_coco(data: str) -> bool:
    return _is_file_ending_in(".json")(data) or any(Path(data).glob("annotations/instances_*.json"))


def _is_voc(data: str) -> bool:
    """One year of Pascal VOC, or the folder of several."""
    return any(any(Path(data).glob(f"{year}ImageSets/Main")) for year in ("", "VOC[0-9][0-9][0-9][0-9]/"))


def _is_saved_or_parquet(data: str) -> bool:
    """Whether it is a parquet file, a folder of these, or a folder that datasets' `save_to_disk` wrote."""
    if not os.path.isdir(data):
        return data.lower().endswith(".parquet")
    names = _visible(data)
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return True
    found = names | _visible(os.path.join(data, "data"))
    if not any(name.lower().endswith(".parquet") for name in found) or any(map(_is_other, found)):
        return False
    return not any(os.path.isdir(os.path.join(data, name)) for name in names - {"data"})


def _is_other(name: str) -> bool:
    """Whether parquet files next to this one only describe it, as img2dataset writes them next to shards."""
    from maskco.data.kinds import is_image

    return name.endswith(".tar") or is_image(name)


def _visible(folder: str) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError:  # the opener will report it
        return set()


_HERE = "maskco.data.sources"
SOURCES = [  # the first whose `names` is true opens the data
    Kind(f"{_HERE}.demo", lambda data: data == "demo", is_path=False),
    Kind(f"{_HERE}.torchvision", lambda data: data.startswith("torchvision:"), is_path=False),
    Kind(f"{_HERE}.huggingface", lambda data: data.startswith("hf:") and data[3:5] != "//", is_path=False),
    Kind(f"{_HERE}.python", lambda data: data.startswith("python:"), is_path=False),
    Kind(f"{_HERE}.remote_shards", is_remote, is_path=False),  # hf:// too
    Kind(f"{_HERE}.shards", _is_file_ending_in(".tar", ".tar.gz", ".tgz")),
    Kind(f"{_HERE}.arrays", _is_file_ending_in(".npy")),
    Kind(f"{_HERE}.coco", _is_coco),
    Kind(f"{_HERE}.voc", _is_voc),
    Kind(f"{_HERE}.huggingface", _is_saved_or_parquet),
    Kind(f"{_HERE}.folder", lambda data: True),
]


def register(kind: Kind) -> None:
    """Adds a kind of source, which is asked before the others."""
    SOURCES.insert(0, kind)


def open_source(data: str | Path) -> Source:
    """The images that `data` names::

        demo                            the built-in scenes
        torchvision:NAME?option=value   a data set of torchvision's, downloaded if need be
        hf:NAME?option=value            a data set of the Hugging Face Hub, downloaded if need be
        an address, ….tar               shards, where braces and, if local, * expand
        ….npy                           a NumPy array of small images
        ….json                          a COCO annotation file: the images that it lists
        a folder with annotations/instances_*.json    the same, of several files the one for training
        VOCdevkit, or VOC2007, VOC2012 … in it        Pascal VOC: the images of its trainval lists
        ….parquet, a folder of them, or one that save_to_disk wrote    a Hugging Face data set
        any other folder                every image below it

    Addresses are http://, https:// and those that `maskco.data.store.addresses` lists. Raises SourceError.
    """
    data = _checked(data)
    return _module_of(data).open_source(data)


def open_labelled(data: str | Path, wanted: Wanted | None = None) -> LabelledData:
    """The images that `data` names with their labels, in one part or two. Raises SourceError, also if it has no labels.

    The demo, COCO, VOC, folders by class, and data sets of torchvision and Hugging Face have labels.
    """
    data = _checked(data)
    module = _module_of(data)
    if not hasattr(module, "open_labelled"):
        raise SourceError(
            f"data: {data!r} has no labels. Give a folder by class, COCO, VOC, a data set of torchvision or Hugging "
            "Face, or 'demo'"
        )
    return module.open_labelled(data, wanted or Wanted())


def locate(data: str) -> str:
    """`data` with an absolute path, if it is one, so that a run can be resumed from any folder. file:// is a path."""
    if data == "" or _is_of_windows(data) or any(kind.names(data) for kind in SOURCES if not kind.is_path):
        return data
    if data.lower().startswith("file://"):
        data = "/" + unquote(data[len("file://") :].removeprefix("localhost")).lstrip("/")
    # Links stay: what they lead to may lack the name's ending, as in the caches of Hugging Face.
    return os.path.abspath(os.path.expanduser(data))


def fingerprint(source: Source) -> str:
    """A hash of the names of all images in their order: equal if a run can continue with them.

    A source may have its own, as a property `fingerprint`.
    """
    if (own := getattr(source, "fingerprint", None)) is not None:
        return own
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _checked(data: str | Path) -> str:
    if _is_of_windows(str(data)):
        raise SourceError(f"data: {str(data)!r} is a path of Windows, and this is {sys.platform}. Give a path as here")
    if not str(data):
        raise SourceError("data: nothing is named. Give a folder, or use 'demo' for the built-in scenes")
    return locate(str(data))


def _module_of(data: str) -> ModuleType:
    return importlib.import_module(next(kind.module for kind in SOURCES if kind.names(data)))


def _is_of_windows(data: str) -> bool:
    return os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", data) is not None
