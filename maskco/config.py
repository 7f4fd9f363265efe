"""All options of a pretraining run, in four groups: run, method, views, optim. Imports nothing heavy.

Option names are unique over the groups, so that flags and keyword arguments need no prefix:

    config = PretrainConfig.of(data="PHOTOS", out="RUN", method="moco_v2", lr=0.06, image_size=96)
    config.optim.lr, config.views.image_size

Defaults are MoCo v2's where it has one. Others, and those that are not known from the MaskCo paper, are marked ours.
A method has an options class of its own, with its own defaults for the other groups (`MethodOptions.defaults`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from maskco.errors import ConfigError, one_line
from maskco.option_values import Between, Count, Each, Natural, Options, Share
from maskco.recipes import AUTO, MOCO_V2, RECIPES
from maskco.run_options import RunOptions
from maskco.view_options import ViewConfig

METHODS: dict[str, Any] = {  # name: class, or "module:class", which is imported when it is asked for
    "maskco": "maskco.methods.maskco:MaskCo",
    "moco_v2": "maskco.methods.moco_v2:MoCoV2",
    "simclr": "maskco.methods.simclr:SimCLR",
    "densecl": "maskco.methods.densecl:DenseCL",
}
LOGGERS: dict[str, Any] = {  # likewise
    "wandb": "maskco.runs.loggers.wandb:WandbLogger",
    "mlflow": "maskco.runs.loggers.mlflow:MlflowLogger",
}
FREE_ON_RESUME = frozenset(
    {
        "data",
        "out",
        "log",
        "epochs",
        "accumulate",
        "device",
        "threads",
        "workers",
        "augment",
        "log_every",
        "save_every_minutes",
        "save_every_steps",
        "keep",
        "compile",
        "probe",
        "probe_every",
        "probe_images",
    }
)  # options that a resumed run may change. They do not affect what is learned, but for the schedule ahead (epochs),
# rounding (device, threads, augment, compile), and how many images a batch norm sees (accumulate, and the number of
# ranks). Data may have been moved: number and names of the images are compared instead.
# (keep_best may not change: best.pt would be of another measure, or missing though the log names an epoch.)
FORMERLY = {"mask_fill": "mean"}  # what runs did whose options do not say it
BEFORE_RECIPES = {**MOCO_V2, "recipe": "moco_v2", "mask_patch": 1}  # what all runs did then
RENAMED = {"momentum": "key_momentum", "sgd_momentum": "optimizer_momentum", "min_picture_side": "min_image_side"}
STARTS_FROM = ("pretrained", "init")  # options that say where weights come from when there is no checkpoint yet


@dataclass
class OptimOptions(Options):
    """Schedule and optimizer."""

    epochs: Count = 200
    """Passes over the images."""
    batch_size: Count = 256
    """Images in a step, over all ranks."""
    accumulate: Count = 1
    """Split each rank's images of a step into this many parts, to save memory. Batch norms see one part at a time."""
    recipe: str = AUTO
    """Defaults of the options below. moco_v2: SGD, for encoders with batch norms. moco_v3: AdamW, for LayerNorm and
    attention. auto: by the encoder's layers."""
    optimizer: str | None = None
    """Any of timm's: sgd (without Nesterov momentum), adamw, lars, lamb, lion, … Default: the recipe's."""
    lr: Annotated[float, Between(0, 1e6)] | None = None
    """Peak learning rate for 256 images a step. It is scaled by batch size / 256, then falls as a cosine to 0.
    Default: the recipe's, 0.03 (moco_v2) or 0.0005 (moco_v3)."""
    warmup_steps: Natural | None = None
    """Steps over which the learning rate rises from 0, in place of --warmup-share."""
    warmup_share: Share | None = None
    """Share of the run over which the learning rate rises from 0. Default: the recipe's, 0 or 40 of 300 epochs."""
    optimizer_momentum: Share = 0.9
    """Momentum of sgd, lars and others that have one. The key encoder's is --key-momentum."""
    betas: Annotated[tuple[float, ...], Each(0, 1)] | None = None
    """Decay rates of the running means of adamw, lamb and others. Default: the optimizer's own."""
    weight_decay: Annotated[float, Between(0, 1e6)] | None = None
    """Weight decay. Default: the recipe's, 1e-4 or 0.1."""
    decay_norms: bool | None = None
    """Whether norms, biases and tokens decay too. Default: with sgd, as in MoCo v2, and with no other."""
    layer_decay: Annotated[float, Between(1e-6, 1)] | None = None
    """Each layer of the encoder learns at this share of the next layer's rate. For --pretrained and --init."""
    clip_grad: Annotated[float, Between(0, 1e12)] | None = None
    """Largest norm of the whole gradient. 0: no clipping. Default: the recipe's, 0 or 1 (ours)."""
    freeze_patch_embedding: bool | None = None
    """Do not train the projection of the encoder's patches (ViT, Swin, Hiera). Default: with moco_v3, if patches are
    as coarse as the map (ViT)."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision. fp16 scales the loss and needs CUDA."""

    def check(self) -> None:
        super().check()
        self.require("batch_size", self.batch_size >= 2, "at least 2, since batch norm needs company")
        self.require("recipe", self.recipe in (AUTO, *RECIPES), f"one of {', '.join((AUTO, *RECIPES))}")
        if self.warmup_steps and self.warmup_share:
            raise ConfigError(
                f"warmup_steps: {self.warmup_steps} was given together with `warmup_share={self.warmup_share}`. "
                "Keep one of them"
            )


@dataclass
class MethodOptions(Options):
    """Options of a method. A subclass adds fields, and defaults for options of the other groups. Those that a recipe
    governs are for encoders with batch norms: they take the place of recipe moco_v2's."""

    defaults: ClassVar[Mapping[str, Any]] = {}

    def check_views(self, views: ViewConfig) -> None:
        """Raises ConfigError for views that the method cannot use."""

    def memory(self, images: int, views: ViewConfig) -> Iterator[tuple[str, float, str]]:
        """Options that may take much memory, for so many images at a time: (options, bytes, advice)."""
        yield from ()


class UnregisteredError(ConfigError):
    """A method or logger that is not known here. It may be one that a run's own process had registered."""


def find_method(name: str) -> Any:
    """The class registered under a method's name, a `maskco.methods.Method`. Raises ConfigError."""
    return _registered(METHODS, "METHODS", "method", name)


def find_logger(name: str) -> Any:
    """The class registered under a logger's name, a `maskco.runs.loggers.Logger`. Raises ConfigError."""
    return _registered(LOGGERS, "LOGGERS", "log", name)


def _registered(registry: dict[str, Any], its_name: str, option: str, name: str) -> Any:
    if name not in registry:
        raise UnregisteredError(f"{option} must be one of {', '.join(registry)}, got {one_line(name)!r}")
    if isinstance(registry[name], str):
        module, _, found = registry[name].partition(":")
        try:
            registry[name] = getattr(importlib.import_module(module), found, registry[name])
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # a package that it needs
        if isinstance(registry[name], str):
            raise ConfigError(
                f"{option} {name} cannot be imported from {registry[name]!r}. Correct its entry in {its_name}"
            )
    return registry[name]


@dataclass
class PretrainConfig:
    """How to pretrain an encoder on images without labels."""

    run: RunOptions
    method: MethodOptions
    views: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimOptions = field(default_factory=OptimOptions)

    @classmethod
    def of(cls, **options: Any) -> PretrainConfig:
        """A configuration from options by their names, or whole groups as dicts.

        Missing options take the method's defaults. Raises ConfigError for an unknown option.
        """
        given = dict(ungrouped(options))
        name = str(given.get("method", RunOptions.method))
        kinds = {**GROUPS, "method": find_method(name).Options}
        values: dict[str, dict[str, Any]] = {group: {} for group in kinds}
        homes: dict[str, str] = {}
        for group, kind in kinds.items():
            for option in _names(kind):
                if homes.setdefault(option, group) != group:
                    raise ConfigError(f"method {name}: its option {option!r} is one of every run, too. Rename it")
        own = {option: value for option, value in kinds["method"].defaults.items() if option not in MOCO_V2}
        for option, value in {"data": "", "out": "", **own, **given}.items():
            if option not in homes:
                raise ConfigError(f"there is no option {option!r}{_hint(option, name, homes)}")
            values[homes[option]][option] = tuple(value) if isinstance(value, list) else value
        return cls(**{group: kind(**values[group]) for group, kind in kinds.items()})

    def replace(self, **options: Any) -> PretrainConfig:
        """A copy with other values."""
        return PretrainConfig.of(**{**self.flat(), **options})

    def check(self) -> None:
        """Makes values plain. Raises ConfigError for the first impossible one."""
        for group in self.groups():
            group.check()
        self.method.check_views(self.views)

    def groups(self) -> tuple[Options, ...]:
        return self.run, self.method, self.views, self.optim

    def flat(self) -> dict[str, Any]:
        """All options by their names. The command line's subclasses add switches that are no part of a run."""
        names = {**GROUPS, "method": type(self.method)}
        return {
            f.name: getattr(getattr(self, g), f.name) for g, kind in names.items() for f in dataclasses.fields(kind)
        }

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by group, as JSON and `torch.load(weights_only=True)` know them. The inverse of `of`."""
        kinds = {**GROUPS, "method": type(self.method)}
        values = self.flat()
        return {
            group: {
                f.name: list(values[f.name]) if isinstance(values[f.name], tuple) else values[f.name]
                for f in dataclasses.fields(kind)
            }
            for group, kind in kinds.items()
        }

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> PretrainConfig:
        """Options that a run stored, perhaps of an earlier version. Options that it lacked get its behaviour."""
        given = dict(ungrouped(values))
        own = _names(find_method(str(given.get("method", "maskco"))).Options)
        foreign = _names(find_method("maskco").Options) - own
        if not isinstance(values.get("run"), Mapping):  # options had no groups, and MaskCo's were stored for any method
            given = {**FORMERLY, **{RENAMED.get(name, name): value for name, value in given.items()}}
        if "recipe" not in given:
            given = {**BEFORE_RECIPES, **given}
            given["clip_grad"] = given["clip_grad"] or 0.0
        given.setdefault("shuffle", "full")  # as all did then
        return cls.of(**_of_today({name: value for name, value in given.items() if name not in foreign}))

    def filled(self, recipe: str) -> PretrainConfig:
        """A copy with a recipe's values, and the method's, where none is given."""
        own = {**RECIPES[recipe], **(self.method.defaults if RECIPES[recipe] is MOCO_V2 else {})}
        given = self.flat()
        if given["warmup_steps"] is not None:
            own["warmup_share"] = 0.0
        values = {option: own[option] for option in MOCO_V2 if option in given and given[option] is None}
        return self.replace(recipe=recipe, **values, warmup_steps=given["warmup_steps"] or 0)

    def without_start(self) -> PretrainConfig:
        """A copy with fresh weights, to be replaced by those of a checkpoint. Nothing is downloaded or read."""
        return self.replace(pretrained=False, init=None, init_prefix=None)

    def differences(self, other: PretrainConfig) -> list[str]:
        """Options that a resumed run may not change but that differ, each as "name: own value, not the other's"."""
        own, others = self.flat(), other.flat()
        return [
            f"{name}: {own.get(name)}, not {others.get(name)}"
            for name in {**own, **others}
            if name not in FREE_ON_RESUME and own.get(name) != others.get(name)
        ]


def _of_today(options: Mapping[str, Any]) -> dict[str, Any]:
    """Stored options with their present values. keep_best used to be yes or no, and yes meant by the loss."""
    best = options.get("keep_best")
    return {**options, "keep_best": "loss" if best else "off"} if isinstance(best, bool) else dict(options)


REGISTER = "If it is your own, register it in `maskco.config` before, as the process that trained did"
GROUPS: dict[str, Any] = {"run": RunOptions, "method": MethodOptions, "views": ViewConfig, "optim": OptimOptions}


def ungrouped(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options by name, without their groups."""
    for name, value in values.items():
        if name in GROUPS and isinstance(value, Mapping):
            yield from value.items()
        else:
            yield name, value


def over(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a stored run, replaced by given ones. Raises ConfigError if these name another method."""
    if (method := given.get("method", stored["method"])) != stored["method"]:
        raise ConfigError(
            f"method: the run is of {stored['method']}, not {method}. Leave it out, or name another `out`"
        )
    return {**stored, **given}


def _names(kind: type[Options]) -> set[str]:
    return {option.name for option in dataclasses.fields(kind)}


def _hint(option: str, method: str, known: Mapping[str, str]) -> str:
    if option in RENAMED:
        return f" any more. Use {RENAMED[option]}"
    others = []
    for other in METHODS:
        with contextlib.suppress(ConfigError):  # of a method that cannot be imported
            if option in _names(find_method(other).Options):
                others.append(other)
    if others:
        return f" of {method}. It is one of {' and '.join(others)}"
    near = difflib.get_close_matches(option, known, n=1)
    return f". Did you mean {near[0]}?" if near else ". See `maskco pretrain --help`"


def read_config(path: str | Path) -> PretrainConfig:
    """The configuration in a run's config.json. Raises ConfigError if it is none, or has impossible values."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values.pop("maskco")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing. Restore it, or replace the run with `overwrite=True`") from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not the configuration of a maskco run. Restore it, or replace the run with `overwrite=True`"
        ) from error
    values.pop("signature", None)  # see trust.py
    try:
        config = PretrainConfig.from_stored(values)
        config.check()
    except UnregisteredError as error:
        raise UnregisteredError(f"{path}: {error}. {REGISTER}") from error
    except (ValueError, OverflowError, TypeError) as error:  # a ConfigError, or a number of hundreds of digits
        raise ConfigError(
            f"{path} cannot be used ({one_line(error)}). Restore it, or replace the run with `overwrite=True`"
        ) from error
    return config


def demo_config(out: str | Path) -> PretrainConfig:
    """A run on the built-in scenes that two CPU cores finish in some minutes.

    Besides its size and length, it differs from the defaults in three points:

    - Views vary color strongly. Color says nothing about an item's class, but everything about which item it is.
    - Regions are parts of items.
    - The queue is small, so that its keys are those of a recent encoder, even in a short run.
    """
    return PretrainConfig.of(
        data="demo",
        out=str(out),
        encoder="test_resnet",
        stage=2,
        hidden=256,
        mask_head_depth=2,
        queue_size=1024,
        key_momentum=0.996,
        key_group=16,
        image_size=64,
        regions=4,
        region_scale=(0.2, 0.35),
        crop_scale=(0.15, 1.0),
        hue=0.5,
        grayscale=0.5,
        epochs=28,
        batch_size=64,
        lr=0.48,
        warmup_steps=30,
        threads=1,
        workers=2,
        log_every=5,
    )
