"""Image files: those below a folder, and what other sources of files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from maskco.data.images import EncodedImage
from maskco.data.kinds import is_image, readable, why_not
from maskco.data.sources.base import SourceError, check_regular
from maskco.data.sources.left_out import LeftOut


class ImageFiles:
    """Each image has a name, which is its path below a folder."""

    root: Path
    names: list[str]
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        return self.open(index).decode()

    def open(self, index: int) -> EncodedImage:
        return EncodedImage(self.root / self.names[index])

    def name(self, index: int) -> str:
        return self.names[index]


class FolderSource(ImageFiles):
    """Every image below a folder, sorted by path. Names that start with a dot are left out, as are run folders and
    any folder already visited, so links may form loops. Raises SourceError if there is nothing to read."""

    def __init__(self, root: str | Path) -> None:
        self.root, self.left_out = Path(root), LeftOut()
        require_folder(self.root)
        files = sorted(_files_below(self.root, self.left_out))
        self.names = [name for name in files if is_image(name)]
        for name in files:
            if not is_image(name):
                self.left_out.add(why_not(name), name)
        if not files:
            others = "".join(f" of files that can be used ({line})" for line in self.left_out.lines())
            raise SourceError(f"data: {str(root)!r} is empty{others}. Give a folder that holds images")
        if not self.names and any(name.endswith(".tar") for name in files):
            raise SourceError(f"data: {str(root)!r} holds tar files and no images. For shards, give '{root}/*.tar'")
        if not self.names:
            raise SourceError(
                f"data: none of the {len(files)} files below {str(root)!r} is an image ({self.left_out.lines()[0]}). "
                f"Convert them to one of {' '.join(sorted(readable()))}"
            )


def require_folder(root: Path) -> None:
    """Raises SourceError, which says what it found instead."""
    if not root.exists():
        raise SourceError(f"data: no such folder {str(root)!r}. Check the path, or use 'demo' for the built-in scenes")
    check_regular(root)
    if not root.is_dir():
        raise SourceError(
            f"data: {str(root)!r} is a file. Give the folder that holds the images, a .tar or a COCO .json"
        )


def _files_below(root: Path, left_out: LeftOut) -> Iterator[str]:
    """Paths of all regular files below root, relative to it, except hidden ones and those in our run folders."""
    visited = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(root / folder)
            entries = list(os.scandir(root / folder))
        except OSError as error:
            left_out.add(f"folders that cannot be read ({error.strerror})", folder or str(root))
            continue
        if (status.st_dev, status.st_ino) in visited:
            left_out.add("links to folders already read", folder)
            continue
        visited.add((status.st_dev, status.st_ino))
        if {"metrics.jsonl", "config.json"} <= {entry.name for entry in entries}:
            left_out.add("folders of runs", folder or str(root))  # a run's report.png is no image to learn from
            continue
        subfolders = []
        for entry in entries:
            name = os.path.join(folder, entry.name)
            try:
                if entry.name.startswith("."):
                    left_out.add("hidden (the name begins with a dot)", name)
                elif entry.is_dir():
                    subfolders.append(name)
                elif entry.is_file():
                    yield name
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    left_out.add("links to nothing", name)
                else:  # opening a named pipe would wait for ever
                    left_out.add("pipes, sockets or devices", name)
            except OSError as error:  # of a link in a circle, for example
                left_out.add(f"not readable ({error.strerror})", name)
        folders += sorted(subfolders, reverse=True)
