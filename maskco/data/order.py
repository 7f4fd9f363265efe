"""The order of an epoch's images: a pure function of (seed, epoch, position).

Nothing is drawn in passing, so a run resumes at any step, on any number of ranks, with exactly the images that come
next. In an epoch every image has exactly one position.

    FullShuffle(length)        every order of all images is equally likely
    WindowShuffle(starts, 16)  shards in random order, images drawn from a window of 16 shards
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64, Steele et al. 2014


class EpochOrder(Protocol):
    """The images of one epoch by position."""

    def take(self, first: int, last: int) -> list[int]:
        """The indices of the images at the positions first … last - 1."""


class Order(Protocol):
    """A shuffle of a set of images."""

    def epoch(self, seed: int, epoch: int) -> EpochOrder: ...


class FullShuffle:
    """A uniform shuffle of all images. It takes 8 bytes of memory for each."""

    def __init__(self, length: int) -> None:
        self.length = length

    def epoch(self, seed: int, epoch: int) -> _Listed:
        generator = torch.Generator().manual_seed(mix(seed, epoch))
        return _Listed(torch.randperm(self.length, generator=generator))


class _Listed:
    def __init__(self, order: torch.Tensor) -> None:
        self.order = order

    def take(self, first: int, last: int) -> list[int]:
        return self.order[first:last].tolist()


class WindowShuffle:
    """Shards in random order, and every image moved back by a random part of a window, which holds the images of
    `window` shards on average. So a reader needs each part of a shard for one window's time, then never again in the
    epoch. It needs new parts at a steady rate.

    Let W be the window in images and p an image's place when the shuffled shards are read one after another. Images are
    sorted by p + u W, with u uniform in [0, 1). An image of the places [bW, bW + W) then comes in bucket b or b + 1.
    So the start of each bucket follows from the bucket before, and any position is found from two windows of places.
    The first images of an epoch are of few shards, which are other ones in each epoch: so a cold cache fills steadily.

    Args:
        starts: int64 [shards + 1]: the number of the first image of each shard, then the number of all images.
        window: in shards. With all shards or more, the order is `FullShuffle`'s.
    """

    def __init__(self, starts: np.ndarray, window: int) -> None:
        self.starts, self.window = np.asarray(starts, np.int64), window

    def epoch(self, seed: int, epoch: int) -> EpochOrder:
        shards, length = len(self.starts) - 1, int(self.starts[-1])
        if self.window >= shards:
            return FullShuffle(length).epoch(seed, epoch)
        return _Windowed(self.starts, max(length * self.window // shards, 1), seed, epoch)


class _Windowed:
    def __init__(self, starts: np.ndarray, window: int, seed: int, epoch: int) -> None:
        key = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
        self.order_key, self.place_key = key
        self.window, self.length = window, int(starts[-1])
        order = np.argsort(hashed(self.order_key, np.arange(len(starts) - 1)), kind="stable")
        counts = np.diff(starts)[order]
        self.first_places = np.concatenate([[0], np.cumsum(counts)])  # of the shards, in their order
        self.offsets = starts[:-1][order] - self.first_places[:-1]  # image = place + offset of its shard
        self.start, self.images = 0, np.empty(0, np.int64)  # of the bucket drawn last

    def take(self, first: int, last: int) -> list[int]:
        taken: list[int] = []
        last = min(last, self.length)
        while first < last:
            if not self.start <= first < self.start + len(self.images):
                bucket = first // self.window
                bucket += self._start(bucket + 1) <= first  # one starts up to a window early
                self.start, self.images = self._start(bucket), self._images(bucket)
            part = self.images[first - self.start : last - self.start].tolist()
            taken += part
            first += len(part)
        return taken

    def _start(self, bucket: int) -> int:
        """The first position of a bucket: all earlier places come before, but for those that the last one passes on."""
        passed_on = int((self._keys(bucket - 1) >= self.window).sum()) if bucket else 0
        return min(bucket * self.window, self.length) - passed_on

    def _images(self, bucket: int) -> np.ndarray:
        """The images of a bucket in their order."""
        places, keys = [], []
        for chunk in (bucket - 1, bucket):
            if chunk >= 0:
                own = self._keys(chunk) - (bucket - chunk) * self.window
                chosen = np.flatnonzero((own >= 0) & (own < self.window))
                places.append(chosen + chunk * self.window)
                keys.append(own[chosen])
        drawn = np.concatenate(places)[np.argsort(np.concatenate(keys), kind="stable")]
        shards = np.searchsorted(self.first_places, drawn, side="right") - 1
        return drawn + self.offsets[shards]

    def _keys(self, chunk: int) -> np.ndarray:
        """float64 [places of the chunk]: p + u W, counted from the chunk's first place."""
        first = min(chunk * self.window, self.length)
        places = np.arange(first, min(first + self.window, self.length))
        uniform = (hashed(self.place_key, places) >> np.uint64(11)) * 2.0**-53
        return (places - first) + uniform * self.window


def hashed(key: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """uint64 of SplitMix64: of its sequence that starts at `key`, the elements at `numbers`.

    Not a library's generator, so that no new version of it changes the order of a run under way.
    """
    with np.errstate(over="ignore"):
        z = key + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def mix(*numbers: int) -> int:
    """One 32-bit seed from several numbers. torch's CPU generator uses no more bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
