"""Features of images in a file, for work outside this package: search, clustering, probes.

    write_features(FeatureOptions(encoder="RUN", data="PHOTOS", out="features.safetensors"))
    found = read_features("features.safetensors")
    found.names[0], found.features[0]

Row i belongs to names[i], the source's name of an image. Images that cannot be read have no row. They are listed in
the file. Without this package:

    with safe_open("features.safetensors", "pt") as file:
        features = file.get_tensor("features")                    # or get_slice("features")[:1000], which reads no more
        names = bytes(file.get_tensor("names").numpy()).decode().split("\\0")

The file is written as the features come, so memory does not grow with the number of images. It is one file, not shards.
Readers can map a safetensors file and read parts of it, so its size does not matter to them either.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskco.data import sources
from maskco.data.sources import Source
from maskco.devices import check_caller, usable_device
from maskco.evaluate.datasets import Annotated
from maskco.evaluate.encoders import IMAGE_SIZE, OpenedEncoder, open_encoder
from maskco.evaluate.errors import EvaluationError
from maskco.evaluate.features import Input, check_readable, feature_maps, loading_workers
from maskco.evaluate.options import FeatureOptions
from maskco.files import user_path, write_atomically
from maskco.memory import memory_errors
from maskco.provenance import provenance

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in safetensors' header
HEADER = 1 << 16  # bytes kept free for it: it is written last, when the number of rows is known
SEPARATOR = "\0"  # which no file name can hold


class FeatureFile(NamedTuple):
    """The content of a file of features."""

    features: Tensor  # [N, C] or [N, C, h, w], mapped from the file
    names: list[str]  # of the N images
    skipped: list[str]  # images without a row, each with the reason
    facts: dict[str, Any]  # encoder, its digest, data, and how images were prepared


class Written(NamedTuple):
    path: Path
    shape: tuple[int, ...]
    notes: list[str]  # what the user should know


@memory_errors("lower image_size or batch_size")
def write_features(options: FeatureOptions, *, verbose: bool = True) -> Written:
    """Writes the features of all images of a source, in its order.

    Images are prepared as for `maskco eval knn`. The shorter side is resized to `image_size`, and the square in the
    middle is used. Running statistics stay as they were saved. So pooled features are those that `maskco eval knn`
    compares with `batch_norm="stored"`.

    Args:
        verbose: show progress.

    Raises:
        SourceError: no such data.
        EvaluationError: an unknown encoder, an existing file, no room on the disk, or more than half of the images
            unreadable. Also features that are not finite or too large for `dtype`.
        WeightsError, CheckpointError, ConfigError: an encoder that cannot be opened.
    """
    check_caller()
    options.check()
    out = _checked_out(user_path(options.out), options.overwrite)
    device = usable_device(options.device)
    opened = open_encoder(options.encoder, options.architecture, options.prefix)
    if "prefix" not in opened.facts:  # it is no file of weights
        if options.prefix is not None:
            raise EvaluationError(f"prefix: {options.encoder} is no file of weights. Leave it out")
        if options.architecture not in (None, opened.architecture):
            raise EvaluationError(f"architecture: {options.encoder} is of {opened.architecture}. Leave it out")
    source = sources.open_source(options.data)
    size = opened.encoder.image_size or options.image_size or opened.image_size or IMAGE_SIZE
    notes = [*opened.notes, *source.left_out.lines()]
    if size != (options.image_size or size):
        notes.append(f"{opened.name} takes images of {size} pixels only, which these are resized to")
    facts = _facts(opened, options, size)  # (the digest before the encoder moves)
    opened.encoder.to(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    writing = _Writing(opened, source, options, size, facts, out.parent, verbose)
    write_atomically(out, writing.write)
    return Written(out, writing.shape, [*notes, *writing.notes])


def read_features(path: str | Path) -> FeatureFile:
    """Opens a file that `write_features` wrote. Features are mapped, not read. Raises EvaluationError for others."""
    path = user_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["maskco_features"])
            names, skipped = (_text(file.get_tensor(name)) for name in ("names", "skipped"))
            return FeatureFile(file.get_tensor("features"), names, skipped, facts)
    except FileNotFoundError as error:
        raise EvaluationError(f"{path} does not exist. Name a file that `maskco features` wrote") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise EvaluationError(f"{path} is not a file of features, or damaged. Write it by `maskco features`") from error


def _checked_out(out: Path, overwrite: bool) -> Path:
    if out.is_dir():
        raise EvaluationError(f"out: {out} is a folder. Name a file in it, such as {out / 'features.safetensors'}")
    if out.suffix != ".safetensors":
        raise EvaluationError(f"out: expected a name that ends in .safetensors, got {out.name!r}")
    if os.path.lexists(out) and not overwrite:
        raise EvaluationError(f"out: {out} exists. Name another file, or replace it with `overwrite=True`")
    return out


def _facts(opened: OpenedEncoder, options: FeatureOptions, size: int) -> dict[str, Any]:
    return {
        "encoder": opened.name,
        "encoder_sha256": opened.digest,
        "architecture": opened.architecture,
        "stage": opened.stage,
        "output_stride": opened.output_stride,
        "channels": opened.encoder.channels,
        "stride": opened.encoder.stride,
        **{name: value for name, value in opened.facts.items() if name != "others"},
        "data": options.data,
        "features": "map" if options.cells else "mean of the map",
        "image_size": size,
        "preparation": "RGB; shorter side resized to image_size (bilinear, antialiased); middle square; "
        "scaled to [0, 1], less mean, divided by std",
        "mean": opened.mean,
        "std": opened.std,
        **provenance(),
    }


class _Writing:
    """Fills a file. Its header has a fixed length and is written last, when the number of rows is known."""

    def __init__(
        self,
        opened: OpenedEncoder,
        source: Source,
        options: FeatureOptions,
        size: int,
        facts: dict[str, Any],
        folder: Path,
        verbose: bool,
    ) -> None:
        self.opened, self.source, self.options, self.folder = opened, source, options, folder
        self.size, self.facts, self.verbose = size, facts, verbose
        self.shape: tuple[int, ...] = ()
        self.notes: list[str] = []

    def write(self, file: BinaryIO) -> None:
        file.write(bytes(HEADER))
        rows: list[int] = []
        skipped: list[str] = []
        for values, indices in self._batches(skipped):
            if not rows:
                self._check_room(values[0])
            file.write(values.contiguous().view(torch.uint8).numpy().tobytes())
            rows += indices
            row = tuple(values.shape[1:])
        check_readable(len(self.source), skipped, "images")
        self.shape = (len(rows), *row)
        texts = {"names": [self.source.name(index) for index in rows], "skipped": skipped}
        blocks = {name: _bytes(lines) for name, lines in texts.items()}
        for block in blocks.values():
            file.write(block)
        header = self._header({name: len(block) for name, block in blocks.items()}, file.tell() - HEADER)
        file.seek(0)
        file.write(header)
        if skipped:
            self.notes.append(
                f"{len(skipped)} of the {len(self.source)} images could not be read and have no row. The first: "
                f"{skipped[0]}. The file lists them all"
            )

    def _batches(self, skipped: list[str]) -> Iterator[tuple[Tensor, list[int]]]:
        """Features of a batch on the CPU, and the source's numbers of its images."""
        count, dtype = len(self.source), DTYPES[self.options.dtype]
        numbered = Annotated(
            self.source, range(count), torch.arange(count)[:, None]
        )  # (each one's label is its number)
        workers = loading_workers(self.options.workers, in_memory=not hasattr(self.source, "open"))
        form = Input(self.size, True, self.opened.mean, self.opened.std, workers, "images")
        progress = self.opened.name if self.verbose else None
        for _, maps, _, numbers in feature_maps(
            self.opened.encoder, numbered, form, batch_size=self.options.batch_size, progress=progress, skipped=skipped
        ):
            values = (maps if self.options.cells else maps.mean((-2, -1))).float().cpu()
            indices = [int(number) for number in numbers]
            self._check_finite(values, values.to(dtype), indices)
            yield values.to(dtype), indices

    def _check_finite(self, exact: Tensor, values: Tensor, indices: list[int]) -> None:
        if values.isfinite().all():
            return
        bad = next(index for index, row in zip(indices, values, strict=True) if not row.isfinite().all())
        if exact.isfinite().all():
            raise EvaluationError(
                f"dtype: {self.options.dtype} cannot hold the features of {self.source.name(bad)}, which reach "
                f"{exact.abs().max():.3g}. Take `dtype=bfloat16` or float32"
            )
        raise EvaluationError(
            f"the features of {self.source.name(bad)} are not finite. The encoder {self.opened.name} may have diverged"
        )

    def _check_room(self, row: Tensor) -> None:
        needed = len(self.source) * row.numel() * row.element_size()
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise EvaluationError(
                f"out: the features of {len(self.source)} images would take {needed / 1e9:.3g} GB, and "
                f"{self.folder} has {free / 1e9:.3g} GB. Free some, lower image_size, or take a smaller `dtype`"
            )

    def _header(self, texts: dict[str, int], size: int) -> bytes:
        """safetensors' header: its length in 8 bytes, then JSON, filled up with spaces."""
        ends = size - sum(texts.values())
        entries: dict[str, Any] = {
            "__metadata__": {"format": "pt", "maskco_features": json.dumps(self.facts)},
            "features": {"dtype": CODES[self.options.dtype], "shape": self.shape, "data_offsets": [0, ends]},
        }
        for name, length in texts.items():
            entries[name] = {"dtype": "U8", "shape": [length], "data_offsets": [ends, ends + length]}
            ends += length
        text = json.dumps(entries).encode()
        if len(text) > HEADER - 8:
            raise EvaluationError("the facts about the features are too long for the file's header. Shorten the names")
        return (HEADER - 8).to_bytes(8, "little") + text.ljust(HEADER - 8)


def _bytes(lines: list[str]) -> bytes:
    return SEPARATOR.join(line.replace(SEPARATOR, " ") for line in lines).encode("utf-8", "surrogateescape")


def _text(tensor: Tensor) -> list[str]:
    text = bytes(tensor.numpy()).decode("utf-8", "surrogateescape")
    return text.split(SEPARATOR) if text else []
