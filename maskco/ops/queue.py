"""The feature queue (MoCo's dictionary of negatives). One op normalises, casts and writes keys in place, on the device.

It has no gradient, since keys are constants to the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskco.ops import _library, reference
from maskco.ops._inputs import (
    FLOATS,
    INTEGERS,
    as_output,
    as_tensor,
    check_device,
    check_dtype,
    check_shape,
    refuse_forward_mode,
    refuse_transforms,
)

OVERFLOWS = ("wrap", "truncate", "error")


def queue_push_(
    queue: Any,
    cursor: Any,
    keys: Any,
    *,
    normalize: bool = False,
    ids: Any | None = None,
    queue_ids: Any | None = None,
    overflow: str = "wrap",
) -> Tensor:
    """Writes keys into a ring-buffer queue after its newest rows, in place and without waiting for the device.

    Equivalent plain torch, where the op takes one launch and any B::

        rows = (cursor[0] + torch.arange(B)) % K
        queue[rows] = (F.normalize(keys, dim=1) if normalize else keys).to(queue.dtype)
        queue_ids[rows] = ids
        cursor.copy_(torch.stack([(cursor[0] + B) % K, (cursor[1] + B).clamp(max=K)]))

    Inputs are tensors, or arrays with `__dlpack__` (NumPy on the CPU, CuPy). Arrays are changed in place too.

    Args:
        queue: [K, C], float32, float64, float16 or bfloat16, with any strides. It must not require grad.
        cursor: [2] int64 on the queue's device: the next row to write, and the number of rows written so far, at most
            K. Start with zeros. The op advances it.
        keys: [B, C], of any float dtype. They are cast while they are written. B may be 0. If it exceeds K, the last K
            keys are kept. Keys are constants, and no gradient flows to them.
        normalize: divide each key by its L2 norm, as `torch.nn.functional.normalize(keys, dim=1)` with eps 1e-12 does.
            The norm is computed in float32 (float64 for float64 keys).
        ids: [B] integers, an identity for each key, for example of its image. They are written to `queue_ids`.
        queue_ids: [K] int64. Give both or neither.
        overflow: the treatment of keys that pass the queue's end. "wrap" continues at row 0. "truncate" drops them, and
            the next push starts at row 0. "error" (MoCo's assertion) requires that B divides K, so that full batches
            end where the queue does.

    Returns:
        The queue, as torch's in-place functions do. For an array it is a tensor on the array's memory.

    Raises:
        ValueError: a shape, device or stride does not fit, an array to write to is read-only or a negated
            view, only one of `ids` and `queue_ids` is given, or with "error" B does not divide K.
        TypeError: a wrong dtype.
        RuntimeError: the queue requires grad, or the queue or keys have a forward-mode tangent. Detach them. On the CPU
            also a cursor outside the queue. CUDA takes its row modulo K and clamps its count, since a check would wait
            for the device.
    """
    queue, cursor, keys = as_output(queue, "queue"), as_output(cursor, "cursor"), as_tensor(keys, "keys")
    check_dtype(queue, FLOATS, "queue")
    check_shape(queue, ("K", "C"), "queue")
    size, channels = queue.shape
    if queue.requires_grad:
        raise RuntimeError("queue must not require grad: it is overwritten in place. Pass queue.detach()")
    if shares_memory(*queue.shape, *queue.stride()):
        raise ValueError("queue must not be expanded, its rows share memory. Pass queue.clone()")
    check_dtype(cursor, (torch.int64,), "cursor")
    check_shape(cursor, (2,), "cursor")
    check_device(cursor, queue, "cursor", "queue")
    check_dtype(keys, FLOATS, "keys")
    check_shape(keys, ("B", channels), "keys")
    check_device(keys, queue, "keys", "queue")
    count = keys.shape[0]
    if (ids is None) != (queue_ids is None):
        missing = "ids" if ids is None else "queue_ids"
        raise ValueError(f"ids and queue_ids go together, {missing} is missing. Give both or neither")
    if ids is not None:
        ids, queue_ids = as_tensor(ids, "ids"), as_output(queue_ids, "queue_ids")
        check_dtype(ids, INTEGERS, "ids")
        check_shape(ids, (count,), "ids")
        check_device(ids, queue, "ids", "queue")
        check_dtype(queue_ids, (torch.int64,), "queue_ids")
        check_shape(queue_ids, (size,), "queue_ids")
        check_device(queue_ids, queue, "queue_ids", "queue")
        ids = ids.to(torch.int64)
    if overflow not in OVERFLOWS:
        raise ValueError(f'overflow must be "wrap", "truncate" or "error", got {overflow!r}')
    if overflow == "error" and count > 0 and size % count != 0:
        raise ValueError(
            f'overflow="error" needs a batch that divides the queue, got {count} keys for {size} rows. '
            'Drop the last short batch or use overflow="wrap"'
        )

    refuse_transforms("queue_push_", queue, keys)
    ops = _library.kernels(queue.device)
    if ops is None:
        with torch.no_grad():
            reference.queue_push_(
                queue, cursor, keys, normalize=normalize, ids=ids, queue_ids=queue_ids, overflow=overflow
            )
    else:
        if keys.requires_grad:
            keys = keys.detach()
        ops.queue_push_(queue, cursor, keys, normalize, ids, queue_ids, overflow != "truncate")
        # so that autograd refuses a backward pass which needs what was here before (ops of a stable-ABI library don't)
        torch.autograd.graph.increment_version((queue, cursor) if queue_ids is None else (queue, cursor, queue_ids))
    return queue


def shares_memory(rows: int, columns: int, down: int, across: int) -> bool:
    """Whether elements of a matrix with these strides share memory, as those of an expanded one do.

    True also for a few odd layouts without overlap, in which neither rows nor columns follow one another.
    """
    if rows <= 1 or columns <= 1:
        return (rows > 1 and down == 0) or (columns > 1 and across == 0)
    nested = down > across * (columns - 1) or across > down * (rows - 1)
    return not nested or down == 0 or across == 0


def register(namespace: str) -> None:
    """Registers the fake kernel of torch.ops.<namespace>.queue_push_, which returns nothing."""

    @torch.library.register_fake(f"{namespace}::queue_push_")
    def _(queue, cursor, keys, normalize, ids, queue_ids, wrap):
        refuse_forward_mode("queue_push_")


register("maskco")
