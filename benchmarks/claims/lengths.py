"""What changes with the length of a run: the same seed with a third of the steps, with all, and with three times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.claims.names import COMPARED, PHOTOGRAPHS, SETS
from benchmarks.claims.probe import NEIGHBOURS, REGION
from benchmarks.claims.settings import MASKCO, MOCO, NO_HEAD

SCORES = (REGION, NEIGHBOURS)


def lengths_table(rows: Sequence[dict[str, Any]], seed: int = 0) -> str:
    """In Markdown, of photographs' test parts: the main methods by steps, of one seed, and two differences. `rows` are
    of several scales. "" if no two lengths were run."""
    found: dict[tuple[str, int], dict[str, dict[str, float]]] = defaultdict(dict)
    for row in rows:
        if row["set"] in PHOTOGRAPHS and row["part"] == "test" and row["seed"] == seed and "steps" in row:
            found[row["set"], row["steps"]][row["method"]] = row["scores"]
    lines = []
    for data in SETS:
        steps = sorted(length for name, length in found if name == data)
        if len(steps) > 1:
            lines += [_line(data, length, found[data, length]) for length in steps]
    if not lines:
        return ""
    columns = f"{MASKCO} | {NO_HEAD} | {MOCO} | {MASKCO} − {MOCO} | the head's worth"
    head = f"| linear / kNN, seed {seed} | steps | {columns} |"
    return "\n".join([head, "|---" * 7 + "|", *lines, "", COMPARED])


def _line(data: str, steps: int, scores: dict[str, dict[str, float]]) -> str:
    methods = [_pair(scores[name], "") if name in scores else "" for name in (MASKCO, NO_HEAD, MOCO)]
    return f"| {data} | {steps} | {' | '.join([*methods, _lead(scores, MOCO), _lead(scores, NO_HEAD)])} |"


def _lead(scores: dict[str, dict[str, float]], other: str) -> str:
    """Of MaskCo, in points; "" where one of the two was not run."""
    if not {MASKCO, other} <= scores.keys():
        return ""
    return _pair({score: scores[MASKCO][score] - scores[other][score] for score in SCORES}, "+")


def _pair(scores: dict[str, float], sign: str) -> str:
    return " / ".join(f"{scores[score]:{sign}.1f}" for score in SCORES)
