"""DenseCL against the formulas of the paper, written out, and against lightly's parts where that is installed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskco.methods.densecl import most_similar
from maskco.methods.moco_v2 import embed_views
from tiny_methods import BATCH, make, random_views, step


@pytest.mark.parametrize("share", [0.5, 0.0, 1.0])
def test_loss_is_the_mean_of_a_global_and_a_dense_cross_entropy(share):
    method = make("densecl", dense_share=share, shuffle_keys=False)
    for seed in range(3):
        step(method, random_views(seed))
    filled = [queue.features[: 3 * BATCH].clone() for queue in (method.queue, method.dense_queue)]
    views = random_views(9)
    loss, metrics, pushes, _ = method(views)

    with torch.no_grad():  # training mode: batch norms use this batch
        maps = {"query": method.encoder(views.query), "key": method.momentum_encoder(views.key)}
        query, key = embed_views(maps["query"], method.projection), embed_views(maps["key"], method.momentum_projection)
        dense = {"query": method.dense_projection(maps["query"]), "key": method.momentum_dense_projection(maps["key"])}
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ filled[0].T], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.long))
    places, total = maps["query"].shape[-1] ** 2, 0.0
    for image in range(BATCH):
        features = {side: unit_columns(maps[side][image]) for side in maps}
        vectors = {side: unit_columns(dense[side][image]) for side in dense}
        for place in range(places):
            match = (features["query"][:, place] @ features["key"]).argmax()
            own = vectors["query"][:, place]
            row = torch.cat([(own @ vectors["key"][:, match])[None], filled[1] @ own]) / 0.2
            total += row.logsumexp(0) - row[0]
    torch.testing.assert_close(loss, (1 - share) * expected + share * total / (BATCH * places))
    torch.testing.assert_close(pushes["queue"], key)
    torch.testing.assert_close(pushes["dense_queue"], F.normalize(dense["key"].mean((2, 3)), dim=1))
    assert metrics.keys() >= {"accuracy", "dense_accuracy", "embedding_std", "dense_embedding_std"}


def unit_columns(features: torch.Tensor) -> torch.Tensor:
    """[C, h, w] -> [C, h * w], each place of length 1."""
    return F.normalize(features.flatten(1), dim=0)


def test_both_queues_are_pushed_and_the_dense_head_has_a_momentum_copy():
    method = make("densecl")
    step(method, random_views())
    assert [int(queue.valid) for queue in method.queues.values()] == [BATCH, BATCH]
    assert list(method.queues) == ["queue", "dense_queue"]
    assert (method.dense_projection, method.momentum_dense_projection) in method.key_modules()


def test_matching_is_lightlys():
    utils = pytest.importorskip("lightly.models.utils")
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 6, 25), torch.randn(3, 6, 25), torch.randn(3, 8, 25)
    expected = utils.select_most_similar(queries.mT, keys.mT, values.mT)  # [B, S, D]
    places = most_similar(queries, keys)
    torch.testing.assert_close(values.mT.gather(1, places[..., None].expand(-1, -1, 8)), expected)


def test_loss_is_lightlys():
    """Its DenseCL is two of its contrastive losses, each with a memory bank, on matched places."""
    losses = pytest.importorskip("lightly.loss")
    utils = pytest.importorskip("lightly.models.utils")
    method = make("densecl", shuffle_keys=False)
    for seed in range(8):  # until both queues are full, as lightly's banks are
        step(method, random_views(seed))
    views = random_views(9)
    with torch.no_grad():
        maps = {"query": method.encoder(views.query), "key": method.momentum_encoder(views.key)}
        query, key = embed_views(maps["query"], method.projection), embed_views(maps["key"], method.momentum_projection)
        dense = method.dense_projection(maps["query"]).flatten(2).mT  # [B, S, D]
        dense_keys = method.momentum_dense_projection(maps["key"]).flatten(2).mT
        matched = utils.select_most_similar(maps["query"].flatten(2).mT, maps["key"].flatten(2).mT, dense_keys)
    parts = []
    for queue, pair in (
        (method.queue, (query, key)),
        (method.dense_queue, (dense.flatten(0, 1), matched.flatten(0, 1))),
    ):
        criterion = losses.NTXentLoss(temperature=0.2, memory_bank_size=tuple(queue.features.shape))
        criterion.memory_bank.bank = queue.features.clone()
        parts.append(criterion(*pair))
    torch.testing.assert_close(method(views).loss, sum(parts) / 2)
