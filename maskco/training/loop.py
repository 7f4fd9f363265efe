"""The pretraining loop, read from top to bottom.

    maskco pretrain --data PHOTOS --out RUN                        # ResNet-50 and MoCo v2's schedule
    maskco pretrain --data PHOTOS --out RUN --encoder resnet18 --epochs 20 --batch-size 64
    maskco pretrain --out RUN --resume                             # continues where it stopped
    torchrun --nproc-per-node 8 -m maskco pretrain --data PHOTOS --out RUN    # on 8 GPUs, see distributed.py

or, in Python, `maskco.pretrain(data="PHOTOS", out="RUN", encoder="resnet18", epochs=20)`.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maskco.config import PretrainConfig, over, read_config
from maskco.console import printable
from maskco.data.batch_augment import finish
from maskco.data.sources import fingerprint
from maskco.data.sources.python import PREFIX, title_of
from maskco.data.views import RawViews, Views
from maskco.devices import AMP_DTYPES, check_caller
from maskco.files import user_path
from maskco.memory import memory_errors
from maskco.nn.ranks import agree, join_lists, rank, world_size
from maskco.runs.checkpoint import CHECKPOINT
from maskco.runs.folder import LOG, PROBES, RunLock, check_out, nothing_to_resume
from maskco.runs.loggers import check_loggers
from maskco.runs.recorder import Recorder, SilentRecorder
from maskco.runs.trust import CONFIG, DATA, own_file, stored_data, stored_options
from maskco.training.distributed import all_or_none, data_parallel, local_device, process_group, reduce_gradients
from maskco.training.initial_weights import start_from_weights
from maskco.training.optim import clip_gradient, set_learning_rate
from maskco.training.recipe import recipe_line
from maskco.training.rehearsal import rehearse, unused_line
from maskco.training.signals import StopSignals
from maskco.training.start import (
    check_equal_start,
    check_memory,
    check_shares,
    open_images,
    open_loading,
    queue_warnings,
    raise_if_of_compiler,
    resolve,
    seeded_devices,
    window_notes,
    without_secrets,
)
from maskco.training.state import TrainState


@dataclass(frozen=True)
class RunResult:
    """Result of a run: its folder, all steps done, the last logged loss, and unusable images. Also the signal that
    ended it early, if one did."""

    out: Path
    steps: int
    loss: float
    broken_images: int
    signal: int | None = None

    @property
    def interrupted(self) -> bool:
        return self.signal is not None


def pretrain(
    data: str | Path | Any = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> RunResult:
    """Pretrains an encoder on the images in `data` and writes checkpoint, metrics and log to `out`.

    Args:
        data: folder of images, "demo", or whatever else `open_source` takes. Or a data set in Python, any object with
            `__len__` and `__getitem__`, see `PythonSource`. With `resume` it may be left out if this user started the
            run from a local folder. It may also name the same images elsewhere.
        resume: continue the run in `out`, with its own options except those given here. Starts it if there is none.
        overwrite: replace the run in `out`.
        options: any options of `maskco.config.PretrainConfig`, by name.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 save the run and end it after the current step. Outside the main thread it does
    not handle signals.
    Raises ConfigError, CheckpointError or TrainingError (all are UserError), each with a message of one line.
    """
    stored = user_path(out or "") / CONFIG
    if resume and not stored.exists() and data is None:
        raise nothing_to_resume(stored.parent)
    dataset = None if data is None or isinstance(data, (str, os.PathLike)) else data
    if dataset is not None:
        data = f"{PREFIX}{title_of(dataset)}"
    given: dict[str, Any] = {name: str(value) for name, value in (("data", data), ("out", out)) if value is not None}
    given |= options
    if resume and out and stored.exists():
        given = over(stored_options(stored.parent, given), given)
    return train(PretrainConfig.of(**given), resume=resume, overwrite=overwrite, dataset=dataset)


@memory_errors(
    "lower `batch_size`, `image_size` or `queue_size`, take a smaller `encoder` or `optimizer`, or raise `accumulate`"
)
def train(
    config: PretrainConfig, *, resume: bool = False, overwrite: bool = False, dataset: object | None = None
) -> RunResult:
    """`pretrain` for a configuration. The caller's random numbers, threads and signal handlers stay as they are.

    With `resume`, `config.run.data` and `probe` may be "". Then the run's own are taken, if `trust.stored_data` allows
    it. A `dataset` in Python replaces `config.run.data`.
    """
    check_caller(learns=True)
    stored = [name for name in DATA if resume and getattr(config.run, name) == ""]
    if stored and (path := user_path(config.run.out) / CONFIG).exists():
        own = read_config(path).run
        config = config.replace(**{name: getattr(own, name) for name in stored})
    config = resolve(config, stored=stored)
    device = local_device(config.run.device)
    threads = torch.get_num_threads()
    lock = RunLock(Path(config.run.out))
    with process_group(device), torch.random.fork_rng(devices=seeded_devices(device)), StopSignals() as stop:
        try:
            torch.set_num_threads(config.run.threads or threads)
            torch.manual_seed(config.run.seed)
            if stored:  # rank 0 decides: other machines need not have the key
                with all_or_none():
                    for name in stored if rank() == 0 else ():
                        command = f"pretrain --out {shlex.quote(config.run.out)} --resume"
                        stored_data(Path(config.run.out), getattr(config.run, name), command, name)
            return _train(config, device, stop, resume, overwrite, dataset, lock)
        except RuntimeError as error:
            raise_if_of_compiler(error)
            raise
        finally:
            lock.release()
            torch.set_num_threads(threads)


def _train(
    config: PretrainConfig,
    device: torch.device,
    stop: StopSignals,
    resume: bool,
    overwrite: bool,
    dataset: object | None,
    lock: RunLock,
) -> RunResult:
    def check() -> None:
        """Once the lock is held: another run may have been here since the first check."""
        lock.take()
        check_out(out, resume=resume, overwrite=overwrite)

    # Whatever is wrong with options, folders or data shows before a file is touched.
    out, amp = Path(config.run.out), AMP_DTYPES.get(config.optim.amp)
    with all_or_none():
        check_out(out, resume=resume, overwrite=overwrite)
        if resume and out.exists() and rank() == 0:
            lock.take()
        check_loggers(config.run.log)
        check_shares(config)
        check_memory(config)
        source, started_from = open_images(config, dataset), ""
        config = without_secrets(config)
        resumed = resume and own_file(out, CHECKPOINT).exists()
        state = TrainState(config, len(source), device, fingerprint(source), from_checkpoint=resumed)
        unused = rehearse(state.method, config, device, amp)
        if rank() > 0:  # weights are equal; what is drawn from here on (key groups, dropout) is each rank's own
            torch.manual_seed(config.run.seed + rank())
        if resumed:
            state.load(out / CHECKPOINT)
        elif config.run.init is not None:
            started_from = start_from_weights(state.method, config)
    check_equal_start(state)
    learner = data_parallel(state.method, unused=bool(unused))
    steps, first_step, earlier = state.steps, state.step, state.seconds

    bar: dict[str, Any] = {
        "total": steps,
        "initial": state.step,
        "unit": "step",
        "disable": None if rank() == 0 else True,
    }
    recorder = Recorder(out, config, state.step, replace=not resume, check=check) if rank() == 0 else SilentRecorder()
    loading = open_loading(config, source, state, device)
    with recorder as record, tqdm(**bar, dynamic_ncols=True) as progress, loading:
        if resumed:
            record.begin()
        record.say(
            f"{config.run.method} with {config.run.encoder} on {len(source)} images, "
            f"{f'{world_size()} x {device.type}' if world_size() > 1 else device}: "
            f"step {state.step} of {steps} ({config.optim.epochs} epochs), writing to {out}"
        )
        record.say(recipe_line(config, state.method.encoder))
        if unused:
            record.say(unused_line(unused))
        if started_from:
            record.say(started_from)
        for line in (*source.left_out.lines(), *window_notes(config, source), *state.monitors.lines()):
            record.say(line)
        started = window = saved = time.monotonic()
        stopped = 0
        latest: dict[str, float] = {}  # metrics by name, each as it was reported last
        parts = zip(*[iter(loading)] * config.optim.accumulate, strict=True)  # n in a row at a time
        for micro_batches in parts if state.step < steps else ():
            # ---- learn: nothing here waits for the device
            set_learning_rate(state.optimizer, lr := state.lr)
            state.optimizer.zero_grad()
            state.method.start_step(state.step / steps)
            outputs = []
            for batch in micro_batches:
                views = to_device(batch.views, device)
                with reduce_gradients(learner, now=batch is micro_batches[-1]):
                    with torch.autocast(device.type, amp, enabled=amp is not None):
                        output = learner(views)
                    state.scaler.scale(output.loss / config.optim.accumulate).backward()
                outputs.append(output)
            state.method.end_step(outputs)
            norms = clip_gradient(state.optimizer, state.scaler, config.optim.clip_grad)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.step += 1
            state.totals.add(outputs, state.step)
            state.monitors.see(state.step, outputs, norms)
            progress.update()
            if state.step == 1:
                record.begin()  # only now: a run that cannot make its first step leaves nothing behind
                for warning in queue_warnings(state, outputs):
                    record.say(warning)

            # ---- agree: signals, clocks and failures of one rank are all ranks'
            failures = [failure for batch in micro_batches for failure in batch.failures]
            due = 0 < 60 * config.run.save_every_minutes <= time.monotonic() - saved
            stopped, by_time, failed = agree(stop.signal or 0, due, bool(failures))

            # ---- report
            for name, reason in state.broken.add(config.optim.batch_size, join_lists(failures) if failed else []):
                record.say(printable(f"{name} cannot be used: {reason}"), show=False)
            state.broken.require_few()
            end_of_epoch = state.step % state.steps_per_epoch == 0
            if state.step % config.run.log_every == 0 or end_of_epoch:
                state.require_finite_loss()
                now = time.monotonic()
                steps_told = state.totals.count
                images = config.optim.batch_size * min(steps_told, state.step - first_step)
                row = {"step": state.step, "epoch": round(state.step / state.steps_per_epoch, 4)}
                row |= state.totals.means_and_reset() | {"lr": lr, "images_per_s": images / (now - window)}
                state.best.add(row["loss"], steps_told)
                row |= state.monitors.metrics()
                window = time.monotonic()  # (a probe takes its time)
                state.seconds = earlier + window - started
                record.add(row | {"seconds": state.seconds})
                for warning in state.monitors.warnings(state.step, row, views):
                    record.say(f"warning: {warning}")
                latest |= row
                progress.set_postfix_str(summary(latest, len(state.broken)))
                if end_of_epoch:
                    state.best.end_epoch(state.step, row)
                    epoch = state.step // state.steps_per_epoch
                    record.say(f"epoch {epoch}/{config.optim.epochs}: {summary(row)}", show=bool(progress.disable))

            # ---- keep
            by_steps = config.run.save_every_steps and state.step % config.run.save_every_steps == 0
            if end_of_epoch or by_steps or by_time or stopped:
                state.seconds = earlier + time.monotonic() - started
                state.save(out / CHECKPOINT)
                saved = time.monotonic()
            if stopped:
                break
        progress.close()

        if config.run.keep_best != "off":
            record.say(state.best.line(state.steps_per_epoch))
        if state.broken.names:
            record.say(f"{len(state.broken)} of {len(source)} images could not be used, see {out / LOG}")
        if state.step < steps:
            name = signal.Signals(stopped).name
            how = f"maskco pretrain --out {out} --resume"
            if dataset is not None:
                how = f"maskco.pretrain(data=…, out={str(out)!r}, resume=True)"
            record.say(f"{name}: saved step {state.step} of {steps}, continue with: {how}")
        elif first_step >= steps:
            record.say(f"this run was finished already, after {state.step} steps. A larger --epochs continues it")
        else:
            record.say(f"finished {steps} steps in {state.seconds:.0f} s: {out / CHECKPOINT}")
        return RunResult(
            out, state.step, state.totals.last_loss, len(state.broken), stopped if state.step < steps else None
        )


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
    accuracy = f"accuracy {row['accuracy']:.1f}%, " if "accuracy" in row else ""
    probes = "".join(f"{words} {row[name]:.1f}%, " for name, words in PROBES.items() if name in row)
    text = f"loss {row['loss']:.3f}, {accuracy}{probes}lr {row['lr']:.2g}, {row['images_per_s']:.0f} images/s"
    return f"{text}, {broken} broken" if broken else text
