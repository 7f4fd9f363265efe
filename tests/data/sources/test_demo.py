"""The demo set: the same scenes every time, boxes around the items, classes told apart by shape alone."""

from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from maskco.data.samples import PretrainDataset
from maskco.data.sources import demo, open_source
from maskco.data.sources.demo import CLASS_NAMES, LabelledScenes, demo_scenes
from maskco.data.views import TwoViews, ViewConfig


@pytest.fixture(scope="module")
def scenes() -> LabelledScenes:
    return demo_scenes("train", count=300)


def all_boxes(scenes: LabelledScenes) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(scenes.boxes), torch.cat(scenes.labels)


def test_a_scene_depends_on_split_and_index_only(scenes: LabelledScenes) -> None:
    few = demo_scenes("train", count=3)
    assert len(few) == 3 and len(scenes) == 300
    for i in range(3):
        assert all(torch.equal(a, b) for a, b in zip(few[i], scenes[i], strict=True))
    assert not torch.equal(few[0].image, few[1].image)
    assert not torch.equal(demo_scenes("test", count=1)[0].image, few[0].image)


def test_a_scene_holds_3_to_6_items_of_different_classes(scenes: LabelledScenes) -> None:
    seen = set()
    for image, boxes, labels in scenes:
        assert image.shape == (3, 96, 96) and image.dtype == torch.uint8
        assert boxes.shape == (len(labels), 4) and boxes.dtype == torch.float32 and labels.dtype == torch.int64
        assert 3 <= len(labels) <= 6 and len(labels.unique()) == len(labels)
        seen.update(labels.tolist())
    assert seen == set(range(len(CLASS_NAMES)))


def test_boxes_lie_in_the_scene_are_of_a_good_size_and_overlap_little(scenes: LabelledScenes) -> None:
    boxes, _ = all_boxes(scenes)
    assert boxes.min() >= 0 and boxes.max() <= 96
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert longer.min() >= 18 and longer.max() <= 64
    covered = []
    for own in scenes.boxes:
        corner, end = torch.maximum(own[:, None, :2], own[:, :2]), torch.minimum(own[:, None, 2:], own[:, 2:])
        both = (end - corner).clamp(min=0).prod(-1).fill_diagonal_(0)
        covered.append((both / (own[:, 2:] - own[:, :2]).prod(-1)).amax(0))
    covered = torch.cat(covered)
    assert covered.mean() < 0.1 and (covered > 0.5).float().mean() < 0.01


def test_boxes_are_tight_around_what_was_drawn(scenes: LabelledScenes) -> None:
    stray = total = 0
    for index in range(100):
        ground = demo._draw_ground(demo._Layout.random("train", index), 96).clamp(0, 1) * 255
        changed = ((scenes[index].image - ground).abs().amax(0) > 3).float()
        outside = changed.clone()
        for x1, y1, x2, y2 in scenes[index].boxes.int().tolist():
            outside[max(y1 - 2, 0) : y2 + 4, max(x1 - 2, 0) : x2 + 3] = 0  # soft edge; shadow to the lower right
            for edge in (changed[y1:y2, x1], changed[y1:y2, x2 - 1], changed[y1, x1:x2], changed[y2 - 1, x1:x2]):
                assert edge.any()
        stray, total = stray + int(outside.sum()), total + int(changed.sum())
    assert stray < 0.002 * total  # Fashion-MNIST has a few faint threads


def test_labels_name_what_is_in_the_box(scenes: LabelledScenes) -> None:
    boxes, labels = all_boxes(scenes)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    aspect = {name: (width / height)[labels == i].median().item() for i, name in enumerate(CLASS_NAMES)}
    assert aspect["trousers"] < 0.7 and aspect["dress"] < 0.8
    assert aspect["sneaker"] > 1.5 and aspect["sandal"] > 1.2


def test_color_does_not_tell_the_class(scenes: LabelledScenes) -> None:
    colors, labels = [], []
    for image, boxes, own in scenes:
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), own.tolist(), strict=True):
            middle = image[:, (3 * y1 + y2) // 4 : (y1 + 3 * y2) // 4, (3 * x1 + x2) // 4 : (x1 + 3 * x2) // 4].float()
            colors.append(middle.mean((1, 2)))
            labels.append(label)
    colors, labels = torch.stack(colors), torch.tensor(labels)
    train, test = slice(0, None, 2), slice(1, None, 2)
    means = torch.stack([colors[train][labels[train] == c].mean(0) for c in range(10)])
    guess = torch.cdist(colors[test], means).argmin(1)
    assert (guess == labels[test]).float().mean() < 0.22  # chance is 0.1


def test_other_sizes_show_the_same_scene() -> None:
    large, small = demo_scenes("test", count=5, image_size=128), demo_scenes("test", count=5, image_size=64)
    for a, b in zip(large, small, strict=True):
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.boxes / 2, b.boxes, atol=1.5, rtol=0)
        shrunk = torch.nn.functional.interpolate(a.image[None].float(), size=(64, 64), mode="area")[0]
        assert (shrunk - b.image).abs().mean() < 8


def test_train_and_test_share_no_item() -> None:
    train, test = (demo._items(split)[:, :, 0].reshape(-1, 28 * 28) for split in ("train", "test"))
    assert len(train) == 4000 and len(test) == 1200
    rows = {row.numpy().tobytes() for row in train}
    assert not any(row.numpy().tobytes() in rows for row in test)


def test_assets_are_small_and_come_with_their_licence() -> None:
    assets = list(files("maskco.data.sources").joinpath("demo_assets").iterdir())
    assert sum(len(asset.read_bytes()) for asset in assets if asset.is_file()) <= 4 * 2**20
    text = {asset.name: asset for asset in assets}
    assert "Zalando" in text["LICENSE.fashion-mnist"].read_text(encoding="utf-8")
    for name in text:
        if name.endswith(".png"):
            assert name in text["README.md"].read_text(encoding="utf-8")


def test_demo_is_a_source_of_the_train_scenes(scenes: LabelledScenes) -> None:
    source = open_source("demo")
    assert len(source) == 4000 and source.name(7) == "demo/train/7"
    assert torch.equal(source[7], scenes[7].image)
    sample = PretrainDataset(source, TwoViews(ViewConfig(image_size=64, regions=4)))[7]
    assert sample.views.query.shape == (3, 64, 64) and not sample.failures


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
        demo_scenes("val")
    with pytest.raises(ValueError, match="count must be at least 1"):
        demo_scenes("test", count=0)
