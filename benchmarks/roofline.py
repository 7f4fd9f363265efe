"""A roofline of the CUDA kernels from benchmarks/results/cuda_static.json. PREDICTED, never measured.

Each kernel's simulated counts, scaled to the case's full size, at 80% of what each part of a GPU reaches: the slowest
part bounds its time, and so it is with cuBLAS's products, of which only sizes are known. An op takes the sum of its
kernels and products, or what memory takes for the bytes that have to move. Launches, some microseconds each, and all
latencies are left out. Instructions are PTX's, without moves.

python -m benchmarks.roofline [FILE]      prints the table that stands in docs/results/gpu.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.table import START, fill, read_results
from maskco.console import one_line_errors

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results/cuda_static.json"
PAGE = Path(__file__).parent.parent / "docs/results/gpu.md"
REACHED = 0.8  # of each
GPUS = {
    # memory: kernels reach 90% of the published 2.039 and 3.35 TB/s (measured on an A100 80GB SXM: 1.80 TB/s,
    # forums.developer.nvidia.com/t/339083); L2: doi.org/10.1016/j.ultsonch.2023.106546, table 3; tensor cores:
    # NVIDIA's data sheets, dense, of which Hopper reaches 62.9% by mma.sync (Luo et al., arXiv:2402.13499).
    "A100": {
        "memory": 1.80e12,
        "L2": 7.219e12,
        "tf32": 156e12,
        "16": 312e12,
        "float32": 19.5e12,
        "sms": 108,
        "hz": 1.41e9,
    },
    "H100": {
        "memory": 3.0e12,
        "L2": 8.986e12,
        "tf32": 494e12 * 0.629,
        "16": 989e12 * 0.629,
        "float32": 66.9e12,
        "sms": 132,
        "hz": 1.755e9,
    },
}


def seconds(kernel: Row, gpu: Row) -> dict[str, float]:
    """What each part of the GPU takes for a launch, in full size."""
    clocks = gpu["sms"] * gpu["hz"]
    at_full_rate = {
        "L2": 32 * kernel["sectors"] / gpu["L2"],
        "tensor cores": sum(flops / gpu[kind] for kind, flops in kernel["tensor_flops"].items()),
        "float32": kernel["flops"] / gpu["float32"],
        "instructions": kernel["instructions"] / (4 * clocks),  # four schedulers an SM
        "shared memory": kernel["shared_wavefronts"] / clocks,
    }
    return {part: kernel["scale"] * value / REACHED for part, value in at_full_rate.items()}


def predict(row: Row) -> Row:
    """PREDICTED microseconds of a row of the results, and what bounds them: of its longest kernel, or memory."""
    prediction: Row = {"case": row["case"], "pass": row["pass"]}
    for name, gpu in GPUS.items():
        times = [max((time, part) for part, time in seconds(kernel, gpu).items()) for kernel in row["kernels"]]
        memory = row["full_bytes"] / gpu["memory"] / REACHED
        times += [
            (max(p["flops"] / gpu[p["kind"]], p["bytes"] / gpu["memory"]) / REACHED, "cuBLAS") for p in row["products"]
        ]
        total, bound = max((sum(time for time, _ in times), max(times)[1]), (memory, "memory"))
        prediction[name] = {"us": float(f"{total * 1e6:.3g}"), "bound": bound}
    return prediction


def table(results: Row) -> str:
    """Markdown."""
    lines = ["| case | pass | MB | Gop, of tensor cores | " + " | ".join(f"{gpu}: µs, bound" for gpu in GPUS) + " |"]
    lines.append("|---" * (4 + len(GPUS)) + "|")
    for row, prediction in zip(results["cases"], results["predictions"], strict=True):
        tensor = sum(k["scale"] * sum(k["tensor_flops"].values()) for k in row["kernels"])
        tensor = (tensor + sum(product["flops"] for product in row["products"])) / 1e9
        times = " | ".join(f"{prediction[gpu]['us']:g}, {prediction[gpu]['bound']}" for gpu in GPUS)
        operations = f"{tensor:.3g}" if tensor else ""
        lines.append(f"| {row['case']} | {row['pass']} | {row['full_bytes'] / 1e6:.3g} | {operations} | {times} |")
    return "\n".join(lines)


def fill_page(results: Row, page: Path = PAGE) -> None:
    """Puts the table into a page, between its marks. Raises ConfigError for a page without them."""
    fill(page, START.format(f"benchmarks/results/{RESULTS.name}"), table(results))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="default: %(default)s")
    with one_line_errors():
        print(table(read_results(parser.parse_args().results, "cases", "predictions")))


if __name__ == "__main__":
    main()
