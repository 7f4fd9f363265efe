"""The command line. Heavy modules are imported by the command that needs them, so that --help is quick."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro import MISSING

from maskco.command_help import described, flags
from maskco.config import RENAMED, MethodOptions, OptimOptions, PretrainConfig, demo_config, over
from maskco.console import one_line_errors, printable
from maskco.errors import ConfigError, one_line
from maskco.evaluate.options import Detection, FeatureOptions, Knn, Linear, Regions
from maskco.files import user_path
from maskco.run_options import EncoderOptions, MachineOptions, RecordOptions, RunOptions, StartOptions
from maskco.view_options import MaskOptions, ViewConfig


@dataclass
class Start(StartOptions):
    resume: bool = False
    """Continue the run in --out with its stored options. Starts it if there is none."""
    overwrite: bool = False
    """Replace the run in --out."""


@dataclass
class Record(RecordOptions):
    log: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--loggers"])] = ()  # torchrun mistakes --log for its own


@dataclass
class Pretrain:
    """Pretrain an encoder on images without labels."""

    run: Start
    encoder: EncoderOptions
    machine: MachineOptions
    record: Record
    method: MethodOptions
    views: ViewConfig
    optim: OptimOptions

    def __call__(self) -> int:
        from maskco.training.loop import train

        values = {f.name: getattr(group, f.name) for group in vars(self).values() for f in dataclasses.fields(group)}
        resume, overwrite = values.pop("resume"), values.pop("overwrite")
        config = PretrainConfig.of(**values)
        result = train(config, resume=resume, overwrite=overwrite)
        if result.signal:
            return 128 + result.signal
        if config.run.log and int(os.environ.get("RANK", 0)) == 0:
            add_report(result.out, config.run.data or None, config.run.log)
        return 0


def add_report(out: Path, data: str | None, log: tuple[str, ...]) -> None:
    """Draws the report of a run that is done, for its loggers. If that fails, a line says so. The run is unharmed."""
    from maskco.report import write_report
    from maskco.runs.loggers import add_pictures

    try:
        lines = add_pictures(out, write_report(out, data=data).png, log=log)
    except Exception as error:
        lines = [f"warning: no report for {' and '.join(log)}: {one_line(error)}. Try maskco report {out}"]
    print("\n".join(map(printable, lines)), file=sys.stderr)


@dataclass
class Sheet:
    data: str
    """Images, as for `maskco pretrain`."""
    out: Path = Path("views.png")
    """File to write: .png, .pdf, .svg, .jpg, .webp or .tif."""
    count: int = 12
    """Number of images, taken at equal distances from the data. At most 1000."""
    seed: int = 0
    """Seed of the run."""
    epoch: int = 0
    """Epoch of the run."""
    augment: Literal["workers", "device"] = "workers"
    """As for `maskco pretrain`. The sheet should look the same."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass
class ShowViews:
    """Draw the views, regions and masks that a run with these options would use, as a contact sheet."""

    sheet: Sheet
    masks: MaskOptions
    views: ViewConfig

    def __call__(self) -> int:
        from maskco.report.sheet import write_sheet

        sheet = self.sheet
        out = user_path(sheet.out)
        failures = write_sheet(
            sheet.data,
            self.views,
            out,
            masks=self.masks,
            count=sheet.count,
            seed=sheet.seed,
            epoch=sheet.epoch,
            augment=sheet.augment,
            overwrite=sheet.overwrite,
        )
        for name, reason in failures:
            print(printable(f"{name} cannot be used: {reason}"), file=sys.stderr)
        print(out)
        return 0


@dataclass
class Evaluate:
    """Measure encoders: runs, timm models and other projects' checkpoints, in one table."""

    task: Annotated[
        Annotated[Knn, tyro.conf.subcommand("knn")]
        | Annotated[Linear, tyro.conf.subcommand("linear")]
        | Annotated[Regions, tyro.conf.subcommand("regions")]
        | Annotated[Detection, tyro.conf.subcommand("detection")],
        tyro.conf.arg(name=""),
    ]

    def __call__(self) -> int:
        from maskco.evaluate.run import evaluate

        evaluate(self.task)
        return 0


@dataclass
class Features(FeatureOptions):
    __doc__ = FeatureOptions.__doc__

    def __call__(self) -> int:
        from maskco.evaluate.feature_file import write_features

        path, shape, notes = write_features(self)
        for note in notes:
            print(printable(note), file=sys.stderr)
        print(f"{path}  {' × '.join(map(str, shape))}")
        return 0


@dataclass
class Export:
    """Write an encoder as another library's weights, with a model card. Or publish it on the Hugging Face Hub."""

    encoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER")]
    """Run folder, one of its checkpoints, or a file of weights."""
    format: Literal["torchvision", "timm", "detectron2", "safetensors", "hub"] | None = None
    """Library whose tensor names are used. safetensors: timm's names. hub: a folder as --push uploads it."""
    out: Path | None = None
    """File to write: .pth, or .safetensors (not for detectron2). For hub: a folder."""
    push: str | None = None
    """USER/NAME of a model to upload, which timm loads as hf_hub:USER/NAME. Run `hf auth login` first."""
    private: bool = False
    """With --push: create a private repository."""
    message: str | None = None
    """With --push: commit message."""
    license: str | None = None
    """License on the hub's card, such as apache-2.0. Default: none."""
    architecture: str | None = None
    """timm name of the encoder, for a file of weights that does not say it."""
    prefix: str | None = None
    """Which of several encoders in a file of weights. See `maskco eval`."""

    def __call__(self) -> int:
        notes: list[str] = []
        for line in self._export({"architecture": self.architecture, "prefix": self.prefix, "notes": notes}):
            print(line)
        for note in notes:
            print(printable(note), file=sys.stderr)
        return 0

    def _export(self, more: dict[str, Any]) -> Sequence[object]:
        if self.push is not None:
            from maskco.weights.hub import push_encoder

            if self.format is not None or self.out is not None:
                raise ConfigError("push: takes no `format` and no `out`. Write files by another call")
            about: dict[str, Any] = {"private": self.private, "message": self.message, "license": self.license}
            return [push_encoder(self.encoder, self.push, **about, **more)]
        if self.private or self.message is not None:
            raise ConfigError(f"{'private' if self.private else 'message'} must be given with `push`")
        if self.format is None or self.out is None:
            raise ConfigError("out is missing. Name a file with `format` and `out`, or a model of the hub with `push`")
        if self.format == "hub":
            from maskco.weights.hub import write_folder

            return [write_folder(self.encoder, self.out, license=self.license, **more)]
        if self.license is not None:
            raise ConfigError("license must be given with `push` or `format=hub`")
        from maskco.weights.export import export_encoder

        return export_encoder(self.encoder, self.format, self.out, **more)


@dataclass
class Report:
    """Draw a report of one or several runs: curves, masked views, nearest regions, embeddings, evaluations."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN …]")]
    """One or more run folders, or checkpoints in them."""
    out: Path | None = None
    """Folder for report.html and report.png. Default: the first run's."""
    data: str | None = None
    """Images to show the runs on. Default: each run's own, if you started it here from a local folder."""
    projection: Literal["pca", "tsne"] = "pca"
    """How regions are placed in the plane. tsne needs maskco[eval]."""
    log: tuple[str, ...] | None = None
    """Loggers to send report.png to. Default: all that have a record of the run, if you started it here."""

    def __call__(self) -> int:
        from maskco.report import write_report
        from maskco.runs.loggers import add_pictures, check_loggers

        if self.log and len(self.runs) > 1:
            raise ConfigError("log: a report of several runs belongs to none of their records. Name one run")
        check_loggers(self.log or ())
        report = write_report(*self.runs, out=self.out, data=self.data, projection=self.projection)
        for path in report:
            print(path)
        for line in add_pictures(self.runs[0], report.png, log=self.log) if len(self.runs) == 1 else ():
            print(printable(line), file=sys.stderr)
        return 0


@dataclass
class Info:
    """Show what was built, how and why, and what runs on this machine."""

    def __call__(self) -> int:
        from maskco import build_info

        info = build_info()
        width = max(map(len, info))
        for name, value in info.items():
            print(f"{name:<{width}}  {value}")
        return 0


@dataclass
class Demo:
    """Pretrain on the built-in scenes, evaluate, and draw the report. Takes minutes, and needs no network."""

    out: Path = Path("runs/demo")
    """Run folder. An interrupted demo continues there."""
    epochs: int | None = None
    """Passes over the scenes. Default: what two cores do in some minutes."""

    def __call__(self) -> int:
        from maskco.evaluate.run import evaluate
        from maskco.report import write_report
        from maskco.training.loop import train

        out = user_path(self.out)
        config = demo_config(out)
        if self.epochs is not None:
            config = config.replace(epochs=self.epochs)
        print("1/3  pretraining on the demo scenes, without their labels", flush=True)
        result = train(config, resume=True)
        if result.signal:
            print("     run the same command again to continue")
            return 128 + result.signal
        print("2/3  evaluating the trained encoder against the same encoder untrained", flush=True)
        evaluate(Regions(encoders=(str(out),), untrained=True))
        print("3/3  drawing the report", flush=True)
        report = write_report(out).html
        print(f"\nreport      {report}\nrun folder  {out}\ncurves      tensorboard --logdir {out}")
        return 0


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `maskco`. Exits with 0, 2 (the user can fix it), or 128 + the signal that stopped it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    who = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""  # torchrun's
    # what errors name before there is a command
    named = {field.name for field in dataclasses.fields(RunOptions)} | {"resume", "overwrite"}
    with one_line_errors(who, named):
        try:
            command = tyro.cli(commands(arguments), prog="maskco", description=DESCRIPTION, args=arguments)
            named.clear()
            named.update(flags(command))
            code = command()
        except KeyboardInterrupt:
            print("stopped at once. Earlier checkpoints are untouched", file=sys.stderr)
            code = 128 + signal.SIGINT
    sys.exit(code)


DESCRIPTION = "Self-supervised pretraining by contrastive mask prediction (MaskCo) and other contrastive methods."


def commands(arguments: list[str]) -> Any:
    """The subcommands as tyro wants them. `pretrain` has the options and defaults of its --method, and with --resume
    those that the run stored."""
    pretrain = tyro.conf.subcommand("pretrain", default=pretrain_defaults(arguments))
    for kind in (Sheet, MaskOptions, ViewConfig, Knn, Linear, Regions, Detection, Features, Export, Report, Demo):
        described(kind)
    return (
        Annotated[tyro.conf.OmitArgPrefixes[Pretrain], pretrain]
        | Annotated[tyro.conf.OmitArgPrefixes[ShowViews], tyro.conf.subcommand("views")]
        | Annotated[Evaluate, tyro.conf.subcommand("eval")]
        | Annotated[Features, tyro.conf.subcommand("features")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Demo, tyro.conf.subcommand("demo")]
    )


def pretrain_defaults(arguments: list[str]) -> Pretrain:
    """Defaults of `pretrain`. Only that command imports its method, and so torch."""
    if "pretrain" not in arguments[:1]:
        return _grouped(RunOptions(data=MISSING, out=MISSING), MethodOptions(), ViewConfig(), OptimOptions())
    for old, new in RENAMED.items():
        if option(arguments, f"--{old.replace('_', '-')}") is not None:
            raise ConfigError(f"--{old.replace('_', '-')} no longer exists. Use --{new.replace('_', '-')}")
    stored = stored_options(arguments)
    method = option(arguments, "--method")
    given = {"method": method} if method else {}
    config = PretrainConfig.of(**{"data": MISSING, "out": MISSING, **(over(stored, given) if stored else given)})
    return _grouped(config.run, config.method, config.views, config.optim)


def _grouped(run: RunOptions, method: MethodOptions, views: ViewConfig, optim: OptimOptions) -> Pretrain:
    """The command with these values. On the command line, options of a run are in groups."""
    given = vars(run)
    start, encoder, machine, record = (
        described(kind)(**{f.name: given[f.name] for f in dataclasses.fields(kind) if f.name in given})
        for kind in (Start, EncoderOptions, MachineOptions, Record)
    )
    others: tuple[Any, ...] = (type(method), ViewConfig, OptimOptions)
    for kind in others:
        described(kind)
    return Pretrain(start, encoder, machine, record, method, views, optim)


def option(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, given as `--flag value` or `--flag=value`."""
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, joined = name.partition("=")
        if name == flag:
            return joined or value
    return None


def stored_options(arguments: list[str]) -> dict[str, Any] | None:
    """The options that the run in --out was started with, if --resume is given."""
    out = option(arguments, "--out")
    if "--resume" not in arguments or out is None:
        return None
    out = os.path.expanduser(out)
    if Path(out, "config.json").is_file():
        from maskco.runs.trust import stored_options as stored

        named = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
        named |= {"log"} if "loggers" in named else set()
        return {**stored(Path(out), named), "out": out}
    if option(arguments, "--data") is None:
        from maskco.runs.folder import nothing_to_resume

        raise nothing_to_resume(Path(out))
    return None
