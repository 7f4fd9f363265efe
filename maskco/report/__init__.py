"""One report about one or several runs, as report.html and report.png.

    write_report("runs/demo")
    write_report("runs/maskco", "runs/moco_v2", out="comparison")

Curves, masked views, nearest regions, the deviation of keys, regions in the plane and, if there are any, evaluations.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from maskco.data.images import ImageError
from maskco.devices import check_caller
from maskco.errors import ConfigError, one_line
from maskco.files import user_path, write_atomically
from maskco.memory import memory_errors
from maskco.report.curves import Curves, Header
from maskco.report.embedding import RegionMaps, Spread
from maskco.report.html import html
from maskco.report.nearest import NearestRegions, nearest_regions
from maskco.report.page import RED, Note, Page, Part, png
from maskco.report.runs import SAMPLES, Run, read_runs
from maskco.report.scores import Scores, tables
from maskco.report.views import Samples
from maskco.runs.folder import folder_of


class Report(NamedTuple):
    html: Path
    png: Path


@memory_errors("report fewer runs at a time")
def write_report(
    *runs: str | Path, out: str | Path | None = None, data: str | Path | None = None, projection: str = "pca"
) -> Report:
    """Draws the report of run folders into `out`, by default the first of them. Returns where its two files lie.

    Args:
        data: images to show the runs on, as for `pretrain`. Without it each run is shown on its own, if it was trained
            on the demo or started by this user from a local folder. Else the report says what it lacks.
        projection: of regions to the plane, "pca" or "tsne".

    Raises:
        CheckpointError: a folder holds no checkpoint, or a damaged one.
        ConfigError: no run.
        SourceError: no such data.
        ProjectionError: no such projection.
        EvaluationError: an unreadable evaluation.json.
    """
    if not runs:
        raise ConfigError("runs: none was named. Name at least one run folder")
    folder = folder_of(runs[0]) if out is None else user_path(out)
    if folder.is_file() or (not folder.exists() and folder.suffix in (".html", ".png", ".pdf")):
        raise ConfigError(f"out: {folder} is no folder. Name one, for report.html and report.png")
    page = _page(runs, data, projection)
    title = folder_of(runs[0]).resolve().name if len(runs) == 1 else f"{len(runs)} runs"
    written = Report(folder / "report.html", folder / "report.png")
    document, image = html(title, page), png(page.pixels)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(written.html, lambda file: file.write(document.encode(errors="backslashreplace")))
    write_atomically(written.png, lambda file: file.write(image))
    return written


def draw_report(*runs: str | Path, data: str | Path | None = None, projection: str = "pca") -> Figure:
    """The page as a matplotlib figure. The label of every axes says what it shows."""
    return _page(runs, data, projection).figure


def _page(runs: Sequence[str | Path], data: str | Path | None, projection: str) -> Page:
    check_caller()
    opened = read_runs(list(runs), data)
    found, remarks = tables(opened)
    parts: list[Part] = [Header(opened), Curves(opened), *_shown(opened, projection)]
    if any(run.keys for run in opened):
        parts.append(Spread(opened))
    else:
        methods = " and ".join(dict.fromkeys(run.options["method"] for run in opened))
        parts.append(Note(f"Not shown: {methods} has no queue of keys.", Spread.title))
    if found:
        parts.append(Scores(found, remarks))
    return Page(parts)


def _shown(runs: list[Run], projection: str) -> list[Part]:
    """The parts that show the runs on images."""
    parts: list[Part] = []
    mapped = []
    for run in runs:
        of = f": {run.name}" if len(runs) > 1 else ""
        try:
            samples, regions = run.samples(), run.regions()
            nearest = nearest_regions(regions, queries=6 if len(runs) == 1 else 4)
            title = ("Masked query views" if run.masks else "Query views") + " and their key views" + of
            parts += [Samples(samples, run.masks, SAMPLES, title), NearestRegions(nearest, of)]
            mapped.append((run, regions))
        except (OSError, ValueError, RuntimeError, MemoryError, ImageError) as error:
            # They may have moved, be another's, or take more memory than there is: curves remain.
            note = f"The run's images cannot be shown{of}: {one_line(error)}"
            print(note, file=sys.stderr)
            parts.append(Note(note, color=RED))
    if mapped:
        parts.append(RegionMaps(mapped, projection))
    return parts
