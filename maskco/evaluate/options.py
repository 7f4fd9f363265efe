"""The options of each evaluation: plain dataclasses, which the command line shows as they are. Nothing heavy here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from maskco.option_values import Between, Count, Natural, Options, Workers

Temperature = Annotated[float, Between(1e-4, 1e4)]


@dataclass(kw_only=True)
class Evaluation(Options):
    """Options that all evaluations share."""

    task: ClassVar[str]

    encoders: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER [ENCODER …]")]
    """One or more: run folders, timm:NAME (with timm's weights), untrained:NAME, or files of weights."""
    data: str = "demo"
    """Labelled data. A folder in COCO's layout, VOCdevkit, or a folder with train/CLASS/ and val/CLASS/.
    "torchvision:CIFAR10". "hf:NAME", a folder that save_to_disk wrote, or .parquet files. Or "demo"."""
    untrained: bool = False
    """Also evaluate each encoder with fresh weights."""
    architecture: str | None = None
    """timm name of the encoder, for files of weights that do not say it."""
    prefix: str | None = None
    """Which of several encoders in a file of weights, by the prefix of its tensors' names or a word of it, such as
    module.encoder_k or teacher. Default: an EMA, else the teacher or query side, else a momentum side."""
    image_size: Annotated[int, Between(16, 100_000)] | None = None
    """Side of the images in pixels, for all encoders. Default: what suits the first run, else 224."""
    train_images: Count | None = None
    """Largest number of training images. Default: all, or 2000 scenes of the demo."""
    test_images: Count | None = None
    """Largest number of test images. Default: all, or 1000 scenes of the demo."""
    batch_norm: Literal["data", "stored"] = "data"
    """Running statistics. data: estimated again on the training images, for every encoder. stored: as saved."""
    out: str | None = None
    """JSON file to add rows to. Default: evaluation.json in the first run folder, else here."""
    device: str = "auto"
    """A torch device. auto: CUDA if there is a GPU, else the CPU."""
    workers: Workers | None = None
    """Processes that load images. Default: as many as cores, at most 8. None for the demo."""


@dataclass(kw_only=True)
class Knn(Evaluation):
    """Classify images by their nearest neighbours among the training images (DINO's weighted vote)."""

    task: ClassVar[str] = "knn"
    k: Count = 20
    """Number of neighbours that vote."""
    temperature: Temperature = 0.07
    """A vote has the weight exp(cosine / temperature)."""


@dataclass(kw_only=True)
class Linear(Evaluation):
    """Classify images by a linear classifier on frozen features. It chooses the learning rate itself."""

    task: ClassVar[str] = "linear"
    epochs: Count = 100
    """Passes over the features."""
    seed: Natural = 0
    """Seed of the held-out share of the training images and of their order."""


@dataclass(kw_only=True)
class Regions(Evaluation):
    """Classify boxes from features pooled over them, by a linear classifier and by nearest neighbours."""

    task: ClassVar[str] = "regions"
    k: Count = 20
    """Number of neighbours that vote."""
    temperature: Temperature = 0.07
    """A vote has the weight exp(cosine / temperature)."""
    epochs: Count = 100
    """Passes of the linear classifier over the features."""
    seed: Natural = 0
    """Seed of the held-out share of the training regions and of their order."""


@dataclass(kw_only=True)
class Detection(Evaluation):
    """Fine-tune Faster R-CNN with a feature pyramid and measure COCO's mean average precision.

    The same command continues a run that was interrupted.
    """

    task: ClassVar[str] = "detection"
    epochs: Count = 12
    """Passes over the training images. 12 is the usual "1×"."""
    batch_size: Count = 16
    """Images in a step."""
    lr: Annotated[float, Between(1e-12, 1e6)] = 0.02
    """Learning rate for 16 images a step, scaled to the batch size. It falls to a tenth after 2/3 and 8/9 of it."""
    proposals: Count = 512
    """Boxes of each image that train the box head. Most of a step's cost on a CPU. Small images need fewer."""
    amp: Literal["off", "bf16"] = "off"
    """Mixed precision."""
    seed: Natural = 0
    """Seed of the detector's fresh layers, and of the order and flips of images."""


@dataclass(kw_only=True)
class FeatureOptions(Options):
    """Write the frozen features of images to a .safetensors file, for any encoder that eval takes."""

    encoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER")]
    """Run folder, timm:NAME (with timm's weights), untrained:NAME, or a file of weights."""
    data: str
    """Images, as for `maskco pretrain`: a folder, tar shards, "torchvision:NAME", "hf:NAME", COCO, "demo" …"""
    out: str
    """File to write: .safetensors."""
    cells: bool = False
    """Write each image's whole feature map, [N, C, h, w], in place of its mean, [N, C]."""
    image_size: Annotated[int, Between(16, 100_000)] | None = None
    """Side in pixels to which the shorter side is resized. The middle is used. Default: what suits the encoder."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the features in the file."""
    architecture: str | None = None
    """timm name of the encoder, for a file of weights that does not say it."""
    prefix: str | None = None
    """Which of several encoders in a file of weights. See `maskco eval`."""
    batch_size: Count = 128
    """Images in a batch."""
    device: str = "auto"
    """A torch device. auto: CUDA if there is a GPU, else the CPU."""
    workers: Workers | None = None
    """Processes that load images. Default: as many as cores, at most 8, or none if no image has to be decoded."""
    overwrite: bool = False
    """Replace the file in --out."""
