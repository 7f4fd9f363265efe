"""The small tables of README.md: how fast the ops are, and what holds of the paper's claims."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import NamedTuple

from benchmarks.cases import BOTH, FORWARD, OURS
from benchmarks.table import Row, markdown, read_results

COMPILED = "torch.compile"
REGION, NEIGHBOURS = "region linear", "region kNN"  # as in claims/probe.py


class Shown(NamedTuple):
    """A case of a benchmark, and which of its implementations is plain PyTorch. `file` has no suffix."""

    title: str
    file: str
    case: str
    plain: str
    on: str = BOTH


SPEED = (
    Shown("`info_nce`, 256 queries, queue 65536×128", "info_nce_cpu", "N=256 K=65536 C=128", "eager"),
    Shown("the same in bfloat16", "info_nce_cpu", "N=256 K=65536 C=128 bfloat16", "eager"),
    Shown("in bfloat16 with AMX", "info_nce_amx_cpu", "N=256 K=65536 C=128 bfloat16", "eager"),
    Shown(
        "`box_pool`, 16 boxes in each of 64 maps of 2048×14×14",
        "region_pool_cpu",
        "16 boxes, features 64×2048×14×14 NCHW",
        "roi_align + mean",
    ),
    Shown(
        "`masked_pool`, 16 soft masks, the same maps in channels_last",
        "region_pool_cpu",
        "16 soft masks, features 64×2048×14×14 channels_last",
        "einsum",
    ),
    Shown("`queue_push_`, 256 keys (forward)", "queue_cpu", "256 into 65536×128", "eager", FORWARD),
)


def speed(results: Path) -> str:
    """Markdown: time and memory of each case, in brackets the time with an allocator that keeps freed memory.

    Raises FileNotFoundError.
    """
    names = sorted({shown.file for shown in SPEED})
    found = {name: [read_results(path, "meta", "rows") for path in _files(results, name)] for name in names}
    lines = [["", "maskco", "plain PyTorch", COMPILED], ["---"] * 4]
    for shown in SPEED:
        rows, *kept = (by_implementation(result, shown) for result in found[shown.file])
        cells = [_cell(rows.get(name), *(each.get(name) for each in kept)) for name in (OURS, shown.plain, COMPILED)]
        lines.append([shown.title, *cells])
    meta, amx = (found[name][0]["meta"] for name in ("info_nce_cpu", "info_nce_amx_cpu"))
    machine = f"{meta['device']} ({meta['instruction_set']}), {meta['threads']} threads"
    return f"{markdown(lines)}\n\n{machine}, torch {meta['versions']['torch']}. With AMX: {amx['device']}."


def by_implementation(result: Row, shown: Shown) -> dict[str, Row]:
    return {
        row["impl"]: row
        for row in result["rows"]
        if row["case"] == shown.case and row["pass"] == shown.on and not row.get("sweep")
    }


def _files(results: Path, name: str) -> list[Path]:
    """Of the default allocator, and of one that keeps freed memory where that was measured."""
    kept = results / f"{name}_kept.json"
    return [results / f"{name}.json", *([kept] if kept.exists() else [])]


def _cell(row: Row | None, kept: Row | None = None) -> str:
    if row is None:
        return ""
    in_brackets = f" ({_ms(kept['median_ms'])})" if kept else ""
    memory = "" if row["peak_mib"] is None or row["peak_mib"] < 1 else f", {row['peak_mib']:.0f} MiB"
    return f"{_ms(row['median_ms'])}{in_brackets} ms{memory}"


def _ms(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def claims(results: Path) -> str:
    """Markdown: means over seeds of both region scores on the test parts. Raises FileNotFoundError."""
    from benchmarks.claims.names import DEMO, OBJECTS, SCENES, SCENES_3, VOC
    from benchmarks.claims.row_file import load
    from benchmarks.claims.settings import DENSECL, MASKCO, MOCO, NO_HEAD, UNTRAINED
    from benchmarks.claims.table import collect

    found = {}
    for name in ("claims.json", "claims_photos.json"):
        if (results / name).exists():
            found |= collect(load(results / name))
    columns = {data: found[data] for data in (OBJECTS, SCENES, SCENES_3, DEMO, VOC) if data in found}
    if not columns:
        raise FileNotFoundError(results / "claims.json")
    lines = [["regions, linear / kNN", *columns], ["---"] * (len(columns) + 1)]
    for method in (MASKCO, NO_HEAD, MOCO, DENSECL, UNTRAINED):
        own = [scores.get(method, {}) for scores in columns.values()]
        cells = (" / ".join(f"{mean(each[name]):.1f}" for name in (REGION, NEIGHBOURS) if name in each) for each in own)
        lines.append([method, *cells])
    seeds = [str(len(scores[MASKCO][REGION])) for scores in columns.values()]
    return markdown([*lines, ["seeds", *seeds]])
