"""SimCLR against the formula of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from maskco.methods.moco_v2 import embed_views
from maskco.methods.simclr import nt_xent
from tiny_methods import BATCH, make, random_views


def plain_nt_xent(embeddings: torch.Tensor, temperature: float) -> torch.Tensor:
    """Equation 1: cross-entropy over all views but oneself."""
    count = len(embeddings) // 2
    logits = embeddings @ embeddings.T / temperature
    logits = logits.masked_fill(torch.eye(len(embeddings), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(embeddings)).roll(count))


def test_loss_and_gradient_are_those_of_nt_xent():
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(14, 8, dtype=torch.float64), dim=1)
    ours, plain = (embeddings.clone().requires_grad_() for _ in range(2))
    loss, stats = nt_xent(ours, 0.1)
    expected = plain_nt_xent(plain, 0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*torch.autograd.grad(loss, ours), *torch.autograd.grad(expected, plain))
    similarity = embeddings @ embeddings.T
    positive = similarity[torch.arange(14), torch.arange(14).roll(7)]
    assert torch.equal(stats.rank, (similarity > positive[:, None]).sum(1) - 1)  # (but itself)


def test_both_views_pass_the_encoder_together():
    method, views = make("simclr", temperature=0.2), random_views()
    loss, metrics, pushes, _ = method(views)
    with torch.no_grad():  # training mode: batch norms use this batch
        embeddings = embed_views(method.encoder(torch.cat([views.query, views.key])), method.projection)
    torch.testing.assert_close(loss, plain_nt_xent(embeddings, 0.2))
    assert len(embeddings) == 2 * BATCH and not pushes and not method.queues and not method.key_modules()
    assert set(metrics) == {"accuracy", "top5", "embedding_std"}
