"""box_pool against torchvision's roi_align and against reference.py, on every device."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from maskco.ops import box_pool, reference
from peak_memory import peak_mib
from tolerance import assert_as_good_as

roi_align = pytest.importorskip("torchvision.ops").roi_align  # the ops themselves need torch alone

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
GRIDS = [  # spatial_scale, output_size, sampling_ratio, aligned
    (0.25, 7, 2, True),
    (0.25, 7, -1, True),
    (0.5, 3, 5, False),
    (0.3, 1, -1, False),
    (0.4, (3, 5), 2, True),
    (0.7, (4, 2), -1, False),
]


def case(
    batch=2, channels=20, height=9, width=13, boxes=6, dtype=torch.float32, layout="nchw", device="cpu", seed=0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [B, C, H, W] and float32 boxes [R, 5] for a scale of about 1/4, some reaching out of the image."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, height, width, generator=random).to(dtype)
    corner = torch.rand(boxes, 2, generator=random) * torch.tensor([width, height]) * 4 - 8
    size = torch.rand(boxes, 2, generator=random) * torch.tensor([width, height]) * 3 + 1
    image = torch.randint(0, batch, (boxes, 1), generator=random)
    return lay_out(features, layout).to(device), torch.cat([image, corner, corner + size], 1).to(device)


def lay_out(features: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return features.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every other row and channel of something larger: no stride is what it seems
        batch, channels, height, width = features.shape
        larger = features.new_full((batch, 2 * channels, 2 * height, width + 3), math.nan)
        larger[:, ::2, ::2, 1:-2] = features
        return larger[:, ::2, ::2, 1:-2]
    if layout == "transposed":
        return features.transpose(2, 3).contiguous().transpose(2, 3)
    return features


def torchvision_pool(features, boxes, spatial_scale, output_size, sampling_ratio, aligned):
    return roi_align(features, boxes.to(features), output_size, spatial_scale, sampling_ratio, aligned).mean((-2, -1))


def pool(features, boxes, grid):
    names = ("spatial_scale", "output_size", "sampling_ratio", "aligned")
    return box_pool(features, boxes, **dict(zip(names, grid, strict=True)))


def with_gradient(function, features, *arguments, seed=1):
    features = features.detach().requires_grad_()
    output = function(features, *arguments)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output)
    (gradient,) = torch.autograd.grad(output, features, upstream)
    return output.detach(), gradient


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_roi_align_mean(device, simulated, dtype, layout):
    small = {"channels": 5, "height": 5, "width": 6, "boxes": 3} if simulated else {}  # (the simulator is slow)
    for grid in GRIDS[:1] if small else GRIDS:
        features, boxes = case(dtype=dtype, layout=layout, device=device, **small)
        output, gradient = with_gradient(pool, features, boxes, grid)
        truth, true_gradient = with_gradient(torchvision_pool, features.cpu().double(), boxes.cpu(), *grid)
        plain, plain_gradient = with_gradient(
            lambda f, b, grid=grid: reference_pool(f, b, grid), features.cpu(), boxes.cpu()
        )
        assert_as_good_as(output, plain, truth, dtype)
        assert_as_good_as(gradient, plain_gradient, true_gradient, dtype, "gradient")


def reference_pool(features, boxes, grid):
    spatial_scale, output_size, sampling_ratio, aligned = grid
    return reference.box_pool(
        features,
        boxes,
        spatial_scale=spatial_scale,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


@pytest.mark.parametrize("channels", [1, 252, 507])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_ragged_sizes(channels, layout):
    features, boxes = case(batch=3, channels=channels, height=7, width=123, boxes=17, layout=layout)
    output, gradient = with_gradient(pool, features, boxes, GRIDS[0])
    truth, true_gradient = with_gradient(torchvision_pool, features.double(), boxes, *GRIDS[0])
    assert_as_good_as(output, truth, truth, torch.float32)
    assert_as_good_as(gradient, true_gradient, true_gradient, torch.float32)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradcheck(layout):
    features, boxes = case(channels=3, height=4, width=5, boxes=4, dtype=torch.float64, layout=layout)
    assert torch.autograd.gradcheck(lambda f: pool(f, boxes.double(), GRIDS[0]), features.requires_grad_())


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_boxes_beside_the_map_and_inverted(device, layout):
    features, _ = case(channels=4, height=5, width=6, layout=layout, device=device)
    boxes = torch.tensor(
        [
            [0, -500.0, -500.0, -400.0, -400.0],  # beside the map
            [1, 1e9, 2.0, 2e9, 8.0],
            [1, 18.0, 12.0, 4.0, 3.0],  # inverted
            [0, 7.0, 7.0, 7.0, 7.0],  # no extent
            [0, -4.0, -4.0, 24.0, 20.0],  # from border to border
            [1, -1e4, -1e4, 1e4, 1e4],
        ],
        device=device,
    )
    for aligned in (True, False):
        grid = (0.25, 7, 2, aligned)
        output, gradient = with_gradient(pool, features, boxes, grid)
        truth, true_gradient = with_gradient(torchvision_pool, features.cpu(), boxes.cpu(), *grid)
        assert_as_good_as(output, truth, truth, torch.float32)
        assert_as_good_as(gradient, true_gradient, true_gradient, torch.float32)
        assert not output[:2].any()


@pytest.mark.parametrize("reach", [1e7, 1e12, 1e15])
def test_a_huge_adaptive_box_costs_no_more_than_the_map(reach):
    features, _ = case(dtype=torch.float64)
    boxes = torch.tensor([[0, -reach, -reach, reach, reach]], dtype=torch.float64)  # about a point for every pixel
    output = box_pool(features, boxes, spatial_scale=1, sampling_ratio=-1)
    tolerance = 0.3 * float(features[0].abs().sum())  # of points on the border
    torch.testing.assert_close(output[0] * (2 * reach) ** 2, features[0].sum((-2, -1)), rtol=0, atol=tolerance)
    # in float32, millions of its points share a position
    started = time.process_time()
    assert box_pool(features.float(), boxes.float(), spatial_scale=1, sampling_ratio=-1).isfinite().all()
    assert time.process_time() - started < 1


def test_nan_and_inf_boxes_give_nan_rows(device):
    features, boxes = case(channels=4, height=5, width=6, boxes=5, device=device)
    boxes[0, 1] = math.nan
    boxes[1, 4] = math.inf
    boxes[2, 2] = -math.inf
    output = box_pool(features, boxes, spatial_scale=0.25)
    assert output[:3].isnan().all() and output[3:].isfinite().all()
    reference_output = reference_pool(features.cpu(), boxes.cpu(), (0.25, 7, 2, True))
    assert torch.equal(output.isnan().cpu(), reference_output.isnan())


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_reaches_the_boxes_that_sample_it_and_no_other(device, simulated, bad, layout):
    features, _ = case(batch=1, channels=3, height=6, width=8, layout=layout, device=device)
    boxes = torch.tensor([[0, 4.0, 4.0, 14.0, 14.0], [0, 18.0, 2.0, 30.0, 20.0], [0, 0.0, 0.0, 32.0, 24.0]]).to(device)
    for y in range(6):
        for x in range(0, 8, 7 if simulated else 1):
            poisoned = features.clone(memory_format=torch.preserve_format)
            poisoned[0, 1, y, x] = bad
            output = box_pool(poisoned, boxes, spatial_scale=0.25).cpu()
            truth = torchvision_pool(poisoned.cpu(), boxes.cpu(), 0.25, 7, 2, True)
            assert torch.equal(output.isfinite(), truth.isfinite()), (y, x)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_an_infinite_gradient_stays_with_the_pixels_of_its_box(device, simulated, layout):
    small = {"channels": 3, "height": 4, "width": 7, "boxes": 3} if simulated else {}
    features, boxes = case(layout=layout, device=device, **small)
    features.requires_grad_()
    output = pool(features, boxes, GRIDS[0])
    upstream = torch.zeros_like(output)
    upstream[1] = 1
    (touched,) = torch.autograd.grad(output, features, upstream, retain_graph=True)
    upstream[1] = math.inf
    (gradient,) = torch.autograd.grad(output, features, upstream)
    assert torch.equal(gradient.isfinite(), touched == 0) and not gradient[touched == 0].any()


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
def test_no_copy_of_the_features(layout):
    features, boxes = case(batch=4, channels=256, height=64, width=64, layout=layout)
    size = features.numel() * features.element_size() / 2**20
    with_gradient(pool, features, boxes, GRIDS[0])
    assert peak_mib(lambda: pool(features, boxes, GRIDS[0])) < size / 5
    assert size / 2 < peak_mib(lambda: with_gradient(pool, features, boxes, GRIDS[0])) < 1.2 * size


def test_list_of_boxes_and_arrays():
    features, boxes = case(batch=3, boxes=7)
    listed = [boxes[boxes[:, 0] == i, 1:] for i in range(3)]
    rows = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], 1) for i, b in enumerate(listed)])
    expected = box_pool(features, rows, spatial_scale=0.25)
    assert torch.equal(box_pool(features, listed, spatial_scale=0.25), expected)
    assert torch.equal(box_pool(features.numpy(), rows.numpy(), spatial_scale=0.25), expected)
    assert torch.equal(box_pool(features, [np.asarray(b) for b in listed], spatial_scale=0.25), expected)
    half = box_pool(features.half(), listed, spatial_scale=0.25)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_empty(device, shape, memory_format):
    features = torch.randn(shape, device=device).contiguous(memory_format=memory_format).requires_grad_()
    for count in (0, 2) if shape[0] else (0,):
        output = box_pool(
            features, torch.zeros(count, 5, device=device) + torch.tensor([0, 1.0, 1, 3, 3]), spatial_scale=1
        )
        assert output.shape == (count, shape[1])
        (gradient,) = torch.autograd.grad(output.sum(), features)
        assert gradient.shape == shape
        if not count:
            assert not gradient.any()
        if shape[2] == 0:
            assert not output.any()


def test_layout_of_the_gradient_and_no_gradient_for_boxes():
    for layout in ("nchw", "channels_last"):
        features, boxes = case(layout=layout)
        features.requires_grad_()
        boxes.requires_grad_()
        box_pool(features, boxes, spatial_scale=0.25).square().sum().backward()
        assert features.grad.stride() == features.stride()
        assert boxes.grad is None
    features.grad = None
    assert not box_pool(features.detach(), boxes, spatial_scale=0.25).requires_grad


def test_gradient_from_an_expanded_upstream():
    features, boxes = case()
    features.requires_grad_()
    (ones,) = torch.autograd.grad(box_pool(features, boxes, spatial_scale=0.25).sum(), features)
    output = box_pool(features, boxes, spatial_scale=0.25)
    (same,) = torch.autograd.grad(output, features, torch.ones_like(output))
    assert torch.equal(ones, same)


def test_same_bits_twice_and_for_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        for layout in ("nchw", "channels_last"):
            features, boxes = case(batch=2, channels=333, height=17, width=19, boxes=30, layout=layout)
            results = []
            for count in (1, 2, 2, 5):
                torch.set_num_threads(count)
                results.append(with_gradient(pool, features, boxes, GRIDS[0]))
            for output, gradient in results[1:]:
                assert torch.equal(output, results[0][0]) and torch.equal(gradient, results[0][1])
    finally:
        torch.set_num_threads(threads)


def test_opcheck():
    for layout in ("nchw", "channels_last"):
        features, boxes = case(channels=4, height=5, width=6, boxes=3, layout=layout)
        torch.library.opcheck(
            torch.ops.maskco.box_pool_fwd.default, (features.requires_grad_(), boxes, 0.25, 7, 5, 2, True)
        )


def test_compile_with_changing_sizes():
    compiled = torch.compile(
        lambda f, b: box_pool(f, b, spatial_scale=0.25).square().sum(),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for boxes, height in ((3, 9), (5, 11), (8, 6)):
        features, rows = case(boxes=boxes, height=height)
        features.requires_grad_()
        (expected,) = torch.autograd.grad(box_pool(features, rows, spatial_scale=0.25).square().sum(), features)
        (gradient,) = torch.autograd.grad(compiled(features, rows), features)
        torch.testing.assert_close(gradient, expected)
    listed = torch.compile(lambda f, b: box_pool(f, b, spatial_scale=0.25), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        listed(features, [rows[:3, 1:], rows[3:, 1:]]),
        box_pool(features, [rows[:3, 1:], rows[3:, 1:]], spatial_scale=0.25),
    )
    scaled = torch.compile(
        lambda scale: box_pool(features, rows, spatial_scale=scale), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for scale in (0.25, 0.5):
        torch.testing.assert_close(scaled(scale), box_pool(features, rows, spatial_scale=scale))


def test_autocast_keeps_the_features_dtype():
    features, boxes = case(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert box_pool(features, boxes, spatial_scale=0.25).dtype == torch.bfloat16
        assert box_pool(features.float(), boxes, spatial_scale=0.25).dtype == torch.float32


def test_double_backward_says_no():
    features, boxes = case()
    features.requires_grad_()
    output = box_pool(features, boxes, spatial_scale=0.25).square().sum()
    (gradient,) = torch.autograd.grad(output, features, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradient of their gradient"):
        gradient.sum().backward()


def test_bad_arguments_are_named():
    features, boxes = case()
    with pytest.raises(ValueError, match=r"features must have shape \[B, C, H, W\]"):
        box_pool(features[0], boxes, spatial_scale=1)
    with pytest.raises(ValueError, match=r"boxes must have shape \[R, 5\]"):
        box_pool(features, boxes[:, 1:], spatial_scale=1)
    with pytest.raises(ValueError, match="boxes must list one"):
        box_pool(features, [boxes[:, 1:]], spatial_scale=1)
    with pytest.raises(ValueError, match=r"boxes\[1\] must have shape"):
        box_pool(features, [boxes[:, 1:], boxes], spatial_scale=1)
    with pytest.raises(TypeError, match="boxes must be float32"):
        box_pool(features, boxes.long(), spatial_scale=1)
    with pytest.raises(TypeError, match="boxes must be float32"):
        box_pool(features, boxes.half(), spatial_scale=1)
    with pytest.raises(TypeError, match="features must be"):
        box_pool(features.int(), boxes, spatial_scale=1)
    with pytest.raises(ValueError, match="output_size must be at least 1"):
        box_pool(features, boxes, spatial_scale=1, output_size=0)
    with pytest.raises(ValueError, match="spatial_scale must be finite"):
        box_pool(features, boxes, spatial_scale=math.nan)
    with pytest.raises(ValueError, match="boxes is on meta"):
        box_pool(features, boxes.to("meta"), spatial_scale=1)
    with pytest.raises(TypeError, match="features must be a tensor"):
        box_pool("photo.jpg", boxes, spatial_scale=1)


@pytest.mark.parametrize("image", [-1.0, 2.0, math.nan])
def test_image_index_out_of_range(device, simulated, image):
    features, boxes = case(channels=2, height=4, width=4, boxes=3, device=device)
    boxes[1, 0] = image
    if device.type == "cpu" and not simulated:
        with pytest.raises(RuntimeError, match=r"^(?!.*(^|[ ,])/).*boxes: row 1 names image"):  # no build folder
            box_pool(features, boxes, spatial_scale=0.25)
    else:  # looking would stall the device
        output, gradient = with_gradient(pool, features, boxes, GRIDS[0])
        assert output[1].isnan().all() and output[[0, 2]].isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("device", [pytest.param("sim", marks=pytest.mark.sim)], indirect=True)
@pytest.mark.parametrize(("arch", "schedule"), [("sm_80", "reverse"), ("sm_80", "random"), ("sm_90", "forward")])
def test_cuda_kernels_under_other_schedules(device, arch, schedule):
    import ptxsim

    features, boxes = case(batch=2, channels=3, height=4, width=5, boxes=3)
    with ptxsim.device(arch, strict=True, schedule=schedule) as launched:
        output, gradient = with_gradient(pool, features, boxes, GRIDS[0])
    assert [launched.count(k) for k in ("box_weights_kernel", "pool_kernel", "spread_kernel")] == [2, 1, 1]
    truth, true_gradient = with_gradient(torchvision_pool, features.double(), boxes, *GRIDS[0])
    assert_as_good_as(output, truth, truth, torch.float32)
    assert_as_good_as(gradient, true_gradient, true_gradient, torch.float32)
