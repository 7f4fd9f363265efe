"""Options of a run that belong to no method, as the command line groups them. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from maskco.errors import ConfigError
from maskco.option_values import Between, Count, Natural, Options, Workers, window_of


@dataclass
class StartOptions(Options):
    """What runs, on what, where to."""

    data: str
    """Images, without labels. A folder (searched recursively), a COCO .json, VOCdevkit, or "demo" for the built-in
    scenes. Tar shards such as "cc3m-{0000..0331}.tar", or their URLs. "torchvision:STL10?split=unlabeled". "hf:NAME",
    a folder that save_to_disk wrote, or .parquet files. A .npy of small images."""
    out: str
    """Run folder for checkpoints, metrics and log. Created if missing."""
    method: str = "maskco"
    """maskco (masked regions), moco_v2 (whole views), simclr (whole views, in the batch) or densecl (every place)."""
    seed: Natural = 0
    """Seed of weights, order, views and regions."""


@dataclass
class EncoderOptions(Options):
    """The network that is trained."""

    encoder: str = "resnet50"
    """Any timm backbone."""
    stage: Annotated[int, Between(-1000, 1000)] = -1
    """Which of the backbone's feature maps. -1 is the last."""
    output_stride: Count | None = None
    """Dilate the backbone so that its map is no coarser than this many pixels. Default: not dilated."""
    pretrained: bool = False
    """Start from timm's weights, which are downloaded."""
    init: str | None = None
    """Start from your own weights: a run folder, a checkpoint, or a file as for `maskco eval`."""
    init_prefix: str | None = None
    """Which of several encoders in the file of --init. See --prefix of `maskco eval`."""
    batch_norm: Literal["local", "sync"] = "local"
    """Batch statistics of the trained side. local: of each rank's images. sync: of all ranks' images (CUDA only)."""
    compile: bool = False
    """Run the encoders through torch.compile. The first step takes minutes, later ones are faster."""


@dataclass
class MachineOptions(Options):
    """Where the work is done."""

    device: str = "auto"
    """A torch device, under torchrun without a number. auto: CUDA if there is a GPU, else the CPU."""
    workers: Workers | None = None
    """Processes of each rank that load images. 0: none. Default: the rank's share of the cores, at most 8."""
    shuffle: str | None = None
    """full: every order of the images is equally likely. window:N: shards in random order, images drawn from N shards
    at a time. So a store is read in long parts. Default: full for local data, window:16 for addresses."""
    augment: Literal["workers", "device"] = "workers"
    """Where views get their colors, blur and normalisation. workers: image by image, in the loading processes. device:
    a batch at once, on the device. The views are the same up to rounding."""
    threads: Annotated[int, Between(1, 1024)] | None = None
    """CPU threads of the training process. Small networks run faster with 1 and loading workers. Default: torch's."""


@dataclass
class RecordOptions(Options):
    """Metrics, checkpoints and the probe."""

    log_every: Count = 10
    """Steps between two rows of metrics."""
    log: tuple[str, ...] = ()
    """Also log to wandb (Weights & Biases), mlflow, or both. Their environment variables apply, such as WANDB_PROJECT
    and MLFLOW_TRACKING_URI. Use --loggers under torchrun."""
    save_every_minutes: Annotated[float, Between(0, 1e9)] = 10.0
    """Minutes between checkpoints, next to those after each epoch. 0: off."""
    save_every_steps: Natural = 0
    """Steps between checkpoints. 0: off."""
    keep: Count = 1
    """Number of checkpoints to keep: last.pt, and earlier ones as step-N.pt."""
    keep_best: Literal["off", "loss", "probe"] = "off"
    """Also keep the best epoch's checkpoint as best.pt. loss: lowest mean loss, of epochs that started with full
    queues. probe: highest accuracy of --probe, on regions if its data have boxes, else on whole images."""
    probe: str | None = None
    """Labelled data, as for `maskco eval`. A kNN classifies them during the run and reports its accuracy."""
    probe_every: Count = 5
    """Epochs between two probes. The end of the run is always probed."""
    probe_images: Annotated[int, Between(4)] | None = None
    """Images of the probe, a third of them for testing. Default: as many as 1.5% of the run's forward passes afford."""


@dataclass
class RunOptions(RecordOptions, MachineOptions, EncoderOptions, StartOptions):
    """What runs, on what, where to."""

    def check(self) -> None:
        if isinstance(self.log, str):
            self.log = (self.log,)
        super().check()
        self.log = tuple(dict.fromkeys(self.log))  # known and installed they must be to train, not to be read
        if not self.data:
            raise ConfigError('data is missing. Name a folder of images, or "demo"')
        if not self.out:
            raise ConfigError("out is missing. Name a folder for the run")
        if self.init == "":
            raise ConfigError("init is empty. Name a run or a file of weights, or leave it out")
        if self.init is not None and self.pretrained:
            raise ConfigError("init: it cannot be combined with `pretrained=True`. Keep one of them")
        if self.init_prefix is not None and self.init is None:
            raise ConfigError(
                f"init_prefix: {self.init_prefix!r} was given without `init`. Name the file of weights with `init`, or "
                "leave out `init_prefix`"
            )
        if self.shuffle is not None:
            window_of(self.shuffle)
        if self.probe == "":
            raise ConfigError("probe is empty. Name labelled data, or leave it out")
        if self.keep_best == "probe" and self.probe is None:
            raise ConfigError("keep_best must be off or loss without labelled data. Name them with `probe`")
