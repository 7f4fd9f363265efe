"""Frozen features against torchvision, scene by scene, and what extracting them must leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from maskco.data.images import ImageError
from maskco.data.sources.demo import Scene
from maskco.data.views import MEAN, STD
from maskco.evaluate.errors import EvaluationError
from maskco.evaluate.features import Input, extract_features, reestimate_batch_norm
from maskco.nn import Encoder


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    first = [nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)]
    return Encoder(nn.Sequential(*first, nn.Conv2d(6, 10, 2, 2), nn.BatchNorm2d(10)), channels=10, stride=8)


def scenes(count: int = 7, height: int = 32, width: int = 32, seed: int = 0) -> list[Scene]:
    """Noise with 0 to 3 boxes a scene; the labels count up over all regions."""
    generator = torch.Generator().manual_seed(seed)
    made, label = [], 0
    for index in range(count):
        boxes = index % 4
        corner = torch.rand(boxes, 2, generator=generator) * 16
        size = 4 + torch.rand(boxes, 2, generator=generator) * 12
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        made.append(Scene(image, torch.cat([corner, corner + size], 1), torch.arange(label, label + boxes)))
        label += boxes
    return made


def normalised(image: Tensor) -> Tensor:
    return (image[None] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_features_are_roi_means_of_the_map_in_order(batch_size: int) -> None:
    model = encoder().train()
    features, labels, _ = extract_features(model, scenes(), batch_size=batch_size)
    expected = []
    model.eval()
    with torch.no_grad():
        for scene in scenes():
            maps = model(normalised(scene.image))
            expected.append(roi_align(maps, [scene.boxes], 7, 1 / 8, 2, aligned=True).mean((-2, -1)))
    torch.testing.assert_close(features, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert features.dtype == torch.float32 and not features.requires_grad
    assert labels.tolist() == list(range(len(features)))


def test_resizing_takes_the_boxes_along() -> None:
    """Scenes of several sizes, resized to 64: the same features as of images and boxes enlarged by hand."""
    mixed = [*scenes(4, 32, 32), *scenes(4, 16, 32, seed=1)]
    by_hand = []
    for image, boxes, labels in mixed:
        larger = F.interpolate(image[None].float(), size=(64, 64), mode="bilinear", antialias=True)[0]
        factors = torch.tensor([64 / image.shape[2], 64 / image.shape[1]] * 2)
        by_hand.append(Scene(larger, boxes * factors, labels))
    features = extract_features(encoder(), mixed, Input(64)).x
    torch.testing.assert_close(features, extract_features(encoder(), by_hand).x, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_left_as_it_was() -> None:
    model = encoder().train()
    model.backbone[1].eval()  # a frozen layer in a training model
    modes = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    extract_features(model, scenes())
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_come_back_after_an_error_too() -> None:
    model = encoder().train()
    with pytest.raises(ValueError, match="images of one size"):
        extract_features(model, [*scenes(2), *scenes(2, height=16)])
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("empty", [[], [scenes(1)[0]]])
def test_scenes_without_boxes_are_refused(empty: list[Scene]) -> None:
    with pytest.raises(ValueError, match=r"data: none of the \d images has a labelled box\. Name other data"):
        extract_features(encoder(), empty)


def test_reestimated_statistics_are_those_of_the_scenes() -> None:
    """Of the first layer exactly the mean of the batches' means and unbiased variances; what was there is forgotten."""
    model = encoder()
    model.backbone[1].running_mean.fill_(99)
    reestimate_batch_norm(model, scenes(8), batch_size=4)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    batches = [[scenes(8)[place] for place in part] for part in (order[:4], order[4:])]
    with torch.no_grad():
        inputs = [model.backbone[0](torch.cat([normalised(s.image) for s in part])) for part in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(model.backbone[1].running_mean, mean)
    torch.testing.assert_close(model.backbone[1].running_var, variance)


def test_reestimated_statistics_cover_all_classes_of_sorted_scenes() -> None:
    """Batches of one class, as class folders list their images, would lack the variance between classes."""
    kinds = scenes(64), [scene._replace(image=scene.image // 8) for scene in scenes(64)]
    model, mixed = encoder(), encoder()
    reestimate_batch_norm(model, [*kinds[0], *kinds[1]], batch_size=64)
    reestimate_batch_norm(mixed, [scene for pair in zip(*kinds, strict=True) for scene in pair], batch_size=64)
    expected = mixed.backbone[1].running_var
    torch.testing.assert_close(model.backbone[1].running_var, expected, rtol=0.1, atol=0)


def test_reestimating_makes_the_output_standardised_whatever_the_scale_of_the_input() -> None:
    """This is what an untrained encoder needs to be judged fairly: without it its statistics are 0 and 1."""
    model = encoder()
    with torch.no_grad():
        model.backbone[0].weight.mul_(50)
    reestimate_batch_norm(model, scenes(64), batch_size=64)
    with torch.no_grad():
        maps = model.eval()(torch.cat([normalised(scene.image) for scene in scenes(64)]))
    torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(10), atol=0.15, rtol=0)
    torch.testing.assert_close(maps.std((0, 2, 3)), torch.ones(10), atol=0.35, rtol=0)


def test_one_image_with_a_map_of_one_pixel_has_no_statistics() -> None:
    with pytest.raises(EvaluationError, match=r"Raise `train_images` or `image_size`, or set `batch_norm=stored`"):
        reestimate_batch_norm(encoder(), scenes(1, height=8, width=8), Input(8))


def test_reestimating_leaves_everything_but_the_statistics_alone() -> None:
    model = encoder().train()
    model.backbone[1].eval()
    modes = [part.training for part in model.modules()]
    parameters = [parameter.clone() for parameter in model.parameters()]
    reestimate_batch_norm(model, scenes())
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))
    assert {layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.1}


def test_whole_pictures_are_their_middle_square_undistorted() -> None:
    """A wide image's sides are cut off, and the feature is the mean of the map of what is left."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    middle = wide[:, :, 16:80]
    boxes, label = torch.tensor([[0.0, 0.0, 96.0, 64.0]]), torch.tensor([5])
    found = extract_features(encoder(), [Scene(wide, boxes, label)], Input(64, whole=True))
    with torch.no_grad():
        expected = encoder().eval()(normalised(middle)).mean((-2, -1))
    torch.testing.assert_close(found.x, expected)
    assert found.labels.tolist() == [5]


def test_an_encoder_s_own_mean_and_deviation_are_used() -> None:
    shown = []

    class Spy(Encoder):
        def forward(self, images: Tensor) -> Tensor:
            shown.append(images)
            return super().forward(images)

    scene = scenes(2)[1:]
    extract_features(Spy(encoder().backbone, channels=10, stride=8), scene, Input(mean=(0.5,) * 3, std=(0.25,) * 3))
    torch.testing.assert_close(shown[0][0], (scene[0].image / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_cannot_be_read_are_left_out_and_named(workers: int) -> None:
    whole = scenes()
    found = extract_features(encoder(), Broken(whole, [2, 5]), Input(workers=workers), batch_size=2)
    expected = extract_features(encoder(), [scene for i, scene in enumerate(whole) if i not in (2, 5)])
    torch.testing.assert_close(found.x, expected.x)
    assert found.skipped == ["2.png: cut off", "5.png: cut off"]


class Broken(list):
    def __init__(self, whole: list[Scene], broken: list[int]) -> None:
        super().__init__(whole)
        self.broken = broken

    def __getitem__(self, index: int) -> Scene:
        if index in self.broken:
            raise ImageError(f"{index}.png", "cut off")
        return super().__getitem__(index)
