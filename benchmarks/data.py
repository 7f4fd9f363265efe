"""Pictures per second and core: from JPEG files to two views each, beside lightly, MoCo's own code and torchvision.

    python -m benchmarks.data --data coco128/train2017 --json benchmarks/results/data_cpu.json

All read the same files, use one thread, and draw MoCo v2's augmentations; statistics of their views show whether these
are equally strong. Ours also makes the crops overlap and draws regions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
import tyro
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks import harness
from benchmarks.timing import clock
from maskco.console import one_line_errors
from maskco.data.batch_augment import finish
from maskco.data.images import ImageError
from maskco.data.memory import keep_freed_memory
from maskco.data.samples import PretrainDataset, Sample, collate
from maskco.data.sources import SourceError, open_source
from maskco.data.views import MEAN, STD, TwoViews, ViewConfig, denormalize
from maskco.errors import ConfigError
from maskco.memory import memory_errors

OURS = "maskco"
WORKER, DEVICE = "maskco: augment device, worker", "maskco: augment device, device"
BATCH = 64  # pictures that the device takes at once
TARGET = 2.0  # times the pictures per second of lightly and of MoCo's pipeline
Views = tuple[Tensor, Tensor]
Row = harness.Row
STATISTICS = {
    "brightness": lambda view: view.mean(),
    "contrast": lambda view: view.std(),
    "chroma": lambda view: (view.amax(0) - view.amin(0)).mean(),
    "sharpness": lambda view: view.diff(dim=-1).abs().mean() + view.diff(dim=-2).abs().mean(),
    "grey": lambda view: ((view.amax(0) - view.amin(0)).max() < 0.02).float(),
}  # of a view with colours in [0, 1]


@dataclass
class Options:
    data: str
    """Pictures, as for maskco pretrain: a folder, or a .tar."""
    image_size: int = 224
    images: int = 128
    """How many of them, at equal distances."""
    repeats: int = 7
    """Passes over the pictures; the median and the 20th and 80th percentiles are reported."""
    device: str = "cpu"
    """Where colours are applied with --augment device, cpu or cuda; all else is the CPU's."""
    draws: int = 8
    """Pairs of views of each picture for the statistics; 0: none."""
    json: Path | None = None
    """Write the rows here."""


def moco(size: int) -> Callable[[Image.Image], Views]:
    """As MoCo's main_moco.py and loader.py: torchvision's first transforms, on Pillow's pictures."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    one = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blur], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return lambda image: (one(image), one(image))


def torchvision_v2(size: int) -> Callable[[Image.Image], Views]:
    """The same by torchvision's second transforms, on tensors."""
    one = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def both(image: Image.Image) -> Views:
        tensor = v2.functional.pil_to_tensor(image)
        return one(tensor), one(tensor)

    return both


def lightly(size: int) -> Callable[[Image.Image], Views]:
    from lightly.transforms import MoCoV2Transform

    return MoCoV2Transform(input_size=size)


def implementations(options: Options) -> tuple[dict[str, Callable[[int], Views]], dict[str, str]]:
    """By name: from a picture's number to its two views; and why some are not there."""
    source = open_source(options.data)
    count = min(options.images, len(source))
    numbers = [step * len(source) // count for step in range(count)]
    dataset = PretrainDataset(source, TwoViews(ViewConfig(image_size=options.image_size)))
    epochs = iter(range(1 << 62))
    found: dict[str, Callable[[int], Views]] = {OURS: lambda i: dataset.views(next(epochs), numbers[i])[:2]}
    skipped: dict[str, str] = {}
    for name, build in {"lightly": lightly, "PIL (MoCo)": moco, "torchvision v2": torchvision_v2}.items():
        try:
            transform = build(options.image_size)
        except ImportError as error:
            skipped[name] = f"not installed ({error.name})"
            continue
        found[name] = lambda i, transform=transform: transform(source[numbers[i]])
    # Where our own time goes: decoding alone, and the views of decoded pictures with and without colours and blur.
    decoded = [source.open(number).tensor() for number in numbers]
    plain = TwoViews(replace(dataset.transform.config, jitter=0, grayscale=0, blur=0))
    found["maskco: decode"] = lambda i: source.open(numbers[i]).tensor()
    found["maskco: crop, resize, regions"] = lambda i: plain(decoded[i])
    found["maskco: all but decode"] = lambda i: dataset.transform(decoded[i])
    # With --augment device: the worker's part, and the device's, a whole batch at the first of its pictures.
    raw = PretrainDataset(source, dataset.transform.raw)
    found[WORKER] = lambda i: raw.views(next(epochs), numbers[i])
    samples = [Sample(raw.views(0, number), []) for number in numbers]
    batches = [collate(samples[first : first + BATCH]).views for first in range(0, count, BATCH)]
    device = torch.device(options.device)
    found[DEVICE] = lambda i: None if i % BATCH else finish(batches[i // BATCH], device)
    return found, skipped


def measure(options: Options) -> list[Row]:
    """CPU time, of one thread: other processes on the machine disturb it little. Of a GPU its own time."""
    found, skipped = implementations(options)
    count = min(options.images, len(open_source(options.data)))
    times: dict[str, list[float]] = {name: [] for name in found}
    clocks = dict.fromkeys(found, (time.process_time_ns, lambda start, end: (end - start) / 1e6))
    if options.device == "cuda":
        clocks[DEVICE] = clock(torch.device("cuda"))
    for repeat in range(options.repeats + 1):  # the first warms up
        for name, views in found.items():
            mark, elapsed = clocks[name]
            start = mark()
            for i in range(count):
                views(i)
            seconds = elapsed(start, mark()) / 1000 / count
            if repeat:
                times[name].append(seconds)
    common = {"op": "data", "case": f"two views of {options.image_size} pixels", "device": "cpu"}
    rows = []
    for name, seconds in times.items():
        rate = [1 / each for each in seconds]
        p20, median, p80 = (float(f"{value:.4g}") for value in np.percentile(rate, (20, 50, 80)))
        row = common | {"impl": name, "pictures_per_s": median, "p20": p20, "p80": p80}
        if name == DEVICE:
            row |= {"device": options.device, "batch": min(BATCH, count)}
        row["ms"] = float(f"{1000 * np.median(seconds):.4g}")
        if name in ("lightly", "PIL (MoCo)", "torchvision v2"):
            # pass by pass, which compares the same seconds of the same machine
            row["ratio"] = float(f"{np.median(np.array(seconds) / np.array(times[OURS])):.4g}")
            if name != "torchvision v2":
                row["targets"] = [{"metric": "ratio", "limit": TARGET, "met": row["ratio"] >= TARGET}]
        if options.draws and not name.startswith("maskco:"):
            row["views"] = statistics(partial(_views, found[name]), count, options.draws)
        rows.append(row)
    return rows + [common | {"impl": name, "skipped": reason} for name, reason in skipped.items()]


def _views(views: Callable[[int], Views], i: int) -> list[Tensor]:
    return [denormalize(view) for view in views(i)]


def statistics(views: Callable[[int], list[Tensor]], count: int, draws: int) -> dict[str, list[float]]:
    """Mean over all views, and the mean standard deviation between the views of one picture: how much they vary."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    values = torch.tensor(
        [
            [[float(f(view)) for f in STATISTICS.values()] for _ in range(draws) for view in views(i)]
            for i in range(count)
        ]
    )  # [pictures, views, statistics]
    mean, within = values.mean((0, 1)), values.std(1).mean(0)
    return {name: [round(float(mean[k]), 4), round(float(within[k]), 4)] for k, name in enumerate(STATISTICS)}


def show(rows: list[Row]) -> None:
    print(f"{rows[0]['case']}, one thread, CPU time")
    print(f"{'':<31}{'pictures/s':>11}{'p20 – p80':>16}{'ms':>8}{'ours/this':>11}")
    for row in rows:
        if "skipped" in row:
            print(f"{row['impl']:<31}not run: {row['skipped']}")
            continue
        target = "".join(f"  ≥ {t['limit']:g} {'✓' if t['met'] else '✗'}" for t in row.get("targets", ()))
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        between = f"{row['p20']:.0f} – {row['p80']:.0f}"
        print(f"{row['impl']:<31}{row['pictures_per_s']:>11.0f}{between:>16}{row['ms']:>8.2f}{ratio:>11}{target}")
    drawn = [row for row in rows if "views" in row]
    if drawn:
        print(f"\n{'views: mean, and deviation within':<31}" + "".join(f"{name:>18}" for name in STATISTICS))
    for row in drawn:
        print(f"{row['impl']:<31}" + "".join(f"{mean:>10.3f} ± {within:.3f}" for mean, within in row["views"].values()))


def main() -> None:
    with one_line_errors(), memory_errors("lower image_size"):
        options = tyro.cli(Options, prog="python -m benchmarks.data")
        harness.check_options(options)
        torch.set_num_threads(1)
        keep_freed_memory()  # as our loading workers do, and here for all: it makes each of them faster
        meta = harness.metadata(harness.Options(repeats=options.repeats))
        meta["versions"]["pillow"] = PIL.__version__
        try:
            meta["pictures"] = min(options.images, len(open_source(options.data)))
            rows = measure(options)
        except (ImageError, SourceError) as error:
            raise ConfigError(f"{error}: benchmark pictures that can be read") from error
        show(rows)
        if options.json is not None:
            harness.write_results(options.json, meta, rows)


if __name__ == "__main__":
    main()
