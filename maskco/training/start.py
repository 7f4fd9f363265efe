"""Steps before a run writes anything: fill in its options, and refuse what cannot work."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Collection, Sequence

import torch

from maskco.config import PretrainConfig
from maskco.data.loading import Loading
from maskco.data.order import FullShuffle, Order, WindowShuffle
from maskco.data.samples import EpochBatches, PretrainDataset
from maskco.data.sources import Source, is_remote, locate, open_source
from maskco.data.sources.python import PythonSource
from maskco.data.store.addresses import redact
from maskco.data.views import TwoViews
from maskco.devices import default_workers, usable_device
from maskco.errors import ConfigError, TrainingError
from maskco.files import user_path
from maskco.memory import require_memory
from maskco.methods import StepOutput
from maskco.nn.ranks import agree, rank, world_size
from maskco.option_values import window_of
from maskco.runs.checkpoint import CheckpointError
from maskco.runs.trust import DATA
from maskco.training.recipe import with_recipe
from maskco.training.state import TrainState

WINDOW = "window:16"  # the order of shards in a store: of shards of 350 MB, as CC3M's, 5.6 GB of the cache


def resolve(config: PretrainConfig, *, stored: Collection[str] = ()) -> PretrainConfig:
    """The checked configuration with device, workers and the absolute paths of data and probe filled in.

    stored: which of these come from a run, and must not be looked up yet.
    """
    config.check()
    device = config.run.device
    kind = usable_device(device).type
    if device == "auto":
        device = kind
    if config.optim.amp == "fp16" and kind != "cuda":
        raise ConfigError(f"amp fp16 needs a CUDA device, and this run uses {device}. Choose bf16 or off")
    if config.run.batch_norm == "sync" and kind != "cuda":
        raise ConfigError(
            f"batch_norm sync needs CUDA devices, since torch has it for no other, and this run uses {device}. "
            "Leave it at local"
        )
    init = config.run.init and os.path.abspath(os.path.expanduser(config.run.init))
    named = {name: value for name in DATA if (value := getattr(config.run, name)) is not None}
    named = {name: value if name in stored else locate(value) for name, value in named.items()}
    workers = default_workers() if config.run.workers is None else config.run.workers
    threads = config.run.threads or torch.get_num_threads()
    out = str(user_path(config.run.out))
    shuffle = config.run.shuffle or (WINDOW if is_remote(config.run.data) else "full")
    settled = {"device": device, "init": init, "out": out, "threads": threads, "workers": workers, "shuffle": shuffle}
    config = config.replace(**settled, **named)
    return with_recipe(config)


def raise_if_of_compiler(error: RuntimeError) -> None:
    """Raises TrainingError in place of a compiler's error, which torch explains in many lines."""
    exceptions = sys.modules.get("torch._dynamo.exc")  # imported by what raises them
    if exceptions is not None and isinstance(error, exceptions.TorchDynamoException):
        reason = next(filter(None, (line.strip() for line in str(error).splitlines())), type(error).__name__)
        raise TrainingError(
            f"torch.compile fails here ({reason}). Leave out `compile=True`, or install the compiler that it needs"
        ) from error


def seeded_devices(device: torch.device) -> list[torch.device | int]:
    """GPUs whose random numbers are restored after the run. One rank of many must not open the others' GPUs."""
    if world_size() == 1:
        return list(range(torch.cuda.device_count()))
    return [device] if device.type == "cuda" else []


def check_shares(config: PretrainConfig) -> None:
    """Raises ConfigError unless ranks and --accumulate divide the batch."""
    shares = world_size() * config.optim.accumulate
    if config.optim.batch_size % shares or config.optim.batch_size < 2 * shares:
        near = shares * max(config.optim.batch_size // shares, 2)
        part = config.optim.batch_size // world_size()
        fits = [n for n in range(1, min(part // 2, config.optim.accumulate) + 1) if part % n == 0]
        other = f", or `accumulate={fits[-1]}`" if fits and not config.optim.batch_size % world_size() else ""
        raise ConfigError(
            f"batch_size: {config.optim.batch_size} must be a multiple of ranks × accumulate = {world_size()} × "
            f"{config.optim.accumulate}, with 2 images or more in each part. Take `batch_size={near}`{other}"
        )


def check_memory(config: PretrainConfig) -> None:
    """Raises ConfigError if a rank's views, or what the method keeps, cannot fit into the memory."""
    images = config.optim.batch_size // (world_size() * config.optim.accumulate)
    views = 2 * 3 * 4 * config.views.image_size**2 * images
    named = f"image_size {config.views.image_size} for {images} images at a time"
    require_memory(named, views, "lower it or batch_size")
    for named, size, advice in config.method.memory(images, config.views):
        require_memory(named, size, advice)


def check_equal_start(state: TrainState) -> None:
    """Raises CheckpointError on all ranks unless they all resume from the same step."""
    latest, earliest = agree(state.step, -state.step)
    if latest != -earliest:
        raise CheckpointError(
            f"out: ranks resume from different steps ({-earliest} and {latest}). Name a folder that all machines share"
        )


def open_images(config: PretrainConfig, dataset: object | None = None) -> Source:
    """The images of `config.run.data`, or of a data set in Python. Raises SourceError if there are no images. Raises
    ConfigError if there are fewer than a batch, or if they have no shards for the requested order."""
    source: Source = open_source(config.run.data) if dataset is None else PythonSource(dataset)
    if len(source) < config.optim.batch_size:
        data = f"the data ({len(source)} images)"
        raise ConfigError(f"batch_size {config.optim.batch_size} is larger than {data}. Lower it or add images")
    open_order(config, source)
    return source


def open_order(config: PretrainConfig, source: Source) -> Order:
    """The order that `config.run.shuffle` names. Raises ConfigError if it needs shards, and there are none."""
    window = window_of(config.run.shuffle or "full")
    if window is None:
        return FullShuffle(len(source))
    starts = getattr(source, "shard_starts", None)
    if starts is None:
        raise ConfigError(f"shuffle {config.run.shuffle} is for tar shards, and {config.run.data} has none. Take full")
    return WindowShuffle(starts, window)


def window_notes(config: PretrainConfig, source: Source) -> list[str]:
    """A warning for an order that draws from more than the cache holds."""
    note = getattr(source, "window_note", None)
    line = note(window_of(config.run.shuffle or "full")) if note else None
    return [line] if line else []


def without_secrets(config: PretrainConfig) -> PretrainConfig:
    """The configuration as a run may keep it: addresses without passwords and signatures. Resuming asks for them."""
    named = {name: getattr(config.run, name) for name in DATA}
    return config.replace(**{name: redact(data) for name, data in named.items() if data and is_remote(data)})


def open_loading(config: PretrainConfig, source: Source, state: TrainState, device: torch.device) -> Loading:
    """This rank's micro-batches of every step still to come, of all epochs in a row. Workers start once and load
    ahead across epochs."""
    first, done = divmod(state.step, state.steps_per_epoch)
    whole = (len(source), config.optim.batch_size, config.run.seed)
    share = {"rank": rank(), "ranks": world_size(), "parts": config.optim.accumulate}
    order = open_order(config, source)
    orders = (
        EpochBatches(*whole, epoch, done if epoch == first else 0, **share, order=order)
        for epoch in range(first, config.optim.epochs)
    )
    transform = TwoViews(config.views)
    dataset = PretrainDataset(source, transform.raw if config.run.augment == "device" else transform, config.run.seed)
    keys = itertools.chain.from_iterable(orders)
    return Loading(dataset, keys, workers=config.run.workers or 0, pin_memory=device.type == "cuda")


def queue_warnings(state: TrainState, outputs: Sequence[StepOutput]) -> list[str]:
    """A warning for queues longer than the data or the whole run will fill, from what this rank pushed in one step."""
    warnings = []
    for name, queue in state.method.queues.items():
        keys = sum(len(output.pushes[name]) for output in outputs) * world_size()
        size, epoch, run = len(queue.features), keys * state.steps_per_epoch, keys * state.steps
        if size > epoch:
            why = f"holds keys of the same images from earlier epochs: an epoch makes {epoch:,}"
            if size > run:
                why = f"will never be full: the whole run makes {run:,} keys, an epoch {epoch:,}"
            what = name.replace("_", " ")
            warnings.append(f"warning: the {what} of {size:,} keys {why}. --queue-size {epoch} would fit")
    return warnings
