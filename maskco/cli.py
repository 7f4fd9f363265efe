"""The command line. Heavy modules are imported by the command that needs them, so that --help is quick."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from maskco.config import PretrainConfig, demo_config, view_config
from maskco.console import one_line_errors, printable
from maskco.data.view_config import ViewConfig
from maskco.errors import ConfigError
from maskco.evaluate.options import Detection, Knn, Linear, Regions
from maskco.files import user_path


@dataclass
class Pretrain(PretrainConfig):
    """Pretrain an encoder on a folder of pictures, without labels."""

    resume: bool = False
    """Go on with the run in --out, with the options it has; starts it if there is none."""
    overwrite: bool = False
    """Replace the run in --out."""

    def __call__(self) -> int:
        from maskco.training.loop import train

        values = {name: getattr(self, name) for name in PretrainConfig.__dataclass_fields__}
        result = train(PretrainConfig(**values), resume=self.resume, overwrite=self.overwrite)
        return 128 + result.signal if result.signal else 0


@dataclass
class _Sheet:
    data: str
    """Pictures, as for pretrain."""
    out: Path = Path("views.png")
    """File to write: .png, .pdf, .svg, .jpg, .webp or .tif."""
    count: int = 12
    """Pictures on it, spread evenly over the data; at most 1000."""
    seed: int = 0
    epoch: int = 0
    """Of the run whose views are shown."""
    augment: Literal["workers", "device"] = "workers"
    """As for pretrain. The sheet should look the same."""


@dataclass
class ShowViews(ViewConfig, _Sheet):
    """Draw a contact sheet of views, regions and masks: what a run with these options would show the network."""

    def __post_init__(self) -> None:
        """Checked by the call, for an error of one line."""

    def __call__(self) -> int:
        from maskco.report.sheet import write_sheet

        out = user_path(self.out)
        failures = write_sheet(
            self.data,
            view_config(self),
            out,
            count=self.count,
            seed=self.seed,
            epoch=self.epoch,
            augment=self.augment,
        )
        for name, reason in failures:
            print(printable(f"cannot be used: {name}: {reason}"), file=sys.stderr)
        print(out)
        return 0


@dataclass
class Evaluate:
    """Measure encoders: ours, timm's, other projects' checkpoints, side by side in one table."""

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
class Export:
    """Write a run's encoder as another library's weights, with a model card beside it."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or one of its checkpoints."""
    format: Literal["torchvision", "timm", "detectron2", "safetensors"]
    """Whose names the tensors get; safetensors: timm's."""
    out: Path
    """File to write: .pth, or .safetensors (not for detectron2)."""

    def __call__(self) -> int:
        from maskco.weights.export import export_run

        out, card = export_run(self.run, self.format, self.out)
        if card != out.with_suffix(".md"):
            print(f"{card.name} is the card: {out.stem}.md was there before and is not this export's", file=sys.stderr)
        print(f"{out}\n{card}")
        return 0


@dataclass
class Report:
    """Draw runs beside each other: curves, masked views, nearest regions, spread of embeddings, evaluations."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN …]")]
    """Run folders, or checkpoints in them."""
    out: Path | None = None
    """Folder for report.html and report.png; default: the first run's."""
    data: str | None = None
    """Images to show the runs on; default: each run's own, if you started it here from a local folder."""
    projection: Literal["pca", "tsne"] = "pca"
    """How regions are laid out in the plane; tsne needs maskco[eval]."""

    def __call__(self) -> int:
        from maskco.report import write_report

        for path in write_report(*self.runs, out=self.out, data=self.data, projection=self.projection):
            print(path)
        return 0


@dataclass
class Info:
    """Show what was built, with what and why, and what of it runs here."""

    def __call__(self) -> int:
        from maskco import build_info

        info = build_info()
        width = max(map(len, info))
        for name, value in info.items():
            print(f"{name:<{width}}  {value}")
        return 0


@dataclass
class Demo:
    """Pretrain on the built-in scenes, evaluate and draw the report: everything once, offline, in minutes."""

    out: Path = Path("runs/demo")
    """Run folder; a demo that was interrupted goes on."""
    epochs: int | None = None
    """Passes over the scenes; default: what two cores do in some minutes."""

    def __call__(self) -> int:
        from maskco.evaluate.run import evaluate
        from maskco.report import write_report
        from maskco.training.loop import train

        out = user_path(self.out)
        config = demo_config(out)
        if self.epochs is not None:
            config = dataclasses.replace(config, epochs=self.epochs)
        print("1/3  pretraining on the demo scenes, without their labels", flush=True)
        result = train(config, resume=True)
        if result.signal:
            print("     run the same command again to go on")
            return 128 + result.signal
        print("2/3  evaluating the trained encoder against the same encoder untrained", flush=True)
        evaluate(Regions(encoders=(str(out),), untrained=True))
        print("3/3  drawing the report", flush=True)
        report = write_report(out).html
        print(f"\nreport      {report}\nrun folder  {out}\ncurves      tensorboard --logdir {out}")
        return 0


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `maskco`. Exits with 0, 2 (the user can mend it), or 128 + the signal that stopped it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    who = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""  # torchrun's
    with one_line_errors(who, flags(COMMANDS.get(arguments[0]) if arguments else None)):
        try:
            code = tyro.cli(commands(arguments), prog="maskco", description=DESCRIPTION, args=arguments)()
        except KeyboardInterrupt:
            print("stopped at once; what was saved before is untouched", file=sys.stderr)
            code = 128 + signal.SIGINT
    sys.exit(code)


DESCRIPTION = "Self-supervised pretraining by contrastive mask prediction (MaskCo), and MoCo v2 beside it."


COMMANDS = {
    "pretrain": Pretrain,
    "views": ShowViews,
    "eval": Evaluate,
    "export": Export,
    "report": Report,
    "info": Info,
    "demo": Demo,
}


def commands(arguments: list[str]) -> Any:
    """The subcommands as tyro wants them. `pretrain --resume` takes the stored options of the run as its defaults."""
    stored = stored_options(arguments)
    defaults: dict[str, Any] = {"pretrain": {"default": stored}} if stored else {}
    subcommands = [
        Annotated[kind, tyro.conf.subcommand(name, **defaults.get(name, {}))] for name, kind in COMMANDS.items()
    ]
    return Union[tuple(subcommands)]  # noqa: UP007


def flags(kind: Any) -> set[str]:
    """Names of the fields that a command's dataclass, and those nested in it, have flags for."""
    if get_origin(kind) is Annotated:
        return flags(get_args(kind)[0])
    if not dataclasses.is_dataclass(kind):
        return set().union(*map(flags, get_args(kind)))
    hints = get_type_hints(kind, include_extras=True)
    named = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return set().union(
        *(
            flags(each) or {name}
            for name, each in named.items()
            if tyro.conf.Positional not in getattr(each, "__metadata__", ())
        )
    )


def stored_options(arguments: list[str]) -> Pretrain | None:
    """What the run in --out was started with, if --resume is asked for."""
    if "--resume" not in arguments:
        return None
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, joined = name.partition("=")
        out = os.path.expanduser(joined or value)
        if name == "--out" and Path(out, "config.json").is_file():
            from maskco.runs.trust import stored_options as stored

            named = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
            return Pretrain(**{**stored(Path(out), named), "out": out})
        if name == "--out" and not any(argument.startswith("--data") for argument in arguments):
            raise ConfigError(f"out: {out} holds no run to resume; check the folder, or name `data` to start one")
    return None
