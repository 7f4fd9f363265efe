"""Markdown tables from result files of the ops, of training and of evaluations, for `benchmarks.tables`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from benchmarks.cases import BOTH, FORWARD, OURS
from benchmarks.table import Row, ceilings_line, judged, markdown, over_rows, read_results, threads, where, with_dtype

NOTHING = "Nothing has been timed on a GPU yet."


def cases(result: Row) -> str:
    """A line for each case but those of the plots: forward and backward where it has both."""
    lines = [["case", "pass", "maskco", "others (our time over theirs)"], ["---"] * 4]
    timed = [row for row in result["rows"] if "skipped" not in row and not row.get("sweep")]
    for title, group in groupby(timed, key=with_dtype):
        rows = list(group)
        main = BOTH if any(row["pass"] == BOTH and row["impl"] == OURS for row in rows) else FORWARD
        found = {row["impl"]: row for row in rows if row["pass"] == main}
        others = [f"{name} {_cost(row)} ({row['ratio']:.2g})" for name, row in found.items() if name != OURS]
        lines.append([title, main, _cost(found[OURS]), "; ".join(others)])
    return f"{where(result)}:\n\n{markdown(lines)}"


def _cost(row: Row) -> str:
    """ "2.3 ms, 17 MiB"."""
    memory = f", {_short(row['peak_mib'])} MiB" if row.get("peak_mib") is not None else ""
    return f"{_short(row['median_ms'])} ms{memory}"


def _short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def parts(result: Row) -> str:
    """A line for each group of the step's parts."""
    lines = [["part", "ms", "share of the step"], ["---"] * 3]
    groups = [row for row in result["rows"] if "group" in row]
    lines += [[row["group"], f"{row['median_ms']:.4g}", f"{row['share']:.1%}"] for row in groups]
    case = f"{result['rows'][0]['case']}, {result['rows'][0]['dtype']}"
    return f"{where(result)}, {case}:\n\n{markdown(lines)}"


def counters(result: Row) -> str:
    """A line for each launch."""
    metrics = list(dict.fromkeys(name for row in result["rows"] for name in row["figures"]))
    lines = [["kernel", "dtype", "grid", *metrics], ["---"] * (3 + len(metrics))]
    for row in result["rows"]:
        figures = [f"{row['figures'][name]:.4g}" if name in row["figures"] else "" for name in metrics]
        lines.append([row["kernel"], row["dtype"], row["grid"], *figures])
    return f"{where(result)}:\n\n{markdown(lines)}"


ON_GPU = {
    "info_nce": cases,
    "contrast": over_rows,
    "region_pool": cases,
    "queue": cases,
    "train_step": parts,
    "counters": counters,
}


def on_gpu(results: Path) -> dict[str, Row]:
    """What was measured on a GPU, by benchmark."""
    paths = {name: results / f"{name}_cuda.json" for name in ON_GPU}
    return {name: read_results(path, "meta", "rows") for name, path in paths.items() if path.exists()}


def gpu_names(results: Path) -> str:
    found = on_gpu(results)
    if not found:
        return NOTHING
    devices = sorted({result["meta"]["device"] for result in found.values()})
    names = ", ".join(f"`{name}`" for name in found)
    return f"Measured on {', '.join(devices)}: {names}. The [tables](docs/results/gpu.md) have the figures."


def gpu_tables(results: Path) -> str:
    """For each file the GPU, what it reaches, and a table."""
    sections = [
        f"**{name}**. On this GPU {ceilings_line(result['meta']['ceilings'])}.\n\n{ON_GPU[name](result)}"
        for name, result in on_gpu(results).items()
    ]
    return "\n\n".join(sections) or NOTHING


def loading(result: Row) -> str:
    """Images a second of each way to make two views, and what the views look like."""
    meta, case = result["meta"], result["rows"][0]["case"]
    rates = [["", "images/s", "ms", "our speed over this"], ["---"] + ["---:"] * 3]
    for row in result["rows"]:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        rates.append([row["impl"], f"{row['pictures_per_s']:.3g}", f"{row['ms']:.3g}", ratio])
    shown = [row for row in result["rows"] if "views" in row]
    names = list(shown[0]["views"])
    views = [["mean, ± within an image", *names], ["---"] + ["---:"] * len(names)]
    views += [[row["impl"], *(f"{mean:.3f} ± {within:.3f}" for mean, within in row["views"].values())] for row in shown]
    return f"{meta['device']}, {threads(meta)}, {case}:\n\n{markdown(rates)}\n\n{markdown(views)}"


def evaluations(rows: Iterable[Row]) -> str:
    """A line for each encoder that `maskco eval` scored, in per cent."""
    rows = list(rows)
    names = list(rows[0]["scores"])
    lines = [[f"{rows[0]['data']}, {rows[0]['task']}, %", *names], ["---"] + ["---:"] * len(names)]
    for row in rows:
        title = "untrained" if row["details"]["method"] == "untrained" else row["details"]["method"]
        lines.append([title, *(f"{row['scores'][name]:.3g}" for name in names)])
    return markdown(lines)


def ranged_reads(result: Row) -> str:
    """A line for each number of loading workers: the local rate, and what of it each other way reaches."""
    rows = result["rows"]
    ways = list(dict.fromkeys(row["impl"] for row in rows))
    lines = [["workers", f"{ways[0]}, images/s", *(f"{way}, of that" for way in ways[1:]), "MiB, main + each worker"]]
    lines.append(["---:"] * len(lines[0]))
    for workers, group in groupby(rows, key=lambda row: row["workers"]):
        local, *others = group
        memory = f"{max(row['main_mib'] for row in others)} + {max(row['worker_mib'] for row in others)}"
        shares = [judged(row["of_local"], row, "of_local") for row in others]
        lines.append([f"{workers}", f"{local['images_per_s']:.3g}", *shares, memory])
    return f"{result['meta']['device']}, {rows[0]['case']}:\n\n{markdown(lines)}"


INDEX = {
    "bytes_per_image": "bytes an image on the disk",
    "write_s": "s to write it",
    "opened_mib": "MiB of a worker after opening it",
    "private_mib": "MiB of a worker that no other process shares, after look-ups all over it",
    "lookup_us": "µs to find an image",
    "name_us": "µs to read its name",
    "order_s": "s to draw an epoch's order, up to a batch in its middle",
}


def remote_index(result: Row) -> str:
    """What the index of very many images costs."""
    (row,) = result["rows"]
    lines = [[row["case"], ""], ["---", "---:"], *([text, f"{row[name]:.3g}"] for name, text in INDEX.items())]
    return f"{result['meta']['device']}:\n\n{markdown(lines)}"
