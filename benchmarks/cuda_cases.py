"""The benchmarks' cases on the simulated CUDA device (tools/ptxsim): what kernels ask of memory and of the SMs.

A case is cut down to what some of a GPU's SMs do of it, and simulated on as many. For `benchmarks.cuda_static`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contrast import LOSSES
from benchmarks.contrast import make_inputs as pair_inputs
from benchmarks.info_nce import TEMPERATURE, make_inputs
from benchmarks.region_pool import LAYOUTS, STRIDE, box_inputs, label_inputs, mask_inputs
from maskco.ops import _library, box_pool, info_nce, masked_pool, queue_push_

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools/ptxsim/src"), str(ROOT / "tests/helpers")]  # the simulator, the ops compiled for it

Row = dict[str, Any]
DTYPES = ("float32", "bfloat16")
PAIR_LOSSES = ("clip", "siglip", "supcon")
ONCE_A_LINE = ("own", "finish", "weights", "total", "rows", "gradient")  # of kernels around the sweeps


@dataclass(frozen=True)
class Case:
    """A case of the benchmarks, and the part of it that is simulated."""

    kind: str  # boxes, soft masks, labels, queue, info_nce, or a loss over all pairs
    # features [B, C, H, W]; of a queue keys, rows, channels; of info_nce N, K (0: in batch), C; of all pairs N, C
    full: tuple[int, ...]
    part: tuple[int, ...]
    regions: int
    sms: int  # that the part is cut for
    dtype: str = "float32"
    layout: str = "NCHW"

    @property
    def name(self) -> str:
        size = "×".join(map(str, self.full))
        if self.kind in ("queue", "info_nce", *PAIR_LOSSES):
            return f"{self.kind}, {size}, {self.dtype}"
        return f"{self.regions} {self.kind}, {size} {self.layout}, {self.dtype}"

    def scale(self, kernel: str = "") -> float:
        """How many times the part's work the case is, for a kernel."""
        if self.kind == "queue":
            return self.full[0] / self.part[0]
        if self.kind == "info_nce":
            (n, k, _), (part_n, part_k, _) = self.full, self.part
            once_a_query = any(name in kernel for name in ("combine", "sum_splits", *ONCE_A_LINE))
            return n / part_n * (1 if once_a_query else (k or n) / (part_k or part_n))
        if self.kind in PAIR_LOSSES:
            if "convert" in kernel:  # of slabs: products has them
                return 0
            return (self.full[0] / self.part[0]) ** (1 if any(name in kernel for name in ONCE_A_LINE) else 2)
        return math.prod(self.full) / math.prod(self.part)


def all_cases() -> list[Case]:
    regional = [
        ("boxes", (64, 512, 7, 7), (2, 512, 7, 7), 4, 4),
        ("boxes", (64, 2048, 14, 14), (1, 1024, 14, 14), 16, 1),
        ("boxes", (32, 256, 56, 56), (1, 64, 56, 56), 8, 1),
        ("soft masks", (64, 2048, 14, 14), (1, 1024, 14, 14), 16, 1),
        ("labels", (16, 256, 56, 56), (1, 64, 56, 56), 21, 2),
    ]
    contrastive = [  # as many splits as on an A100, the first shorter
        ((256, 65536, 128), (256, 108 * 4 * 32, 128), 108),
        ((4096, 0, 256), (1024, 0, 256), 27),
    ]
    return [
        *(Case("info_nce", full, part, 0, sms, dtype) for full, part, sms in contrastive for dtype in DTYPES),
        Case("info_nce", (256, 65536, 320), (256, 4096, 320), 0, 108),  # the general path
        Case("info_nce", (256, 65536, 512), (256, 2048, 512), 0, 108, "bfloat16"),
        # blocks of as many tiles as in full size: one SM's
        *(Case(loss, (65536, 512), (1024, 512), 0, 1, "bfloat16") for loss in PAIR_LOSSES),
        Case("clip", (4096, 512), (512, 512), 0, 1),
        *(Case(*case, dtype, layout) for case in regional for layout in LAYOUTS for dtype in DTYPES),
        *(Case("queue", (256, 65536, 128), (256, 1024, 128), 0, 108, dtype) for dtype in DTYPES),
    ]


@contextlib.contextmanager
def simulated_kernels() -> Iterator[None]:
    """Within it the ops run the CUDA code, on CPU tensors."""
    from simulated import simulated_ops

    ops, kernels = simulated_ops(), _library.kernels
    _library.kernels = lambda device: ops
    try:
        yield
    finally:
        _library.kernels = kernels


def simulate(case: Case) -> list[Row]:
    """The passes of a case, with their launches' counts and

    - `asked_bytes`: what these kernels have to ask for, as their blocks are cut, if nothing is asked for in vain,
    - `full_bytes`: what the case in full size has to read and write, once, whatever the implementation.
    """
    kinds = {"queue": _simulate_queue, "info_nce": _simulate_info_nce} | dict.fromkeys(PAIR_LOSSES, _simulate_pairs)
    return kinds.get(case.kind, _simulate_regions)(case)


def _launches(case: Case, body: Callable[[], Any]) -> tuple[list[Any], Any]:
    import ptxsim

    with ptxsim.device("sm_80", sms=case.sms, strict=True) as device:
        result = body()
    return device.launches, result


def _simulate_queue(case: Case) -> list[Row]:
    count, size, channels = case.part
    dtype = getattr(torch, case.dtype)
    queue, keys = torch.zeros(size, channels, dtype=dtype), torch.randn(count, channels).to(dtype)
    cursor = torch.zeros(2, dtype=torch.int64)
    launches, _ = _launches(case, lambda: queue_push_(queue, cursor, keys, normalize=True))
    least = 2 * size_of(keys) + 2 * size_of(cursor)
    return [summary(case, "push", launches, least, least * case.scale())]


def _simulate_regions(case: Case) -> list[Row]:
    make = {"boxes": box_inputs, "soft masks": mask_inputs, "labels": label_inputs}[case.kind]
    inputs = make(case.part, case.regions, case.layout, torch.device("cpu"), getattr(torch, case.dtype))
    features, upstream = inputs["features"].requires_grad_(), inputs["grad_output"]
    if case.kind == "boxes":
        regions = inputs["boxes"].float()
        forward, output = _launches(case, lambda: box_pool(features, regions, spatial_scale=1 / STRIDE))
    elif case.kind == "labels":
        regions = inputs["labels"]
        forward, output = _launches(case, lambda: masked_pool(features, regions, num_regions=case.regions))
    else:
        regions = inputs["masks"]
        forward, output = _launches(case, lambda: masked_pool(features, regions))
    backward, _ = _launches(case, lambda: output.backward(upstream))
    least = size_of(features) + size_of(output) + size_of(regions)
    return [
        summary(case, on, launches, least, least * case.scale())
        for on, launches in (("forward", forward), ("backward", backward))
    ]


def _simulate_info_nce(case: Case) -> list[Row]:
    """Without gradient, with the queries' gradient, and the pass for the keys' own."""
    inputs = make_inputs(*case.part, torch.device("cpu"), getattr(torch, case.dtype))
    query, positive, queue = inputs["query"], inputs["positive"], inputs.get("queue")

    def loss(query: Tensor, positive: Tensor, queue: Tensor | None) -> Tensor:
        return info_nce(query, positive, queue, in_batch=queue is None, temperature=TEMPERATURE)

    forward, _ = _launches(case, lambda: loss(query, positive, queue))
    gradient, _ = _launches(case, lambda: loss(query.requires_grad_(), positive, queue))
    keys = (positive if queue is None else queue).requires_grad_()
    output = loss(query.detach(), *((keys, None) if queue is None else (positive, keys)))
    backward, _ = _launches(case, output.backward)

    n, k, c = case.full
    rows, gradient_bytes = (2 * n + k) * c * query.element_size(), 4 * n * c  # the queries' gradient is in float32
    own = (k or n) * c * query.element_size()  # the keys' is in their dtype
    full = {"forward": rows + n * OUTPUT_BYTES, "gradient": rows + n * OUTPUT_BYTES + gradient_bytes}
    full["keys"] = n * c * query.element_size() + 2 * own + 2 * 4 * n  # lse and upstream gradients too
    products = [] if "flash" in forward[0].kernel else [product(n, k or n, c, query.element_size())]
    return [
        summary(case, on, launches, _asked(on, launches, query, keys), full[on], products if on != "forward" else [])
        for on, launches in (("forward", forward), ("gradient", gradient), ("keys", backward))
    ]


def _simulate_pairs(case: Case) -> list[Row]:
    """The mean loss without gradient, and with all gradients."""
    loss = next(loss for loss in LOSSES if loss.name == case.kind)
    n, c = case.part
    inputs = pair_inputs(case.kind, n, c, torch.device("cpu"), getattr(torch, case.dtype))
    forward, _ = _launches(case, lambda: loss.ours(**inputs))
    leaves = {name: value.requires_grad_() if name in loss.wrt else value for name, value in inputs.items()}
    gradient, _ = _launches(case, lambda: loss.ours(**leaves))
    features = [inputs[name] for name in loss.wrt if inputs[name].dim() == 2]
    size = features[0].element_size()
    sides = 1 if case.kind == "supcon" else 2  # supcon: of one batch, whose pairs weigh both directions at once
    products = [product(case.full[0], case.full[0], c, size)] * sides
    if sides == 2:
        products += slab_sums(case.full[0], c, size)
    full = sides * case.full[0] * c * size
    return [
        summary(case, "forward", forward, _asked_by_sweeps(forward, n, n, c, size), full),
        summary(case, "gradient", gradient, _asked_by_sweeps(gradient, n, n, c, size), 2 * full, products),
    ]


def product(n: int, k: int, c: int, size: int) -> Row:
    """cuBLAS's, of weights [N, K] with features [K, C], in full size. It is not simulated."""
    return {"kind": "tf32" if size == 4 else "16", "flops": 2 * n * k * c, "bytes": (n * k + (n + k) * c) * size}


def slab_sums(n: int, c: int, size: int) -> list[Row]:
    """The keys' gradient is added up slab by slab, in float32: cuBLAS writes a slab's, which is read and added."""
    slabs = -(-n * n * size // SLAB_BYTES)
    return [{"kind": "16", "flops": 0, "bytes": 16 * n * c * slabs}] if slabs > 1 else []


SLAB_BYTES = 108 * 2**21  # of weights, on an A100: csrc/cuda/contrast/sweep.h
OUTPUT_BYTES = 3 * 4 + 8  # of a query: loss, lse, positive_logit, rank


def _asked(on: str, launches: Sequence[Any], query: Tensor, keys: Tensor) -> int:
    """Bytes that info_nce's kernels have to ask for, as csrc/cuda cuts the work."""
    n, k, sums = len(query), len(keys), 4 * query.numel()
    columns, splits = launches[0].grid[:2]  # blocks of rows, parts of the columns
    if "flash_keys" in launches[0].kernel:  # rows are keys
        parts = 8 * keys.numel() * splits if splits > 1 else 0  # written, read
        return splits * size_of(keys) + columns * (size_of(query) + 8 * n) + parts + size_of(keys)
    if "flash" in launches[0].kernel:  # each split reads its queries and their positives; its state is 16 bytes a query
        asked = splits * 2 * size_of(query) + columns * size_of(keys) + 2 * splits * n * 16 + n * OUTPUT_BYTES
        return asked + (2 * splits * sums + size_of(query) + sums if on == "gradient" else 0)
    around = size_of(query) + 3 * sums if on == "gradient" else 0
    return _asked_by_sweeps(launches, n, k, query.shape[1], query.element_size()) + around


def _asked_by_sweeps(launches: Sequence[Any], n: int, k: int, c: int, size: int) -> int:
    """Bytes that sweeps over all pairs have to ask for: each tile's features, weights where they are stored, and own
    logits. Of a tile's lines, whose sums are added to in place, some tens of bytes each."""
    asked = 2 * n * c * size * any("own_kernel" in launch.kernel for launch in launches)
    for launch in launches:
        found = re.search(r"LogitTile<.*>?, (\d+), (\d+), (\d+), (\d+), \d+>", launch.kernel)
        if found is None:
            continue
        down, across, row_blocks, column_blocks = map(int, found.groups())
        row_tiles, column_tiles = -(-n // (16 * down * row_blocks)), -(-k // (8 * across * column_blocks))
        lines = column_tiles * n + row_tiles * k  # of all tiles
        asked += lines * c * size + 32 * lines
        if "read" not in launch.kernel:
            asked += n * k * size
    return asked


def size_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def summary(
    case: Case,
    on: str,
    launches: Sequence[Any],
    asked_bytes: int,
    full_bytes: float,
    products: Sequence[Row] = (),
) -> Row:
    """The counts of all launches together, without the polls of a grid barrier: how many there are says nothing."""
    reports = [launch.report for launch in launches]
    accesses = [a for r in reports for a in global_accesses(r)]
    sectors, least_sectors = (sum(a[key] for a in accesses) for key in ("sectors", "min_sectors"))
    wavefronts, least_wavefronts = (
        sum(getattr(r, key) for r in reports) for key in ("shared_wavefronts", "shared_min_wavefronts")
    )
    return {
        "case": case.name,
        "pass": on,
        "simulated": "×".join(map(str, case.part)),
        "launches": len(launches),
        "full_bytes": round(full_bytes),
        "asked_bytes": asked_bytes,
        "sectors": round(32 * sectors / asked_bytes, 3),
        "coalescing": round(least_sectors / sectors, 3),
        "bank_conflicts": round(wavefronts / least_wavefronts, 3) if least_wavefronts else 1.0,
        "kernels": [counts(case, x) for x in launches],
        "products": list(products),
    }


def counts(case: Case, launch: Any) -> Row:
    """What a launch did, and how many times that the case in full size does."""
    report = launch.report
    tensor = {kind: tensor_flops(report, kind) for kind in ("tf32", "16")}
    aside = sum(
        int(report.stats[pc]["warp_exec"])
        for pc, op in enumerate(report.kernel.ops)
        if op.startswith(("mov", "ld.param", "cvta"))  # machine code does nearly without
    )
    return {
        "kernel": short_name(launch.kernel),
        "grid": list(launch.grid),
        "block": launch.block[0],
        "dynamic_shared": launch.shared,
        "scale": round(case.scale(launch.kernel), 3),
        "flops": round(report.flops - sum(tensor.values())),
        "tensor_flops": {kind: round(flops) for kind, flops in tensor.items() if flops},
        "instructions": report.warp_instructions - aside,
        "sectors": sum(a["sectors"] for a in global_accesses(report)),
        "shared_wavefronts": report.shared_wavefronts,
    }


def global_accesses(report: Any) -> list[Row]:
    return [a for a in report.accesses() if "sectors" in a and "acquire" not in a["op"]]


def tensor_flops(report: Any, kind: str) -> float:
    """Operations of mma instructions on factors of `kind`: "tf32", or "16" bits."""
    from ptxsim.opcodes import flops

    return sum(
        flops(op) * int(report.stats[pc]["thread_exec"])
        for pc, op in enumerate(report.kernel.ops)
        if op.startswith("mma") and ("tf32" in op) == (kind == "tf32")
    )


def short_name(demangled: str) -> str:
    """Without return type, namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|maskco::", "", demangled)
    return name.removeprefix("void ").split("(")[0].replace(" >", ">")


def flash_launches(archs: Sequence[int]) -> list[Row]:
    """How every flash kernel is launched, with ids, which take shared memory, and on which of the architectures."""
    import ptxsim
    from simulated import flash_table

    kinds = [(torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "high"), (torch.float16, "high")]
    before, found = torch.get_float32_matmul_precision(), {}
    for (dtype, precision), entry, arch in itertools.product(kinds, flash_table(), archs):
        if entry.element_size != dtype.itemsize:
            continue
        channels = entry.channels
        query, keys = torch.ones(1, channels, dtype=dtype), torch.ones(1, channels, dtype=dtype)
        options = {"query_ids": torch.zeros(1).long(), "queue_ids": torch.ones(1).long()}
        torch.set_float32_matmul_precision(precision)
        try:
            with ptxsim.device(f"sm_{arch}", strict=True) as device:
                info_nce(query, query, keys, **options)
                info_nce(query.requires_grad_(), query.detach(), keys.requires_grad_(), **options).backward()
        finally:
            torch.set_float32_matmul_precision(before)
        for launch in (x for x in device.launches if "flash" in x.kernel):
            row = {"kernel": short_name(launch.kernel), "block": launch.block[0], "dynamic_shared": launch.shared}
            found.setdefault(row["kernel"], row | {"archs": []})["archs"].append(f"sm_{arch}")
    return list(found.values())
