"""maskco.ops.queue_push_ against its specification, reference.queue_push_."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from maskco.ops import _library, queue_push_, reference

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def new_queue(size: int, channels: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """A queue full of -1, a cursor at its start, and ids of -1."""
    return (
        torch.full((size, channels), -1.0, dtype=dtype, device=device),
        torch.zeros(2, dtype=torch.int64, device=device),
        torch.full((size,), -1, dtype=torch.int64, device=device),
    )


def random_keys(count: int, channels: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(count * 1000 + channels)
    return torch.randn(count, channels, generator=generator).to(device, dtype)


def assert_same_pushes(queue: Tensor, cursor: Tensor, queue_ids: Tensor, batches: list[Tensor], **options) -> None:
    """Pushes the batches with the op and with the reference; the queue, cursor and ids must be equal after each."""
    expected = queue.clone(), cursor.clone(), queue_ids.clone()
    first_id = 0
    for keys in batches:
        ids = torch.arange(first_id, first_id + len(keys), device=keys.device)
        first_id += len(keys)
        queue_push_(queue, cursor, keys, ids=ids, queue_ids=queue_ids, **options)
        reference.queue_push_(expected[0], expected[1], keys, ids=ids, queue_ids=expected[2], **options)
        assert torch.equal(cursor, expected[1])
        assert torch.equal(queue_ids, expected[2])
        # a sum of squares in another order may round the other way
        computed = torch.promote_types(keys.dtype, torch.float32)
        tolerance = 2 * max(torch.finfo(computed).eps, torch.finfo(queue.dtype).eps) if options.get("normalize") else 0
        torch.testing.assert_close(queue, expected[0], rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("overflow", ["wrap", "truncate"])
@pytest.mark.parametrize("normalize", [False, True])
def test_any_batch_against_any_queue(device: torch.device, overflow: str, normalize: bool) -> None:
    size, channels = 13, 37
    batches = [random_keys(b, channels, device) for b in (5, 0, 5, 7, 1, 13, 14, 40, 2, 12)]
    assert_same_pushes(*new_queue(size, channels, device), batches, normalize=normalize, overflow=overflow)


@pytest.mark.parametrize("queue_dtype, key_dtype", list(itertools.product(FLOATS, FLOATS)))
def test_casts_between_all_dtypes(device: torch.device, queue_dtype: torch.dtype, key_dtype: torch.dtype) -> None:
    for normalize in (False, True):
        queue = new_queue(6, 21, device, queue_dtype)
        assert_same_pushes(*queue, [random_keys(4, 21, device, key_dtype)] * 2, normalize=normalize)


@pytest.mark.parametrize("channels", [8, 128, 512, 520, 1024, 1032])  # packs of 16 bytes, up to four a lane, or more
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)],
    ids=str,
)
def test_rows_of_whole_packs(device: torch.device, dtypes: tuple[torch.dtype, torch.dtype], channels: int) -> None:
    batches = [random_keys(3, channels, device, dtypes[1])] * 2
    assert_same_pushes(*new_queue(5, channels, device, dtypes[0]), batches, normalize=True)
    queue, cursor, queue_ids = new_queue(5, channels + 1, device, dtypes[0])  # rows that are not aligned
    assert_same_pushes(queue[:, 1:], cursor, queue_ids, batches, normalize=False)


@pytest.mark.parametrize("queue_dtype, key_dtype", list(itertools.product(FLOATS, FLOATS)))
def test_casts_between_all_dtypes_by_packs(
    device: torch.device, queue_dtype: torch.dtype, key_dtype: torch.dtype
) -> None:
    for normalize in (False, True):
        queue = new_queue(6, 16, device, queue_dtype)
        assert_same_pushes(*queue, [random_keys(4, 16, device, key_dtype)] * 2, normalize=normalize)


def test_float64_is_normalised_in_float64(device: torch.device) -> None:
    queue, cursor, _ = new_queue(4, 50, device, torch.float64)
    queue_push_(queue, cursor, random_keys(4, 50, device, torch.float64), normalize=True)
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(4, dtype=torch.float64, device=device), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (0, 0)])
def test_empty_queues(device: torch.device, shape: tuple[int, int]) -> None:
    assert_same_pushes(*new_queue(*shape, device), [random_keys(3, shape[1], device)], normalize=True)


def test_any_strides_without_touching_the_gaps(device: torch.device) -> None:
    for layout in ("rows apart", "columns apart", "transposed"):
        base = torch.full((10, 24), -1.0, device=device)
        queue = {"rows apart": base[1::2, 3:15], "columns apart": base[:5, ::2], "transposed": base[:, :5].T}[layout]
        channels = queue.shape[1]
        keys = {
            "rows apart": random_keys(6, channels, device)[::2],
            "columns apart": random_keys(3, channels * 2, device)[:, ::2],
            "transposed": random_keys(channels, 3, device).T,
        }[layout]
        cursor = torch.zeros(4, dtype=torch.int64, device=device)[::2]
        queue_ids, ids = torch.zeros(10, dtype=torch.int64, device=device)[::2], torch.arange(6, device=device)[::2]
        queue_push_(queue, cursor, keys, ids=ids, queue_ids=queue_ids)
        assert torch.equal(queue[:3], keys), layout
        assert cursor.tolist() == [3, 3] and queue_ids.tolist() == [0, 2, 4, 0, 0]
        assert int((base != -1).sum()) == keys.numel(), layout  # nothing but the three rows was written


def test_nan_and_inf_arrive_and_zero_rows_stay_zero(device: torch.device) -> None:
    keys = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0], [0.0, 0.0], [1e-20, 0.0]], device=device)
    assert_same_pushes(*new_queue(4, 2, device), [keys], normalize=True)


def test_keys_may_lie_in_the_queue(device: torch.device) -> None:
    queue, cursor, queue_ids = new_queue(4, 3, device)
    queue.copy_(random_keys(4, 3, device))
    queue_ids.copy_(torch.arange(4))
    before = queue.clone()
    cursor[0] = 1
    queue_push_(queue, cursor, queue[:3], ids=queue_ids[:3], queue_ids=queue_ids)
    assert torch.equal(queue, before[[0, 0, 1, 2]]) and queue_ids.tolist() == [0, 0, 1, 2]


def test_integer_ids_of_any_width(device: torch.device) -> None:
    queue, cursor, queue_ids = new_queue(4, 3, device)
    ids = torch.tensor([7, 9], dtype=torch.int32, device=device)
    queue_push_(queue, cursor, random_keys(2, 3, device), ids=ids, queue_ids=queue_ids)
    assert queue_ids.tolist() == [7, 9, -1, -1]


def test_no_gradient_flows_and_autograd_sees_the_change(device: torch.device) -> None:
    queue, cursor, _ = new_queue(4, 3, device)
    query = random_keys(2, 3, device).requires_grad_()
    keys = random_keys(2, 3, device).requires_grad_()
    logits = query @ queue.T  # backward needs the queue as it is now
    queue_push_(queue, cursor, keys, normalize=True)
    assert not queue.requires_grad and keys.grad is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_overflow_error_wants_whole_batches(device: torch.device) -> None:
    queue, cursor, _ = new_queue(6, 3, device)
    for _ in range(3):
        queue_push_(queue, cursor, random_keys(2, 3, device), overflow="error")
    queue_push_(queue, cursor, random_keys(0, 3, device), overflow="error")
    assert cursor.tolist() == [0, 6]
    for count in (4, 5, 12):
        with pytest.raises(ValueError, match=f"divides the queue, got {count} keys for 6 rows"):
            queue_push_(queue, cursor, random_keys(count, 3, device), overflow="error")


def test_cursor_outside_of_the_queue(device: torch.device, simulated: object) -> None:
    for start in ([6, 6], [-1, 0], [0, 7], [0, -1]):
        queue, _, _ = new_queue(6, 3, device)
        cursor = torch.tensor(start, device=device)
        if device.type == "cuda" or simulated is not None:
            queue_push_(queue, cursor, random_keys(2, 3, device))
            row, valid = start[0] % 6, min(max(start[1], 0), 6)
            assert cursor.tolist() == [(row + 2) % 6, min(valid + 2, 6)]
            assert torch.equal(queue[row], random_keys(2, 3, device)[0])
        else:
            with pytest.raises(RuntimeError, match=r"cursor must hold \(next row, valid rows\) of a queue with 6 rows"):
                queue_push_(queue, cursor, random_keys(2, 3, device))
            assert bool((queue == -1).all())


GOOD = {
    "queue": torch.zeros(6, 3),
    "cursor": torch.zeros(2, dtype=torch.int64),
    "keys": torch.zeros(2, 3),
    "ids": torch.zeros(2, dtype=torch.int64),
    "queue_ids": torch.zeros(6, dtype=torch.int64),
}


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"queue": torch.zeros(6)}, ValueError, r"queue must have shape \[K, C\], got \[6\]"),
        ({"queue": torch.zeros(6, 3, dtype=torch.int64)}, TypeError, "queue must be float32, .*got int64"),
        ({"queue": torch.zeros(6, 3, requires_grad=True)}, RuntimeError, r"Pass queue.detach\(\)"),
        ({"queue": torch.zeros(3).expand(6, 3)}, ValueError, r"queue must not be expanded.*Pass queue.clone\(\)"),
        ({"queue": torch.zeros(15).as_strided((6, 3), (1, 2))}, ValueError, "rows share memory"),
        ({"queue": torch.zeros(15).as_strided((6, 3), (2, 1))}, ValueError, "rows share memory"),
        ({"queue": read_only(np.zeros((6, 3)))}, ValueError, "queue is a read-only array, .*Pass a copy"),
        ({"queue": torch.zeros(6, 3, dtype=torch.complex64).conj().imag}, ValueError, r"queue\.resolve_neg\(\)"),
        ({"cursor": read_only(np.zeros(2, np.int64))}, ValueError, "cursor is a read-only array"),
        ({"queue_ids": read_only(np.zeros(6, np.int64))}, ValueError, "queue_ids is a read-only array"),
        ({"queue": [[0.0]]}, TypeError, "queue must be a tensor or an array with __dlpack__, got list"),
        ({"cursor": torch.zeros(2)}, TypeError, "cursor must be int64, got float32"),
        ({"cursor": torch.zeros(1, dtype=torch.int64)}, ValueError, r"cursor must have shape \[2\], got \[1\]"),
        ({"cursor": GOOD["cursor"].to("meta")}, ValueError, "cursor is on meta but queue on cpu"),
        ({"keys": torch.zeros(2, 4)}, ValueError, r"keys must have shape \[B, 3\], got \[2, 4\]"),
        ({"keys": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "keys must be float32, .*got int32"),
        ({"ids": None}, ValueError, "ids is missing. Give both or neither"),
        ({"queue_ids": None}, ValueError, "queue_ids is missing. Give both or neither"),
        ({"ids": torch.zeros(2)}, TypeError, "ids must be int64, .*got float32"),
        ({"ids": torch.zeros(3, dtype=torch.int64)}, ValueError, r"ids must have shape \[2\], got \[3\]"),
        ({"queue_ids": torch.zeros(6, dtype=torch.int32)}, TypeError, "queue_ids must be int64, got int32"),
        ({"queue_ids": torch.zeros(5, dtype=torch.int64)}, ValueError, r"queue_ids must have shape \[6\], got \[5\]"),
        ({"overflow": "grow"}, ValueError, 'overflow must be "wrap", "truncate" or "error", got \'grow\''),
    ],
)
def test_errors_name_the_argument(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        queue_push_(**(GOOD | change))


def test_direct_calls_are_guarded(device: torch.device, simulated: object) -> None:
    ops = torch.ops.maskco_sim if simulated is not None else torch.ops.maskco
    queue, cursor, queue_ids = new_queue(6, 3, device)
    with pytest.raises(RuntimeError, match="keys must have size 3 in dimension 1, got 4"):
        ops.queue_push_(queue, cursor, random_keys(2, 4, device), False, None, None, True)
    with pytest.raises(RuntimeError, match="ids and queue_ids go together"):
        ops.queue_push_(queue, cursor, random_keys(2, 3, device), False, None, queue_ids, True)


def test_numpy_arrays_change_in_place() -> None:
    queue, cursor = np.zeros((4, 3), np.float32), np.zeros(2, np.int64)
    keys, ids, queue_ids = np.eye(3, dtype=np.float32)[:2] * 5, np.array([4, 5]), np.full(4, -1)
    queue_push_(queue, cursor, keys, normalize=True, ids=ids, queue_ids=queue_ids)
    np.testing.assert_array_equal(queue, np.eye(3, dtype=np.float32)[[0, 1, 2, 2]] * [[1], [1], [0], [0]])
    assert cursor.tolist() == [2, 2] and queue_ids.tolist() == [4, 5, -1, -1]


@pytest.mark.parametrize("strides", [(3, 1), (1, 6), (7, 2), (2, 13)])
def test_queues_that_do_not_overlap_are_taken(strides: tuple[int, int]) -> None:
    queue, cursor = torch.zeros(64).as_strided((6, 3), strides), torch.zeros(2, dtype=torch.int64)
    queue_push_(queue, cursor, torch.ones(2, 3))
    assert queue.sum(1).tolist() == [3, 3, 0, 0, 0, 0]


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "reference"])
def test_returns_the_queue(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's in-place functions do; for an array, a tensor on the same memory."""
    if not compiled:
        monkeypatch.setattr(_library, "kernels", lambda device: None)
    queue, cursor, _ = new_queue(4, 2, torch.device("cpu"))
    for count in (0, 1):
        assert queue_push_(queue, cursor, torch.ones(count, 2)) is queue
    assert queue_push_(queue[:0], cursor, torch.ones(1, 2)).shape == (0, 2)
    array = np.zeros((4, 2), dtype=np.float32)
    assert queue_push_(array, cursor, torch.ones(1, 2)).data_ptr() == array.ctypes.data


def test_returns_the_queue_under_compile() -> None:
    queue, cursor, _ = new_queue(4, 2, torch.device("cpu"))
    returned = torch.compile(queue_push_, fullgraph=True)(queue, cursor, torch.ones(1, 2))
    assert returned is queue and queue[0].tolist() == [1, 1]


def test_opcheck(device: torch.device, simulated: object) -> None:
    op = (torch.ops.maskco_sim if simulated is not None else torch.ops.maskco).queue_push_.default
    queue, cursor, queue_ids = new_queue(6, 3, device)
    keys, ids = random_keys(4, 3, device, torch.bfloat16), torch.arange(4, device=device)
    torch.library.opcheck(op, (queue, cursor, keys, True, ids, queue_ids, True))
    torch.library.opcheck(op, (queue, cursor, keys, False, None, None, False))


def test_compiles_as_one_graph() -> None:
    def push_twice(queue: Tensor, cursor: Tensor, keys: Tensor) -> Tensor:
        queue_push_(queue, cursor, keys, normalize=True)
        total = queue.sum()
        queue_push_(queue, cursor, keys * 2)
        return total

    eager, compiled = new_queue(7, 3, torch.device("cpu"))[:2], new_queue(7, 3, torch.device("cpu"))[:2]
    keys = random_keys(5, 3, torch.device("cpu"))
    total = push_twice(*eager, keys)
    torch.testing.assert_close(torch.compile(push_twice, fullgraph=True)(*compiled, keys), total)
    assert torch.equal(eager[0], compiled[0]) and torch.equal(eager[1], compiled[1])


def test_autocast_changes_nothing(device: torch.device) -> None:
    queue, cursor, _ = new_queue(4, 3, device)
    keys = random_keys(3, 3, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        queue_push_(queue, cursor, keys)
    assert torch.equal(queue[:3], keys)


def test_threads_do_not_change_the_result() -> None:
    keys = random_keys(700, 130, torch.device("cpu"))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            queue, cursor, _ = new_queue(900, 130, torch.device("cpu"))
            queue_push_(queue, cursor, keys, normalize=True)
            queue_push_(queue, cursor, keys, normalize=True)
            results.append(queue)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("device", [pytest.param("sim", marks=pytest.mark.sim)], indirect=True)
@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_one_launch_however_many_rows_and_blocks(device: torch.device, schedule: str) -> None:
    import ptxsim

    for processors in (1, 108):  # all rows in few blocks that stride over them, and a block for every eight rows
        with ptxsim.device("sm_90", sms=processors, strict=True, schedule=schedule, resident=64) as simulated:
            assert_same_pushes(*new_queue(150, 5, device), [random_keys(130, 5, device)] * 3, normalize=True)
        assert [launch.cooperative for launch in simulated.launches] == [True] * 3
        assert (simulated.launches[0].grid[0] == 17) == (processors == 108)
