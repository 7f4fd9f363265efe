"""The rows of the runs' evaluation.json: a table for each task and data set, and the same numbers as bars."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from maskco.evaluate.results import EVALUATION, Row, load_rows
from maskco.report.page import BLUE, GREY, INK, MARGIN, MUTED, WIDTH, Page, Part, shortened
from maskco.report.runs import Run, is_number
from maskco.runs.trust import own_file

LINE = 0.3
NAMES = {"knn": "Images by nearest neighbours", "linear": "Images by a linear classifier",
         "regions": "Regions by frozen features", "detection": "Faster R-CNN, fine-tuned"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Scores of some encoders at one task on one data set."""

    rows: list[Row]
    names: list[str]  # of the encoders, with settings that differ; a run by its name in the report
    colors: list[str]
    data: str

    @property
    def columns(self) -> list[str]:
        return [c for c in dict.fromkeys(c for row in self.rows for c in row.scores) if c != "chance"]

    @property
    def chance(self) -> float | None:
        return self.rows[0].scores.get("chance")

    def is_best(self, row: Row, column: str) -> bool:
        """Whether none of several rows scored better."""
        best = max(other.scores.get(column, -1.0) for other in self.rows)
        return len(self.rows) > 1 and row.scores.get(column) == best

    @property
    def title(self) -> str:
        task = self.rows[0].task
        return f"{NAMES.get(task, task)}, {self.data}, %"


def tables(runs: list[Run]) -> tuple[list[Table], list[str]]:
    """The tables of all runs' rows, and notes on those that are of an older step of a run.

    Raises EvaluationError if an evaluation.json is none of this version's.
    """
    found: dict[tuple[str, ...], _Owned] = {}
    for folder in [run.path for run in runs if run.path.is_dir()]:
        file = own_file(folder, EVALUATION)
        for row in load_rows(file) if file.is_file() else []:
            owned = _owned(_drawable(row), folder, runs)
            if owned.key not in found or not found[owned.key].is_current:
                found[owned.key] = owned
    groups: dict[tuple[Any, ...], list[_Owned]] = {}
    for owned in found.values():
        row = owned.row  # data may have changed at their place, and their number by a setting: chance shows both
        groups.setdefault((row.task, row.data, row.data_place, row.scores.get("chance")), []).append(owned)
    places = {(data, place) for _, data, place, _ in groups}
    shared = [data for data, _ in places]
    made, remarks = [], []
    for (_, data, place, _), group in groups.items():
        colors = [GREY if one.run is None or one.row.untrained else one.run.color for one in group]
        shown = data if shared.count(data) == 1 else shortened(place) or data
        made.append(Table([one.row for one in group], _names(group), colors, shown))
        stale = [(one.run, one.row.details.get("step")) for one in group if one.run and not one.row.untrained]
        remarks += [f"{run.name}: made at step {step:,}" for run, step in stale if is_number(step) and step != run.step]
    return made, list(dict.fromkeys(remarks))


@dataclass(frozen=True)
class _Owned:
    """A row with the run of the report that it is about, if it is about one."""

    row: Row
    run: Run | None

    @property
    def name(self) -> str:
        named = self.run.name if self.run else self.row.encoder.removeprefix("untrained:")
        return f"untrained: {named}" if self.row.untrained else named

    @property
    def sha(self) -> str:
        return str(self.row.details.get("encoder_sha256"))

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for rows about the same encoder. Names alone do not say so: each was typed in some folder."""
        return *self.row.protocol, self.name, "" if self.run else self.sha

    @property
    def is_current(self) -> bool:
        return self.run is not None and self.sha == self.run.digest


def _names(group: list[_Owned]) -> list[str]:
    """Names of the rows of a table, with those of their settings that are not the same in all rows."""
    settings = [one.row.conditions for one in group]
    differing = [name for name in dict.fromkeys(name for each in settings for name in each)
                 if len({str(each.get(name)) for each in settings}) > 1]  # fmt: skip
    return [
        ", ".join([one.name, *(f"{name} {each[name]}" for name in differing if name in each)])
        for one, each in zip(group, settings, strict=True)
    ]


def _owned(row: Row, folder: Path, runs: list[Run]) -> _Owned:
    """The run is the one with the row's weights, or else the one at its place: it may have been trained further."""
    origin = row.encoder.removeprefix("untrained:") if row.place is None else folder.resolve() / row.place
    place = os.path.abspath(origin)
    best, most = None, (False, False, False)
    for run in runs:
        same = not row.untrained and row.details.get("encoder_sha256") == run.digest
        there = place == str(run.path.resolve())
        match = same, there, run.path == folder
        if (same or there) and match > most:
            best, most = run, match
    return _Owned(row, best)


def _drawable(row: Row) -> Row:
    """The row with only those of its scores that are numbers."""
    return replace(row, scores={name: value for name, value in row.scores.items() if is_number(value)})


class Scores(Part):
    def __init__(self, found: list[Table], remarks: list[str]) -> None:
        self.tables = found
        self.title, self.remark = "Evaluation", " · ".join(remarks)
        self.height = sum(self._height(table) for table in found) + 0.1

    @staticmethod
    def _height(table: Table) -> float:
        return 0.6 + LINE * (len(table.rows) + (table.chance is not None))

    def draw(self, page: Page, top: float) -> None:
        for table in self.tables:
            self._draw(page, top, table)
            top += self._height(table)

    def html(self) -> str:
        return "".join(map(_html, self.tables))

    def _draw(self, page: Page, top: float, table: Table) -> None:
        columns = table.columns
        rights = [MARGIN + 4.3 + 1.05 * index for index in range(len(columns))]
        y = top + 0.15
        page.text(MARGIN, y, table.title, size=9.5, weight="bold")
        for right, column in zip(rights, columns, strict=True):
            page.text(right, y, column, size=8.5, color=MUTED, ha="right")
        for name, color, row in zip(table.names, table.colors, table.rows, strict=True):
            y += LINE
            page.text(MARGIN, y, "■", size=8.5, color=color)
            page.text(MARGIN + 0.18, y, shortened(name), size=9.5)
            for right, column in zip(rights, columns, strict=True):
                if column in row.scores:
                    style = {"weight": "bold", "color": BLUE} if table.is_best(row, column) else {"color": INK}
                    page.text(right, y, f"{row.scores[column]:.1f}", size=9.5, ha="right", **style)
        if table.chance is not None:
            page.text(MARGIN + 0.18, y + LINE, "chance, most frequent class", size=9, color=MUTED)
            page.text(MARGIN + 4.3, y + LINE, f"{table.chance:.1f}", size=9, color=MUTED, ha="right")

        left = MARGIN + 4.3 + 1.05 * max(2, len(columns) - 1) + 0.5  # the bars of most tables below each other
        rows = len(table.rows)
        axes = page.axes(left, top + 0.22, WIDTH - MARGIN - left, LINE * rows, f"scores {table.title}")
        values = [row.scores.get(columns[0], 0.0) if columns else 0.0 for row in table.rows]
        axes.barh(range(rows), values, 0.62, color=table.colors)
        if table.chance is not None:
            axes.axvline(table.chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        largest = max([*values, 1.0])
        axes.set(xlim=(0, 100 if largest > 50 else 1.25 * largest), ylim=(rows - 0.5, -0.5), yticks=[])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        dashed = "" if table.chance is None else "  (dashed: chance)"
        axes.set_xlabel("".join(columns[:1]) + dashed)


def _html(table: Table) -> str:
    lines = []
    for name, color, row in zip(table.names, table.colors, table.rows, strict=True):
        cells = ""
        for column in table.columns:
            kind = ' class="best"' if table.is_best(row, column) else ""
            cells += f"<td{kind}>{row.scores[column]:.1f}</td>" if column in row.scores else "<td></td>"
        size = escape(str(row.details.get("image_size", "")))
        mark = f'<span style="color:{color}">■</span> {escape(name)}'
        lines.append(f"<tr><td>{mark}</td>{cells}<td>{escape(row.architecture)}</td><td>{size}</td></tr>")
    if table.chance is not None:
        lines.append(f'<tr class="muted"><td>chance, most frequent class</td><td>{table.chance:.1f}</td></tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in ("encoder", *table.columns, "architecture", "pixels"))
    notes = dict.fromkeys(note for row in table.rows for note in row.details.get("notes", ()))
    remarks = "".join(f'<p class="remark">{escape(note)}</p>' for note in notes)
    drawn = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return f'<h3>{escape(table.title)}</h3>{remarks}<div class="wide">{drawn}</div>'
