"""All options of a pretraining run: one flat dataclass, checked in one place. Imports nothing heavy.

Defaults are MoCo v2's where it has one. What it lacks, and what is not known of the MaskCo paper, is marked ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maskco.data.view_config import ViewConfig
from maskco.errors import ConfigError
from maskco.option_values import LARGEST, Bounds, make_plain, misfit, out_of_bounds

FREE_ON_RESUME = frozenset(
    {
        "data",
        "out",
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
    }
)  # options that a resumed run may change: they do not alter what is learned from, or how, but for the schedule ahead
# (epochs), rounding (device, threads, augment, compile), and how many pictures a batch norm sees (accumulate; it
# depends on the number of ranks as well, and a run may go on with other devices than it began with). Data may have been
# moved: number and names of the images are compared instead.
FORMERLY = {"mask_fill": "mean"}  # what runs did whose options do not say it
STARTS_FROM = ("pretrained", "init")  # options that say where weights come from when there is no checkpoint yet


@dataclass
class Folders:
    """Where a run reads and writes. A base class, so that these options come first."""

    data: str
    """A folder of pictures, searched recursively; a COCO .json; tar shards such as "cc3m-{0000..0331}.tar" or a URL of
    them; "torchvision:STL10?split=unlabeled"; "hf:NAME?split=train", a folder that save_to_disk wrote, or .parquet
    files; a .npy of small pictures; or "demo" for the built-in scenes. No labels needed."""
    out: str
    """Run folder: checkpoint, metrics, log. Made if missing."""


@dataclass
class PretrainConfig(ViewConfig, Folders):
    """How to pretrain an encoder on pictures without labels."""

    # ---- what is trained
    method: Literal["maskco", "moco_v2"] = "maskco"
    """Contrast masked regions, or whole views."""
    encoder: str = "resnet50"
    """Name of any timm backbone."""
    stage: int = -1
    """Which of the backbone's feature maps; -1 is the last."""
    output_stride: int | None = None
    """Dilate the backbone so that its map is no coarser than this many pixels."""
    pretrained: bool = False
    """Start from timm's weights (downloads them)."""
    init: str | None = None
    """Start from weights of your own: a run folder, a checkpoint, or a file as for `maskco eval`."""
    init_prefix: str | None = None
    """Which of several encoders in that file, as --prefix of `maskco eval`."""
    mask_head: Literal["conv", "attention", "none"] = "conv"
    """Mask prediction head (type: ours)."""
    mask_head_depth: int = 3
    """Its blocks (ours)."""
    key_head: bool = False
    """Pass the keys through a momentum copy of the mask head (ours: no)."""
    dim: int = 128
    """Length of queries and keys."""
    hidden: int | None = None
    """Hidden width of the projection; default: the encoder's channels (ours; MoCo v2's for a ResNet-50)."""

    # ---- the contrast
    queue_size: int = 65536
    """Keys of earlier steps that serve as negatives."""
    temperature: float = 0.2
    """Logits are cosine similarities over this."""
    momentum: float = 0.999
    """Share of the momentum encoder that stays at each step."""
    local_negatives: bool = True
    """Other regions of the same picture are negatives too, where --regions is 2 or more (ours: yes)."""
    key_group: int = 32
    """Pictures that share batch statistics in the key branch, shuffled; 0: the whole batch (ours; MoCo's: a GPU's)."""
    shuffle_keys: bool = True
    """With several ranks, draw them from all ranks' pictures, not each one's own: MoCo's shuffled batch norm."""
    batch_norm: Literal["local", "sync"] = "local"
    """Batch statistics of the query branch: of each rank's own pictures, or of all ranks' (CUDA only)."""

    # ---- the optimisation
    epochs: int = 200
    """Passes over the pictures."""
    batch_size: int = 256
    """Pictures in a step, of all ranks together."""
    accumulate: int = 1
    """Take each rank's pictures of a step in so many parts, to save memory. Batch norms see one part at a time."""
    lr: float = 0.03
    """Peak learning rate for 256 pictures a step; it is scaled by batch size / 256, then falls as a cosine to 0."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 (ours: MoCo v2 has none)."""
    sgd_momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Of all parameters, norms and biases too, as in MoCo v2."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision; fp16 scales the loss and needs CUDA."""
    compile: bool = False
    """Run both encoders through torch.compile: the first step takes minutes, later ones are faster."""

    # ---- the running
    seed: int = 0
    """Fixes weights, order, views and regions."""
    device: str = "auto"
    """"auto" (CUDA where there is a GPU, else the CPU), or torch's name for a device; torchrun: without a number."""
    workers: int | None = None
    """Processes that load pictures, for each rank; default: its share of the cores, at most 8; 0: none."""
    augment: Literal["workers", "device"] = "workers"
    """Where views get their colours, blur and normalisation: from the loading workers, picture by picture, or on the
    device, a batch at once, which leaves the workers decoding and cropping. The views are the same, up to rounding."""
    threads: int | None = None
    """CPU threads of the training process; default: torch's. Small networks run faster with one and loading workers."""
    log_every: int = 10
    """Steps between two rows of metrics."""
    save_every_minutes: float = 10.0
    """Also save between the ends of epochs; 0: do not."""
    save_every_steps: int = 0
    """Also save every so many steps; 0: do not."""
    keep: int = 1
    """Checkpoints kept: last.pt, and those saved before it as step-N.pt."""
    keep_best: bool = False
    """Also keep, as best.pt, that of the epoch with the lowest mean loss, among those that began with a full queue. It
    tells how well the contrast is solved; how useful the features are is for `maskco eval` to say."""

    def __post_init__(self) -> None:
        """Values become plain ones. An impossible one is for `check` to refuse, with all others."""
        make_plain(self)

    def check(self) -> None:
        """Raises ConfigError for the first impossible value."""
        if wrong := misfit(self, PretrainConfig) or out_of_bounds(self, BOUNDS):
            raise ConfigError(wrong)
        self._require("batch_size", self.batch_size >= 2, "at least 2, since batch norm needs company")
        self._require("key_group", self.key_group != 1, "0, or at least 2")
        if self.init == "":
            raise ConfigError("init is empty: name a run or a file of weights, or leave it out")
        if self.init is not None and self.pretrained:
            raise ConfigError("init and pretrained exclude each other: keep one")
        if self.init_prefix is not None and self.init is None:
            raise ConfigError("init_prefix chooses in the file that init names: name it")
        if not str(self.data):
            raise ConfigError('data is missing: name a folder of pictures, or "demo"')
        if not str(self.out):
            raise ConfigError("out is missing: name a folder for the run")
        self.view_config()

    def _require(self, name: str, fine: bool, wanted: str) -> None:
        if not fine:
            raise ConfigError(f"{name} must be {wanted}, got {getattr(self, name)}")

    def view_config(self) -> ViewConfig:
        """How the run's views are drawn. Raises ConfigError."""
        return view_config(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and `torch.load(weights_only=True)` know."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name in OPTIONS  # the command line's subclass adds switches that are no part of a run
        }

    @classmethod
    def from_stored(cls, values: dict[str, Any]) -> PretrainConfig:
        """The options that a run stored, perhaps of an earlier version: what that lacked is as it was then."""
        return cls.from_dict({**FORMERLY, **values})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PretrainConfig:
        """The inverse of `to_dict`. Options that are missing take their defaults; unknown ones raise ConfigError."""
        for name in values:
            if name not in OPTIONS:
                near = difflib.get_close_matches(name, OPTIONS, n=1)
                hint = f"did you mean {near[0]}?" if near else "`maskco pretrain --help` lists them all"
                raise ConfigError(f"there is no option {name!r}; {hint}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**{"data": "", "out": "", **values})

    def without_start(self) -> PretrainConfig:
        """The same method with fresh weights, for those of a checkpoint: nothing is downloaded or read."""
        return dataclasses.replace(self, pretrained=False, init=None, init_prefix=None)

    def differences(self, other: PretrainConfig) -> list[str]:
        """Options that a resumed run may not change but that differ, each as "name: own value, not the other's"."""
        own, others = self.to_dict(), other.to_dict()
        return [
            f"{name}: {own[name]}, not {others[name]}"
            for name in own
            if name not in FREE_ON_RESUME and own[name] != others[name]
        ]


OPTIONS = {field.name: field for field in dataclasses.fields(PretrainConfig)}
BOUNDS: Bounds = {  # smallest and largest value
    **dict.fromkeys(("dim", "hidden", "queue_size", "output_stride", "epochs", "batch_size"), (1, LARGEST)),
    **dict.fromkeys(("accumulate", "log_every", "keep"), (1, LARGEST)),
    **dict.fromkeys(("key_group", "warmup_steps", "save_every_steps", "seed"), (0, LARGEST)),
    "stage": (-1000, 1000),
    "mask_head_depth": (1, 1000),
    "threads": (1, 1024),  # a process that starts many more dies without a word
    "workers": (0, 1024),
    "save_every_minutes": (0, 1e9),
    **dict.fromkeys(("momentum", "sgd_momentum"), (0, 1)),
    **dict.fromkeys(("lr", "weight_decay"), (0, 1e6)),
    "temperature": (1e-4, 1e4),
}


def view_config(options: ViewConfig) -> ViewConfig:
    """The view options among others, checked. Raises ConfigError."""
    try:
        return ViewConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ViewConfig)})
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_config(path: str | Path) -> PretrainConfig:
    """The configuration in a run's config.json. Raises ConfigError if it is none, or has impossible values."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values.pop("maskco")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not the configuration of a maskco run: restore it, or replace the run with --overwrite"
        ) from error
    values.pop("signature", None)  # see trust.py
    try:
        config = PretrainConfig.from_stored(values)
        config.check()
    except (ValueError, OverflowError) as error:  # a ConfigError, or a number of hundreds of digits
        raise ConfigError(f"{path}: {error}") from error
    return config


def demo_config(out: str | Path) -> PretrainConfig:
    """A run on the built-in scenes that two CPU cores finish in some minutes.

    What differs from the defaults, and why: in the scenes colour says nothing about an item's class but everything
    about which item it is, so views vary it strongly; regions are parts of items; a short run
    needs a small queue, whose keys the encoder has not left behind.
    """
    return PretrainConfig(
        data="demo",
        out=str(out),
        encoder="test_resnet",
        stage=2,
        hidden=256,
        mask_head_depth=2,
        queue_size=1024,
        momentum=0.996,
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
