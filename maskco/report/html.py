"""The report as one HTML file with its images inside, easy to send."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from maskco.report.page import Page, Part, png

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


def html(title: str, page: Page) -> str:
    """The whole document, with the parts of the page as sections."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(_section(part, pixels) for part, pixels in page.bodies())
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n'
        f"<body><main>\n<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def _section(part: Part, pixels: np.ndarray) -> str:
    heading = f"<h2>{escape(part.title)}</h2>" if part.title else ""
    remark = f'<p class="remark">{escape(part.remark)}</p>' if part.remark else ""
    return f"<section>{heading}{remark}{part.html() or _image(part, pixels)}</section>"


def _image(part: Part, pixels: np.ndarray) -> str:
    data = base64.b64encode(png(pixels)).decode()
    return f'<img alt="{escape(part.title)}" src="data:image/png;base64,{data}">'
