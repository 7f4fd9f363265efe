"""The pooling modules against torchvision and einsum, compiled, and without a state of their own."""

from __future__ import annotations

import torch
from torchvision.ops import RoIAlign

from maskco.nn import BoxPool, MaskedPool


def test_box_pool_is_the_mean_of_roi_align():
    features = torch.randn(2, 5, 9, 7)
    boxes = torch.tensor([[0, 3.0, 5.0, 40.0, 60.0], [1, 0.0, 0.0, 20.0, 10.0]])
    pool = BoxPool(3, 1 / 8, sampling_ratio=2)
    expected = RoIAlign(3, 1 / 8, sampling_ratio=2, aligned=True)(features, boxes).mean((-2, -1))
    torch.testing.assert_close(pool(features, boxes), expected)
    torch.testing.assert_close(pool(features, [boxes[:1, 1:], boxes[1:, 1:]]), expected)
    assert not pool.state_dict() and str(pool).startswith("BoxPool(output_size=3, spatial_scale=0.125")


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
