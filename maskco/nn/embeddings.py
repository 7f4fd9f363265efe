"""How many dimensions embeddings use. Needs only torch."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> float:
    """RankMe: how many dimensions embeddings [N, D] use (Garrido et al., arXiv 2210.02885).

    It is the exponential of the entropy of the normalised singular values. It is D if embeddings fill all dimensions
    alike, and 1 if they lie on one line. It cannot exceed N, so compare it between equal N of several times D. It is
    NaN if embeddings are not finite. The call waits for the device.

    Equivalent plain torch, where this function uses a product of D × D that costs far less::

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
