"""Places boxes whose annotation file gives another size for the image, or whose image EXIF turns.

Images are shown upright. Boxes may be of the stored image, of the upright one, or of one that was resized since. The
file's `width` and `height` show which, and must agree with the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from maskco.data.images import orientation_of
from maskco.data.kinds import open_image
from maskco.data.sources.base import SourceError

READERS = 8  # threads that read headers: they wait for the disk


class Stored(NamedTuple):
    """An image file's header."""

    width: int
    height: int
    orientation: int  # EXIF's, 1 to 8

    def upright(self) -> tuple[int, int]:
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


class Frame(NamedTuple):
    """The image that boxes are of: multiplied by `scale`, they lie in `width` × `height`. Then EXIF turns it."""

    width: float
    height: float
    scale: tuple[float, float]
    orientation: int  # 1 if it is upright already


class Frames(NamedTuple):
    frames: list[Frame]
    notes: list[str]  # what was done to boxes and to how many images, for readers of the scores
    unexplained: list[int]  # images for which no frame fits


def checked_frames(
    source: Path, names: Sequence[str], listed: Sequence[tuple[int, int] | None], stored: Sequence[Stored | None]
) -> tuple[list[Frame], list[str]]:
    """The frame of each image's boxes, and notes, as `find_frames` has them.

    Raises SourceError if an image's size is neither the listed one nor follows from it. `source` is what lists the
    sizes, for the message.
    """
    frames, notes, unexplained = find_frames(names, listed, stored)
    if unexplained:
        first = unexplained[0]
        raise SourceError(_unexplained(source, names[first], listed[first], stored[first], len(unexplained)))
    return frames, notes


def _unexplained(source: Path, name: str, size, header, count: int) -> str:
    shown = " × ".join(map(str, header[:2]))
    if header.orientation != 1:
        shown += f" (EXIF orientation {header.orientation})"
    others = f" and {count - 1} more" if count > 1 else ""
    return (
        f"data: {str(source)!r} lists {name!r}{others} as {size[0]} × {size[1]} pixels, and the image has {shown}. "
        "Neither resizing nor EXIF explains it. Correct width and height, or remove both if boxes fit the stored image"
    )


def read_headers(paths: Sequence[Path]) -> list[Stored | None]:
    """Header of each image. None if it cannot be read, which the decoder will report."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(tqdm(pool.map(_header, paths), "sizes", total=len(paths), delay=2, disable=None))


def _header(path: Path) -> Stored | None:
    try:
        with open_image(path) as image:
            if image.format == "TIFF":  # Pillow gives the upright size, and turns what it decodes
                tags = image.tag_v2
                orientation = tags.get(0x0112, 1)
                return Stored(tags[256], tags[257], orientation if orientation in range(1, 9) else 1)
            return Stored(image.width, image.height, orientation_of(image))
    except Exception:  # damaged files make decoders raise almost anything
        return None


def find_frames(
    names: Sequence[str], listed: Sequence[tuple[int, int] | None], stored: Sequence[Stored | None]
) -> Frames:
    """The frame of each image's boxes.

    - The listed size is that of the stored image, or of the upright one: boxes are of that image. If only the aspect
      ratio fits, within a pixel, boxes are scaled.
    - Both fit, as for squares and images turned by 180°, or no size is listed: the file's other images decide. If
      they do not, boxes are of the stored image, as in COCO.
    - Neither fits: unexplained.

    Args:
        listed: width and height as the annotation file has it, if it does.
        stored: the result of `read_headers`. Where that is None, the frame is as listed.
    """
    fits = [_fits(size, header) for size, header in zip(listed, stored, strict=True)]
    votes = [of_stored > of_upright for of_stored, of_upright in fits if of_stored != of_upright]
    default_is_stored = 2 * sum(votes) >= len(votes)
    frames, scaled, turned, guessed, unexplained = [], [], [], [], []
    for index, (size, header, (of_stored, of_upright)) in enumerate(zip(listed, stored, fits, strict=True)):
        if header is None:
            width, height = size or (math.inf, math.inf)
            frames.append(Frame(width, height, (1.0, 1.0), 1))
            continue
        if header.orientation != 1 and of_stored == of_upright > 0:
            guessed.append(index)
        is_stored = of_stored > of_upright or (of_stored == of_upright and default_is_stored)
        width, height = header[:2] if is_stored else header.upright()
        scale = (width / size[0], height / size[1]) if size else (1.0, 1.0)
        frames.append(Frame(width, height, scale, header.orientation if is_stored else 1))
        if max(of_stored, of_upright) == 0:
            unexplained.append(index)
        if scale != (1.0, 1.0):
            scaled.append(index)
        if frames[-1].orientation != 1:
            turned.append(index)

    def note(which: list[int], what: str, done: str) -> list[str]:
        return [f"{len(which)} images {what} (first {names[which[0]]!r}). Their boxes {done}"] if which else []

    side = "stored" if default_is_stored else "upright"
    notes = [
        *note(scaled, "have another size than the annotation file lists", "were scaled with them"),
        *note(turned, "are turned by EXIF after annotation", "were turned with them"),
        *note(guessed, "are turned by EXIF, and their size fits both ways", f"were taken as of the {side} image"),
    ]
    return Frames(frames, notes, unexplained)


EXACT, SCALED, NEITHER = 2, 1, 0


def _fits(size: tuple[int, int] | None, header: Stored | None) -> tuple[int, int]:
    """How well the listed size fits the stored image and the upright one."""
    if size is None or header is None:
        return EXACT, EXACT
    return _fit(size, header[:2]), _fit(size, header.upright())


def _fit(listed: tuple[int, int], real: tuple[int, int]) -> int:
    if listed == real:
        return EXACT
    return SCALED if _is_rounded(listed, real) or _is_rounded(real, listed) else NEITHER


def _is_rounded(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether one factor gives both sides of `resized`, each within a pixel."""
    low = max((side - 1) / own for side, own in zip(resized, size, strict=True))
    high = min((side + 1) / own for side, own in zip(resized, size, strict=True))
    return low < high


def place_boxes(boxes: np.ndarray, image: np.ndarray, frames: Sequence[Frame]) -> np.ndarray:
    """Listed boxes as corners in the upright images.

    Takes float64 [n, 4] (x, y, width, height) of the images [n]. Returns x1, y1, x2, y2 [n, 4], cut off at the borders.
    Boxes outside of their image have no area left.
    """
    of = np.array([(f.width, f.height, *f.scale, f.orientation) for f in frames], float).reshape(-1, 5)[image]
    width, height, scale_x, scale_y, orientation = of.T
    x, y, w, h = boxes.T
    with np.errstate(over="ignore", invalid="ignore"):  # of absurd numbers, and of images without a known size
        x1, x2 = ((value * scale_x).clip(0, width) for value in (x, x + w))
        y1, y2 = ((value * scale_y).clip(0, height) for value in (y, y + h))
        across = (x1, x2), (width - x2, width - x1)
        down = (y1, y2), (height - y2, height - y1)
    upright = [  # of EXIF's orientations 1 to 8: left and right, top and bottom
        (across[0], down[0]),
        (across[1], down[0]),
        (across[1], down[1]),
        (across[0], down[1]),
        (down[0], across[0]),
        (down[1], across[0]),
        (down[1], across[1]),
        (down[0], across[1]),
    ]
    result = np.empty((len(boxes), 4))
    for number, ((left, right), (top, bottom)) in enumerate(upright, start=1):
        chosen = orientation == number
        result[chosen] = np.stack([left, top, right, bottom], axis=1)[chosen]
    return result
