"""What all methods keep to, and MaskCo and MoCo v2 against their formulas, on tiny encoders and drawn views."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou, roi_align

from maskco.config import METHODS
from maskco.errors import ConfigError
from maskco.methods import MaskCo, MoCoV2
from maskco.methods.base import key_momentum_at
from maskco.methods.maskco import overlaps
from maskco.methods.moco_v2 import embed_views
from maskco.nn import create_encoder
from tiny_methods import BATCH, REGIONS, make, random_views, states, step


def test_moco_v2_loss_is_cross_entropy_over_positive_and_queue():
    method = make("moco_v2")
    for seed in range(3):
        step(method, random_views(seed))  # 12 keys
    views, filled = random_views(9), method.queue.features[:12].clone()
    loss, metrics, pushes, _ = step(method, views)
    queries, keys = embed_views(method.encoder(views.query), method.projection), pushes["queue"]

    with torch.no_grad():  # training mode: batch norms use this batch, so the forward passes can be repeated
        encoded = method.projection(method.encoder(views.query).mean((2, 3)))
        torch.testing.assert_close(queries, encoded / encoded.norm(dim=1, keepdim=True))
        encoded = method.momentum_projection(method.momentum_encoder(views.key).mean((2, 3)))
        torch.testing.assert_close(keys, encoded / encoded.norm(dim=1, keepdim=True))
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ filled.T], 1) / 0.2
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.long)))
    ranks = (logits[:, 1:] > logits[:, :1]).sum(1)
    assert metrics["accuracy"] == 100 * (ranks == 0).float().mean()
    assert metrics["top5"] == 100 * (ranks < 5).float().mean()
    assert torch.equal(method.queue.features[12:16], keys)


@pytest.mark.parametrize("local_negatives", [True, False])
def test_maskco_loss_is_cross_entropy_region_by_region(local_negatives):
    method = make("maskco", local_negatives=local_negatives, mask_share=1.0)
    step(method, random_views(5))
    views, filled = random_views(9), method.queue.features[: BATCH * REGIONS].clone()
    loss, _, pushes, _ = method(views)
    queries, keys = method.encode_queries(views), pushes["queue"]

    with torch.no_grad():
        masked = views.query.clone()
        for image, boxes in zip(masked, views.query_boxes, strict=True):
            for x1, y1, x2, y2 in boxes.tolist():
                image[:, int(y1) : -int(-y2 // 1), int(x1) : -int(-x2 // 1)] = 0.1
        maps = {"query": method.mask_head(method.encoder(masked)), "key": method.momentum_encoder(views.key)}
        heads = {"query": method.projection, "key": method.momentum_projection}
        expected = {}
        for side, boxes in (("query", views.query_boxes), ("key", views.key_boxes)):
            rows = []
            for image in range(BATCH):  # one region at a time: the order of rows is image by image
                for region in range(REGIONS):
                    pooled = roi_align(maps[side][image, None], [boxes[image, region, None]], 7, 1 / 8, 2, True)
                    rows.append(F.normalize(heads[side](pooled.mean((2, 3))), dim=1))
            expected[side] = torch.cat(rows)
    torch.testing.assert_close(queries, expected["query"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(keys, expected["key"], atol=1e-5, rtol=1e-4)

    losses = []
    for row in range(BATCH * REGIONS):
        image = row // REGIONS
        others = [image * REGIONS + r for r in range(REGIONS) if image * REGIONS + r != row]
        negatives = torch.cat([filled, keys[others]]) if local_negatives else filled
        logits = torch.cat([keys[row, None], negatives]) @ queries[row] / 0.2
        losses.append(logits.logsumexp(0) - logits[0])
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_regions_that_overlap_too_much_are_no_negatives_of_each_other():
    """Loss and gradient are those without them, to the bit of a weight: they are not merely unlikely."""
    method = make("maskco", local_overlap=0.2)
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 0, 25, 20], [30, 30, 50, 50], [20, 0, 40, 20]])
    shared = overlaps(boxes[None])[0]
    torch.testing.assert_close(shared, box_iou(boxes, boxes))
    views = random_views(3, batch=2, regions=4)._replace(
        query_boxes=boxes.repeat(2, 1, 1), key_boxes=boxes.repeat(2, 1, 1)
    )
    with torch.no_grad():
        keys = method.encode_keys(views)
    queries = method.encode_queries(views)
    loss = method(views).loss
    losses = []
    for row in range(8):
        others = [other for other in range(8) if other // 4 == row // 4 and shared[other % 4, row % 4] <= 0.2]
        assert row not in others and len(others) == (2, 2, 3, 3)[row % 4]
        logits = torch.cat([keys[row, None], keys[others]]) @ queries[row] / 0.2
        losses.append(logits.logsumexp(0) - logits[0])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected)
    weights = method.projection[0].weight
    torch.testing.assert_close(*(torch.autograd.grad(each, weights, retain_graph=True)[0] for each in (loss, expected)))


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_query_side_only(name):
    method = make(name)
    views = random_views()
    step(method, views)  # fills the queue: without negatives there is nothing to learn
    if name == "maskco":
        for block in method.mask_head:  # away from the identity start, which hides the rest of the block
            nn.init.ones_(block.branch[-1].weight)
    loss = method(views).loss
    loss.backward()
    for parameter_name, parameter in method.named_parameters():
        if parameter_name.startswith("momentum_"):
            assert not parameter.requires_grad and parameter.grad is None, parameter_name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(("mask_head", "share"), [("conv", 1.0), ("attention", 1.0), ("none", 1.0), ("conv", 0.25)])
def test_what_is_masked_cannot_influence_the_query(mask_head, share):
    method = make("maskco", mask_head=mask_head, mask_share=share)
    views = random_views()
    hidden = views.query.clone()
    for image, boxes in zip(hidden, views.query_boxes, strict=True):
        for x1, y1, x2, y2 in boxes.tolist():
            if share == 0.25:  # half of each side, in the middle
                x1, x2 = x1 + (x2 - x1) / 4, x2 - (x2 - x1) / 4
                y1, y2 = y1 + (y2 - y1) / 4, y2 - (y2 - y1) / 4
            region = image[:, int(y1) : -int(-y2 // 1), int(x1) : -int(-x2 // 1)]
            region.copy_(100 * torch.randn_like(region))
    seen = views.query.clone()
    seen[:, :, -2:, -2:] += 1  # no box reaches the last corner
    method.eval()
    queries = [method.encode_queries(views._replace(query=query)) for query in (views.query, hidden, seen)]
    assert torch.equal(queries[0], queries[1])
    if share < 1:  # the rest of a region is seen
        rims = views.query.clone()
        for image, boxes in zip(rims, views.query_boxes, strict=True):
            for x1, y1, *_ in boxes.long().tolist():
                image[:, y1 + 1, x1 + 1] += 1
        assert not torch.equal(queries[0], method.encode_queries(views._replace(query=rims)))
    if mask_head == "attention":
        assert torch.equal(queries[0], queries[2])  # the identity start: nothing travels yet
        nn.init.normal_(method.mask_head.leave.weight)
        far = [method.encode_queries(views._replace(query=query)) for query in (views.query, hidden, seen)]
        assert torch.equal(far[0], far[1]) and not torch.equal(far[0], far[2])


@pytest.mark.parametrize("name", METHODS)
def test_momentum_side_follows_by_the_formula(name):
    method = make(name)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    before = states(method)
    step(method, random_views())
    for parameter_name, parameter in method.named_parameters():
        if parameter_name.startswith("momentum_"):
            online = before[parameter_name.removeprefix("momentum_")]
            torch.testing.assert_close(parameter, 0.9 * before[parameter_name] + 0.1 * online)


def test_key_momentum_rises_as_byol_s():
    """BYOL's formula, with the end at 1; half of the way is done at half of the run, whatever the end."""
    options = make("moco_v2", key_momentum_end=1.0).options
    for k in range(41):
        assert key_momentum_at(options, k / 40) == pytest.approx(1 - (1 - 0.9) * (math.cos(math.pi * k / 40) + 1) / 2)
    assert key_momentum_at(make("moco_v2", key_momentum_end=0.98).options, 0.5) == pytest.approx(0.94)
    assert key_momentum_at(make("moco_v2").options, 0.7) == 0.9
    with pytest.raises(ConfigError, match=r"^key_momentum_end must be at least key_momentum, 0\.9"):
        make("moco_v2", key_momentum_end=0.8)


@pytest.mark.parametrize("name", [name for name in METHODS if make(name).key_modules()])
def test_the_momentum_side_follows_by_the_progress_of_the_run(name):
    moved = []
    for progress in (0.0, 0.5, 1.0):
        method = make(name, key_momentum_end=1.0)
        nn.init.ones_(method.projection[0].weight)
        before = method.momentum_projection[0].weight.clone()
        method.start_step(progress)
        moved.append((method.momentum_projection[0].weight - before).abs().sum().item())
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-4) and moved[0] > moved[2] == 0


def test_key_head_follows_and_is_used():
    method = make("maskco", key_head=True)
    assert not any(p.requires_grad for p in method.momentum_mask_head.parameters())
    nn.init.ones_(method.mask_head[0].branch[-1].weight)
    step(method, random_views())
    torch.testing.assert_close(method.momentum_mask_head[0].branch[-1].weight, torch.full((16,), 0.1))
    method.eval()
    keys = method.encode_keys(random_views())
    method.momentum_mask_head = nn.Identity()
    assert not torch.allclose(keys, method.encode_keys(random_views()), atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_eval_mode_changes_nothing(name):
    method = make(name)
    step(method, random_views())
    method.eval()
    before = states(method)
    first, second = method(random_views(3)), method(random_views(3))
    assert torch.equal(first.loss, second.loss)
    for state_name, value in method.state_dict().items():
        assert torch.equal(value, before[state_name]), state_name


@pytest.mark.parametrize("name", METHODS)
def test_keys_are_unit_vectors_and_metrics_numbers_under_autocast(name):
    method = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(method, random_views())
        loss, metrics, pushes, _ = method(random_views(1))
    loss.backward()
    assert loss.dtype == torch.float32 and pushes.keys() == method.queues.keys()
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    for keys in pushes.values():
        assert keys.dtype == torch.float32 and not keys.requires_grad
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(len(keys)))
    assert torch.isfinite(loss) and loss > 0


def test_keys_see_other_company_than_queries():
    """With groups, the key side's batch norms run once for each group."""
    method = make("moco_v2", key_group=2)
    method(random_views())
    assert method.momentum_encoder.backbone[1].num_batches_tracked == 2
    assert method.encoder.backbone[1].num_batches_tracked == 1


@pytest.mark.parametrize("name", METHODS)
def test_methods_learn_one_batch(name):
    """A few steps on one batch of views bring each query nearer to its own key than to others."""
    method = make(name)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for seed in range(3):
        step(method, random_views(seed))
    views, losses = random_views(7), []
    for _ in range(15):
        method.start_step()
        loss = method(views).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_timm_encoder_by_name_and_by_module():
    method = MaskCo("test_resnet", dim=8, queue_size=16)
    assert method(random_views()).loss.shape == ()
    assert MoCoV2(create_encoder("test_resnet", stage=-2), dim=8, queue_size=16).encoder.stride == 16
    with pytest.raises(ValueError, match="Did you mean"):
        MaskCo("resnet5O")
