"""What only a GPU can show: CUDA graphs, streams, no waiting for the device, autocast, a second device.

Values, gradients and the rest of the contract: the other files here, which run on the devices cpu, sim and cuda alike.
Under compute-sanitizer: `make sanitize`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskco.ops import box_pool, clip_loss, info_nce, masked_pool, queue_push_, siglip_loss, supcon_loss

pytestmark = [pytest.mark.cuda, pytest.mark.parametrize("device", [pytest.param("cuda")], indirect=True)]

Step = Callable[[], list[Tensor]]  # runs an op on inputs that stay where they are; what it made


def unit(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(shape, device=device), dim=-1).to(dtype)


def contrast(device: torch.device, dtype: torch.dtype, channels: int, **options: bool) -> tuple[list[Tensor], Step]:
    query, positive = unit(64, channels, device=device, dtype=dtype), unit(64, channels, device=device, dtype=dtype)
    queue = unit(1000, channels, device=device, dtype=dtype)
    valid, tau = torch.tensor(900, device=device), torch.tensor(0.1, device=device)
    inputs = [query.requires_grad_(), positive, queue.requires_grad_()]

    def step() -> list[Tensor]:
        loss = info_nce(*inputs, valid=valid, temperature=tau, **options)
        return [loss.detach(), *torch.autograd.grad(loss, (query, queue))]

    return inputs, step


def pairs(
    device: torch.device, dtype: torch.dtype, op: Callable[..., Tensor], **options: float
) -> tuple[list[Tensor], Step]:
    first, second = (unit(200, 96, device=device, dtype=dtype).requires_grad_() for _ in range(2))
    scale = torch.tensor(10.0, device=device, requires_grad=True)
    arguments = {"logit_scale": scale, **options}
    if op is supcon_loss:
        labels = torch.arange(200, device=device) // 4
        arguments = {"query_labels": labels, "key_labels": labels, "temperature": scale}

    def step() -> list[Tensor]:
        loss = op(first, second, **arguments)
        return [loss.detach(), *torch.autograd.grad(loss, (first, second, scale))]

    return [first, second], step


def pool(device: torch.device, dtype: torch.dtype, kind: str) -> tuple[list[Tensor], Step]:
    features = torch.randn(3, 64, 14, 14, device=device).to(dtype).requires_grad_()
    if kind == "boxes":
        regions = torch.tensor([[0.0, 10, 20, 300, 310], [2, 0, 0, 447, 200]], device=device)
    elif kind == "masks":
        regions = torch.rand(3, 5, 14, 14, device=device).to(dtype)
    else:
        regions = torch.randint(-1, 5, (3, 14, 14), device=device)

    def step() -> list[Tensor]:
        if kind == "boxes":
            pooled = box_pool(features, regions, spatial_scale=1 / 32)
        else:
            pooled = masked_pool(features, regions, **({"num_regions": 5} if kind == "labels" else {}))
        return [pooled.detach(), *torch.autograd.grad(pooled.square().sum(), features)]

    return [features], step


def push(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Step]:
    keys, queue = torch.randn(48, 96, device=device).to(dtype), torch.zeros(100, 96, device=device, dtype=dtype)
    cursor = torch.zeros(2, dtype=torch.int64, device=device)

    def step() -> list[Tensor]:
        queue.zero_()
        cursor.copy_(start)
        queue_push_(queue, cursor, keys, normalize=True)
        return [queue.clone(), cursor.clone()]

    start = torch.tensor([80, 100], device=device)  # wraps
    return [keys], step


OPS = {
    "info_nce, float32": lambda device: contrast(device, torch.float32, 128),
    "info_nce, bfloat16": lambda device: contrast(device, torch.bfloat16, 128),
    "info_nce, general path": lambda device: contrast(device, torch.float32, 100),
    "info_nce, decoupled": lambda device: contrast(device, torch.bfloat16, 384, decoupled=True),
    "clip_loss": lambda device: pairs(device, torch.bfloat16, clip_loss),
    "siglip_loss": lambda device: pairs(device, torch.float16, siglip_loss, logit_bias=-10.0),
    "supcon_loss": lambda device: pairs(device, torch.float32, supcon_loss),
    "box_pool": lambda device: pool(device, torch.float32, "boxes"),
    "masked_pool, masks": lambda device: pool(device, torch.bfloat16, "masks"),
    "masked_pool, labels": lambda device: pool(device, torch.float32, "labels"),
    "queue_push_": lambda device: push(device, torch.bfloat16),
}
every_op = pytest.mark.parametrize("make", OPS.values(), ids=OPS.keys())


def refill(inputs: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor in inputs:
            tensor.copy_(F.normalize(torch.randn_like(tensor), dim=-1))


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@every_op
def test_a_captured_graph_replays_on_new_inputs(device, make):
    torch.manual_seed(0)
    inputs, step = make(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        refill(inputs)
        graph.replay()
        replayed = [t.clone() for t in captured]
        assert_same_bits(replayed, step())


@every_op
def test_work_goes_to_the_current_stream(device, make):
    """Inputs that change late, on a stream of its own: an op on any other stream would read them too early."""
    torch.manual_seed(0)
    inputs, step = make(device)
    step()
    late = [torch.nn.functional.normalize(torch.randn_like(t), dim=-1) for t in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # some 50 ms
        with torch.no_grad():
            for tensor, value in zip(inputs, late, strict=True):
                tensor.copy_(value)
        result = step()
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(result, step())


@every_op
def test_nothing_waits_for_the_device(device, make):
    _, step = make(device)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_op
def test_the_same_bits_twice(device, make):
    torch.manual_seed(0)
    _, step = make(device)
    assert_same_bits(step(), step())


@every_op
def test_the_device_of_the_tensors_counts_not_the_current_one(device, make):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    torch.manual_seed(0)
    _, step = make(torch.device("cuda:1"))
    result = step()  # cuda:0 is current
    assert all(t.device == torch.device("cuda:1") for t in result)
    with torch.cuda.device(1):
        assert_same_bits(result, step())


def test_autocast_gives_the_query_the_queue_s_dtype(device):
    torch.manual_seed(0)
    query, positive, queue = (unit(n, 128, device=device) for n in (32, 32, 500))
    with torch.autocast("cuda", torch.bfloat16):
        loss = info_nce(query.bfloat16(), positive, queue)
    assert loss.dtype == torch.float32 and torch.equal(loss, info_nce(query.bfloat16().float(), positive, queue))


def test_tensors_of_two_devices_are_refused(device):
    query, positive, queue = (unit(n, 32, device=device) for n in (4, 4, 9))
    with pytest.raises(ValueError, match="queue is on cpu but query on cuda"):
        info_nce(query, positive, queue.cpu())
    with pytest.raises(ValueError, match="cpu"):
        box_pool(torch.randn(1, 4, 7, 7, device=device), torch.tensor([[0.0, 0, 0, 9, 9]]), spatial_scale=1)
    with pytest.raises(ValueError, match="cpu"):
        masked_pool(torch.randn(1, 4, 7, 7, device=device), torch.rand(1, 2, 7, 7))
    with pytest.raises(ValueError, match="cpu"):
        queue_push_(queue, torch.zeros(2, dtype=torch.int64, device=device), query.cpu())
