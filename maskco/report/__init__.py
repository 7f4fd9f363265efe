"""One report about a run, or several beside each other, as report.html and report.png.

    write_report("runs/demo")
    write_report("runs/maskco", "runs/moco_v2", out="comparison")

Curves, masked views, nearest regions, the spread of keys, regions in the plane and, if there are any, evaluations.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from maskco.data.images import PictureError
from maskco.errors import ConfigError, one_line
from maskco.files import user_path, write_atomically
from maskco.memory import memory_errors
from maskco.report.curves import Curves, Header
from maskco.report.embedding import RegionMaps, Spread
from maskco.report.html import html
from maskco.report.nearest import nearest_regions
from maskco.report.page import STYLE, Section, one_page, png
from maskco.report.pictures import NearestRegions, Note, ViewPairs
from maskco.report.runs import Run, read_runs
from maskco.report.scores import Scores, tables
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
        ConfigError, SourceError, ProjectionError, EvaluationError: no run; no such data; no such projection; an
            unreadable evaluation.json.
    """
    if not runs:
        raise ConfigError("runs: name at least one run folder")
    folder = folder_of(runs[0]) if out is None else user_path(out)
    if folder.is_file() or (not folder.exists() and folder.suffix in (".html", ".png", ".pdf")):
        raise ConfigError(f"out: {folder} is no folder: name one, for report.html and report.png")
    opened = read_runs(list(runs), data)
    written = Report(folder / "report.html", folder / "report.png")
    scores = tables(opened)
    with matplotlib.rc_context(STYLE):
        sections = draw_sections(opened, projection)
        document = html(opened, sections, *scores)
        drawn = png(_figure(opened, sections, *scores))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(written.html, lambda file: file.write(document.encode(errors="backslashreplace")))
    write_atomically(written.png, lambda file: file.write(drawn))
    return written


def draw_report(*runs: str | Path, data: str | Path | None = None, projection: str = "pca") -> Figure:
    """The page as a matplotlib figure; every axes carries a label that says what it shows."""
    opened = read_runs(list(runs), data)
    with matplotlib.rc_context(STYLE):
        return _figure(opened, draw_sections(opened, projection), *tables(opened))


def _figure(runs: list[Run], sections: list[Section], found: list, remarks: list[str]) -> Figure:
    return one_page([Header(runs), *sections, *([Scores(found, remarks)] if found else [])])


def draw_sections(runs: list[Run], projection: str) -> list[Section]:
    """What is to be drawn of the runs: all but their names and the tables."""
    shared: list[Section] = [Curves(runs), Spread(runs)]
    own: list[Section] = []
    mapped = []
    for run in runs:
        of = f": {run.name}" if len(runs) > 1 else ""
        try:
            views, regions = run.views(), run.regions()
            mask_share = run.config.mask_share if run.config.method == "maskco" else None
            own.append(ViewPairs(views, mask_share=mask_share, mask_fill=run.config.mask_fill, of=of))
            own.append(NearestRegions(nearest_regions(regions, queries=6 if len(runs) == 1 else 4), of=of))
            mapped.append((run, regions))
        except (OSError, ValueError, RuntimeError, MemoryError, PictureError) as error:
            # They may have moved, be another's, or take more memory than there is: curves remain.
            note = f"The run's pictures cannot be shown{of}: {one_line(error)}"
            print(note, file=sys.stderr)
            own.append(Note(note))
    if mapped:
        own.append(RegionMaps(mapped, projection))
    return [shared[0], *own, shared[1]]
