"""torchvision's data sets by name: "torchvision:STL10?split=unlabeled"."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.images import ImageError, to_rgb
from maskco.data.sources.base import SourceError, split_options
from maskco.data.sources.labelled import LabelledData, LabelledPart, Wanted
from maskco.data.sources.left_out import LeftOut
from maskco.errors import one_line

PREFIX = "torchvision:"
PARTS: dict[str, list[Sequence[Any]]] = {  # arguments that choose a part, and their values to learn from and to test on
    "train": [(True,), (False,)],
    "split": [("train", "trainval"), ("val", "valid", "test")],
}


def open_source(data: str) -> NamedSource:
    return NamedSource(data)


def open_labelled(data: str, wanted: Wanted) -> LabelledData:
    """Both parts of a data set whose class has an argument `train` or `split`, unless `data` chooses one."""
    name, given = split_options(data.removeprefix(PREFIX))
    accepted = inspect.signature(_class_of(name)).parameters
    argument = next((argument for argument in PARTS if argument in accepted), None)
    if argument is None or any(argument in given for argument in PARTS):
        sources = {name: NamedSource(data)}
    else:
        sources = dict(_first_that_opens(data, argument, values) for values in PARTS[argument])
    labels = {part: source.labels() for part, source in sources.items()}
    classes = next(iter(sources.values())).classes(1 + max(int(each.max()) for each in labels.values()))
    parts = tuple(LabelledPart(part, source, labels[part][:, None]) for part, source in sources.items())
    notes = (f"learned from {parts[0].name}, tested on {parts[1].name}",) if len(parts) > 1 else ()
    return LabelledData(name, classes, parts, notes)


def _first_that_opens(data: str, argument: str, values: Sequence[Any]) -> tuple[str, NamedSource]:
    for value in values:
        try:
            return f"{argument}={value}", NamedSource(data, **{argument: value})
        except SourceError as error:
            # torchvision's answer to a value that this set does not know; anything else is worth reporting
            if value is values[-1] or not isinstance(error.__cause__, ValueError):
                raise
    raise AssertionError("there are values")


class NamedSource:
    """The images of a set in `torchvision.datasets`. A `maskco.data.sources.Source`.

    Arguments of its class follow the name after a "?" (`split=unlabeled&root=DIR`). By default the root is in the cache
    folder. Sets that can be downloaded are downloaded if they are missing.

    Raises SourceError if there is no such set, if it cannot be had, or if it holds no images.

    Args:
        part: more arguments of the class.
    """

    def __init__(self, data: str, **part: Any) -> None:
        self.left_out = LeftOut()
        self.title, given = split_options(data.removeprefix(PREFIX))
        kind = _class_of(self.title)
        accepted = inspect.signature(kind).parameters
        options: dict[str, Any] = {"root": str(cache_folder("torchvision"))} if "root" in accepted else {}
        if "download" in accepted:
            options["download"] = True
        options |= {name: _value(text) for name, text in given.items()} | part
        try:
            with one_at_a_time(cache_folder("torchvision") / self.title):
                self._pictures = kind(**options)
            first = self._picture(0) if len(self._pictures) else None
        except Exception as error:  # whatever a set's code, its download or its optional packages raise
            reason = one_line(error).rstrip(".")
            raise SourceError(
                f"data: {data!r} cannot be opened: {reason}. Correct its options, or restore its files"
            ) from error
        if first is None:
            raise SourceError(f"data: {data!r} holds no images. Name another part or data set")
        if not isinstance(first, Image.Image):
            raise SourceError(f"data: {data!r} holds no images, but {type(first).__name__}. Name a data set of images")

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Image.Image:
        try:
            return to_rgb(self._picture(index))
        except Exception as error:
            raise ImageError(self.name(index), " ".join(str(error).split()) or type(error).__name__) from error

    def name(self, index: int) -> str:
        return f"{self.title}/{index}"

    def labels(self) -> Tensor:
        """int64 [N]: the class of each image. Raises SourceError if any has none, or more than a class."""
        stored = (getattr(self._pictures, name, None) for name in ("targets", "labels", "_labels"))
        values = next((each for each in stored if each is not None and len(each) == len(self)), None)
        try:
            if values is None:
                shown = tqdm(range(len(self)), f"labels of {self.title}", delay=2, disable=None)
                values = [self._pictures[index][1] for index in shown]
            labels = torch.tensor([int(value) for value in values])
        except Exception as error:  # there is none, or it is boxes, attributes …
            reason = one_line(error)
            raise SourceError(
                f"data: {PREFIX}{self.title} has no class for each image ({reason}). Name a data set of classes"
            ) from error
        if labels.min() < 0:
            raise SourceError(f"data: some images of {PREFIX}{self.title} are not labelled. Choose a labelled part")
        return labels

    def classes(self, count: int) -> tuple[str, ...]:
        """Their names, at least `count`. Numbers, if torchvision knows no names."""
        names = getattr(self._pictures, "classes", ())
        if len(names) < count:
            return tuple(map(str, range(count)))
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)

    def _picture(self, index: int) -> Any:
        sample = self._pictures[index]
        return sample[0] if isinstance(sample, tuple) else sample


def _class_of(name: str) -> Any:
    from torchvision import datasets

    known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}?" if near else "Its documentation lists them"
        raise SourceError(f"data: torchvision has no data set {name!r}. {hint}")
    return getattr(datasets, name)


def _value(text: str) -> str | int | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text
