"""How many dimensions embeddings use. Needs torch alone."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """RankMe (Garrido et al., arXiv 2210.02885): exp of the entropy of the singular values, divided by their sum.

    It is D where embeddings [N, D] fill all dimensions alike, and 1 where they lie on one line. It cannot exceed N, so
    compare it between equal N, of several times D. NaN if embeddings are not finite. Waits for the device.

    The same as this, by a product of D × D that costs far less::

        p = torch.linalg.svdvals(embeddings)
        p = p / p.sum()
        torch.special.entr(p).sum().exp()
    """
    rows = embeddings.cpu().double()
    if not rows.isfinite().all():
        return float("nan")
    product = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    singular = torch.linalg.eigvalsh(product).clamp_min(0).sqrt()
    return float(torch.special.entr(singular / singular.sum().clamp_min(1e-300)).sum().exp())
