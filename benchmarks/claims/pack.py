"""Packs sets of photographs into one file that travels to a machine with a GPU:

    python -m benchmarks.claims.pack --images voc=VOC caltech101=CALTECH --out photographs.tar
    python -m benchmarks.claims --scale gpu --images photographs.tar …

Pictures keep their size. They become WebP, of the highest quality at which the file stays below the limit.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from benchmarks.claims.names import CALTECH, PHOTOGRAPHS, VOC, find_sets, plain
from benchmarks.claims.photographs import folder_of, opened
from benchmarks.claims.sets import places_of
from maskco.console import one_line_errors
from maskco.data.kinds import is_image
from maskco.errors import UserError, one_line

ANNOTATIONS = "annotations/instances_*.json"
QUALITIES = (85, 75, 65, 55, 45, 35, 25)
SAMPLE = 200  # pictures of each set that tell which quality to take
MARGIN = 0.97  # of the limit, that the sample may predict


@dataclass
class Options:
    images: tuple[str, ...]
    """SET=FOLDER of each set, as of python -m benchmarks.claims."""
    sets: tuple[str, ...] = (VOC, CALTECH)
    """Which sets."""
    out: Path = Path("photographs.tar")
    """The file to write."""
    mib: int = 50
    """The largest size of the file in MiB."""


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, description=__doc__, prog="python -m benchmarks.claims.pack")
        if options.mib < 1:
            raise UserError(f"mib must be at least 1, got {options.mib}")
        places = places_of(find_sets(options.sets), options.images)
        with tempfile.TemporaryDirectory() as made:
            folders = {}
            for name, place in places.items():
                if name not in PHOTOGRAPHS:
                    raise UserError(f"sets: {name} has no photographs to pack. Name some of {', '.join(PHOTOGRAPHS)}")
                folders[plain(name)] = folder_of(name, Path(place), Path(made))
                opened(name, folders[plain(name)])
            quality = pack(folders, options.out, options.mib << 20)
        size = options.out.stat().st_size / 2**20
        print(f"{options.out}: {', '.join(folders)} in {size:.1f} MiB, WebP of quality {quality}")


def pack(folders: dict[str, Path], out: Path, limit: int) -> int:
    """Writes the file, and returns the quality. Raises UserError if no quality is low enough, for an image that cannot
    be read, and for two of one name."""
    files = {name: sorted(path for path in root.rglob("*") if path.is_file()) for name, root in folders.items()}
    for name, paths in files.items():
        inside = [path.with_suffix("") for path in paths if is_image(path.name)]
        if twice := next((path for path, count in Counter(inside).items() if count > 1), None):
            raise UserError(f"images: {name} has two images called {twice}. Rename one of them")
    quality = _choose(files, limit)
    partial = out.with_name(f"{out.name}.partial")
    with tarfile.open(partial, "w") as archive:
        for name, paths in files.items():
            for path in paths:
                inside = Path(name, path.relative_to(folders[name]))
                if is_image(path.name):
                    _add(archive, inside.with_suffix(".webp"), as_webp(path, quality))
                elif path.match(ANNOTATIONS):
                    _add(archive, inside, _renamed(path))
    if partial.stat().st_size > limit:
        partial.unlink()
        raise UserError(f"out: the pictures take more than {limit >> 20} MiB: pack fewer sets, or raise mib")
    partial.replace(out)
    return quality


def _choose(files: dict[str, list[Path]], limit: int) -> int:
    pictures = {name: [path for path in paths if is_image(path.name)] for name, paths in files.items()}
    others = sum(len(_renamed(p)) for paths in files.values() for p in paths if p.match(ANNOTATIONS))
    for quality in QUALITIES:
        total = float(others)
        for paths in pictures.values():
            some = paths[:: max(len(paths) // SAMPLE, 1)]
            total += sum(_blocks(len(as_webp(path, quality))) for path in some) / max(len(some), 1) * len(paths)
        if total <= MARGIN * limit:
            return quality
    return QUALITIES[-1]


def _blocks(size: int) -> int:
    """Bytes of a file in a tar: a header, and whole blocks of 512."""
    return 512 + -(-size // 512) * 512


def as_webp(path: Path, quality: int) -> bytes:
    """Raises UserError for an image that cannot be read."""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"images: {path} cannot be read ({one_line(error)}). Restore it") from error
    return buffer.getvalue()


def _renamed(path: Path) -> bytes:
    """An annotation file whose images are WebP, without fields that nobody reads here."""
    content = json.loads(path.read_text(encoding="utf-8"))
    keep = {"images": ("id", "file_name", "width", "height"), "categories": ("id", "name")}
    keep["annotations"] = ("id", "image_id", "category_id", "bbox", "iscrowd")
    small = {
        part: [{name: row[name] for name in names if name in row} for row in content[part]]
        for part, names in keep.items()
    }
    for image in small["images"]:
        image["file_name"] = str(Path(image["file_name"]).with_suffix(".webp"))
    return json.dumps(small, separators=(",", ":")).encode()


def _add(archive: tarfile.TarFile, name: Path, content: bytes) -> None:
    member = tarfile.TarInfo(name.as_posix())
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
