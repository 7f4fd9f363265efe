"""Mask heads, projection, momentum and queue against what their names promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from maskco import nn as parts
from maskco import ops
from maskco.nn.mask_head import sin_cos_positions


@pytest.mark.parametrize("kind", ["conv", "attention", "none"])
@pytest.mark.parametrize("channels", [8, 96, 130])
def test_mask_heads_keep_the_shape_and_start_as_the_identity(kind, channels):
    head = parts.create_mask_head(kind, channels, depth=2)
    features = torch.randn(2, channels, 5, 3)
    torch.testing.assert_close(head(features), features)


@pytest.mark.parametrize("kind", ["conv", "attention"])
def test_mask_heads_bring_far_context_once_trained(kind):
    """After the identity start, a pixel's prediction depends on pixels across the map."""
    head = parts.create_mask_head(kind, 16, depth=3).eval()
    for parameter in head.parameters():
        nn.init.uniform_(parameter, 0.1, 0.5)  # all positive, so that no ReLU happens to be shut
    features = torch.rand(1, 16, 7, 7, requires_grad=True)
    head(features)[0, :, 0, 0].sum().backward()
    reached = features.grad.abs().sum((0, 1)) > 0
    assert reached[6, 6] if kind == "attention" else reached[5, 5]


def test_every_head_parameter_but_those_behind_the_zero_start_learns_at_once():
    head = parts.create_mask_head("conv", 16, depth=1)
    head(torch.randn(4, 16, 5, 5)).square().sum().backward()
    assert head[0].branch[-1].weight.grad.abs().sum() > 0


def test_unknown_mask_head():
    with pytest.raises(ValueError, match="mask_head must be 'conv', 'attention' or 'none', got 'mlp'"):
        parts.create_mask_head("mlp", 8)


def test_positions_tell_all_pixels_apart():
    positions = sin_cos_positions(7, 9, 16)
    assert positions.shape == (63, 16)
    distance = torch.cdist(positions, positions) + torch.eye(63) * 9
    assert distance.min() > 0.05


def test_projection_is_linear_relu_linear():
    head = parts.ProjectionHead(6, dim=4)
    x = torch.randn(3, 6)
    assert head[0].out_features == 6
    torch.testing.assert_close(
        head(x), F.linear(F.linear(x, head[0].weight, head[0].bias).relu(), *head[2].parameters())
    )


def test_unknown_projection():
    with pytest.raises(ValueError, match="kind must be 'moco_v2' or 'moco_v3', got 'moco'"):
        parts.ProjectionHead(6, kind="moco")


def test_moco_v3_s_projection_is_three_batch_normed_layers():
    """By hand: each layer's outputs have mean 0 and variance 1 over the batch before what follows."""
    head = parts.ProjectionHead(6, hidden=5, dim=4, kind="moco_v3")
    linears, norms = [m for m in head if isinstance(m, nn.Linear)], [m for m in head if isinstance(m, nn.BatchNorm1d)]
    assert [(m.in_features, m.out_features, m.bias) for m in linears] == [(6, 5, None), (5, 5, None), (5, 4, None)]
    assert [norm.affine for norm in norms] == [True, True, False]
    x = y = torch.randn(16, 6, dtype=torch.float64)
    for linear in linears:
        y = F.linear(y, linear.weight.double())
        y = (y - y.mean(0)) / (y.var(0, correction=0) + 1e-5).sqrt()
        y = y if linear is linears[-1] else y.relu()
    torch.testing.assert_close(head.double()(x), y)


def test_momentum_update_is_the_weighted_mean_of_parameters_only():
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = parts.momentum_copy(online)
    assert not any(p.requires_grad for p in target.parameters())
    for parameter in online.parameters():
        nn.init.normal_(parameter)
    online[1].running_mean += 5
    before = [p.clone() for p in target.parameters()]
    parts.momentum_update_(online, target, 0.9)
    for old, new, other in zip(before, target.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * other.detach())
    assert target[1].running_mean.abs().sum() == 0
    parts.momentum_update_(nn.Identity(), nn.Identity(), 0.9)
    with pytest.raises(ValueError, match="momentum_copy"):
        parts.momentum_update_(online, nn.Identity(), 0.9)
    with pytest.raises(ValueError, match=r"target's weight is \[3, 4\], torch.float32, but online's is \[1, 4\], "):
        parts.momentum_update_(nn.Linear(4, 1, bias=False), nn.Linear(4, 3, bias=False), 0.9)


def test_groups_do_not_share_batch_statistics_and_keep_the_order():
    seen = []

    def forward(images):
        seen.append(len(images))
        return images - images.mean(0)

    images = torch.arange(10.0)[:, None]
    torch.testing.assert_close(parts.forward_in_groups(lambda x: x * 2, images, 3), images * 2)
    grouped = parts.forward_in_groups(forward, images, 5)
    assert seen == [5, 5]
    assert not torch.allclose(grouped, images - images.mean(0))  # (0 to 9 cannot be parted evenly)
    for group_size in (0, 6, 10):
        torch.testing.assert_close(parts.forward_in_groups(forward, images, group_size), images - images.mean(0))


def test_queue_fills_wraps_and_counts():
    queue = parts.FeatureQueue(5, 2, ids=True)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(5))
    assert queue.valid == 0 and queue.ids.tolist() == [-1] * 5
    keys = torch.arange(14.0).view(7, 2)
    queue.push(keys[:3], ids=torch.tensor([0, 1, 2]))
    assert queue.valid == 3 and torch.equal(queue.features[:3], keys[:3])
    queue.push(keys[3:], ids=torch.tensor([3, 4, 5, 6]))
    assert queue.cursor.tolist() == [2, 5]
    assert queue.ids.tolist() == [5, 6, 2, 3, 4] and torch.equal(queue.features, keys[queue.ids])


def test_queue_state_dict_holds_everything():
    queue, other = parts.FeatureQueue(5, 2, ids=True), parts.FeatureQueue(5, 2, ids=True)
    queue.push(torch.randn(3, 2), ids=torch.arange(3))
    other.load_state_dict(queue.state_dict())
    assert set(queue.state_dict()) == {"features", "ids", "cursor"}
    assert other.valid == 3
    for name, value in queue.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queue_normalises_while_it_writes(dtype):
    queue, keys = parts.FeatureQueue(5, 3, dtype=dtype), torch.randn(4, 3) * 7
    queue.push(keys, normalize=True)
    torch.testing.assert_close(queue.features[:4], F.normalize(keys, dim=1).to(dtype))


def test_queue_errors():
    with pytest.raises(ValueError, match=r"^ids were given, and this queue keeps no ids"):
        parts.FeatureQueue(5, 2).push(torch.randn(1, 2), ids=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^ids are missing, and this queue needs ids"):
        parts.FeatureQueue(5, 2, ids=True).push(torch.randn(1, 2))
    with pytest.raises(ValueError, match="size"):
        parts.FeatureQueue(0, 2)
    with pytest.raises(TypeError, match=r"size must be an integer, got 8\.0"):
        parts.FeatureQueue(8.0, 2)
    with pytest.raises(TypeError, match="dim must be an integer, got '2'"):
        parts.FeatureQueue(8, "2")
    assert parts.FeatureQueue(np.int64(8), np.array(2)).features.shape == (8, 2)
    with pytest.raises(ValueError, match="overflow"):
        parts.FeatureQueue(2, 2, overflow="drop")
    with pytest.raises(TypeError, match=r"dtype must be float32, .*, got torch\.int32"):
        parts.FeatureQueue(2, 2, dtype=torch.int32)


def test_loss_takes_only_the_rows_that_hold_keys():
    queue = parts.FeatureQueue(8, 4)
    queue.push(F.normalize(torch.randn(3, 4), dim=1))
    query, positive = (F.normalize(torch.randn(5, 4), dim=1) for _ in range(2))
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue.features[:3].T], 1) / 0.3
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long), reduction="none")
    torch.testing.assert_close(parts.InfoNCE(0.3, "none")(query, positive, queue), expected)
    queue.features[3:] = 100
    torch.testing.assert_close(parts.InfoNCE(0.3)(query, positive, queue), expected.mean())
    variant = {"decoupled": True, "margin": 0.1}
    told = ops.info_nce(query, positive, queue.features[:3], temperature=0.3, **variant)
    torch.testing.assert_close(parts.InfoNCE(0.3, **variant)(query, positive, queue), told)
    assert not torch.allclose(told, expected.mean())


def test_loss_leaves_out_keys_with_the_query_s_id():
    queue = parts.FeatureQueue(8, 4, ids=True)
    queue.push(F.normalize(torch.randn(4, 4), dim=1), ids=torch.tensor([0, 1, 0, 2]))
    query, positive = (F.normalize(torch.randn(1, 4), dim=1) for _ in range(2))
    kept = queue.features[[1, 3]]
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ kept.T], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(parts.InfoNCE()(query, positive, queue, query_ids=torch.tensor([0])), expected)


def test_loss_passes_on_all_that_the_op_takes():
    """Each argument changes the loss, so that one that is dropped shows."""
    query, positive, queue, local = (torch.randn(*shape) for shape in ((6, 4), (6, 4), (9, 4), (6, 2, 4)))
    options = {
        "local_negatives": local,
        "in_batch": True,
        "query_ids": torch.arange(6) % 3,
        "queue_ids": torch.arange(9) % 3,
        "valid": 7,
    }
    loss = parts.InfoNCE(0.5)
    everything = ops.info_nce(query, positive, queue, temperature=0.5, **options)
    assert torch.equal(loss(query, positive, queue, **options), everything)
    for name in options:
        if name != "query_ids":  # which queue_ids needs
            assert loss(query, positive, queue, **{k: v for k, v in options.items() if k != name}) != everything


def test_loss_takes_ids_and_valid_rows_of_a_queue_from_that_queue():
    with_ids, without = parts.FeatureQueue(8, 4, ids=True), parts.FeatureQueue(8, 4)
    keys, ids = torch.randn(5, 4), torch.tensor([0, 1, 0, 2, 1])
    with_ids.push(keys, ids)
    without.push(keys)
    query, positive = torch.randn(2, 4), torch.randn(2, 4)
    asked = {"query_ids": torch.tensor([0, 1])}
    loss = parts.InfoNCE()
    expected = ops.info_nce(query, positive, keys, queue_ids=ids, **asked)
    torch.testing.assert_close(loss(query, positive, with_ids, **asked), expected)
    own_ids = torch.cat([ids, torch.zeros(3, dtype=torch.long)])
    torch.testing.assert_close(loss(query, positive, without, queue_ids=own_ids, **asked), expected)
    with pytest.raises(ValueError, match="queue_ids was given, but the FeatureQueue has its own"):
        loss(query, positive, with_ids, queue_ids=own_ids, **asked)
    with pytest.raises(ValueError, match="valid was given, but the FeatureQueue has its own"):
        loss(query, positive, without, valid=3)
    with pytest.raises(ValueError, match="Pass queue_ids"):
        loss(query, positive, without, **asked)


def push_from_rank(rank: int, store: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    queue = parts.FeatureQueue(6, 2, ids=True)
    queue.features.zero_()
    for step in range(2):
        queue.push(torch.full((2, 2), 10.0 * step + rank), ids=torch.tensor([0, 1]) + 2 * rank + 4 * step)
    alone = parts.FeatureQueue(6, 2)
    alone.push(torch.full((2 + rank, 2), 1.0 + rank), gather=False)
    own = {"own": alone.features[: 2 + rank], "own cursor": alone.cursor}
    torch.save({**queue.state_dict(), **own}, f"{out}/{rank}.pt")
    torch.distributed.barrier()  # a rank that is gone while the other still sends aborts it
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_ranks_hold_the_same_queue_in_rank_order(tmp_path):
    mp.spawn(push_from_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["ids"].tolist() == second["ids"].tolist() == [6, 7, 2, 3, 4, 5]
    assert first["features"][:, 0].tolist() == second["features"][:, 0].tolist() == [11, 11, 1, 1, 10, 10]
    assert first["own"].tolist() == [[1, 1]] * 2 and first["own cursor"].tolist() == [2, 2]  # gather=False
    assert second["own"].tolist() == [[2, 2]] * 3 and second["own cursor"].tolist() == [3, 3]


def uneven_pushes_from_rank(rank: int, store: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    queue = parts.FeatureQueue(12, 2, ids=True)
    queue.features.zero_()
    results: dict[str, object] = {}
    for lengths in ((3, 4), (0, 2), (1, 0), (0, 0)):  # of the ranks
        count = lengths[rank]
        keys = torch.full((count, 2), 1.0 + rank, requires_grad=True)
        queue.push(keys, ids=torch.arange(count) + 100 * rank)
    results["state"] = queue.state_dict()
    bad = {  # what each rank brings
        "dtypes": ((torch.ones(1, 2), torch.zeros(1).long()), (torch.ones(1, 2).double(), torch.zeros(1).long())),
        "row sizes": ((torch.ones(1, 2), torch.zeros(1).long()), (torch.ones(1, 3), torch.zeros(1).long())),
        "dimensions": ((torch.ones(1, 2), torch.zeros(1).long()), (torch.ones(2), torch.zeros(1).long())),
        "missing ids": ((torch.ones(1, 2), torch.zeros(1).long()), (torch.ones(1, 2), None)),
        "no tensor": ((torch.ones(1, 2), torch.zeros(1).long()), ("keys", torch.zeros(1).long())),
        "ids of others": ((torch.ones(1, 2), torch.zeros(2).long()), (torch.ones(2, 2), torch.zeros(2).long())),
    }
    for name, arguments in bad.items():
        try:
            queue.push(*arguments[rank])
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    images = torch.arange(3.0 + 2 * rank)[:, None] + 10 * rank
    torch.manual_seed(rank)
    seen = []
    results["outputs"] = parts.shuffled_across_ranks(lambda x, y: seen.append(x) or x + y, images, images * 100)
    results["seen"] = seen[0]
    torch.save(results, f"{out}/{rank}.pt")
    torch.distributed.barrier()  # a rank that is gone while the other still sends aborts it
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_ranks_may_bring_batches_of_different_lengths(tmp_path):
    mp.spawn(uneven_pushes_from_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for results in (first, second):
        state = results["state"]
        assert state["cursor"].tolist() == [10, 10]
        assert state["features"][:, 0].tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2, 1, 0, 0]
        assert state["ids"].tolist() == [0, 1, 2, 100, 101, 102, 103, 100, 101, 0, -1, -1]
    for name in ("dtypes", "row sizes", "dimensions"):
        assert first[name] == second[name] and first[name].startswith("RankError: the ranks' tensors do not fit"), name
    assert "rank 0 float32 [1, 2], rank 1 float64 [1, 2]" in first["dtypes"]
    for name, said in (("missing ids", "ids are missing"), ("no tensor", "keys must be a tensor or an array")):
        assert said in second[name] and first[name].startswith(f"RankError: rank 1 failed: {said}"), name
    assert first["ids of others"] == second["ids of others"]  # 4 ids of 3 keys
    assert "ids must have shape [3]" in first["ids of others"]
    assert torch.equal(first["outputs"], 101 * torch.arange(3.0)[:, None])
    assert torch.equal(second["outputs"], 101 * (torch.arange(5.0)[:, None] + 10))
    assert first["seen"].shape == (3, 1) and second["seen"].shape == (5, 1)
    assert sorted(torch.cat([first["seen"], second["seen"]]).flatten().tolist()) == [0, 1, 2, 10, 11, 12, 13, 14]


def test_losses_take_numpy_numbers():
    rows = torch.randn(3, 4)
    for number in (np.float32(0.25), np.float64(0.25), np.array(0.25)):
        assert torch.equal(
            parts.InfoNCE(number)(rows, rows, in_batch=True), parts.InfoNCE(0.25)(rows, rows, in_batch=True)
        )


@pytest.mark.parametrize("derivative", [torch.func.jvp, torch.func.grad])
@pytest.mark.parametrize(
    ("module", "rest", "shape"),
    [
        (parts.InfoNCE(), (torch.randn(3, 4), torch.randn(6, 4)), (3, 4)),
        (parts.BoxPool(7, 1.0), (torch.tensor([[0, 0.0, 1.0, 3.0, 4.0]]),), (2, 3, 5, 5)),
        (parts.MaskedPool(), (torch.rand(2, 2, 5, 5),), (2, 3, 5, 5)),
    ],
)
def test_modules_of_ops_have_no_silent_derivatives(module, rest, shape, derivative):
    x = torch.randn(shape)

    def function(x):
        return module(x, *rest).sum()

    with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
        torch.func.jvp(function, (x,), (x,)) if derivative is torch.func.jvp else derivative(function)(x)
