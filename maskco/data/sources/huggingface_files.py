"""The tables of a Hugging Face data set by split, from the Hub, a folder that save_to_disk wrote, or parquet files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from maskco.data.cache import cache_folder
from maskco.data.sources.base import SourceError, check_regular
from maskco.data.sources.labelled import part_of

if TYPE_CHECKING:
    from datasets import Dataset

READERS = ("parquet", "arrow", "imagefolder", "webdataset", "cache")  # of datasets; none executes what it reads
ALL = "all"  # rows that are of no split


def read_local(path: Path) -> dict[str, Dataset]:
    import datasets

    check_regular(path)
    if not path.exists():
        raise SourceError(f"data: no such file or folder {str(path)!r}. Check the path")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
        splits = dict(found) if isinstance(found, datasets.DatasetDict) else {str(found.split or ALL): found}
        names = [file["filename"] for table in splits.values() for file in table.cache_files]
        for name in (name for name in names if not lies_in(name, [path])):
            raise SourceError(
                f"data: {str(path)!r} names the file {name!r}, which lies outside. Write the folder by save_to_disk"
            )
        return splits
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if not files:
        raise SourceError(
            f"data: {str(path)!r} holds neither what save_to_disk wrote nor .parquet files. Check the path"
        )
    for file in files:
        check_regular(file)
    cache = str(cache_folder("huggingface"))  # where they are written once more, in a form that can be mapped
    return {
        split: datasets.Dataset.from_parquet([str(file) for file in own], cache_dir=cache)
        for split, own in _by_split(files).items()
    }


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    """Parquet files by the split that they are named for (`test-00000-of-00002.parquet`), if all are."""
    names = [re.sub(r"-\d+-of-\d+$", "", file.stem) for file in files]
    if not all(name != file.stem or part_of(name) for name, file in zip(names, files, strict=True)):
        return {ALL: files}
    found: dict[str, list[Path]] = {}
    for name, file in zip(names, files, strict=True):
        found.setdefault(name, []).append(file)
    return found


def read_hub(name: str, options: dict[str, str]) -> dict[str, Dataset]:
    import datasets

    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise SourceError(f"data: hf:{name} names no data set. Give NAME or USER/NAME of one, or an absolute path")
    if os.path.exists(name):
        raise SourceError(f"data: hf:{name} is also a path here. Give {os.path.abspath(name)!r}, or move it away")
    builder = datasets.load_dataset_builder(name, options.get("name"), revision=options.get("revision"))
    reader = type(builder).__module__.rpartition(".")[2]
    if type(builder).__module__ != f"datasets.packaged_modules.{reader}.{reader}" or reader not in READERS:
        known = ", ".join(READERS[:-1])
        raise SourceError(f"data: hf:{name} is stored as {reader}, and only {known} are read. Convert it to parquet")
    builder.download_and_prepare()
    return dict(builder.as_dataset())


def roots_of(local: Path | None) -> list[Path]:
    """The folder of a local set, or those where datasets puts what it downloads."""
    if local is not None:
        return [local if local.is_dir() else local.parent]
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]


def lies_in(path: str, folders: Sequence[Path]) -> bool:
    """Whether there is such a file below one of the folders. Links are followed, as in any folder."""
    return os.path.isfile(path) and any(Path(os.path.normpath(path)).is_relative_to(folder) for folder in folders)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the package, which would log an exception's cause a second time."""
    from datasets import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
