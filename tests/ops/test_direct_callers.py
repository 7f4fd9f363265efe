"""Calls of torch.ops.maskco.* past the Python functions: what would be read out of bounds is refused."""

from __future__ import annotations

import pytest
import torch

from maskco.ops import _library

B, R, C, H, W = 2, 3, 4, 5, 6
SIZE = [B, C, H, W]
FEATURES, GRAD, AREA = torch.zeros(B, C, H, W), torch.zeros(B, R, C), torch.zeros(B, R)
MASKS, BOXES, LABELS = torch.zeros(B, R, H, W), torch.zeros(7, 5), torch.zeros(B, H, W, dtype=torch.long)
GRID = (1.0, 7, 7, 2, True)
ROWS, KEYS, CURSOR = torch.zeros(3, C), torch.zeros(8, C), torch.zeros(2, dtype=torch.long)
IDS = torch.zeros(1, dtype=torch.long)

CALLS = {
    "boxes of four columns": ("box_pool_bwd", (torch.zeros(7, C), BOXES[:, :4], SIZE, False, *GRID), "boxes"),
    "gradient of boxes": ("box_pool_bwd", (torch.zeros(7, C, 1), BOXES, SIZE, False, *GRID), "grad_output"),
    "labels without regions": ("masked_pool_fwd", (FEATURES, LABELS, None, True), "masks"),
    "masks of other dtype": ("masked_pool_fwd", (FEATURES, MASKS.double(), None, True), "masks"),
    "a negative number of regions": ("masked_pool_fwd", (FEATURES, LABELS, -1, True), "num_regions"),
    "masks with regions": ("masked_pool_fwd", (FEATURES, MASKS, R, True), "masks"),
    "too few images": ("masked_pool_bwd", (GRAD[:1], MASKS, AREA[:1], SIZE, False, True), "grad_output"),
    "too few channels": ("masked_pool_bwd", (GRAD[..., :2], MASKS, AREA, SIZE, False, True), "grad_output"),
    "a small area": ("masked_pool_bwd", (GRAD, MASKS, AREA[:1, :1], SIZE, False, True), "area"),
    "features of other size": ("masked_pool_bwd_masks", (GRAD, FEATURES[:1], GRAD, AREA, True), "grad_output"),
    "an output of other size": ("masked_pool_bwd_masks", (GRAD, FEATURES, GRAD[:, :1], AREA, True), "output"),
    "an output of other dtype": ("masked_pool_bwd_masks", (GRAD, FEATURES, GRAD.double(), AREA, True), "output"),
    "an expanded cursor": ("queue_push_", (KEYS, CURSOR[:1].expand(2), ROWS, False, None, None, True), "cursor"),
    "expanded ids": ("queue_push_", (KEYS, CURSOR, ROWS, False, IDS.expand(3), IDS.expand(8), True), "queue_ids"),
    "a positive of other dtype": (
        "info_nce_fwd",
        (ROWS, ROWS.double(), KEYS, None, False, None, None, None, 1.0, None, True, False),
        "positive",
    ),
}  # fmt: skip


@pytest.mark.parametrize("op, arguments, name", CALLS.values(), ids=CALLS.keys())
def test_what_does_not_fit_is_refused_by_name(device, op, arguments, name):
    arguments = [a.to(device) if torch.is_tensor(a) else a for a in arguments]
    with pytest.raises(RuntimeError, match=name):
        getattr(_library.kernels(device), op)(*arguments)
