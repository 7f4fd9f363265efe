"""The CUDA kernels of region pooling on the simulated device, in every way that a map is cut into tiles.

A map's tiles depend on its layout, alignment and size: copies of 16, 8 or 4 bytes or single elements; whole maps in one
run or padded rows; one tile of pixels or several; weights that stay in shared memory or come tile by tile; chunks of 16
regions (32 labels).
"""

from __future__ import annotations

import math

import pytest
import torch

from maskco.ops import box_pool, masked_pool, reference
from tolerance import assert_as_good_as

pytestmark = [pytest.mark.sim, pytest.mark.parametrize("device", ["sim"], indirect=True)]

SHAPES = {  # what is special about a float32 map [B, C, H, W] without gaps
    "one run of odd rows": (2, 70, 7, 7),
    "rows of 16 bytes": (1, 66, 6, 6),
    "rows that would share banks": (1, 9, 8, 8),
    "two tiles of pixels": (1, 33, 14, 14),
    "weights tile by tile": (1, 5, 16, 17),
    "few channels": (2, 3, 3, 5),
    "elements": (1, 5, 11, 29),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GRID = {"spatial_scale": 0.25}


@pytest.fixture
def simulated_device(device, simulated):
    return simulated


def features_of(shape, dtype, channels_last, offset=0):
    """Random features whose first element lies `offset` elements behind a 256-byte boundary."""
    batch, channels, height, width = shape
    flat = torch.randn(math.prod(shape) + offset, generator=torch.Generator().manual_seed(0)).to(dtype)[offset:]
    if channels_last:
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def boxes_of(shape, count, seed=0):
    batch, _, height, width = shape
    random = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height]) * 4.0
    corner = torch.rand(count, 2, generator=random) * size * 1.2 - 0.1 * size
    end = corner + torch.rand(count, 2, generator=random) * size * 0.6
    return torch.cat([torch.randint(0, batch, (count, 1), generator=random), corner, end], 1)


def masks_of(kind, shape, regions, dtype, seed=0):
    batch, _, height, width = shape
    random = torch.Generator().manual_seed(seed)
    if kind == "labels":
        return torch.randint(-1, regions, (batch, height, width), generator=random)
    masks = torch.rand(batch, regions, height, width, generator=random)
    return masks.to(dtype) if kind == "soft" else masks < 0.4


def pooled_and_gradients(pool, features, regions, **options):
    """Output, then the gradients of the features and of soft masks."""
    inputs = [features.detach().requires_grad_()]
    if regions.is_floating_point() and regions.dim() == 4:
        inputs.append(regions.detach().requires_grad_())
    output = pool(inputs[0], inputs[1] if len(inputs) > 1 else regions, **options)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def compare(name, features, regions, **options):
    """The op and its gradients against the reference in float64: as good as the reference in the features' dtype."""
    actual = pooled_and_gradients(
        {"box_pool": box_pool, "masked_pool": masked_pool}[name], features, regions, **options
    )
    plain = getattr(reference, name)
    masks = regions.dim() == 4 and regions.is_floating_point()
    wide = regions.double() if masks else regions
    truth = pooled_and_gradients(plain, features.double(), wide, **options)
    same = pooled_and_gradients(plain, features, regions, **options)
    for what, a, s, t in zip(("output", "grad_features", "grad_masks"), actual, same, truth, strict=False):
        assert_as_good_as(a, s, t, features.dtype, f"{name} {what}")
    return actual


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_to_cut_a_map(simulated_device, dtype, shape, channels_last):
    features = features_of(shape, dtype, channels_last)
    compare("box_pool", features, boxes_of(shape, 6), **GRID)
    compare("masked_pool", features, masks_of("soft", shape, 3, dtype))
    compare("masked_pool", features, masks_of("labels", shape, 4, dtype), num_regions=4)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_every_way_to_cut_a_map_and_alignment(simulated_device, offset, dtype, shape, channels_last):
    features = features_of(shape, dtype, channels_last, offset)
    compare("box_pool", features, boxes_of(shape, 20), spatial_scale=0.25, sampling_ratio=-1)
    for reduction in ("mean", "sum"):
        compare("masked_pool", features, masks_of("soft", shape, 5, dtype), reduction=reduction)
        compare("masked_pool", features, masks_of("bool", shape, 5, dtype), reduction=reduction)
        compare("masked_pool", features, masks_of("labels", shape, 5, dtype), num_regions=5, reduction=reduction)


@pytest.mark.parametrize("offset", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_features_that_are_not_aligned(simulated_device, dtype, offset):
    shape = (2, 6, 4, 5)
    for channels_last in (False, True):
        compare("box_pool", features_of(shape, dtype, channels_last, offset), boxes_of(shape, 4), **GRID)


@pytest.mark.parametrize("regions", [1, 16, 17, 40])
def test_more_regions_than_a_block_holds(simulated_device, regions):
    shape = (2, 5, 5, 6)
    features = features_of(shape, torch.float32, False)
    compare("box_pool", features, boxes_of(shape, 2 * regions), **GRID)
    compare("masked_pool", features, masks_of("soft", shape, regions, torch.float32))
    compare("masked_pool", features, masks_of("bool", shape, regions, torch.float32))
    compare("masked_pool", features, masks_of("labels", shape, regions, torch.float32), num_regions=regions)


def test_one_sort_of_boxes_for_every_image(simulated_device):
    """Images without boxes, boxes without an image, boxes in any order; more images and boxes than a block lists."""
    shape = (9, 4, 4, 4)
    features = features_of(shape, torch.float32, False).requires_grad_()
    boxes = boxes_of(shape, 150)
    boxes[:, 0] = torch.tensor([3, 0, 8, 3, 9, -1, 3, math.nan, 7, 0]).repeat(15)
    lost = ~((boxes[:, 0] >= 0) & (boxes[:, 0] < 9))
    output = box_pool(features, boxes, **GRID)
    assert output[lost].isnan().all()
    kept = reference.box_pool(features, boxes[~lost], **GRID)
    torch.testing.assert_close(output[~lost], kept)
    (gradient,) = torch.autograd.grad(output.nan_to_num().square().sum(), features)
    (expected,) = torch.autograd.grad(kept.square().sum(), features)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[[1, 2, 4, 5, 6]].any()


def test_nan_in_one_tile_of_several(simulated_device):
    """Found after the whole map was added up, in the last tile of channels of a block; the others are right as well."""
    shape = (1, 140, 6, 34)
    for channels_last in (False, True):
        features = features_of(shape, torch.float32, channels_last).clone(memory_format=torch.preserve_format)
        masks = masks_of("bool", shape, 3, torch.float32)
        features[0, 130, 5, 33] = math.nan
        masks[0, 0, 5, 33], masks[0, 1, 5, 33] = True, False
        import ptxsim

        with ptxsim.device("sm_80", sms=1, strict=True):
            output = masked_pool(features, masks)
        assert output[0, 0].isnan().nonzero().tolist() == [[130]] and output[0, 1].isfinite().all()
        torch.testing.assert_close(output, reference.masked_pool(features, masks), equal_nan=True)


@pytest.mark.parametrize(("arch", "schedule"), [("sm_80", "reverse"), ("sm_90", "random")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_under_any_schedule_and_number_of_processors(simulated_device, dtype, arch, schedule):
    import ptxsim

    shape = (1, 130, 10, 11)
    features = features_of(shape, dtype, False)
    cases = [(box_pool, boxes_of(shape, 18), GRID), (masked_pool, masks_of("soft", shape, 3, dtype), {})]
    cases += [(masked_pool, masks_of("labels", shape, 35, dtype), {"num_regions": 35})]
    for pool, regions, options in cases:
        expected = pooled_and_gradients(pool, features, regions, **options)
        with ptxsim.device(arch, sms=1, strict=True, schedule=schedule, seed=3):
            actual = pooled_and_gradients(pool, features, regions, **options)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_one_launch_for_masks_and_two_for_boxes(simulated_device):
    shape = (2, 5, 4, 4)
    features = features_of(shape, torch.float32, False).requires_grad_()

    def launches(step):
        before = len(simulated_device.launches)
        result = step()
        return result, [launch.kernel.split("<")[0].split("::")[-1] for launch in simulated_device.launches[before:]]

    def of_a_pass(pool, regions, **options):
        output, forward = launches(lambda: pool(features, regions, **options))
        _, backward = launches(lambda: output.sum().backward(inputs=[features]))
        return forward, backward

    boxes = of_a_pass(box_pool, boxes_of(shape, 3), **GRID)
    assert boxes == (["box_weights_kernel", "pool_kernel"], ["box_weights_kernel", "spread_kernel"])
    for kind in ("soft", "bool"):
        assert of_a_pass(masked_pool, masks_of(kind, shape, 3, torch.float32)) == (["pool_kernel"], ["spread_kernel"])
    labels = of_a_pass(masked_pool, masks_of("labels", shape, 3, torch.float32), num_regions=3)
    assert labels == (["label_pool_kernel"], ["label_spread_kernel"])
    masks = masks_of("soft", shape, 3, torch.float32).requires_grad_()
    output = masked_pool(features.detach(), masks)
    _, backward = launches(lambda: output.sum().backward())
    assert backward == ["total_kernel", "pool_kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("stride", ["image", "channel", "row"])
def test_offsets_above_2_to_the_31(stride, simulated, device):
    """Only the pages of the eight elements are ever touched."""
    import ptxsim

    far = 2**31 + 8
    strides = {"image": (far, 4, 2, 1), "channel": (4, far, 2, 1), "row": (4, 2, far, 1)}[stride]
    try:
        memory = torch.empty(far + 16, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("no 4 GiB of address space")
    features = memory.as_strided((2, 2, 2, 2), strides)
    with ptxsim.device("sm_80", strict=True, poison=False):
        features.copy_(torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(0)))
        boxes = torch.tensor([[0, 0.0, 0.0, 8.0, 8.0], [1, 1.0, 1.0, 6.0, 8.0]])
        actual = box_pool(features, boxes, **GRID), masked_pool(features, torch.ones(2, 1, 2, 2, dtype=torch.bool))
    near = features.contiguous()
    torch.testing.assert_close(actual[0], reference.box_pool(near, boxes, **GRID))
    torch.testing.assert_close(actual[1][:, 0], near.float().mean((2, 3)).bfloat16())
