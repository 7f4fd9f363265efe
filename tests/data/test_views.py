"""Two views: the boxes stay on their content, regions are where they should be, masks hide all of them."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from maskco.data.augment import gaussian_blur, greyscale, mean_grey, recolor, scale_from, shift_hue
from maskco.data.images import EncodedImage, ImageError
from maskco.data.views import TwoViews, ViewConfig, Views, denormalize, draw_fill, hidden_boxes, mask_boxes
from maskco.errors import ConfigError
from maskco.view_options import MaskOptions

PLAIN = ViewConfig(
    image_size=64, regions=3, region_scale=(0.25, 0.5), jitter=0, grayscale=0, blur=0
)  # crops and flips only


def coordinates_picture(height: int, width: int) -> torch.Tensor:
    """uint8 [3, H, W] that says where each pixel is: red grows to the right, green downward."""
    x = torch.linspace(0, 255, width).expand(height, width)
    y = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack((x, y, torch.zeros(height, width))).round().to(torch.uint8)


def place_shown_at(view: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Red and green of a view of `coordinates_picture`, bilinear at pixel positions x, y: [n, 2] in 0..255."""
    size = view.shape[-1]
    grid = torch.stack((x, y), -1)[None, None] / size * 2 - 1
    colors = torch.nn.functional.grid_sample(denormalize(view)[None], grid, align_corners=False, padding_mode="border")
    return colors[0, :2, 0].T * 255


@pytest.mark.parametrize("as_pil", [False, True])
@pytest.mark.parametrize("shape", [(300, 400), (333, 200)])
def test_both_boxes_surround_the_same_content_through_crops_and_flips(as_pil: bool, shape: tuple[int, int]) -> None:
    picture = coordinates_picture(*shape)
    transform = TwoViews(PLAIN)
    torch.manual_seed(0)
    flips_seen = set()
    for _ in range(40):
        views = transform(F.to_pil_image(picture) if as_pil else picture)
        sides = []
        for view, boxes in ((views.query, views.query_boxes), (views.key, views.key_boxes)):
            # Half a pixel inside the corners, so that nothing is looked up beyond the view.
            x1, y1, x2, y2 = (boxes + torch.tensor([0.5, 0.5, -0.5, -0.5])).unbind(-1)
            first, last = place_shown_at(view, x1, y1), place_shown_at(view, x2, y2)
            sides.append(torch.cat((torch.minimum(first, last), torch.maximum(first, last)), -1))
            flipped = bool((first[:, 0] > last[:, 0]).all())
            sides.append(flipped)
        flips_seen.add((sides[1], sides[3]))
        # A pixel of a view is at most one image width / 64 = 4 levels of the ramp.
        torch.testing.assert_close(sides[0], sides[2], atol=5, rtol=0)
    assert flips_seen == {(False, False), (False, True), (True, False), (True, True)}


def test_painted_corner_marks_stay_at_the_corners_of_the_boxes() -> None:
    """Paint four colors at a region's corners in the image, then draw the same views again by the same seed."""
    transform = TwoViews(replace(PLAIN, regions=1, region_scale=(0.4, 0.6), region_aspect=(1.0, 1.0)))
    colors = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])
    for seed in range(20):
        torch.manual_seed(seed)
        plain = transform(coordinates_picture(256, 256))
        x1, y1, x2, y2 = plain.query_boxes[0]
        inset = 3.0
        corners = [
            (x1 + inset, y1 + inset),
            (x2 - inset, y1 + inset),
            (x1 + inset, y2 - inset),
            (x2 - inset, y2 - inset),
        ]
        x, y = (torch.stack(axis) for axis in zip(*corners, strict=True))
        picture = torch.zeros(3, 256, 256, dtype=torch.uint8)
        for place, color in zip(place_shown_at(plain.query, x, y).round().long(), colors, strict=True):
            column, row = place.tolist()
            picture[:, max(row - 6, 0) : row + 7, max(column - 6, 0) : column + 7] = color[:, None, None]
        torch.manual_seed(seed)
        marked = transform(picture)
        torch.testing.assert_close(marked.key_boxes, plain.key_boxes)
        for view, boxes in ((marked.query, marked.query_boxes), (marked.key, marked.key_boxes)):
            shown = denormalize(view)
            outside = mask_boxes(shown[None], boxes[None])[0]
            for color in colors:
                amount = (1 - (shown - color[:, None, None] / 255).abs().amax(0)).clamp(min=0.5) - 0.5
                left = (1 - (outside - color[:, None, None] / 255).abs().amax(0)).clamp(min=0.5) - 0.5
                assert amount.sum() > 1, "the mark is in the view"
                assert left.sum() < 0.35 * amount.sum(), "the mark lies in the box"


def test_regions_lie_in_both_views_with_the_sizes_asked_for() -> None:
    config = replace(PLAIN, regions=4, min_region_pixels=10)
    transform = TwoViews(config)
    torch.manual_seed(1)
    sides = []
    for shape in [(96, 96), (40, 500), (500, 40), (64, 80), (32, 32)]:
        for _ in range(60):
            views = transform(torch.zeros(3, *shape, dtype=torch.uint8))
            for boxes in (views.query_boxes, views.key_boxes):
                assert boxes.shape == (4, 4) and boxes.dtype == torch.float32 and type(boxes) is torch.Tensor
                assert boxes.min() >= -1e-3 and boxes.max() <= 64 + 1e-3
                assert (boxes[:, 2:] - boxes[:, :2]).min() >= 10 - 1e-3
            width, height = (views.query_boxes[:, 2:] - views.query_boxes[:, :2]).unbind(-1)
            sides.append((width * height).sqrt() / 64)
    sides = torch.cat(sides)
    assert sides.max() <= 0.5 + 1e-4
    assert sides.min() < 0.3 < 0.45 < sides.max()  # the whole range is in use


def test_crops_share_at_least_the_area_asked_for() -> None:
    for overlap in (0.25, 0.6, 0.95, 1.0):
        transform = TwoViews(replace(PLAIN, min_overlap=overlap))
        torch.manual_seed(2)
        for _ in range(100):
            a, b = transform.crops(90, 70)
            both = max(min(a.left + a.width, b.left + b.width) - max(a.left, b.left), 0) * max(
                min(a.top + a.height, b.top + b.height) - max(a.top, b.top), 0
            )
            assert both >= overlap * max(a.width * a.height, b.width * b.height) - 1e-9
            for crop in (a, b):
                assert crop.top >= 0 and crop.top + crop.height <= 90
                assert crop.left >= 0 and crop.left + crop.width <= 70


@pytest.mark.parametrize("shape", [(90, 120), (100, 100), (20, 200), (200, 20)])
def test_single_crops_are_drawn_as_torchvision_draws_them(shape: tuple[int, int]) -> None:
    ours = TwoViews(ViewConfig(image_size=32))
    theirs = v2.RandomResizedCrop(32, scale=(0.2, 1.0))
    torch.manual_seed(0)
    picture, draws = torch.empty(3, *shape), 4000
    a = torch.tensor([ours._random_crop(*shape) for _ in range(draws)]).double()
    params = [theirs.make_params([picture]) for _ in range(draws)]
    b = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params]).double()
    for x, y in ((a, b), (a[:, 2:].log().diff(), b[:, 2:].log().diff()), (a[:, 2:].prod(1), b[:, 2:].prod(1))):
        error = (x.mean(0) - y.mean(0)).abs() / (x.std(0) / draws**0.5 + 1e-9)
        assert error.max() < 5 and torch.allclose(x.std(0), y.std(0), rtol=0.1)  # (a long image leaves no choice)
    assert a.amin(0).tolist() == pytest.approx(b.amin(0).tolist(), abs=3)
    assert a.amax(0).tolist() == pytest.approx(b.amax(0).tolist(), abs=3)


def test_regions_of_one_picture_do_not_coincide() -> None:
    transform = TwoViews(replace(PLAIN, regions=4, region_scale=(0.2, 0.3)))
    torch.manual_seed(3)
    overlaps = []
    for _ in range(200):
        boxes = transform(torch.zeros(3, 96, 96, dtype=torch.uint8)).query_boxes
        corner, end = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
        both = (end - corner).clamp(min=0).prod(-1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        iou = both / (area[:, None] + area - both)
        overlaps.append(iou[torch.triu(torch.ones(4, 4), 1) > 0])
    overlaps = torch.cat(overlaps)
    assert (overlaps <= 0.25 + 1e-4).float().mean() > 0.98
    assert overlaps.max() < 0.9


def test_same_seed_same_views_and_another_seed_others() -> None:
    transform, picture = TwoViews(ViewConfig(image_size=32)), coordinates_picture(80, 80)

    def draw(seed: int) -> Views:
        torch.manual_seed(seed)
        return transform(picture)

    assert all(torch.equal(a, b) for a, b in zip(draw(5), draw(5), strict=True))
    assert not torch.equal(draw(5).query, draw(6).query)
    assert not torch.equal(draw(5).query, draw(5).key)


def test_views_are_normalised_float32_of_the_size_asked_for() -> None:
    torch.manual_seed(0)
    views = TwoViews(ViewConfig(image_size=48))(Image.new("RGB", (200, 100), (124, 116, 104)))  # the mean color
    assert views.query.shape == views.key.shape == (3, 48, 48)
    assert views.query.dtype == torch.float32 and type(views.query) is torch.Tensor
    plain = TwoViews(replace(PLAIN, image_size=48))(Image.new("RGB", (200, 100), (124, 116, 104)))
    torch.testing.assert_close(plain.query, torch.zeros(3, 48, 48), atol=0.01, rtol=0)
    torch.testing.assert_close(
        denormalize(plain.query)[:, 0, 0], torch.tensor([124, 116, 104]) / 255, atol=1e-5, rtol=1e-5
    )


def test_augmentations_happen_as_often_as_configured() -> None:
    picture = torch.tensor([200, 60, 40], dtype=torch.uint8)[:, None, None].expand(3, 64, 64)
    transform = TwoViews(ViewConfig(image_size=16, region_scale=(0.25, 0.5)))
    torch.manual_seed(4)
    views = [view for _ in range(300) for view in transform(picture)[:2]]
    grey = sum(bool((denormalize(view).std(0) < 1e-4).all()) for view in views) / len(views)
    untouched = sum(
        bool(torch.allclose(denormalize(view)[:, 8, 8] * 255, picture[:, 0, 0].float(), atol=0.01)) for view in views
    )
    assert 0.15 < grey < 0.25
    assert 0.11 < untouched / len(views) < 0.21  # neither jitter (0.2) nor grey (0.8)


@pytest.mark.parametrize("shift", [-0.1, -0.03, 0.0, 0.05, 0.5])
def test_shift_hue_is_a_turn_of_hsv_hue(shift: float) -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 6, 7)
    image[:, 0] = 0.4  # grey has no hue
    image[:, 1] = image[:, 1].round()
    expected = torch.empty_like(image)
    for y in range(6):
        for x in range(7):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
            expected[:, y, x] = torch.tensor(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))
    torch.testing.assert_close(shift_hue(image, shift), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_color_changes_are_torchvisions(factor: float) -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 9, 7)
    image[:, 0] = image[:, 0].round()
    torch.testing.assert_close(scale_from(None, image.clone(), factor), F.adjust_brightness(image, factor))
    torch.testing.assert_close(scale_from(mean_grey(image), image.clone(), factor), F.adjust_contrast(image, factor))
    torch.testing.assert_close(scale_from(greyscale(image), image.clone(), factor), F.adjust_saturation(image, factor))
    torch.testing.assert_close(greyscale(image), F.rgb_to_grayscale(image))


def test_blur_keeps_the_mean_and_takes_the_contrast() -> None:
    config = replace(
        PLAIN, image_size=224, blur=1.0, blur_sigma=(2.0, 2.0), crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0)
    )
    picture = (torch.arange(224)[:, None] + torch.arange(224)).remainder(2).mul(255).to(torch.uint8).expand(3, 224, 224)
    torch.manual_seed(0)
    view = denormalize(TwoViews(config)(picture).query)
    torch.testing.assert_close(view, torch.full_like(view, 0.5), atol=0.03, rtol=0)
    # An impulse becomes torchvision's Gaussian, away from the border.
    impulse = torch.zeros(3, 224, 224)
    impulse[:, 100, 120] = 1
    colors = TwoViews(config)._colors()
    assert colors.sigma == 2 and not colors.jitter and not colors.grey
    torch.testing.assert_close(
        recolor(impulse.clone(), colors), F.gaussian_blur(impulse, [25, 25], [2.0, 2.0]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("sigma", [0.01, 0.7, 3.0, 40.0])
def test_blur_of_an_even_color_changes_nothing_up_to_the_border(sigma: float) -> None:
    image = torch.tensor([0.2, 0.5, 1.0])[:, None, None].expand(3, 20, 20)
    torch.testing.assert_close(gaussian_blur(image, sigma), image.contiguous(), atol=1e-6, rtol=0)


# ---- images still to be decoded


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("size", "shrink"), [((100, 120), 1), ((200, 260), 2), ((867, 801), 8)])
def test_a_jpeg_is_decoded_no_larger_than_its_views_need(tmp_path, monkeypatch, size, shrink, orientation) -> None:
    """Views of whole images, from shrunk ones: they look the same, and boxes stay on their content."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    height, width = size
    picture = coordinates_picture(height, width)
    stored = {1: picture, 3: picture.flip(1, 2), 6: picture.transpose(1, 2).flip(1)}[orientation]
    F.to_pil_image(stored).save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=exif)
    transform = TwoViews(replace(PLAIN, crop_scale=(0.8, 1.0), regions=2))
    shrunk = []
    tensor = EncodedImage.tensor
    monkeypatch.setattr(EncodedImage, "tensor", lambda self, shrink: shrunk.append(shrink) or tensor(self, shrink))
    for seed in range(8):
        opened = EncodedImage(tmp_path / "a.jpg")
        assert opened.size == size
        torch.manual_seed(seed)
        quick = transform(opened)
        torch.manual_seed(seed)
        slow = transform(picture)
        # Crops are rounded to whole pixels of the shrunk image, whose sides are 64 or more.
        for a, b in zip(quick[2:], slow[2:], strict=True):
            torch.testing.assert_close(a, b, atol=1.5, rtol=0)
        for a, b in zip(quick[:2], slow[:2], strict=True):
            torch.testing.assert_close(denormalize(a) * 255, denormalize(b) * 255, atol=6, rtol=0)
        for view, boxes in ((quick.query, quick.query_boxes), (quick.key, quick.key_boxes)):
            x1, y1, x2, y2 = (boxes + torch.tensor([0.5, 0.5, -0.5, -0.5])).unbind(-1)
            first, last = place_shown_at(view, x1, y1), place_shown_at(view, x2, y2)
            ends = torch.minimum(first, last), torch.maximum(first, last)
            if view is quick.query:
                query_ends = ends
        torch.testing.assert_close(torch.cat(ends), torch.cat(query_ends), atol=5, rtol=0)
    assert set(shrunk) == {shrink}


def test_small_crops_keep_a_jpeg_whole(tmp_path) -> None:
    """A view must not be enlarged from a shrunk image: detail comes through as from the whole one."""
    stripes = (torch.arange(400) % 2).mul(255).to(torch.uint8).expand(3, 400, 400)
    F.to_pil_image(stripes).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    config = replace(PLAIN, image_size=200, crop_scale=(0.251, 0.26), crop_aspect=(1.0, 1.0))
    torch.manual_seed(0)
    views = TwoViews(config)(EncodedImage(tmp_path / "a.jpg"))
    assert denormalize(views.query).std() > 0.2  # half as large, it would be an even grey


def test_mask_boxes_hides_every_pixel_a_box_touches_and_no_other() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 3, 20, 30)
    boxes = torch.rand(3, 4, 4) * torch.tensor([15, 10, 15, 10])
    boxes[..., 2:] += boxes[..., :2]
    boxes[1, 2] = 0  # empty
    before = images.clone()
    masked = mask_boxes(images, boxes)
    assert torch.equal(images, before)
    for b in range(3):
        for y in range(20):
            for x in range(30):
                hidden = any(x1 < x + 1 and x < x2 and y1 < y + 1 and y < y2 for x1, y1, x2, y2 in boxes[b].tolist())
                assert torch.equal(masked[b, :, y, x], torch.zeros(3) if hidden else images[b, :, y, x])


def test_mask_boxes_hides_the_middle_share_of_a_box() -> None:
    images = torch.ones(1, 1, 40, 40)
    box = torch.tensor([[[4.0, 8.0, 24.0, 32.0]]])  # 20 wide, 24 high
    hidden = mask_boxes(images, box, share=0.25)[0, 0] == 0
    assert hidden[14:26, 9:19].all() and hidden.sum() == 12 * 10
    assert torch.equal(mask_boxes(images, box, share=1.0), mask_boxes(images, box))


def test_masks_of_patches_are_the_nearest_whole_ones():
    """By hand, on patches of 16: edges to the nearest multiple; one patch at least, that around the middle."""
    boxes = torch.tensor(
        [
            [7.0, 9.0, 25.0, 41.0],  # to 0 … 32, 16 … 48
            [9.0, 17.0, 23.0, 30.0],  # vanishes across, around 16 (the patch that begins there); 16 … 32 down
            [3.0, 3.0, 7.0, 6.0],  # inside the first patch
            [20.0, 20.0, 20.0, 40.0],  # empty
        ]
    )
    expected = [[0, 16, 32, 48], [16, 16, 32, 32], [0, 0, 16, 16]]
    assert hidden_boxes(boxes, patch=16)[:3].tolist() == expected
    masked = mask_boxes(torch.ones(1, 1, 64, 64), boxes[None], patch=16)[0, 0]
    assert set(masked.view(4, 16, 4, 16).transpose(1, 2).flatten(2).mean(2).flatten().tolist()) == {0.0, 1.0}
    assert (masked == 0).float().view(4, 16, 4, 16).mean((1, 3)).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
    ]


def test_a_mask_may_be_larger_than_its_region_and_reach_out_of_the_image():
    images, boxes = torch.ones(1, 3, 64, 64), torch.tensor([[[24.0, 24, 40, 32], [0, 56, 8, 64]]])
    hidden = mask_boxes(images, boxes, share=4.0)[0, 0] == 0
    assert hidden[20:36, 16:48].all() and hidden[52:, :12].all() and hidden.sum() == 16 * 32 + 12 * 12


def test_masks_of_patches_hide_as_much_as_they_should_on_average():
    torch.manual_seed(0)
    corner, sides = torch.rand(20_000, 2) * 100, 20 + torch.rand(20_000, 2) * 60
    boxes = torch.cat([corner, corner + sides], dim=1)
    hidden = hidden_boxes(boxes, share=0.5, patch=8)
    area = (hidden[:, 2:] - hidden[:, :2]).prod(1)
    assert (hidden % 8 == 0).all() and (area > 0).all()
    assert (area.sum() / (0.5 * sides.prod(1).sum())).item() == pytest.approx(1, abs=0.02)


def test_mask_boxes_takes_out_of_image_boxes_other_dtypes_and_no_boxes() -> None:
    images = torch.ones(1, 3, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    masked = mask_boxes(images, torch.tensor([[[-5.0, -5.0, 2.5, 2.0], [7.5, 7.5, 99.0, 99.0]]]), fill=2.0)
    assert masked.dtype == torch.bfloat16 and masked.is_contiguous(memory_format=torch.channels_last)
    assert int((masked[0, 0] == 2).sum()) == 3 * 2 + 1
    assert torch.equal(mask_boxes(images, torch.zeros(1, 0, 4)), images)


def test_fills_are_a_grey_noise_of_unit_spread_or_the_mean() -> None:
    images = torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([[[0.0, 0.0, 64.0, 32.0]]]).expand(2, -1, -1)

    def filled(kind, seed=0):
        generator = torch.Generator().manual_seed(seed)
        masked = mask_boxes(images, boxes, fill=draw_fill(kind, images, generator=generator))
        assert masked.is_contiguous(memory_format=torch.channels_last) and not masked[:, :, 32:].any()
        return masked[:, :, :32]

    random = torch.get_rng_state()
    assert (filled("mean") == 0).all()
    assert (filled("grey") == 0.1).all()
    noise = filled("noise")
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert torch.equal(noise, filled("noise")) and not torch.equal(noise, filled("noise", 1))
    assert torch.equal(random, torch.get_rng_state())


def test_noise_comes_from_the_run_s_random_numbers() -> None:
    images = torch.zeros(1, 3, 4, 4)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append([draw_fill("noise", images) for _ in range(2)])
    assert torch.equal(draws[0][0], draws[1][0]) and not torch.equal(draws[0][0], draws[0][1])


def test_mask_boxes_compiles_without_graph_breaks() -> None:
    images, boxes = torch.randn(2, 3, 16, 16), torch.tensor([[[1.0, 2, 7, 9.5]], [[0, 0, 16, 3]]])
    compiled = torch.compile(mask_boxes, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images, boxes), mask_boxes(images, boxes))


def test_picture_below_the_minimum_is_refused_with_its_size() -> None:
    transform = TwoViews(ViewConfig(image_size=64))
    transform(torch.zeros(3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ImageError, match=r"200x31 pixels.*at least 32"):
        transform(torch.zeros(3, 31, 200, dtype=torch.uint8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"regions": -1},
        {"region_scale": (0.5, 0.2)},
        {"region_scale": (0.2, 1.5)},
        {"crop_scale": (0.0, 1.0)},
        {"flip": 1.5},
        {"min_overlap": -0.1},
        {"mask_fill": "black"},
        {"mask_share": 0.0},
        {"mask_share": 4.1},
        {"image_size": 32, "min_region_pixels": 20},
    ],
)
def test_config_refuses_what_cannot_work(wrong: dict) -> None:
    kind = MaskOptions if any(name.startswith("mask") for name in wrong) else ViewConfig
    with pytest.raises(ConfigError, match=f"^{next(reversed(wrong))} "):
        kind(**wrong).check()


def test_without_regions_views_are_two_independent_crops():
    """As of any two-view method: torchvision's RandomResizedCrop would draw the second from the same numbers."""
    transform = TwoViews(ViewConfig(image_size=32, regions=0, min_overlap=0.0, crop_scale=(0.08, 1.0)))
    torch.manual_seed(0)
    views = [transform(torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)) for _ in range(3)]
    assert all(view.query_boxes.shape == view.key_boxes.shape == (0, 4) for view in views)
    apart = 0
    for seed in range(200):
        torch.manual_seed(seed)
        query, key = transform.crops(64, 64)
        torch.manual_seed(seed)
        assert query == transform._random_crop(64, 64) and key == transform._random_crop(64, 64)
        apart += query.left + query.width <= key.left or query.top + query.height <= key.top
    assert apart > 0  # some share nothing
