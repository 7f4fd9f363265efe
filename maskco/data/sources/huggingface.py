"""Data sets in Hugging Face's formats. They are memory-mapped, so that any row is read at once.

    hf:NAME?split=train             a data set of the Hub, which works offline once it was downloaded
    FOLDER                          what save_to_disk wrote, or parquet files
    FILE.parquet
    hf:/FOLDER?split=test           the same, with options and an absolute path

| option | |
|---|---|
| split | which one, or several joined by "+". By default train, or the only one |
| column | the images, if several columns hold some, or none has the type Image |
| label | the classes, if there are several ClassLabel columns |
| name, revision | of a data set of the Hub |

Images are decoded here, not by the package: broken ones, EXIF and 16 bits are treated as anywhere else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskco.data.images import EncodedImage, ImageError
from maskco.data.sources.base import SourceError, import_package, split_options
from maskco.data.sources.huggingface_files import lies_in, quiet, read_hub, read_local, roots_of
from maskco.data.sources.labelled import LabelledData, LabelledPart, Wanted, notes_on_parts, part_of, parts_among
from maskco.data.sources.left_out import LeftOut
from maskco.data.store.addresses import unreadable
from maskco.errors import one_line

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
OPTIONS = ("split", "column", "label", "name", "revision")


def open_source(data: str) -> HuggingFaceSource:
    opened = Opened(data)
    return opened.source(opened.chosen or opened.default())


def open_labelled(data: str, wanted: Wanted) -> LabelledData:
    """Splits to learn from and to test on, unless `data` chooses one. Classes come from a ClassLabel column."""
    opened = Opened(data)
    notes: tuple[str, ...] = ()
    parts = [opened.chosen]
    if not opened.chosen:
        named = parts_among(opened.splits, data, f"Choose one, as {opened.with_option('split')}")
        parts = [[split] for split in list(named.values())[:2]] or [opened.default()]
        notes = notes_on_parts(named)
    label, classes = opened.classes(parts[0][0])
    for split in (split for part in parts for split in part):
        if opened.classes(split) != (label, classes):
            raise SourceError(
                f"data: {parts[0][0]!r} and {split!r} of {data!r} have different classes. Choose one of them"
            )
    labelled = []
    for splits in parts:
        source = opened.source(splits, label)
        labelled.append(LabelledPart("+".join(splits), source, source.labels[:, None]))
    return LabelledData(opened.title, classes, tuple(labelled), notes)


class HuggingFaceSource:
    """The images in a column of some splits, in the order of their rows. A `maskco.data.sources.Source`.

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
            images = table.with_format(None).select_columns(column)
            if isinstance(images.features[column], Encoded):
                images = images.cast_column(column, Encoded(decode=False))
            self._tables.append(images)
            kept = _holds_image(images.data.column(column))
            self._leave_out("rows without an image", split, ~kept)
            if label is not None:
                of_row = _classes_of_rows(table.data.column(label))
                is_class = (of_row >= 0) & (of_row < table.features[label].num_classes)
                self._leave_out("images without a class", split, kept & ~is_class)
                kept &= is_class
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

    def open(self, index: int) -> EncodedImage:
        name = self.name(index)
        try:
            stored = self._tables[self._split_of[index]][int(self._row_of[index])][self.column]
        except Exception as error:  # a damaged file: whatever Arrow raises
            raise ImageError(name, one_line(error)) from error
        encoded = stored if isinstance(stored, bytes) else stored["bytes"]
        if encoded is not None:
            return EncodedImage(encoded, name=name)
        if not lies_in(stored["path"], self.roots):
            raise ImageError(name, f"stored as {stored['path']!r}, which is no file of this data set")
        return EncodedImage(stored["path"], name=name)

    def name(self, index: int) -> str:
        return f"{self.splits[self._split_of[index]]}/{self._row_of[index]}"


class Opened:
    """A data set with all its splits, and the choice that the options in `data` make."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.where, self.options = split_options(data.removeprefix(PREFIX)) if data.startswith(PREFIX) else (data, {})
        if unknown := set(self.options) - set(OPTIONS):
            raise SourceError(
                f"data: {data!r} has the unknown option {min(unknown)!r}. Use one of {', '.join(OPTIONS)}"
            )
        import_package("datasets", f"{data!r}", "'maskco[hf]'")
        is_local = os.path.isabs(self.where)
        self.title = os.path.basename(os.path.normpath(self.where)) if is_local else self.where
        try:
            with quiet():
                self.splits = read_local(Path(self.where)) if is_local else read_hub(self.where, self.options)
        except SourceError:
            raise
        except Exception as error:  # whatever a client or a damaged file raises
            said = unreadable(data, error)
            if isinstance(error, ConnectionError):
                raise SourceError(f"{said}. Go online once, or give a copy that save_to_disk wrote") from error
            raise said from error
        self.roots = roots_of(Path(self.where) if is_local else None)
        self.chosen = self.options["split"].split("+") if "split" in self.options else []
        for split in self.chosen:
            if split not in self.splits:
                raise SourceError(f"data: {data!r} has no split {split!r}. Choose from {', '.join(self.splits)}")

    def default(self) -> list[str]:
        """The split for training, or the only one."""
        found = [split for split in self.splits if part_of(split) == "train"] or list(self.splits)
        if len(found) != 1:
            names = ", ".join(self.splits)
            raise SourceError(f"data: {self.data!r} has the splits {names}. Choose one, as {self.with_option('split')}")
        return found

    def source(self, splits: list[str], label: str | None = None) -> HuggingFaceSource:
        columns = {self._image_column(split) for split in splits}
        if len(columns) > 1:
            raise SourceError(f"data: the splits of {self.data!r} hold images in different columns. Choose one split")
        tables = {split: self.splits[split] for split in splits}
        source = HuggingFaceSource(tables, columns.pop(), self.roots, label)
        if not len(source):
            others = "".join(f" ({line})" for line in source.left_out.lines())
            what = "image" if label is None else "image with a class"
            raise SourceError(
                f"data: {'+'.join(splits)!r} of {self.data!r} holds no {what}{others}. Choose another split or data set"
            )
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
        usable = [name for name in features if name in images or _is_encoded(features[name])]
        columns = ", ".join(f"{name} ({_kind(features[name])})" for name in usable)
        if not usable:
            found = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items()) or "none"
            raise SourceError(f"data: {self.data!r} has no column that can hold images. Its columns: {found}")
        if asked is not None:
            what = f"no column {asked!r}" if asked not in features else f"no images in the column {asked!r}"
            raise SourceError(f"data: {self.data!r} has {what}. Choose from {columns}")
        what = "several columns of images" if images else "no column of the type Image"
        raise SourceError(f"data: {self.data!r} has {what}. Choose, as {self.with_option('column')}, from {columns}")

    def classes(self, split: str) -> tuple[str, tuple[str, ...]]:
        """The column of classes, and their names."""
        from datasets import ClassLabel

        features = self.splits[split].features
        found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        asked = self.options.get("label")
        if asked is not None and asked not in found:
            remedy = f"Choose from {', '.join(found)}" if found else "Make one by class_encode_column"
            raise SourceError(f"data: {self.data!r} has no column {asked!r} of the type ClassLabel. {remedy}")
        if asked is None and len(found) != 1:
            what = f"several columns of classes ({', '.join(found)})" if found else "no column of the type ClassLabel"
            remedy = f"Choose one, as {self.with_option('label')}" if found else "Make one by class_encode_column"
            raise SourceError(f"data: {self.data!r} has {what}. {remedy}")
        label = asked or found[0]
        return label, tuple(features[label].names)

    def with_option(self, option: str) -> str:
        """How to write it."""
        separator = "&" if self.options else "?"
        return f"{PREFIX}{self.data.removeprefix(PREFIX)}{separator}{option}=…"


# --- columns --------------------------------------------------------------------------------------------------------


def _holds_image(stored: Any) -> np.ndarray:
    """bool [N]: which rows of an Arrow column hold bytes, or a path in place of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    valid = pc.is_valid(stored)
    if pa.types.is_struct(stored.type):
        valid = pc.and_(valid, pc.or_(*(pc.is_valid(pc.struct_field(stored, part)) for part in ("bytes", "path"))))
    return valid.to_numpy()


def _classes_of_rows(stored: Any) -> np.ndarray:
    """int64 [N], negative where an Arrow column holds none."""
    import pyarrow.compute as pc

    return pc.fill_null(stored, -1).to_numpy().astype(np.int64)


def _is_encoded(feature: Any) -> bool:
    """Whether a column's values may be images' bytes, though its type does not say so."""
    return getattr(feature, "dtype", None) in ("binary", "large_binary") or (
        isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    )


def _kind(feature: Any) -> str:
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name
