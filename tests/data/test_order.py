"""Orders are permutations that seed and epoch fix, and any part of them is found without the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskco.data.order import FullShuffle, WindowShuffle, hashed, mix
from maskco.data.samples import EpochBatches


def starts_of(*counts: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


SHARDS = {
    "equal": starts_of(*[50] * 40),
    "ragged": starts_of(*np.random.default_rng(0).integers(0, 90, 40)),
    "single images": starts_of(*[1] * 300),
    "one large": starts_of(3, 700, 1, 0, 2),
}


def test_the_full_shuffle_is_the_order_of_earlier_versions() -> None:
    """Old checkpoints count on it."""
    expected = torch.randperm(23, generator=torch.Generator().manual_seed(mix(7, 2))).tolist()
    assert FullShuffle(23).epoch(7, 2).take(0, 23) == expected
    assert expected[:6] == [11, 19, 10, 12, 17, 18]


def test_the_windowed_order_does_not_change_with_a_version() -> None:
    order = WindowShuffle(starts_of(*[5] * 8), 2).epoch(3, 1)
    assert order.take(0, 12) == [36, 37, 38, 35, 23, 39, 20, 21, 24, 15, 18, 19]
    # SplitMix64's published sequence for the seed 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hashed(np.uint64(1234567), np.arange(3)).tolist() == published


@pytest.mark.parametrize("starts", SHARDS.values(), ids=SHARDS)
@pytest.mark.parametrize("window", [1, 3, 16])
def test_every_image_comes_once_wherever_the_order_is_cut(starts: np.ndarray, window: int) -> None:
    length = int(starts[-1])
    shuffle = WindowShuffle(starts, window)
    for epoch in range(3):
        whole = shuffle.epoch(5, epoch).take(0, length)
        assert sorted(whole) == list(range(length)) and whole != sorted(whole)
        cuts = np.random.default_rng(epoch).integers(0, length, 20)
        for cut in cuts:  # a fresh order each time, as a resumed run has
            assert shuffle.epoch(5, epoch).take(cut, min(cut + 37, length)) == whole[cut : cut + 37]
    assert shuffle.epoch(5, 0).take(0, length) != whole != shuffle.epoch(6, 2).take(0, length)


def test_an_image_comes_within_its_window() -> None:
    starts, window = SHARDS["equal"], 4
    order = WindowShuffle(starts, window).epoch(0, 0)
    shard_of = np.searchsorted(starts, order.take(0, 2000), side="right") - 1
    open_at_once = []
    for position in range(0, 2000, 50):
        seen, ahead = set(shard_of[: position + 1]), set(shard_of[position:])
        open_at_once.append(len(seen & ahead))
    assert max(open_at_once) <= window + 2
    first_seen = [int(np.flatnonzero(shard_of == shard)[0]) for shard in range(40)]
    assert sorted(first_seen) != first_seen, "shards come in a random order"


def test_images_of_a_shard_are_spread_over_a_window() -> None:
    order = np.array(WindowShuffle(starts_of(*[100] * 60), 8).epoch(1, 0).take(0, 6000))
    position = np.empty(6000, int)
    position[order] = np.arange(6000)
    middle = [shard for shard in range(60) if 1000 < position[100 * shard] < 5000]
    spread = [np.ptp(position[100 * shard : 100 * shard + 100]) for shard in middle]
    assert np.mean(spread) > 700  # of the window's 800 images
    steps = np.abs(np.diff(position.reshape(60, 100)[middle], axis=1)).mean()
    assert 200 < steps < 330  # |u - v| of two uniform numbers is a third of the window: 267


def test_a_window_of_all_shards_is_the_full_shuffle() -> None:
    starts = SHARDS["equal"]
    assert WindowShuffle(starts, 40).epoch(1, 2).take(3, 90) == FullShuffle(2000).epoch(1, 2).take(3, 90)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_every_batch_and_resume_on_another_number(ranks: int) -> None:
    shuffle = WindowShuffle(starts_of(*[7] * 9), 2)
    whole = [[i for _, i in batch] for batch in EpochBatches(63, 6, 1, 4, order=shuffle)]
    for start in (0, 4):  # the first steps may have been made on any number of ranks
        shares = [list(EpochBatches(63, 6, 1, 4, start, rank=r, ranks=ranks, order=shuffle)) for r in range(ranks)]
        joined = [[i for part in parts for _, i in part] for parts in zip(*shares, strict=True)]
        assert joined == whole[start:]
