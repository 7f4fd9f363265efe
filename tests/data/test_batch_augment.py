"""Colors of whole batches: each view gets what was drawn for it, and what `TwoViews` would have made of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from maskco.data import batch_augment
from maskco.data.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, Colors, recolor
from maskco.data.batch_augment import finish
from maskco.data.views import RawViews, TwoViews, ViewConfig, Views, denormalize

CPU = torch.device("cpu")
STEPS = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
CERTAIN = {"flip": 1.0, "jitter": 1.0, "grayscale": 1.0, "blur": 1.0}
STRONG = {"jitter": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5, "grayscale": 0.5}


def both(config: ViewConfig, count: int) -> tuple[Views, RawViews]:
    """The same views of `count` noisy images, finished one by one and raw."""
    transform, finished, raw = TwoViews(config), [], []
    torch.manual_seed(7)
    for seed, picture in enumerate(torch.randint(256, (count, 3, 80, 96), dtype=torch.uint8)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            finished.append(transform(picture))
            torch.manual_seed(seed)
            raw.append(transform.raw(picture))
    return Views(*map(torch.stack, zip(*finished, strict=True))), RawViews(*map(torch.stack, zip(*raw, strict=True)))


def recolored(images: torch.Tensor, colors: list[Colors]) -> torch.Tensor:
    """uint8 [N, 3, S, S] -> colors in [0, 1], by the batch."""
    rows = torch.tensor([each.row() for each in colors], dtype=torch.float64)
    views = finish(RawViews(images, images, torch.zeros(0), torch.zeros(0), rows, rows), CPU)
    assert torch.equal(views.query, views.key)
    return denormalize(views.query)


@pytest.mark.parametrize(
    ("size", "count", "options"),
    [
        (32, 1, {}),
        (33, 5, CERTAIN),
        (64, 24, {}),
        (64, 24, STRONG),
        (64, 4, dict.fromkeys(CERTAIN, 0.0)),
        (64, 6, {**CERTAIN, "grayscale": 0.5, "blur_sigma": (0.01, 60.0)}),
        (224, 4, {}),
    ],
)
def test_a_batch_gets_the_views_that_each_picture_would_get_alone(size: int, count: int, options: dict) -> None:
    expected, raw = both(ViewConfig(image_size=size, regions=2, **options), count)
    assert raw.query.dtype == torch.uint8
    views = finish(raw, CPU)
    for got, wanted in zip(views[:2], expected[:2], strict=True):
        assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
    assert torch.equal(views.query_boxes, expected.query_boxes) and torch.equal(views.key_boxes, expected.key_boxes)


@pytest.mark.parametrize("chunk", [1, 3 * 3 * 16 * 16, 1 << 30])
def test_every_order_of_steps_is_kept_beside_every_other(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """All 24 orders, and views without jitter, in one batch and in any chunks of it."""
    monkeypatch.setattr(batch_augment, "CHUNK", chunk)
    torch.manual_seed(0)
    orders = [list(order) for order in itertools.permutations(STEPS)] + [[]]
    amounts = (torch.rand(25, 4) * torch.tensor([2, 2, 2, 1]) - torch.tensor([0, 0, 0, 0.5])).tolist()
    colors = [
        Colors([(step, amount[step]) for step in order], grey=place % 3 == 0, sigma=(place % 4) * 0.6)
        for place, (order, amount) in enumerate(zip(orders, amounts, strict=True))
    ]
    images = torch.randint(256, (25, 3, 16, 16), dtype=torch.uint8)
    got = recolored(images, colors)
    for image, drawn, view in zip(images, colors, got, strict=True):
        torch.testing.assert_close(view, recolor(image / 255, drawn).expand(3, 16, 16), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("step", "amounts", "theirs"),
    [
        (BRIGHTNESS, (0.0, 0.6, 1.4), F.adjust_brightness),
        (CONTRAST, (0.0, 0.6, 1.4), F.adjust_contrast),
        (SATURATION, (0.0, 0.6, 1.4), F.adjust_saturation),
        (HUE, (-0.5, -0.1, 0.3), F.adjust_hue),
    ],
)
def test_each_step_is_torchvisions(step: int, amounts: tuple[float, ...], theirs) -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (len(amounts), 3, 20, 20), dtype=torch.uint8)
    images[0, :, 0] = 128  # grey has no hue
    neutral = {BRIGHTNESS: 1.0, CONTRAST: 1.0, SATURATION: 1.0, HUE: 0.0}
    colors = [Colors(list({**neutral, step: amount}.items()), grey=False, sigma=0.0) for amount in amounts]
    expected = torch.stack([theirs(image / 255, amount) for image, amount in zip(images, amounts, strict=True)])
    torch.testing.assert_close(recolored(images, colors), expected, atol=2e-5, rtol=0)


def test_grey_and_blur_are_torchvisions() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    (grey,) = recolored(images[:1], [Colors([], grey=True, sigma=0.0)])
    torch.testing.assert_close(grey, F.rgb_to_grayscale(images[0] / 255, num_output_channels=3))
    inside = (..., slice(8, -8), slice(8, -8))  # at the border weights go elsewhere
    sigmas = (2.0, 1.0)  # of which four are the radius
    blurred = recolored(images, [Colors([], grey=False, sigma=sigma) for sigma in sigmas])
    for image, sigma, got in zip(images, sigmas, blurred, strict=True):
        side = int(8 * sigma) + 1
        expected = F.gaussian_blur(image / 255, [side, side], [sigma, sigma])
        torch.testing.assert_close(got[inside], expected[inside], atol=1e-5, rtol=0)


def test_company_changes_a_view_by_no_more_than_rounding() -> None:
    _, raw = both(ViewConfig(image_size=32, **STRONG), 9)
    together = finish(raw, CPU)
    for first, last in ((0, 1), (2, 9)):
        alone = finish(RawViews(*(part[first:last] for part in raw)), CPU)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[first:last], atol=5e-6, rtol=0)
    assert all(map(torch.equal, finish(raw, CPU), together))


def test_autocast_does_not_reach_it_and_nothing_asks_for_gradients() -> None:
    _, raw = both(ViewConfig(image_size=32), 3)
    with torch.autocast("cpu", torch.bfloat16):
        views = finish(raw, CPU)
    assert all(map(torch.equal, views, finish(raw, CPU))) and not views.query.requires_grad


def test_raw_views_are_flipped_and_their_boxes_with_them() -> None:
    plain = ViewConfig(image_size=32, regions=2, **dict.fromkeys(CERTAIN, 0.0))
    straight, flipped = (both(replace(plain, flip=flip), 3)[1] for flip in (0.0, 1.0))
    for image in ("query", "key"):
        assert torch.equal(getattr(flipped, image), getattr(straight, image).flip(-1))
        x1, y1, x2, y2 = getattr(straight, f"{image}_boxes").unbind(-1)
        torch.testing.assert_close(getattr(flipped, f"{image}_boxes"), torch.stack((32 - x2, y1, 32 - x1, y2), -1))
