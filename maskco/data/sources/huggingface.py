"""Data sets in Hugging Face's formats. They are memory-mapped, so that any row is read at once.

    hf:NAME?split=train             a data set of the Hub; what was downloaded once is there offline too
    FOLDER                          what save_to_disk wrote, or parquet files
    FILE.parquet
    hf:/FOLDER?split=test           the same, with options; the path is absolute

| option | |
|---|---|
| split | which one; several are joined by "+". By default train, or the only one |
| column | the images, if several columns hold some, or none says that it does |
| label | the classes, if there are several ClassLabel columns |
| name, revision | of a data set of the Hub |

Images are decoded here, not by the package: broken ones, EXIF and 16 bits are treated as anywhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskco.data.cache import cache_folder
from maskco.data.images import Picture, PictureError
from maskco.data.sources.base import SourceError, check_regular, import_package, split_options
from maskco.data.sources.labelled import LabelledData, LabelledPart, Wanted, notes_on_parts, part_of, parts_among
from maskco.data.sources.left_out import LeftOut
from maskco.data.sources.remote import unreadable
from maskco.errors import one_line

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
OPTIONS = ("split", "column", "label", "name", "revision")
READERS = ("parquet", "arrow", "imagefolder", "webdataset", "cache")  # of datasets; none executes what it reads
ALL = "all"  # rows that are of no split


def open_source(data: str) -> HuggingFaceSource:
    opened = Opened(data)
    return opened.source(opened.chosen or opened.default())


def open_labelled(data: str, wanted: Wanted) -> LabelledData:
    """Splits to learn from and to test on, unless `data` chooses one; classes by a ClassLabel column."""
    opened = Opened(data)
    notes: tuple[str, ...] = ()
    parts = [opened.chosen]
    if not opened.chosen:
        named = parts_among(opened.splits, data, f"choose one, as {opened.with_option('split')}")
        parts = [[split] for split in list(named.values())[:2]] or [opened.default()]
        notes = notes_on_parts(named)
    label, classes = opened.classes(parts[0][0])
    for split in (split for part in parts for split in part):
        if opened.classes(split) != (label, classes):
            raise SourceError(f"data: {parts[0][0]!r} and {split!r} of {data!r} do not have the same classes")
    labelled = []
    for splits in parts:
        source = opened.source(splits, label)
        labelled.append(LabelledPart("+".join(splits), source, source.labels[:, None]))
    return LabelledData(opened.title, classes, tuple(labelled), notes)


class HuggingFaceSource:
    """The images in a column of some splits, in the order of their rows; a `maskco.data.sources.Source`.

    Rows without an image are counted in `left_out`, and with `label` those without a class.

    Args:
        roots: folders inside which images may lie that are stored as paths.
        label: column of classes, or None.
    """

    def __init__(
        self, splits: dict[str, Dataset], column: str, roots: Sequence[Path], label: str | None = None
    ) -> None:
        from datasets import Image as Encoded

        self.left_out, self.column, self.roots = LeftOut(), column, roots
        self.splits = list(splits)
        self._tables = []
        split_of, row_of, labels = [], [], []
        for place, (split, table) in enumerate(splits.items()):
            images = table.with_format(None).select_columns(column).cast_column(column, Encoded(decode=False))
            self._tables.append(images)
            kept = _holds_image(images, column)
            self._leave_out("rows without an image", split, ~kept)
            if label is not None:
                of_row = _classes_of_rows(table, label)
                self._leave_out("images without a class", split, kept & (of_row < 0))
                kept &= of_row >= 0
                labels.append(of_row[kept])
            row_of.append(np.flatnonzero(kept))
            split_of.append(np.full(len(row_of[-1]), place, np.int16))
        self._row_of, self._split_of = np.concatenate(row_of), np.concatenate(split_of)
        self.labels: Tensor = torch.from_numpy(np.concatenate(labels)) if labels else torch.empty(0, dtype=torch.int64)
        """int64 [N], if there is a column of classes."""

    def _leave_out(self, reason: str, split: str, which: np.ndarray) -> None:
        if which.any():
            self.left_out.add(reason, f"{split}/{np.flatnonzero(which)[0]}", int(which.sum()))

    def __len__(self) -> int:
        return len(self._row_of)

    def __getitem__(self, index: int) -> Image.Image:
        return self.open(index).decode()

    def open(self, index: int) -> Picture:
        name = self.name(index)
        try:
            stored = self._tables[self._split_of[index]][int(self._row_of[index])][self.column]
        except Exception as error:  # a damaged file: whatever Arrow raises
            raise PictureError(name, one_line(error)) from error
        if stored["bytes"] is not None:
            return Picture(stored["bytes"], name=name)
        if not _lies_in(stored["path"], self.roots):
            raise PictureError(name, f"stored as {stored['path']!r}, which is no file of this data set")
        return Picture(stored["path"], name=name)

    def name(self, index: int) -> str:
        return f"{self.splits[self._split_of[index]]}/{self._row_of[index]}"


class Opened:
    """A data set with all its splits, and what the options in `data` choose."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.where, self.options = split_options(data.removeprefix(PREFIX)) if data.startswith(PREFIX) else (data, {})
        if unknown := set(self.options) - set(OPTIONS):
            raise SourceError(f"data: {data!r} has the option {min(unknown)!r}; known are {', '.join(OPTIONS)}")
        import_package("datasets", f"{data!r}", "'maskco[hf]'")
        is_local = os.path.isabs(self.where)
        self.title = os.path.basename(os.path.normpath(self.where)) if is_local else self.where
        try:
            with _quiet():
                self.splits = _read_local(Path(self.where)) if is_local else _read_hub(self.where, self.options)
        except SourceError:
            raise
        except Exception as error:  # whatever a client or a damaged file raises
            said = unreadable(data, error)
            if isinstance(error, ConnectionError):
                raise SourceError(f"{said}. Go online once, or give a copy that save_to_disk wrote") from error
            raise said from error
        self.roots = _roots(Path(self.where) if is_local else None)
        self.chosen = self.options["split"].split("+") if "split" in self.options else []
        for split in self.chosen:
            if split not in self.splits:
                raise SourceError(f"data: {data!r} has no split {split!r}, but {', '.join(self.splits)}")

    def default(self) -> list[str]:
        """The split for training, or the only one."""
        found = [split for split in self.splits if part_of(split) == "train"] or list(self.splits)
        if len(found) != 1:
            names = ", ".join(self.splits)
            raise SourceError(f"data: {self.data!r} has the splits {names}: choose, as {self.with_option('split')}")
        return found

    def source(self, splits: list[str], label: str | None = None) -> HuggingFaceSource:
        column = self._image_column(splits[0])
        source = HuggingFaceSource({split: self.splits[split] for split in splits}, column, self.roots, label)
        if not len(source):
            others = "".join(f" ({line})" for line in source.left_out.lines())
            what = "image" if label is None else "image with a class"
            raise SourceError(f"data: {'+'.join(splits)!r} of {self.data!r} holds no {what}{others}")
        return source

    def _image_column(self, split: str) -> str:
        from datasets import Image as Encoded

        features = self.splits[split].features
        images = [name for name, feature in features.items() if isinstance(feature, Encoded)]
        asked = self.options.get("column")
        if asked is None and len(images) == 1:
            return images[0]
        if asked is not None and (asked in images or _is_encoded(features.get(asked))):
            return asked
        columns = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
        if asked is not None:
            what = f"no column {asked!r}" if asked not in features else f"no images in the column {asked!r}"
            raise SourceError(f"data: {self.data!r} has {what}; its columns are {columns}")
        what = "several columns of images" if images else "no column of the type Image"
        raise SourceError(f"data: {self.data!r} has {what}: choose, as {self.with_option('column')}, from {columns}")

    def classes(self, split: str) -> tuple[str, tuple[str, ...]]:
        """The column of classes, and their names."""
        from datasets import ClassLabel

        features = self.splits[split].features
        found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        asked = self.options.get("label")
        if asked is not None and asked not in found:
            raise SourceError(f"data: {self.data!r} has no column {asked!r} of the type ClassLabel, but {found}")
        if asked is None and len(found) != 1:
            what = f"several columns of classes ({', '.join(found)})" if found else "no column of the type ClassLabel"
            remedy = f"choose, as {self.with_option('label')}" if found else "class_encode_column makes one"
            raise SourceError(f"data: {self.data!r} has {what}: {remedy}")
        label = asked or found[0]
        return label, tuple(features[label].names)

    def with_option(self, option: str) -> str:
        """How to write it."""
        separator = "&" if self.options else "?"
        return f"{PREFIX}{self.data.removeprefix(PREFIX)}{separator}{option}=…"


# --- reading --------------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong is in the exception: the package logs it once more."""
    from datasets import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _read_local(path: Path) -> dict[str, Dataset]:
    import datasets

    check_regular(path)
    if not path.exists():
        raise SourceError(f"data: no such file or folder {str(path)!r}: check the path")
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
        splits = dict(found) if isinstance(found, datasets.DatasetDict) else {str(found.split or ALL): found}
        names = [file["filename"] for table in splits.values() for file in table.cache_files]
        for name in (name for name in names if not _lies_in(name, [path])):
            raise SourceError(f"data: {str(path)!r} names the file {name!r}, which lies outside of it")
        return splits
    files = [path] if path.is_file() else sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])
    if not files:
        raise SourceError(f"data: {str(path)!r} holds neither what save_to_disk wrote nor .parquet files")
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


def _read_hub(name: str, options: dict[str, str]) -> dict[str, Dataset]:
    import datasets

    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise SourceError(f"data: {PREFIX}{name}: expected NAME or USER/NAME of a data set, or an absolute path")
    if os.path.exists(name):
        raise SourceError(f"data: {PREFIX}{name} is also a path here: give {os.path.abspath(name)!r}, or move it away")
    builder = datasets.load_dataset_builder(name, options.get("name"), revision=options.get("revision"))
    reader = type(builder).__module__.rpartition(".")[2]
    if type(builder).__module__ != f"datasets.packaged_modules.{reader}.{reader}" or reader not in READERS:
        raise SourceError(f"data: {PREFIX}{name} is stored as {reader}: only {', '.join(READERS[:-1])} are read")
    builder.download_and_prepare()
    return dict(builder.as_dataset())


def _roots(local: Path | None) -> list[Path]:
    """The folder of a local set, or those where datasets puts what it downloads."""
    if local is not None:
        return [local if local.is_dir() else local.parent]
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]


def _lies_in(path: str, folders: Sequence[Path]) -> bool:
    """Whether there is such a file below one of the folders. Links are followed, as in any folder."""
    return os.path.isfile(path) and any(Path(os.path.normpath(path)).is_relative_to(folder) for folder in folders)


# --- columns --------------------------------------------------------------------------------------------------------


def _holds_image(table: Dataset, column: str) -> np.ndarray:
    """bool [N]: whether a row holds bytes or a path. `table` has no other column."""
    import pyarrow.compute as pc

    stored = table.data.column(column)
    parts = [pc.is_valid(pc.struct_field(stored, part)) for part in ("bytes", "path")]
    return pc.and_(pc.is_valid(stored), pc.or_(*parts)).to_numpy()


def _classes_of_rows(table: Dataset, label: str) -> np.ndarray:
    """int64 [N], negative where there is none."""
    import pyarrow.compute as pc

    return pc.fill_null(table.data.column(label), -1).to_numpy().astype(np.int64)


def _is_encoded(feature: Any) -> bool:
    """Whether a column's values may be images' bytes, though its type does not say so."""
    return getattr(feature, "dtype", None) in ("binary", "large_binary") or (
        isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    )


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name
