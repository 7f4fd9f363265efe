"""The pooling modules against torchvision and einsum, compiled, and without a state of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import RoIAlign

from maskco.nn import BoxPool, MaskedPool
from maskco.ops import box_pool, masked_pool, reference


def test_box_pool_is_the_mean_of_roi_align():
    features = torch.randn(2, 5, 9, 7)
    boxes = torch.tensor([[0, 3.0, 5.0, 40.0, 60.0], [1, 0.0, 0.0, 20.0, 10.0]])
    pool = BoxPool(3, 1 / 8, sampling_ratio=2)
    expected = RoIAlign(3, 1 / 8, sampling_ratio=2, aligned=True)(features, boxes).mean((-2, -1))
    torch.testing.assert_close(pool(features, boxes), expected)
    torch.testing.assert_close(pool(features, [boxes[:1, 1:], boxes[1:, 1:]]), expected)
    assert not pool.state_dict() and str(pool).startswith("BoxPool(output_size=3, spatial_scale=0.125")


SIZES = {
    "torchvision's pair": ((7, 7), 7),
    "height and width": ((7, 5), (7, 5)),
    "list": ([2, 3], (2, 3)),
    "torch.Size": (torch.Size([4, 4]), 4),
    "array": (np.array([3, 2]), (3, 2)),
    "tensor": (torch.tensor([3, 2]), (3, 2)),
    "NumPy's integer": (np.int64(3), 3),
    "array without dimensions": (np.array(3), 3),
}


@pytest.mark.parametrize("given, meant", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_box_pool_takes_grids_as_torchvision_does(given, meant, sampling_ratio):
    features = torch.randn(2, 5, 9, 7, requires_grad=True)
    boxes = torch.tensor([[0, 3.0, 5.0, 40.0, 60.0], [1, 0.0, 0.0, 20.0, 10.0], [1, -9.0, 3.0, 90.0, 31.0]])
    grid = RoIAlign(meant, 1 / 8, sampling_ratio, aligned=True)(features, boxes).mean((-2, -1))
    pool = BoxPool(given, np.float32(1 / 8), np.int32(sampling_ratio))
    pooled = pool(features, boxes)
    torch.testing.assert_close(pooled, grid)
    assert pool.output_size == meant and f"output_size={meant}" in str(pool)
    weights = torch.randn_like(pooled)
    gradients = [torch.autograd.grad((out * weights).sum(), features)[0] for out in (pooled, grid)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(
        box_pool(features, boxes, spatial_scale=1 / 8, output_size=given, sampling_ratio=sampling_ratio), grid
    )
    torch.testing.assert_close(
        reference.box_pool(features, boxes, spatial_scale=1 / 8, output_size=meant, sampling_ratio=sampling_ratio), grid
    )


BAD_SIZES = {
    "float": (7.0, TypeError, "output_size must be an integer, got 7.0"),
    "text": ("7", TypeError, "output_size must be an integer, got '7'"),
    "None": (None, TypeError, "output_size must be an integer, got None"),
    "bool": (True, TypeError, "output_size must be an integer, got True"),
    "three": ((7, 7, 7), ValueError, "output_size must be one integer or two, .*got 3"),
    "floats": ((7, 7.5), TypeError, r"output_size\[1\] must be an integer, got 7.5"),
}


@pytest.mark.parametrize("size, error, message", BAD_SIZES.values(), ids=BAD_SIZES.keys())
def test_bad_grids_are_named(size, error, message):
    with pytest.raises(error, match=message):
        BoxPool(size, 1.0)
    with pytest.raises(error, match=message):
        box_pool(torch.ones(1, 1, 2, 2), torch.zeros(1, 5), spatial_scale=1, output_size=size)


def test_bad_numbers_are_named():
    with pytest.raises(TypeError, match="spatial_scale must be a number, got '1/16'"):
        BoxPool(7, "1/16")
    with pytest.raises(TypeError, match=r"sampling_ratio must be an integer, got .*2\.0"):
        BoxPool(7, 1.0, np.float64(2))
    with pytest.raises(TypeError, match=r"num_regions must be an integer, got 3\.0"):
        MaskedPool(num_regions=3.0)
    with pytest.raises(ValueError, match="output_size must be at least 1, got"):
        BoxPool((7, 0), 1.0)
    with pytest.raises(ValueError, match="spatial_scale must be finite, got nan"):
        BoxPool(7, float("nan"))
    with pytest.raises(ValueError, match="at most 65536 sample points along an axis, got 7 × 1000000000"):
        BoxPool(7, 1.0, sampling_ratio=10**9)
    with pytest.raises(ValueError, match=r"at most 65536 sample points along an axis, got \(1, 1000000\) × 1"):
        box_pool(torch.ones(1, 1, 2, 2), torch.zeros(1, 5), spatial_scale=1, output_size=(1, 10**6), sampling_ratio=-1)
    with pytest.raises(ValueError, match="num_regions must not be negative, got -1"):
        MaskedPool(-1)
    with pytest.raises(ValueError, match='reduction must be "mean" or "sum", got \'max\''):
        MaskedPool(reduction="max")


@pytest.mark.parametrize("count", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)], ids=repr)
def test_number_of_labels_of_other_libraries(count):
    features, labels = torch.randn(2, 5, 6, 7), torch.randint(3, (2, 6, 7))
    assert torch.equal(MaskedPool(num_regions=count)(features, labels), MaskedPool(num_regions=3)(features, labels))
    assert torch.equal(masked_pool(features, labels, num_regions=count), MaskedPool(num_regions=3)(features, labels))


def test_masked_pool_of_masks_and_labels():
    features, labels = torch.randn(2, 5, 6, 7), torch.randint(3, (2, 6, 7))
    masks = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    sums = torch.einsum("bchw,brhw->brc", features, masks)
    torch.testing.assert_close(MaskedPool(reduction="sum")(features, masks), sums)
    pool = MaskedPool(num_regions=3)
    torch.testing.assert_close(pool(features, labels), sums / masks.sum((-2, -1))[..., None])
    assert not pool.state_dict() and str(pool) == "MaskedPool(num_regions=3, reduction='mean')"


def test_both_compile_without_a_graph_break():
    features, masks = torch.randn(1, 4, 5, 5), torch.rand(1, 2, 5, 5)
    boxes = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]])
    for pool, regions in ((BoxPool(2, 1.0), boxes), (MaskedPool(), masks)):
        compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(features, regions), pool(features, regions))
