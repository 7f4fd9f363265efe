"""What changes with the length of a run: the same seed with a third of the steps, with all, and with three times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.claims.names import COMPARED, PHOTOGRAPHS, SETS
from benchmarks.claims.probe import NEIGHBOURS, REGION
from benchmarks.claims.settings import HIDDEN, HIDDEN_NO_HEAD, MASKCO, MOCO, NO_HEAD

SCORES = (REGION, NEIGHBOURS)
LEADS = ((MASKCO, MOCO), (MASKCO, NO_HEAD), (HIDDEN, HIDDEN_NO_HEAD))
SHOWN = {name for pair in LEADS for name in pair}


def lengths_table(rows: Sequence[dict[str, Any]], seed: int = 0) -> str:
    """In Markdown, of photographs' test parts: the main methods by steps, of one seed, and their differences. `rows`
    are of several scales. "" if no two lengths were run."""
    found: dict[tuple[str, int], dict[str, dict[str, float]]] = defaultdict(dict)
    for row in rows:
        shown = row["part"] == "test" and row["seed"] == seed and row["method"] in SHOWN
        if row["set"] in PHOTOGRAPHS and shown and "steps" in row:
            found[row["set"], row["steps"]][row["method"]] = row["scores"]
    lines = []
    for data in SETS:
        steps = sorted(length for name, length in found if name == data)
        if len(steps) > 1:
            lines += [_line(data, length, found[data, length]) for length in steps]
    if not lines:
        return ""
    columns = f"{MASKCO} | {NO_HEAD} | {MOCO} | {MASKCO} − {MOCO} | the head's worth | the same, regions all hidden"
    head = f"| linear / kNN, seed {seed} | steps | {columns} |"
    return "\n".join([head, "|---" * 8 + "|", *lines, "", COMPARED])


def _line(data: str, steps: int, scores: dict[str, dict[str, float]]) -> str:
    methods = [_pair(scores[name], "") if name in scores else "" for name in (MASKCO, NO_HEAD, MOCO)]
    return f"| {data} | {steps} | {' | '.join([*methods, *(_lead(scores, *pair) for pair in LEADS)])} |"


def _lead(scores: dict[str, dict[str, float]], one: str, other: str) -> str:
    """Of one method over another, in points; "" where one of the two was not run."""
    if not {one, other} <= scores.keys():
        return ""
    return _pair({score: scores[one][score] - scores[other][score] for score in SCORES}, "+")


def _pair(scores: dict[str, float], sign: str) -> str:
    return " / ".join(f"{scores[score]:{sign}.1f}" for score in SCORES)
