"""Samples and batches that depend on (seed, epoch, index) alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from maskco.data.samples import EpochBatches, PretrainDataset, collate
from maskco.data.sources import SourceError
from maskco.data.sources.files import FolderSource
from maskco.data.views import TwoViews, ViewConfig
from small_pictures import folder_of_pictures, picture


@pytest.fixture
def dataset(tmp_path: Path) -> PretrainDataset:
    source = FolderSource(folder_of_pictures(tmp_path, 9))
    return PretrainDataset(source, TwoViews(ViewConfig(image_size=32, regions=2)), seed=3)


def same(a: tuple, b: tuple) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_views_depend_on_seed_epoch_and_index_only(dataset: PretrainDataset) -> None:
    first = dataset[(2, 4)]
    torch.rand(7)
    assert same(dataset[(2, 4)].views, first.views) and first.failures == []
    assert same(dataset[4].views, dataset[(0, 4)].views)
    assert not same(dataset[(3, 4)].views, first.views)
    assert not same(PretrainDataset(dataset.source, dataset.transform, seed=4)[(2, 4)].views, first.views)


def test_drawing_views_leaves_the_callers_random_numbers_alone(dataset: PretrainDataset) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_two_workers_give_what_none_gives(dataset: PretrainDataset, start_method: str) -> None:
    (dataset.source.root / "004.png").write_bytes(b"broken")

    def load(**workers) -> list:
        batches = EpochBatches(len(dataset), 3, seed=1, epoch=5)
        return list(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **workers))

    alone, together = load(), load(num_workers=2, multiprocessing_context=start_method)
    assert len(alone) == len(together) == 3
    for a, b in zip(alone, together, strict=True):
        assert same(a.views, b.views) and a.failures == b.failures
        assert a.views.query.shape == (3, 3, 32, 32) and a.views.key_boxes.shape == (3, 2, 4)
    assert {name for batch in alone for name, _ in batch.failures} == {"004.png"}


def test_broken_or_small_picture_is_replaced_and_named(tmp_path: Path) -> None:
    folder_of_pictures(tmp_path, 4)
    (tmp_path / "003.png").write_bytes(b"broken")
    picture(0, (60, 8)).save(tmp_path / "000.png")
    dataset = PretrainDataset(FolderSource(tmp_path), TwoViews(ViewConfig(image_size=32)))
    sample = dataset[(1, 3)]
    assert sample.failures[0][0] == "003.png" and "cannot identify" in sample.failures[0][1]
    assert "60x8 pixels" in dataset[(1, 0)].failures[0][1]
    for shown in (1, 2):
        assert not same(sample.views, dataset[(1, shown)].views), "another is shown, in views of its own"
    batch = collate([sample, dataset[(1, 1)]])
    assert batch.failures == sample.failures and batch.views.query.shape[0] == 2


def test_nothing_but_broken_pictures_stops(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    dataset = PretrainDataset(FolderSource(tmp_path), TwoViews(ViewConfig()))
    with pytest.raises(SourceError, match=r"32 images in a row.*1\.png.*\. Check the data"):
        dataset[1]


def test_epoch_batches_are_a_shuffle_that_seed_and_epoch_fix() -> None:
    batches = list(EpochBatches(23, 5, seed=0, epoch=2))
    assert len(batches) == len(EpochBatches(23, 5, seed=0, epoch=2)) == 4
    seen = [index for batch in batches for _, index in batch]
    assert len(set(seen)) == 20 and set(seen) <= set(range(23)) and seen != sorted(seen)
    assert {epoch for batch in batches for epoch, _ in batch} == {2}
    assert batches == list(EpochBatches(23, 5, seed=0, epoch=2))
    assert [i for b in EpochBatches(23, 5, seed=0, epoch=3) for _, i in b] != seen
    assert [i for b in EpochBatches(23, 5, seed=1, epoch=2) for _, i in b] != seen


def test_epoch_batches_resume_after_the_steps_already_made() -> None:
    rest = EpochBatches(23, 5, seed=0, epoch=2, start_step=3)
    assert len(rest) == 1 and list(rest) == list(EpochBatches(23, 5, seed=0, epoch=2))[3:]
    assert len(EpochBatches(23, 5, seed=0, epoch=2, start_step=4)) == 0


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size 24 .*23 images.*\. Lower it to 23"):
        EpochBatches(23, 24, seed=0, epoch=0)
    with pytest.raises(ValueError, match="at least 1"):
        EpochBatches(23, 0, seed=0, epoch=0)
