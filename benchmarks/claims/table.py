"""The study's rows as tables: mean ± standard deviation over seeds."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev
from typing import NamedTuple

from benchmarks.claims.ages import ages_table
from benchmarks.claims.head import head_worth, worth_table
from benchmarks.claims.names import (
    CALTECH,
    COCO,
    COMPARED,
    DEMO,
    NARROW_SCENES,
    OBJECTS,
    PHOTOGRAPHS,
    SCENES,
    SCENES_3,
    SETS,
    STL10,
    VOC,
)
from benchmarks.claims.probe import NEIGHBOURS, REGION
from benchmarks.claims.row_file import Row
from benchmarks.claims.settings import (
    BOUNDS,
    DENSECL,
    HIDDEN,
    HIDDEN_NO_HEAD,
    MASKCO,
    METHODS,
    MOCO,
    MOCO_TUNED,
    NO_HEAD,
)
from benchmarks.claims.tries import budgets

TRIES = ("validation part: how the settings were chosen", "validation part: tries")  # of scenes, of photographs
WORTH = 2.0  # points that the head should be worth somewhere
SCENE_SETS = (SCENES, NARROW_SCENES, SCENES_3, DEMO, VOC, COCO)
OBJECT_SETS = (OBJECTS, STL10, CALTECH)
Scores = dict[str, dict[str, list[float]]]  # method -> score's name -> of each seed
NOTE = (
    f"{COMPARED} Regions are scored by the mean accuracy over classes, and by top-1 where that is said. RankMe is the "
    "effective rank of the keys. Contrast accuracy is that of a run's own task, at its end: among a queue, or for "
    "SimCLR a batch."
)


def collect(rows: list[Row], part: str = "test") -> dict[str, Scores]:
    """By set and method, both in the order of this program's lists."""
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["part"] == part:
            for name, value in (row["scores"] | _of_run(row)).items():
                found[row["set"]][row["method"]][name].append(value)
    order = [*METHODS, *BOUNDS]
    return {
        data: dict(sorted(scores.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
        for data, scores in sorted(found.items(), key=lambda item: SETS.index(item[0]))
    }


def _of_run(row: Row) -> dict[str, float]:
    """Of a run on photographs: contrast accuracy at its end and the highest on the way, RankMe at its end."""
    if row["set"] not in PHOTOGRAPHS or not row.get("curve"):
        return {}
    highest = max(accuracy for _, accuracy, _ in row["curve"])
    found = {"contrast accuracy": row["contrast_accuracy"], "its highest": highest, "RankMe": row["effective_rank"]}
    return {name: value for name, value in found.items() if value is not None}


class Claim(NamedTuple):
    """By how many points one method should lead another, or how near it should be."""

    text: str
    method: str
    other: str
    sets: tuple[str, ...]
    at_least: float  # of the difference of means
    apart: bool = False  # no seed of the one may reach a seed of the other


CLAIMS = (
    Claim("1: on images of one object MaskCo is within 2 points of MoCo v2", MASKCO, MOCO, OBJECT_SETS, -2),
    Claim("2: on scenes MaskCo leads MoCo v2 by 3 points", MASKCO, MOCO, SCENE_SETS, 3, apart=True),
    Claim("2: on photographs it leads the best of ten tries of MoCo v2 by 3", MASKCO, MOCO_TUNED, (VOC, COCO), 3),
    Claim("2: on photographs of scenes MaskCo leads DenseCL", MASKCO, DENSECL, (VOC, COCO), 0, apart=True),
    Claim("3: on scenes it leads MaskCo without its head by 2 points", MASKCO, NO_HEAD, SCENE_SETS, 2),
    Claim("3, with regions all hidden: the same", HIDDEN, HIDDEN_NO_HEAD, SCENE_SETS, 2),
)


def verdicts(rows: list[Row]) -> list[str]:
    """A line for each claim, set and region score that was measured on the test part."""
    lines = []
    found = collect(rows)
    for claim in CLAIMS:
        for data in claim.sets:
            for score in (REGION, NEIGHBOURS):
                one, other = (found.get(data, {}).get(name, {}).get(score) for name in (claim.method, claim.other))
                if not one or not other:
                    continue
                lead = mean(one) - mean(other)
                holds = lead >= claim.at_least and (not claim.apart or min(one) > max(other))
                seeds = min(len(one), len(other))
                lines.append(
                    f"{'holds' if holds else 'FAILS'}  {claim.text}: {data}, {score} {lead:+.2f} "
                    f"({seeds} seed{'s' * (seeds > 1)})"
                )
    return [*lines, *_regimes(rows)]


def _regimes(rows: list[Row]) -> list[str]:
    """Of photographs with boxes the regime in which the head is worth most. (It was looked for: one of many.)"""
    lines = []
    for data in (VOC, COCO):
        for score in (REGION, NEIGHBOURS):
            found = [pair for pair in head_worth(rows) if pair.set == data]
            if found:
                best = max(found, key=lambda pair: pair.mean(score))
                seeds = len(best.leads)
                lines.append(
                    f"{'holds' if best.mean(score) >= WORTH else 'FAILS'}  3, in some regime: the head is worth "
                    f"{WORTH:g} points: {data}, {score} {best.mean(score):+.2f} ({best.title}, {best.part} part, "
                    f"{seeds} seed{'s' * (seeds > 1)}, the most of {len(found)})"
                )
    return lines


def tried(rows: list[Row]) -> list[str]:
    """How many tries each method had on the validation part, set by set, as the rows say."""
    lines = []
    for data, scores in collect(rows, "val").items():
        own = {row["method"]: row["options"] for row in rows if row["set"] == data and row["method"] in scores}
        counts = budgets(own)
        lines.append(f"tries, {data}: " + ", ".join(f"{method} {count}" for method, count in counts.items()))
    return lines


def deviation(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def overview(rows: list[Row]) -> str:
    """In Markdown, the two scores of regions on all sets' test parts; "" where none was scored."""
    found = collect(rows)
    if not found:
        return ""
    lines = ["| regions, linear / kNN | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for method in [*METHODS, *BOUNDS]:
        values = (scores.get(method, {}) for scores in found.values())
        own = [
            " / ".join(deviation(value[score]) for score in (REGION, NEIGHBOURS) if score in value) for value in values
        ]
        if any(own):
            lines.append(f"| {method} | {' | '.join(own)} |")
    return "\n".join([*lines, "", NOTE] if found.keys() & {*PHOTOGRAPHS} else lines)


def tables(rows: list[Row]) -> str:
    """In Markdown, one for each set, and one of the tries on the validation part."""
    blocks = []
    for part in ("test", "val"):
        for data, scores in collect(rows, part).items():
            title = f"{data}, {'test part' if part == 'test' else TRIES[data in PHOTOGRAPHS]}"
            columns = list(dict.fromkeys(name for row in scores.values() for name in row))
            lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
            for method, values in scores.items():
                cells = (deviation(values[name]) if name in values else "" for name in columns)
                lines.append(f"| {method} | {' | '.join(cells)} |")
            blocks.append("\n".join(lines))
            blocks += [NOTE] * (data in PHOTOGRAPHS)
    return "\n\n".join(blocks)


def head(rows: list[Row]) -> str:
    """In Markdown, what the head is worth."""
    return worth_table(head_worth(rows))


def held(rows: list[Row]) -> str:
    """As a list: which claims hold, and how many tries there were."""
    return "\n".join(f"- {line}" for line in (*verdicts(rows), *tried(rows)))


def report(rows: list[Row]) -> str:
    """In Markdown, everything: the overview, the tables, the head's worth, accuracy by the negatives' age, and which
    claims hold, as a list."""
    parts = overview(rows), tables(rows), head(rows), ages_table(rows), held(rows)
    return "\n\n".join(filter(None, parts))
