"""Does every family of encoders learn? Trains the smallest of each on the demo's scenes by its default recipe.

    python -m benchmarks.encoders --json benchmarks/results/encoders.json      # all: about two hours on two cores
    python -m benchmarks.encoders --only convnext --json encoders.json         # those with a word in their names
    python -m benchmarks.encoders --show benchmarks/results/encoders.json      # its table again
    python -m benchmarks.encoders --show benchmarks/results/encoders.json --docs docs/encoders.md
    python -m benchmarks.encoders --only test_vit --steps 1860 --seeds 3 --json trials.json    # more steps, more seeds
    python -m benchmarks.encoders --only regnet --json trials.json --change lr=0.12     # what another value makes of it

A file with several seeds, lengths or changes is shown as a line for each kind of run, averaged over its seeds. Rows
that the file holds already are not computed again. Views, regions and queue are the demo's, and so is the factor by
which its learning rate exceeds the recipe's: a short run of small batches needs more. Where the recipe has no warm-up,
that rate needs the demo's. The probe is that of `maskco eval regions`: a linear classifier, and nearest neighbours, on
frozen features pooled over the items' boxes.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import tyro

from benchmarks import harness
from benchmarks.table import check_rows, fill, read_results
from maskco.config import PretrainConfig, demo_config
from maskco.console import one_line_errors
from maskco.errors import ConfigError, UserError, one_line
from maskco.evaluate.options import Regions
from maskco.evaluate.run import evaluate
from maskco.files import write_atomically
from maskco.provenance import device_name, provenance
from maskco.recipes import MOCO_V2
from maskco.runs.checkpoint import load_run
from maskco.runs.folder import METRICS
from maskco.training.loop import train
from maskco.training.recipe import with_recipe

Row = dict[str, Any]
BATCH = 64
SCENES = 4000  # that the demo set trains on
POINTS = 8.0  # by which the probe should exceed that of the same encoder untrained
START = "<!-- made by benchmarks.encoders from {} -->"


class Family(NamedTuple):
    name: str
    encoder: str  # the smallest of it that timm has
    stage: int  # whose map has a cell for each eighth of the view's side
    image_size: int = 64  # of the views
    output_stride: int | None = None  # dilates a later stage to such a map, where an earlier one has hardly a layer


FAMILIES = (
    Family("ResNet", "resnet18", 2),
    Family("RegNet", "regnetx_002", 3, output_stride=8),
    Family("MobileNetV4", "mobilenetv4_conv_small", 2),
    Family("EfficientNet", "efficientnet_b0", 2),
    Family("ConvNeXt", "convnext_atto", 1),
    Family("ConvNeXtV2", "convnextv2_atto", 1),
    Family("MambaOut", "mambaout_femto", 1),
    Family("Swin", "swin_tiny_patch4_window7_224", 1),
    Family("Hiera", "hiera_tiny_224", 1),
    Family("FocalNet", "focalnet_tiny_srf", 1),
    Family("ViT", "test_vit", -1, 128),
)
ORDER = [family.encoder for family in FAMILIES]


@dataclass
class Options:
    json: Path | None = None
    """Rows are added to this file."""
    steps: int = 600
    """Steps of 64 scenes, rounded to whole passes over the scenes."""
    only: str = ""
    """Only encoders or families whose name contains this."""
    seeds: int = 1
    """Runs of each, with seeds 0, 1, …"""
    change: tuple[str, ...] = ()
    """Options that differ from the recipe's and the benchmark's, as NAME=VALUE, with a value in JSON."""
    runs: Path | None = None
    """Keep the runs in this folder; default: they are thrown away."""
    show: Path | None = None
    """Print this file's table. Nothing is trained."""
    docs: Path | None = None
    """With --show: put the table into this page, in place of the one there."""


def settings(family: Family, epochs: int, seed: int, out: Path, changed: Row | None = None) -> PretrainConfig:
    """The run's options: the demo's, but what the encoder and its recipe decide, and what is changed on purpose."""
    demo = demo_config(out)
    factor = demo.filled("moco_v2").optim.lr / MOCO_V2["lr"]
    own = {name: value for name, value in demo.flat().items() if name not in (*MOCO_V2, "warmup_steps")}
    own |= {"encoder": family.encoder, "stage": family.stage, "output_stride": family.output_stride}
    own |= {"image_size": family.image_size, "seed": seed}
    config = with_recipe(PretrainConfig.of(**{**own, "epochs": epochs, "batch_size": BATCH, "workers": 0}))
    warmup = {} if config.optim.warmup_share else {"warmup_steps": demo.optim.warmup_steps}
    return config.replace(**{"lr": config.optim.lr * factor, **warmup, **(changed or {})})


def measure(family: Family, epochs: int, seed: int, folder: Path, changed: Row) -> Row:
    """One row: what was trained, how, and what came of it. A failure is a row as well, with its reason."""
    own = family._asdict()
    row: Row = {"family": own.pop("name"), **own, "seed": seed, "steps": epochs * (SCENES // BATCH)}
    row |= {"changed": changed} if changed else {}
    row |= {"device": device_name(torch.device("cpu"))} | provenance()
    started = time.monotonic()
    try:
        config = settings(family, epochs, seed, folder / f"{family.encoder}-{seed}", changed)
        row |= {name: config.flat()[name] for name in ("recipe", *MOCO_V2, "warmup_steps")}
        done = train(config, overwrite=True)
        if done.interrupted:
            raise SystemExit("interrupted: the same command goes on")
        assert done.steps == row["steps"]
        last = json.loads((done.out / METRICS).read_text().splitlines()[-1])
        encoder = load_run(done.out)[1].encoder
        row |= {"seconds": round(time.monotonic() - started), "stride": encoder.stride}
        row |= {"parameters": sum(parameter.numel() for parameter in encoder.parameters())}
        row |= {name: last.get(name) for name in ("loss", "accuracy", "embedding_std", "effective_rank")}
        size = 96 * family.image_size // 64  # scenes that are a view and a half, as the demo evaluates them
        size -= size % 32
        probed = evaluate(Regions(encoders=(str(done.out),), untrained=True, image_size=size), verbose=False)
        row |= {"probe": probed[0].scores, "untrained": probed[1].scores}
    except UserError as error:
        row["failed"] = one_line(error)
    return row


def learns(row: Row) -> bool:
    return "failed" not in row and gain(row) >= POINTS


def gain(row: Row, score: str = "linear top-1") -> float:
    return row["probe"][score] - row["untrained"][score]


def kind(row: Row) -> tuple[str, int, str]:
    """What makes rows comparable: they differ in their seed only."""
    return row["encoder"], row["steps"], ", ".join(f"{name} {value}" for name, value in row.get("changed", {}).items())


def table(rows: list[Row]) -> str:
    """Markdown: a line for each run, or for each kind of runs where a file holds several of an encoder."""
    return _lines(_by_run(rows) if len({row["encoder"] for row in rows}) == len(rows) else _by_kind(rows))


def _lines(cells: list[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _by_kind(rows: list[Row]) -> list[Sequence[str]]:
    head = ("encoder", "steps", "changed", "seeds", "contrast accuracy", "probe", "untrained", "gain", "gain, kNN")
    lines: list[Sequence[str]] = [head, ("---", "---:", "---", *["---:"] * 6)]
    for (encoder, steps, changed), found in itertools.groupby(sorted(rows, key=_order), key=kind):
        done = list(found)
        if failed := [row["failed"] for row in done if "failed" in row]:
            lines.append((f"`{encoder}`", f"{steps}", changed, f"{len(done)}", *[""] * 4, failed[0]))
            continue
        accuracy = mean(row["accuracy"] for row in done)
        probe, untrained = (mean(row[part]["linear top-1"] for row in done) for part in ("probe", "untrained"))
        gains = (_mean_and_range([gain(row, score) for row in done]) for score in ("linear top-1", "kNN top-1"))
        scores = (f"{accuracy:.1f} %", f"{probe:.1f}", f"{untrained:.1f}", *gains)
        lines.append((f"`{encoder}`", f"{steps}", changed, f"{len(done)}", *scores))
    return lines


def _mean_and_range(values: list[float]) -> str:
    """The mean, and from where to where the seeds go."""
    average = f"{mean(values):+.1f}"
    return average if len(values) == 1 else f"{average} ({min(values):+.1f} to {max(values):+.1f})"


def _order(row: Row) -> tuple[int, int, str, int]:
    encoder, steps, changed = kind(row)
    return ORDER.index(encoder), steps, changed, row["seed"]


def _by_run(rows: list[Row]) -> list[Sequence[str]]:
    head = (
        "family",
        "encoder, stage",
        "weights",
        "recipe",
        "contrast accuracy",
        "RankMe",
        "probe",
        "untrained",
        "gain",
    )
    lines: list[Sequence[str]] = [head, ("---", *("---:" if i > 2 else "---" for i in range(len(head) - 1)))]
    for row in rows:
        name = f"`{row['encoder']}`, {row['stage']}"
        if "failed" in row:
            lines.append((row["family"], name, *[""] * 6, row["failed"]))
            continue
        probe, untrained = (row[part]["linear top-1"] for part in ("probe", "untrained"))
        rank = "" if row["effective_rank"] is None else f"{row['effective_rank']:.0f}"
        scores = (f"{row['accuracy']:.1f} %", rank, f"{probe:.1f}", f"{untrained:.1f}", f"{gain(row):+.1f}")
        lines.append((row["family"], name, f"{row['parameters'] / 1e6:.2f} M", row["recipe"], *scores))
    return lines


def fill_page(page: Path, source: Path, rows: list[Row]) -> None:
    """Puts the table into a page, between its two marks. Raises ConfigError for a page without them."""
    fill(page, START.format(source.as_posix()), table(rows))


def load(file: Path) -> list[Row]:
    """The rows of a file, none if it is missing. Raises ConfigError for files of other benchmarks."""
    if not file.exists():
        return []
    rows = check_rows(file, list(read_results(file, "rows")["rows"]), "encoder", "steps", "seed")
    if foreign := {row["encoder"] for row in rows} - set(ORDER):
        raise ConfigError(f"{file} has rows of {', '.join(sorted(foreign))}, which this benchmark does not train")
    return rows


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, description=__doc__)
        harness.check_bounds(options, "seeds")
        if options.show is not None:
            if not (rows := load(options.show)):
                raise ConfigError(f"show: {options.show} holds no rows")
            if options.docs is not None:
                fill_page(options.docs, options.show, rows)
        else:
            rows = compute(options)
        print(table(rows))
        short = [row["encoder"] for row in rows if not learns(row)]
        print(f"\n{len(rows) - len(short)} of {len(rows)} gain {POINTS:g} points or more over the untrained encoder")


def compute(options: Options) -> list[Row]:
    """The rows that the file lacks, each written as soon as it is known; all of the file in the order of FAMILIES."""
    chosen = [family for family in FAMILIES if options.only.lower() in f"{family.name} {family.encoder}".lower()]
    if not chosen:
        raise ConfigError(f"only: no encoder's name contains {options.only!r}")
    changed = dict(map(_change, options.change))
    epochs = max(round(options.steps * BATCH / SCENES), 1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for family, seed in itertools.product(chosen, range(options.seeds)):
            rows = load(options.json) if options.json else rows  # another process may have added some
            wanted: Row = {"encoder": family.encoder, "steps": epochs * (SCENES // BATCH), "changed": changed}
            if not any((kind(row), row["seed"]) == (kind(wanted), seed) for row in rows):
                row = measure(family, epochs, seed, options.runs or Path(temporary), changed)
                rows = sorted([*(load(options.json) if options.json else rows), row], key=_order)
                if options.json is not None:
                    write_json(options.json, {"rows": rows})
    return rows


def _change(text: str) -> tuple[str, Any]:
    """OPTION=VALUE, as a name and a value of JSON. Raises ConfigError."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise ConfigError(f"change: {text!r} is not OPTION=VALUE with a value of JSON, such as lr=0.1") from error


def write_json(file: Path, content: Row) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(file, lambda opened: opened.write(text.encode()))


if __name__ == "__main__":
    main()
