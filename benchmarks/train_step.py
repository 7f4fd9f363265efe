"""Where the time of a training step goes: the real loop, with the clock read wherever one part ends.

    python -m benchmarks.train_step --data PHOTOS --json results.json

A step's parts follow one another, and what passes between two readings belongs to the part that ends there: nothing is
left out or counted twice. In the backward pass the readings are hooks on the tensors between the parts.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import maskco.methods.maskco
import maskco.training.loop
from benchmarks.harness import check_options, metadata, write_results
from benchmarks.memory import keep_freed_memory
from benchmarks.timing import clock
from maskco import ops
from maskco.console import one_line_errors
from maskco.data.loading import Loading
from maskco.methods import MaskCo
from maskco.nn import FeatureQueue
from maskco.training.state import TrainState
from maskco.training.totals import Totals

Row = dict[str, Any]
FORWARD, BACKWARD = "forward", "backward"
ENCODERS = ("encoder, query", "encoder, key")
HEAD, MOMENTUM, OPTIMIZER = "mask head", "momentum update", "optimizer"
GROUPS = {  # the rest is "everything else"
    "encoders": ENCODERS,
    "optimizer and momentum update": (OPTIMIZER, MOMENTUM),
    HEAD: (HEAD,),
}
LIMIT = 0.03  # of the step, for all but encoders, optimizer and momentum update


@dataclass
class Options:
    data: str = "demo"
    """Folder of pictures, or "demo"."""
    encoder: str = "resnet50"
    image_size: int = 224
    batch_size: int = 8
    regions: int = 4
    mask_head: Literal["conv", "attention", "none"] = "conv"
    queue_size: int = 65536
    amp: Literal["off", "bf16", "fp16"] = "off"
    augment: Literal["workers", "device"] = "workers"
    """Where views get their colours: with "device" that is a part of the step too."""
    workers: int = 0
    """Loading processes; with 0 loading stands among the parts, else it runs beside them and only waiting is seen."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int = 1
    """CPU threads."""
    repeats: int = 7
    """Steps; the median and the 20th and 80th percentiles of each part are reported."""
    keep_freed: bool = True
    """On the CPU, let malloc keep freed memory (see benchmarks/README.md)."""
    quick: bool = False
    """A tiny encoder and few small pictures: shows that everything runs. The figures mean little."""
    json: Path | None = None
    """Write the rows here."""


class Enough(Exception):
    """The steps that were asked for have been taken."""


class Stopwatch:
    """Readings of one step after another; `end(part)` ends a part at this moment."""

    WARM_UP = 2  # steps

    def __init__(self, device: torch.device, steps: int) -> None:
        self.mark, self.elapsed = clock(device)
        self.steps: list[list[tuple[str, str, Any]]] = []
        self.wanted = self.WARM_UP + steps

    def end(self, part: str, direction: str = FORWARD) -> None:
        if self.steps:
            self.steps[-1].append((part, direction, self.mark()))

    def next_step(self) -> None:
        """Raises Enough."""
        if len(self.steps) == self.wanted:
            raise Enough
        self.steps.append([("", "", self.mark())])

    def milliseconds(self) -> dict[tuple[str, str], list[float]]:
        """Of every (part, direction), by step, in the order of their first ends."""
        found: dict[tuple[str, str], list[float]] = {}
        for number, step in enumerate(self.steps[self.WARM_UP :]):
            for (_, _, before), (part, direction, after) in itertools.pairwise(step):
                times = found.setdefault((part, direction), [0.0] * (len(self.steps) - self.WARM_UP))
                times[number] += self.elapsed(before, after)
        return found


def wrapped(function: Callable[..., Any], before: Callable[[], None], after: Callable[[], None]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        before()
        result = function(*arguments, **options)
        after()
        return result

    return call


def instrument(watch: Stopwatch, patch: Callable[..., Any]) -> None:
    """Puts the readings into the loop, the method and the ops it calls."""

    def ends(part: str) -> Callable[[], None]:
        return lambda: watch.end(part)

    def nothing() -> None:
        pass

    def batches(loading: Loading) -> Iterator[Any]:
        found = original_batches(loading)
        while True:
            watch.end("rest of the loop")
            watch.next_step()
            batch = next(found, None)
            if batch is None:
                return
            watch.end("data")
            yield batch

    def hooked(method: nn.Module, **options: Any) -> nn.Module:
        """Reads the clock behind each module, and where its output's gradient is ready: there the part behind ends."""
        for module, part, behind in (
            (method.encoder, ENCODERS[0], HEAD),
            (method.mask_head, HEAD, "pooling"),
            (method.momentum_encoder, ENCODERS[1], None),
        ):

            def read(_: nn.Module, __: Any, output: Tensor, part: str = part, behind: str | None = behind) -> None:
                watch.end(part)
                if behind:
                    output.register_hook(lambda gradient: watch.end(behind, BACKWARD))

            module.register_forward_hook(read)
        method.momentum_encoder.register_forward_pre_hook(lambda *_: watch.end("key groups"))
        return method

    def box_pool(*arguments: Any, **options: Any) -> Tensor:
        pooled = original_pool(*arguments, **options)
        watch.end("pooling")
        if pooled.requires_grad:
            pooled.register_hook(lambda gradient: watch.end("projection", BACKWARD))
        return pooled

    def info_nce(query: Tensor, *arguments: Any, **options: Any) -> Any:
        query.register_hook(lambda gradient: watch.end("loss", BACKWARD))
        result = original_loss(query, *arguments, **options)
        watch.end("loss")
        return result

    original_batches, original_pool, original_loss = Loading.__iter__, ops.box_pool, ops.info_nce
    patch(Loading, "__iter__", batches)
    patch(maskco.training.loop, "data_parallel", hooked)
    patch(maskco.training.loop, "to_device", wrapped(maskco.training.loop.to_device, nothing, ends("data")))
    patch(ops, "box_pool", box_pool)
    patch(ops, "info_nce", info_nce)
    method = maskco.methods.maskco
    patch(method, "mask_boxes", wrapped(method.mask_boxes, nothing, ends("masking")))
    patch(method, "embed_regions", wrapped(method.embed_regions, ends("key groups"), ends("projection")))
    patch(MaskCo, "start_step", wrapped(MaskCo.start_step, ends(OPTIMIZER), ends(MOMENTUM)))
    patch(FeatureQueue, "push", wrapped(FeatureQueue.push, lambda: watch.end(ENCODERS[0], BACKWARD), ends("queue")))
    patch(TrainState, "save", lambda *arguments: None)  # at ends of epochs: no part of a step
    patch(Totals, "add", wrapped(Totals.add, ends(OPTIMIZER), ends("metrics")))


def measure(options: Options) -> dict[tuple[str, str], list[float]]:
    watch = Stopwatch(torch.device(options.device), options.repeats)
    names = ("data", "encoder", "image_size", "batch_size", "regions", "mask_head", "queue_size", "amp", "augment",
             "workers", "device", "threads")  # fmt: skip
    config = {name: getattr(options, name) for name in names}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        instrument(watch, lambda *arguments: patches.enter_context(mock.patch.object(*arguments)))
        with suppress(Enough):
            maskco.pretrain(out=Path(folder) / "run", epochs=1000, log_every=10**6, save_every_minutes=0, **config)
    if options.device == "cuda":
        torch.cuda.synchronize()
    return watch.milliseconds()


def rows_of(times: dict[tuple[str, str], list[float]], case: str, options: Options) -> list[Row]:
    """A row for each part, one for each group of them, with their share of the step."""
    grouped = {part for parts in GROUPS.values() for part in parts}
    groups = {**GROUPS, "everything else": tuple(part for part, _ in times if part not in grouped)}
    dtype = {"off": "float32", "bf16": "bfloat16", "fp16": "float16"}[options.amp]
    common = {"op": "train_step", "case": case, "dtype": dtype, "device": options.device}
    steps = np.sum(list(times.values()), axis=0)

    def row(samples: np.ndarray, **names: Any) -> Row:
        p20, median, p80 = (float(f"{p:.5g}") for p in np.percentile(samples, (20, 50, 80)))
        share = float(f"{np.median(samples / steps):.4g}")
        return common | names | {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "share": share}

    rows = [row(np.array(ms), part=part, **{"pass": direction}) for (part, direction), ms in times.items()]
    sums = {
        name: np.sum([ms for (part, _), ms in times.items() if part in parts] or [np.zeros(len(steps))], axis=0)
        for name, parts in groups.items()
    }
    sums["everything else with the mask head"] = sums["everything else"] + sums[HEAD]
    rows += [row(samples, group=name, **{"pass": "step"}) for name, samples in [*sums.items(), ("step", steps)]]
    for each in rows:
        if str(each.get("group")).startswith("everything else"):
            judged = {"metric": "share", "limit": LIMIT, "value": each["share"], "met": each["share"] <= LIMIT}
            each["targets"] = [judged]
    return rows


def print_rows(case: str, rows: list[Row], batch_size: int) -> None:
    print(f"\n{case}, {rows[0]['dtype']}\n{'part':<36} {'pass':<9} {'ms':>9} {'p20 – p80':>19} {'share':>7}  target")
    for row in rows:
        if row.get("group") == "encoders":
            print()
        target = "".join(f"≤ {t['limit']:.0%} {'✓' if t['met'] else '✗'}" for t in row.get("targets", ()))
        range_ = f"{row['p20_ms']:.2f} – {row['p80_ms']:.2f}"
        name = row.get("part") or row["group"]
        print(
            f"{name:<36} {row['pass']:<9} {row['median_ms']:>9.2f} {range_:>19} {row['share']:>7.2%}  {target}".rstrip()
        )
    print(f"{1000 * batch_size / rows[-1]['median_ms']:.3g} images/s")


def main() -> None:
    with one_line_errors():
        options = tyro.cli(Options, prog="python -m benchmarks.train_step")
        check_options(options)
        if options.quick:
            options = dataclasses.replace(options, encoder="test_resnet", image_size=64, queue_size=1024, repeats=3)
        torch.set_num_threads(options.threads)
        if options.keep_freed and options.device == "cpu" and not keep_freed_memory():
            print("malloc cannot keep freed memory here: times include fetching it again", file=sys.stderr)
        meta = metadata(options)
        case = f"{options.encoder} at {options.image_size}, batch {options.batch_size}, {Path(options.data).name}"
        rows = rows_of(measure(options), case, options)
        print_rows(case, rows, options.batch_size)
        if options.json is not None:
            chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
            meta["options"] = {name: value for name, value in chosen.items() if name not in ("data", "json")}
            write_results(options.json, meta, rows)


if __name__ == "__main__":
    main()
