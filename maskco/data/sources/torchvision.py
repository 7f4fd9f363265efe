"""torchvision's data sets by name: "torchvision:STL10?split=unlabeled"."""

from __future__ import annotations

import difflib
import inspect
from typing import Any
from urllib.parse import unquote

from PIL import Image

from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.images import PictureError, to_rgb
from maskco.data.sources.base import SourceError
from maskco.data.sources.left_out import LeftOut

PREFIX = "torchvision:"


class NamedSource:
    """The pictures of a set in `torchvision.datasets`, without labels; a `maskco.data.sources.base.Source`.

    What follows the name after a "?" are arguments of its class (`split=unlabeled&root=DIR`). By default the root is in
    the cache folder, and sets that can be downloaded are, if they are not there yet.

    Raises SourceError if there is no such set, if it cannot be had, or if it holds no pictures.
    """

    def __init__(self, data: str) -> None:
        from torchvision import datasets

        self.left_out = LeftOut()
        self.title, _, query = data.removeprefix(PREFIX).partition("?")
        known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
        if self.title not in known:
            near = difflib.get_close_matches(self.title, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else "its documentation lists them"
            raise SourceError(f"data: torchvision has no data set {self.title!r}; {hint}")
        kind = getattr(datasets, self.title)
        accepted = inspect.signature(kind).parameters
        options: dict[str, Any] = {"root": str(cache_folder("torchvision"))} if "root" in accepted else {}
        if "download" in accepted:
            options["download"] = True
        options |= _options(query, data)
        try:
            with one_at_a_time(cache_folder("torchvision") / self.title):
                self._pictures = kind(**options)
            first = self._picture(0) if len(self._pictures) else None
        except Exception as error:  # whatever a set's code, its download or its optional packages raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SourceError(f"data: {data!r} cannot be opened: {reason}") from error
        if first is None:
            raise SourceError(f"data: {data!r} holds no pictures")
        if not isinstance(first, Image.Image):
            raise SourceError(f"data: {data!r} holds no pictures, but {type(first).__name__}")

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Image.Image:
        try:
            return to_rgb(self._picture(index))
        except Exception as error:
            raise PictureError(self.name(index), " ".join(str(error).split()) or type(error).__name__) from error

    def name(self, index: int) -> str:
        return f"{self.title}/{index}"

    def _picture(self, index: int) -> Any:
        sample = self._pictures[index]
        return sample[0] if isinstance(sample, tuple) else sample


def _options(query: str, data: str) -> dict[str, str | int | bool]:
    """The arguments `a=1&b=c`; %26 is an & in a value."""
    options: dict[str, str | int | bool] = {}
    for part in filter(None, query.split("&")):
        name, equals, text = part.partition("=")
        if not equals or name in options:
            problem = "has no value" if not equals else "is given twice"
            raise SourceError(f"data: option {name!r} of {data!r} {problem}: write NAME?option=value&option=value")
        options[name] = _value(unquote(text))
    return options


def _value(text: str) -> str | int | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text
