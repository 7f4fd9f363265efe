"""Images become samples, and samples batches of views.

    source = open_source("photos/")                       # or "demo", COCO, tar shards, torchvision's sets …
    dataset = PretrainDataset(source, TwoViews(ViewConfig()), seed=0)
    batches = EpochBatches(len(source), batch_size=256, seed=0, epoch=0)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=8)

All randomness follows from (seed, epoch, index). So neither the number of workers nor a resumed run changes a pixel.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from maskco.data.images import EncodedImage, ImageError
from maskco.data.order import FullShuffle, Order, mix
from maskco.data.sources import Source, SourceError
from maskco.data.views import RawViews, Views

REPLACEMENT_TRIES = 32  # images tried in place of a broken one before giving up


class Sample(NamedTuple):
    """One image's views, and the (name, reason) of every image that failed on the way to it."""

    views: Views | RawViews
    failures: list[tuple[str, str]]


class Batch(NamedTuple):
    """Samples stacked: views with a leading B, all failures in one list."""

    views: Views | RawViews
    failures: list[tuple[str, str]]


class PretrainDataset(Dataset):
    """Source and transform as a map from (epoch, index), or index alone for epoch 0, to `Sample`. The transform is a
    `TwoViews`, or its method `raw` to leave the colors for whole batches.

    An image that fails is replaced by one drawn at random, which keeps batches full and the run reproducible.
    The failure is reported with the sample. Raises SourceError after 32 failures in a row.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[EncodedImage | Image.Image | Tensor], Views | RawViews],
        seed: int = 0,
    ) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        failures: list[tuple[str, str]] = []
        for step in range(REPLACEMENT_TRIES):
            # Not a neighbour: whole folders may be broken, and the share of failures should be that of all images.
            chosen = mix(self.seed, epoch, index, step) % len(self) if step else index
            try:
                # Seeded by the index asked for: a replacement must not repeat its own views of this epoch.
                return Sample(self.views(epoch, index, chosen), failures)
            except ImageError as error:
                if (cause := error.__cause__) and lacks_resources(cause):
                    raise cause from None
                failures.append((self.source.name(chosen), error.reason))
        name, reason = failures[0][0], failures[0][1].rstrip(".")
        raise SourceError(
            f"{len(failures)} images in a row cannot be used. The first is {name!r}: {reason}. Check the data"
        )

    def views(self, epoch: int, index: int, shown: int | None = None) -> Views | RawViews:
        """Views of the image `index`, or of `shown` with the random numbers of `index`. Raises ImageError."""
        shown = index if shown is None else shown
        picture = self.source.open(shown) if hasattr(self.source, "open") else self.source[shown]
        with seed_from(self.seed, epoch, index):
            return self.transform(picture)


def lacks_resources(error: BaseException) -> bool:
    """Whether the process lacks memory or files, which is no fault of the image that it was about to read."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    )


@contextmanager
def seed_from(*numbers: int) -> Iterator[None]:
    """Context manager in which torch's random numbers follow from these numbers. The caller's state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mix(*numbers))
        yield


def collate(samples: list[Sample]) -> Batch:
    """Samples -> Batch."""
    kind = type(samples[0].views)
    views = kind(*(torch.stack(parts) for parts in zip(*(sample.views for sample in samples), strict=True)))
    return Batch(views, [failure for sample in samples for failure in sample.failures])


class EpochBatches:
    """Batch sampler of one epoch: lists of (epoch, index), shuffled by (seed, epoch), fully or by `order`. The last,
    incomplete batch is dropped. `start_step` leaves out the batches a resumed run has already seen.

    The order is the same for any number of ranks. Of each batch, rank r of n takes the r-th of n equal slices. It gives
    this slice in `parts` equal lists, one after the other.

    Raises ValueError if not even one batch can be filled, or one cannot be divided by ranks and parts.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        epoch: int,
        start_step: int = 0,
        *,
        rank: int = 0,
        ranks: int = 1,
        parts: int = 1,
        order: Order | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if batch_size > length:
            raise ValueError(
                f"batch_size {batch_size} is larger than the data ({length} images). "
                f"Lower it to {length} or less, or add images"
            )
        if batch_size % (ranks * parts):
            raise ValueError(
                f"batch_size {batch_size} cannot be divided by {ranks} ranks × {parts} parts. "
                f"Take a multiple of {ranks * parts}"
            )
        self.length, self.batch_size, self.seed, self.epoch, self.start_step = (
            length,
            batch_size,
            seed,
            epoch,
            start_step,
        )
        self.rank, self.ranks, self.parts = rank, ranks, parts
        self.order = order or FullShuffle(length)

    def __len__(self) -> int:
        return self.parts * max(self.length // self.batch_size - self.start_step, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.order.epoch(self.seed, self.epoch)
        size = self.batch_size // (self.ranks * self.parts)
        for step in range(self.start_step, self.length // self.batch_size):
            for part in range(self.parts):
                first = step * self.batch_size + (self.rank * self.parts + part) * size
                yield [(self.epoch, index) for index in order.take(first, first + size)]
