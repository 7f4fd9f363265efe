"""Puts the tables of benchmarks/results into the README and the pages of docs/results, between their marks.

    python -m benchmarks.tables

Where a file is missing, the page says that nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from benchmarks import blocks, roofline, summaries
from benchmarks.table import START, fill, over_rows, read_results
from maskco.console import one_line_errors

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"
NO_PHOTOGRAPHS = "Nothing has been measured on photographs yet."


class Block(NamedTuple):
    """A table of a page. `source` is the name of its file, or of the files, in benchmarks/results. `what` tells tables
    of one file apart."""

    page: str
    source: str
    make: Callable[[Path], str]
    absent: str = "Nothing has been measured yet."
    what: str = ""

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.source, self.what)))

    @property
    def start(self) -> str:
        return START.format(f"{RESULTS}/{self.name}")

    def text(self, results: Path) -> str:
        try:
            return self.make(results)
        except FileNotFoundError:
            return self.absent


def _of(name: str, render: Callable[[dict], str]) -> Callable[[Path], str]:
    return lambda results: render(read_results(results / f"{name}.json", "meta", "rows"))


def _scores(name: str) -> Callable[[Path], str]:
    return lambda results: blocks.evaluations(read_results(results / f"{name}.json", "rows")["rows"])


def _claims(name: str, *parts: str) -> Callable[[Path], str]:
    def make(results: Path) -> str:
        if not (path := results / f"{name}.json").exists():
            raise FileNotFoundError(path)
        from benchmarks.claims import table  # imports timm and scikit-learn, which other tables do not need
        from benchmarks.claims.row_file import load

        rows = load(path)
        return "\n\n".join(getattr(table, part)(rows) for part in parts)

    return make


def _lengths(*names: str) -> Callable[[Path], str]:
    def make(results: Path) -> str:
        paths = [path for name in names if (path := results / f"{name}.json").exists()]
        from benchmarks.claims.lengths import lengths_table
        from benchmarks.claims.row_file import load

        if not (text := lengths_table([row for path in paths for row in load(path)])):
            raise FileNotFoundError(results)
        return text

    return make


def _roofline(results: Path) -> str:
    return roofline.table(read_results(results / "cuda_static.json", "cases", "predictions"))


PHOTOGRAPHS = {  # what is shown where, by functions of benchmarks.claims.table
    "": ("overview", "held"),
    "the head": ("head",),
    "ages": ("ages_table",),
    "all scores": ("tables",),
}
BLOCKS = (
    Block("README.md", "*_cpu.json", summaries.speed),
    Block("README.md", "claims*.json", summaries.claims),
    Block("README.md", "*_cuda.json", blocks.gpu_names),
    Block("docs/results/ops.md", "info_nce_cpu_kept.json", _of("info_nce_cpu_kept", blocks.cases)),
    Block("docs/results/ops.md", "info_nce_cpu.json", _of("info_nce_cpu", blocks.cases)),
    Block("docs/results/ops.md", "info_nce_amx_cpu_kept.json", _of("info_nce_amx_cpu_kept", blocks.cases)),
    Block("docs/results/ops.md", "region_pool_cpu_kept.json", _of("region_pool_cpu_kept", blocks.cases)),
    Block("docs/results/ops.md", "region_pool_cpu.json", _of("region_pool_cpu", blocks.cases)),
    Block("docs/results/ops.md", "queue_cpu.json", _of("queue_cpu", blocks.cases)),
    Block("docs/results/ops.md", "contrast_cpu_kept.json", _of("contrast_cpu_kept", over_rows)),
    Block("docs/results/ops.md", "contrast_amx_cpu_kept.json", _of("contrast_amx_cpu_kept", over_rows)),
    Block("docs/results/gpu.md", "*_cuda.json", blocks.gpu_tables),
    Block("docs/results/gpu.md", "cuda_static.json", _roofline),
    Block("docs/results/training.md", "train_step_cpu.json", _of("train_step_cpu", blocks.parts)),
    Block("docs/results/training.md", "data_cpu.json", _of("data_cpu", blocks.loading)),
    Block("docs/results/training.md", "remote_cpu.json", _of("remote_cpu", blocks.ranged_reads)),
    Block("docs/results/training.md", "remote_index.json", _of("remote_index", blocks.remote_index)),
    Block("docs/results/training.md", "demo.json", _scores("demo")),
    Block("docs/results/training.md", "detection_coco128.json", _scores("detection_coco128")),
    Block("docs/results/claims.md", "claims.json", _claims("claims", "report")),
    Block("docs/results/claims.md", "claims_mask_fill.json", _claims("claims_mask_fill", "tables")),
    *(
        Block(
            "docs/results/photographs.md", "claims_photos.json", _claims("claims_photos", *parts), NO_PHOTOGRAPHS, what
        )
        for what, parts in PHOTOGRAPHS.items()
    ),
    Block(
        "docs/results/photographs.md",
        "claims_photos*.json",
        _lengths("claims_photos_quick", "claims_photos", "claims_photos_long"),
        "Runs of one length only have been made yet.",
    ),
)


@dataclass
class Options:
    root: Path = ROOT
    """Folder with README.md, docs/ and benchmarks/."""


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m benchmarks.tables")
        update(options.root)


def update(root: Path) -> None:
    """Raises ConfigError for a page without the marks, or a file that holds no results."""
    for block in BLOCKS:
        fill(root / block.page, block.start, block.text(root / RESULTS))


if __name__ == "__main__":
    main()
