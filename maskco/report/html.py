"""The report as one HTML file with its pictures inside, which can be sent by mail."""

from __future__ import annotations

import base64
from html import escape

from maskco.report.curves import progress, summary
from maskco.report.page import Section, alone, png
from maskco.report.runs import Run
from maskco.report.scores import Table

STYLE = """
body { margin: 0; background: #f3f4f7; color: #1f2430; font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 26px; margin: 8px 0 18px }
section { background: #fff; border: 1px solid #e3e6ec; border-radius: 10px; padding: 16px 20px; margin: 16px 0 }
h2 { font-size: 17px; margin: 0 0 2px }
h3 { font-size: 15px; margin: 18px 0 4px }
p.remark { color: #6b7280; font-size: 13px; margin: 0 0 10px }
img { width: 100%; height: auto; display: block }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 4px 18px 4px 0; text-align: right; white-space: nowrap }
th { color: #6b7280; font-weight: 500; font-size: 13px; border-bottom: 1px solid #d5d9e0 }
th:first-child, td:first-child { text-align: left }
td.best { font-weight: 700; color: #2563a8 }
.run { font-weight: 700 } .muted { color: #6b7280; font-size: 13px }
.wide { overflow-x: auto }
summary { cursor: pointer; color: #6b7280; font-size: 13px }
"""


def html(runs: list[Run], sections: list[Section], tables: list[Table], remarks: list[str]) -> str:
    """The whole document. `sections` are drawn; what is text, runs and tables, becomes text."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [f"<h1>{escape(title)}</h1>", _runs(runs), *map(_section, sections)]
    if tables:
        remark = f'<p class="remark">{escape(" · ".join(remarks))}</p>' if remarks else ""
        parts.append(f"<section><h2>Evaluation</h2>{remark}{''.join(map(_table, tables))}</section>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _section(section: Section) -> str:
    data = base64.b64encode(png(alone(section))).decode()
    words = section.title or "note"
    remark = f'<p class="remark">{escape(section.remark)}</p>' if section.remark else ""
    heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    return f'<section>{heading}{remark}<img alt="{escape(words)}" src="data:image/png;base64,{data}"></section>'


def _runs(runs: list[Run]) -> str:
    lines = [
        f'<p><span class="run" style="color:{run.colour}">■ {escape(run.name)}</span> &nbsp; {escape(progress(run))}'
        f'<br><span class="muted">{escape(summary(run.config))}</span></p>'
        for run in runs
    ]
    return f"<section>{''.join(lines)}{_options(runs)}</section>"


def _options(runs: list[Run]) -> str:
    """Of one run all options, of several those in which they differ."""
    values = [run.config.to_dict() for run in runs]
    names = [n for n in values[0] if len(runs) == 1 or len({str(v[n]) for v in values}) > 1]
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    lines = "".join(f"<tr><td>{n}</td>{''.join(f'<td>{escape(str(v[n]))}</td>' for v in values)}</tr>" for n in names)
    words = "all options" if len(runs) == 1 else "options that differ"
    table = f"<table><tr><th></th>{head}</tr>{lines}</table>"
    return f'<details><summary>{words}</summary><div class="wide">{table}</div></details>'


def _table(table: Table) -> str:
    lines = []
    for name, colour, row in zip(table.names, table.colours, table.rows, strict=True):
        cells = ""
        for column in table.columns:
            best = max(other.scores.get(column, -1.0) for other in table.rows)
            kind = ' class="best"' if len(table.rows) > 1 and row.scores.get(column) == best else ""
            cells += f"<td{kind}>{row.scores[column]:.1f}</td>" if column in row.scores else "<td></td>"
        size = escape(str(row.details.get("image_size", "")))
        mark = f'<span style="color:{colour}">■</span> {escape(name)}'
        lines.append(f"<tr><td>{mark}</td>{cells}<td>{escape(row.architecture)}</td><td>{size}</td></tr>")
    if table.chance is not None:
        lines.append(f'<tr class="muted"><td>chance, most frequent class</td><td>{table.chance:.1f}</td></tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in ("encoder", *table.columns, "architecture", "pixels"))
    notes = "".join(f'<p class="remark">{escape(n)}</p>' for n in dict.fromkeys(
        n for row in table.rows for n in row.details.get("notes", ())
    ))  # fmt: skip
    drawn = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return f'<h3>{escape(table.title)}</h3>{notes}<div class="wide">{drawn}</div>'
