"""The queue of keys from earlier steps. They are the negatives of later steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskco import ops
from maskco.nn.ranks import gather_together
from maskco.ops._inputs import FLOATS, as_int, as_tensor


class FeatureQueue(nn.Module):
    """A MoCo queue: a ring buffer of the keys of earlier steps. See `maskco.ops.queue_push_`.

    All state is in persistent buffers, so a resumed run continues bit for bit:

    - features: [size, dim]. They start as random unit vectors. `valid` says how many rows hold keys.
    - ids: [size] int64, with -1 in rows that were never written. None without `ids=True`.
    - cursor: [2] int64 on the device: the next row to write, and how many rows hold keys.

    Args:
        size: number of rows, K.
        dim: channels of a key, C.
        dtype: dtype of the features. Keys are cast while they are written. bfloat16 halves memory and traffic.
        ids: also keep one id for each key, so that `info_nce` can exclude keys of the query's own image.
        overflow: the effect of a push past the last row: "wrap", "truncate" or "error", as in `queue_push_`.

    Raises:
        TypeError: `size` or `dim` is not an integer, or `dtype` none of the four float dtypes that ops take.
        ValueError: `size` or `dim` is below 1, or `overflow` is unknown.
    """

    features: Tensor
    ids: Tensor | None
    cursor: Tensor

    def __init__(
        self, size: int, dim: int, *, dtype: torch.dtype = torch.float32, ids: bool = False, overflow: str = "wrap"
    ) -> None:
        super().__init__()
        size, dim = as_int(size, "size"), as_int(dim, "dim")
        if size < 1 or dim < 1:
            raise ValueError(f"queue needs size ≥ 1 and dim ≥ 1, got size={size}, dim={dim}")
        if overflow not in ("wrap", "truncate", "error"):
            raise ValueError(f"overflow must be 'wrap', 'truncate' or 'error', got {overflow!r}")
        if dtype not in FLOATS:
            raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
        self.overflow = overflow
        self.register_buffer("features", F.normalize(torch.randn(size, dim), dim=1).to(dtype))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.long) if ids else None)
        self.register_buffer("cursor", torch.zeros(2, dtype=torch.long))

    @property
    def valid(self) -> Tensor:
        """How many rows hold keys, as a 0-d int64 view of the cursor. It is on the device, so no sync is needed."""
        return self.cursor[1]

    @torch.no_grad()
    def push(self, keys: Tensor, ids: Tensor | None = None, *, normalize: bool = False, gather: bool = True) -> None:
        """Writes the keys of all ranks, in rank order, after the newest rows. No gradient flows.

        Args:
            keys: [B, dim] of any float dtype. B may differ between ranks, and be 0.
            ids: [B] integers, for a queue with ids.
            normalize: divide each key by its L2 norm while it is written, as `F.normalize(keys, dim=1)` does.
            gather: write the keys of all ranks. False writes only this rank's keys, so each rank has its own queue.

        Raises:
            ValueError: ids for a queue without ids, or no ids for a queue with ids. A shape or device that does not
                fit. With overflow="error", a B that does not divide the size.
            TypeError: a wrong dtype.
            RankError: another rank's arguments are invalid, or keys or ids have different dtypes or row sizes on
                different ranks. All ranks raise it.
        """

        def check() -> tuple[Tensor, Tensor | None]:
            if ids is None and self.ids is not None:
                raise ValueError("ids are missing, and this queue needs ids. Pass them with the keys")
            if ids is not None and self.ids is None:
                raise ValueError(
                    "ids were given, and this queue keeps no ids. Make it with ids=True, or leave them out"
                )
            return as_tensor(keys, "keys").detach(), None if ids is None else as_tensor(ids, "ids")

        all_keys, all_ids = gather_together(check) if gather else check()
        ops.queue_push_(
            self.features,
            self.cursor,
            all_keys,
            normalize=normalize,
            ids=all_ids,
            queue_ids=self.ids,
            overflow=self.overflow,
        )

    def extra_repr(self) -> str:
        size, dim = self.features.shape
        return f"size={size}, dim={dim}, dtype={self.features.dtype}, ids={self.ids is not None}"
