"""The pretraining loop, read from top to bottom.

    maskco pretrain --data PHOTOS --out RUN                        # ResNet-50 and MoCo v2's schedule
    maskco pretrain --data PHOTOS --out RUN --encoder resnet18 --epochs 20 --batch-size 64
    maskco pretrain --out RUN --resume                             # goes on where it stopped
    torchrun --nproc-per-node 8 -m maskco pretrain --data PHOTOS --out RUN    # on 8 GPUs, see distributed.py

or, in Python, `maskco.pretrain(data="PHOTOS", out="RUN", encoder="resnet18", epochs=20)`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from maskco.config import PretrainConfig, read_config
from maskco.data.batch_augment import finish
from maskco.data.loading import Loading
from maskco.data.samples import EpochBatches, PretrainDataset
from maskco.data.sources import Source, fingerprint, locate, open_source
from maskco.data.views import RawViews, TwoViews, Views
from maskco.devices import usable_device
from maskco.errors import ConfigError, TrainingError
from maskco.files import user_path
from maskco.memory import memory_errors, require_memory
from maskco.nn.ranks import agree, join_lists, rank, world_size
from maskco.runs.checkpoint import CHECKPOINT, CheckpointError
from maskco.runs.folder import LOG, check_out
from maskco.runs.recorder import Recorder, SilentRecorder
from maskco.runs.trust import CONFIG, own_file, stored_data, stored_options
from maskco.training.distributed import all_or_none, data_parallel, local_device, process_group, reduce_gradients
from maskco.training.initial_weights import start_from_weights
from maskco.training.monitors import Health
from maskco.training.rehearsal import rehearse, told
from maskco.training.state import TrainState


@dataclass(frozen=True)
class RunResult:
    """What became of a run: its folder, steps done in all, last logged loss, unusable pictures, and the signal that
    ended it early, if one did."""

    out: Path
    steps: int
    loss: float
    broken_pictures: int
    signal: int | None = None

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


def pretrain(
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> RunResult:
    """Pretrains an encoder on the pictures in `data` and writes checkpoint, metrics and log to `out`.

    Args:
        data: folder of pictures, or "demo". With `resume` it may be left out if the run was started by this user from a
            local folder; it may name the same images elsewhere.
        resume: go on with the run in `out`, with its own options except those given here. Starts it if there is none.
        overwrite: replace the run in `out`.
        options: fields of `PretrainConfig`.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 end it after the current step, saved; in a thread other than the main one they
    are left alone.
    Raises ConfigError, CheckpointError or TrainingError (all are UserError), each with a message of one line.
    """
    stored = user_path(out or "") / CONFIG
    if resume and not stored.exists() and data is None:
        raise ConfigError(f"out: {out} holds no run to resume; check the folder, or name data to start one")
    given = {name: str(value) for name, value in (("data", data), ("out", out)) if value is not None}
    base = stored_options(stored.parent, {*given, *options}) if resume and out and stored.exists() else {}
    return train(PretrainConfig.from_dict({**base, **given, **options}), resume=resume, overwrite=overwrite)


@memory_errors("lower batch_size, image_size or queue_size, take a smaller encoder, or raise accumulate")
def train(config: PretrainConfig, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """`pretrain` for a configuration. The caller's random numbers, threads and signal handlers stay as they are.

    With `resume`, `config.data` may be "": then the run's own are taken, if `trust.stored_data` allows it.
    """
    stored = resume and not config.data
    if stored:
        config = dataclasses.replace(config, data=read_config(user_path(config.out) / CONFIG).data)
    config = resolve(config, stored_data=stored)
    device = local_device(config.device)
    threads = torch.get_num_threads()
    with process_group(device), torch.random.fork_rng(devices=seeded_devices(device)), StopSignals() as stop:
        try:
            torch.set_num_threads(config.threads or threads)
            torch.manual_seed(config.seed)
            if stored:  # rank 0 decides: other machines need not have the key
                with all_or_none():
                    if rank() == 0:
                        stored_data(Path(config.out), config.data, f"pretrain --out {shlex.quote(config.out)} --resume")
            return _train(config, device, stop, resume, overwrite)
        except RuntimeError as error:
            raise_if_of_compiler(error)
            raise
        finally:
            torch.set_num_threads(threads)


def _train(config: PretrainConfig, device: torch.device, stop: StopSignals, resume: bool, overwrite: bool) -> RunResult:
    # Whatever is wrong with options, folders or data shows before a file is touched.
    out = Path(config.out)
    with all_or_none():
        check_out(out, resume=resume, overwrite=overwrite)
        check_shares(config)
        check_memory(config)
        source, started_from = open_pictures(config), ""
        resumed = resume and own_file(out, CHECKPOINT).exists()
        state = TrainState(config, len(source), device, fingerprint(source), from_checkpoint=resumed)
        unused = rehearse(state.method, config, device, AMP_DTYPES.get(config.amp))
        if rank() > 0:  # weights are equal; what is drawn from here on (key groups, dropout) is each rank's own
            torch.manual_seed(config.seed + rank())
        if resumed:
            state.load(out / CHECKPOINT)
        elif config.init is not None:
            started_from = start_from_weights(state.method, config)
    check_equal_start(state)
    learner, health = data_parallel(state.method, unused=bool(unused)), Health(config, state.method)
    steps, first_step, earlier = state.steps, state.step, state.seconds

    bar: dict[str, Any] = {
        "total": steps,
        "initial": state.step,
        "unit": "step",
        "disable": None if rank() == 0 else True,
    }
    recorder = Recorder(out, config, state.step, replace=not resume) if rank() == 0 else SilentRecorder()
    loading = open_loading(config, source, state, device)
    with recorder as record, tqdm(**bar, dynamic_ncols=True) as progress, loading:
        if resumed:
            record.begin()
        record.say(
            f"{config.method} with {config.encoder} on {len(source)} pictures, "
            f"{f'{world_size()} x {device.type}' if world_size() > 1 else device}: "
            f"step {state.step} of {steps} ({config.epochs} epochs), writing to {out}"
        )
        if unused:
            record.say(told(unused))
        if started_from:
            record.say(started_from)
        for line in source.left_out.lines():
            record.say(line)
        started = window = saved = time.monotonic()
        stopped = 0
        parts = zip(*[iter(loading)] * config.accumulate, strict=True)  # n in a row at a time
        for micro_batches in parts if state.step < steps else ():
            # ---- learn: nothing here waits for the device
            for group in state.optimizer.param_groups:
                group["lr"] = lr = state.lr
            state.optimizer.zero_grad()
            state.method.update_momentum_side()
            outputs = []
            for batch in micro_batches:
                views = to_device(batch.views, device)
                with reduce_gradients(learner, now=batch is micro_batches[-1]):
                    with torch.autocast(device.type, AMP_DTYPES.get(config.amp), enabled=config.amp != "off"):
                        output = learner(views, whole_step=False)
                    state.scaler.scale(output.loss / config.accumulate).backward()
                outputs.append(output)
            keys = torch.cat([output.keys for output in outputs])
            state.method.queue.push(keys)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.step += 1
            state.totals.add(outputs, state.step)
            progress.update()
            if state.step == 1:
                record.begin()  # only now: a run that cannot make its first step leaves nothing behind
                for warning in queue_warnings(state, len(keys) * world_size()):
                    record.say(warning)

            # ---- agree: signals, clocks and failures of one rank are all ranks'
            failures = [failure for batch in micro_batches for failure in batch.failures]
            due = 0 < 60 * config.save_every_minutes <= time.monotonic() - saved
            stopped, by_time, failed = agree(stop.signal or 0, due, bool(failures))

            # ---- tell
            for name, reason in state.broken.add(config.batch_size, join_lists(failures) if failed else []):
                record.say(f"cannot be used: {name}: {reason}", show=False)
            state.broken.require_few()
            end_of_epoch = state.step % state.steps_per_epoch == 0
            if state.step % config.log_every == 0 or end_of_epoch:
                state.require_finite_loss()
                now = time.monotonic()
                steps_told = state.totals.count
                pictures = config.batch_size * min(steps_told, state.step - first_step)
                row = {"step": state.step, "epoch": round(state.step / state.steps_per_epoch, 4)}
                row |= state.totals.means_and_reset() | {"lr": lr, "pictures_per_s": pictures / (now - window)}
                state.best.add(row["loss"], steps_told)
                state.seconds, window = earlier + now - started, now
                record.add(row | {"seconds": state.seconds})
                for warning in health.look(state.step, row["embedding_std"], views):
                    record.say(f"warning: {warning}")
                progress.set_postfix_str(summary(row, len(state.broken)))
                if end_of_epoch:
                    state.best.end_epoch(state.step, state.method.queue)
                    epoch = state.step // state.steps_per_epoch
                    record.say(f"epoch {epoch}/{config.epochs}: {summary(row)}", show=bool(progress.disable))

            # ---- keep
            by_steps = config.save_every_steps and state.step % config.save_every_steps == 0
            if end_of_epoch or by_steps or by_time or stopped:
                state.seconds = earlier + time.monotonic() - started
                state.save(out / CHECKPOINT)
                saved = time.monotonic()
            if stopped:
                break
        progress.close()

        if config.keep_best:
            record.say(state.best.told(state.steps_per_epoch))
        if state.broken.names:
            record.say(f"{len(state.broken)} of {len(source)} pictures could not be used, see {out / LOG}")
        if state.step < steps:
            name = signal.Signals(stopped).name
            record.say(f"{name}: saved step {state.step} of {steps}, go on with: maskco pretrain --out {out} --resume")
        elif first_step >= steps:
            record.say(f"this run was finished already, after {state.step} steps; a larger --epochs would go on")
        else:
            record.say(f"finished {steps} steps in {state.seconds:.0f} s: {out / CHECKPOINT}")
        return RunResult(
            out, state.step, state.totals.last_loss, len(state.broken), stopped if state.step < steps else None
        )


STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows lacks the last two; Slurm sends any that it is told to
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(config: PretrainConfig, *, stored_data: bool = False) -> PretrainConfig:
    """The checked configuration with device, workers and the data folder's absolute path filled in.

    stored_data: the data's name comes from a run, and must not be looked up yet.
    """
    config.check()
    device = config.device
    kind = usable_device(device).type
    if device == "auto":
        device = kind
    if config.amp == "fp16" and kind != "cuda":
        raise ConfigError(f"amp fp16 needs a CUDA device, and this run uses {device}; choose bf16 or off")
    if config.batch_norm == "sync" and kind != "cuda":
        raise ConfigError(
            f"batch_norm sync needs CUDA devices, since torch has it for no other, and this run uses {device}: "
            "leave it at local"
        )
    init = config.init and os.path.abspath(os.path.expanduser(config.init))
    data = config.data if stored_data else locate(config.data)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # ranks that share the machine's cores
    workers = min(max(cores // here, 1), 8) if config.workers is None else config.workers
    threads = config.threads or torch.get_num_threads()
    out = str(user_path(config.out))
    return dataclasses.replace(config, device=device, data=data, init=init, out=out, threads=threads, workers=workers)


def raise_if_of_compiler(error: RuntimeError) -> None:
    """Raises TrainingError in place of an error of --compile, by its type: torch explains it in many lines."""
    exceptions = sys.modules.get("torch._dynamo.exc")  # imported by what raises them
    if exceptions is not None and isinstance(error, exceptions.TorchDynamoException):
        reason = next(filter(None, (line.strip() for line in str(error).splitlines())), type(error).__name__)
        raise TrainingError(
            f"torch.compile fails here ({reason}): leave out --compile, or install the compiler that it needs"
        ) from error


def seeded_devices(device: torch.device) -> list[torch.device | int]:
    """GPUs whose random numbers are put back after the run: one rank of many must not open its neighbours' GPUs."""
    if world_size() == 1:
        return list(range(torch.cuda.device_count()))
    return [device] if device.type == "cuda" else []


def check_shares(config: PretrainConfig) -> None:
    """Raises ConfigError unless the batch can be dealt out equally, to ranks and to --accumulate."""
    shares = world_size() * config.accumulate
    if config.batch_size % shares or config.batch_size < 2 * shares:
        near = shares * max(config.batch_size // shares, 2)
        raise ConfigError(
            f"batch_size {config.batch_size} must be a multiple of ranks × accumulate = {world_size()} × "
            f"{config.accumulate}, and leave each part 2 pictures or more: {near} would do"
        )


def check_memory(config: PretrainConfig) -> None:
    """Raises ConfigError if the queue, a rank's views or its logits of other regions cannot fit into the memory."""
    rows = max(config.queue_size, config.hidden or 0)
    named = f"queue_size {config.queue_size}, hidden {config.hidden} and dim {config.dim}"
    require_memory(named, 4 * rows * config.dim, "lower them")
    images = config.batch_size // (world_size() * config.accumulate)
    views = 2 * 3 * 4 * config.image_size**2 * images
    require_memory(f"image_size {config.image_size} for {images} images at a time", views, "lower it or batch_size")
    if config.method == "maskco" and config.local_negatives:
        named = f"regions {config.regions} of {images} images, each with all others of its image,"
        require_memory(named, 4 * config.dim * images * config.regions**2, "lower regions or batch_size")


def check_equal_start(state: TrainState) -> None:
    """Raises CheckpointError on all ranks unless they all go on from the same step."""
    latest, earliest = agree(state.step, -state.step)
    if latest != -earliest:
        raise CheckpointError(
            f"out: ranks go on from different steps ({-earliest} and {latest}): name a folder that all machines share"
        )


def open_pictures(config: PretrainConfig) -> Source:
    """Raises SourceError if there are no pictures, and ConfigError if there are fewer than a batch."""
    source = open_source(config.data)
    if len(source) < config.batch_size:
        raise ConfigError(
            f"batch_size {config.batch_size} is larger than the data ({len(source)} pictures): lower it or add pictures"
        )
    return source


def open_loading(config: PretrainConfig, source: Source, state: TrainState, device: torch.device) -> Loading:
    """This rank's micro-batches of every step still to come, of all epochs in a row: workers live once and load ahead
    across epochs."""
    first, done = divmod(state.step, state.steps_per_epoch)
    share = {"rank": rank(), "ranks": world_size(), "parts": config.accumulate}
    orders = (
        EpochBatches(len(source), config.batch_size, config.seed, epoch, done if epoch == first else 0, **share)
        for epoch in range(first, config.epochs)
    )
    transform = TwoViews(config.view_config())
    dataset = PretrainDataset(source, transform.raw if config.augment == "device" else transform, config.seed)
    keys = itertools.chain.from_iterable(orders)
    return Loading(dataset, keys, workers=config.workers or 0, pin_memory=device.type == "cuda")


def queue_warnings(state: TrainState, keys: int) -> list[str]:
    """What to say of a queue longer than the data or the whole run will fill.

    Args:
        keys: that one step pushes, of all ranks together.
    """
    size, epoch, run = state.config.queue_size, keys * state.steps_per_epoch, keys * state.steps
    if size <= epoch:
        return []
    why = f"holds keys of the same images from earlier epochs: an epoch makes {epoch:,}"
    if size > run:
        why = f"will never be full: the whole run makes {run:,} keys, an epoch {epoch:,}"
    return [f"warning: the queue of {size:,} keys {why}; --queue-size {epoch} would fit"]


def to_device(views: Views | RawViews, device: torch.device) -> Views:
    """The views as the learner takes them, images in channels_last."""
    if isinstance(views, RawViews):
        return finish(views, device)
    query, key = (
        part.to(device, non_blocking=True, memory_format=torch.channels_last) for part in (views.query, views.key)
    )
    boxes = (part.to(device, non_blocking=True) for part in (views.query_boxes, views.key_boxes))
    return Views(query, key, *boxes)


def summary(row: dict[str, float], broken: int = 0) -> str:
    text = (
        f"loss {row['loss']:.3f}, accuracy {row['accuracy']:.1f}%, lr {row['lr']:.2g}, "
        f"{row['pictures_per_s']:.0f} pictures/s"
    )
    return f"{text}, {broken} broken" if broken else text


class StopSignals:
    """Notes SIGINT, SIGTERM, SIGHUP and SIGUSR1 in `signal` instead of dying of them.

    After a SIGINT or SIGTERM, the next one of both acts as it always did, but for one rank of several: there the
    scheduler may send the first and torchrun, which kills in the end, the second. SIGHUP and SIGUSR1 may come more than
    once, from a closing terminal for example. A SIGHUP that was ignored, as under nohup, stays so.
    """

    signal: int | None = None

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
            hang_up = getattr(signal, "SIGHUP", None)
            if hang_up and signal.getsignal(hang_up) == signal.SIG_IGN:
                numbers.remove(hang_up)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if world_size() == 1 and number in (signal.SIGINT, signal.SIGTERM):
            self._restore(signal.SIGINT, signal.SIGTERM)

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._before[number])

    def __exit__(self, *error: object) -> None:
        self._restore(*self._before)
