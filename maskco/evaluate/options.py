"""The options of each evaluation: plain dataclasses, which the command line shows as they are. Nothing heavy here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from maskco.option_values import Between, Count, Natural, Options, Workers

Temperature = Annotated[float, Between(1e-4, 1e4)]


@dataclass(kw_only=True)
class Evaluation(Options):
    """What all evaluations share."""

    task: ClassVar[str]

    encoders: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER [ENCODER …]")]
    """One or more, a row each: run folders, timm:NAME (downloads its weights), untrained:NAME, files of weights."""
    data: str = "demo"
    """Labelled data: a folder in COCO's layout, VOCdevkit, or train/CLASS/ and val/CLASS/ images;
    "torchvision:CIFAR10"; "hf:NAME", a folder that save_to_disk wrote, or .parquet files; or "demo"."""
    untrained: bool = False
    """Add each encoder once more with fresh weights."""
    architecture: str | None = None
    """timm's name of the encoder in files of weights that do not say it."""
    prefix: str | None = None
    """Which of several encoders in a file of weights: what stands before its tensors' names, or a word of that, such as
    module.encoder_k or teacher; default: an EMA, then the teacher or query side, then a momentum side."""
    image_size: Annotated[int, Between(16, 100_000)] | None = None
    """Side of the images; default: what suits the first run named, else 224. The same for all encoders."""
    train_images: Count | None = None
    """At most so many to learn from; default: all, but 2000 scenes of the demo."""
    test_images: Count | None = None
    """At most so many to test on; default: all, but 1000 scenes of the demo."""
    batch_norm: Literal["data", "stored"] = "data"
    """Running statistics: estimated again on the training images for every encoder alike, or as they were saved."""
    out: str | None = None
    """JSON file to add the rows to; default: evaluation.json in the first run folder named, else here."""
    device: str = "auto"
    """"auto" (CUDA where there is a GPU, else the CPU), or torch's name for a device."""
    workers: Workers | None = None
    """Processes that load images; default: as many as cores, at most 8; none for the demo."""


@dataclass(kw_only=True)
class Knn(Evaluation):
    """Classify images by their nearest neighbours among the training images (DINO's weighted vote)."""

    task: ClassVar[str] = "knn"
    k: Count = 20
    """Neighbours that vote."""
    temperature: Temperature = 0.07
    """Votes weigh exp(cosine / this)."""


@dataclass(kw_only=True)
class Linear(Evaluation):
    """Classify images by a linear classifier on frozen features; the learning rate is swept, none is to be given."""

    task: ClassVar[str] = "linear"
    epochs: Count = 100
    """Passes over the features."""
    seed: Natural = 0
    """Fixes the held-out share of the training images and their order."""


@dataclass(kw_only=True)
class Regions(Evaluation):
    """Classify boxes from features pooled over them, by a linear classifier and by nearest neighbours."""

    task: ClassVar[str] = "regions"
    k: Count = 20
    """Neighbours that vote."""
    temperature: Temperature = 0.07
    """Votes weigh exp(cosine / this)."""
    epochs: Count = 100
    """Passes of the linear classifier over the features."""
    seed: Natural = 0
    """Fixes the held-out share of the training regions and their order."""


@dataclass(kw_only=True)
class Detection(Evaluation):
    """Fine-tune Faster R-CNN with a feature pyramid on boxes and measure COCO's mean average precision.

    Goes on where it was interrupted when the same command is given again.
    """

    task: ClassVar[str] = "detection"
    epochs: Count = 12
    """Passes over the training images; 12 is the usual "1×"."""
    batch_size: Count = 16
    """Images a step."""
    lr: Annotated[float, Between(1e-12, 1e6)] = 0.02
    """Learning rate for 16 images a step; scaled to the batch size, a tenth after 2/3 and after 8/9 of the steps."""
    proposals: Count = 512
    """Boxes an image that the box head learns from; most of a step's cost on a CPU. Small images need fewer."""
    amp: Literal["off", "bf16"] = "off"
    """Mixed precision."""
    seed: Natural = 0
    """Fixes the detector's fresh layers, the order of images and their flips."""


@dataclass(kw_only=True)
class FeatureOptions(Options):
    """Write features of images to a .safetensors file: those of any encoder that eval takes, frozen."""

    encoder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENCODER")]
    """Run folder, timm:NAME (downloads its weights), untrained:NAME, or a file of weights."""
    data: str
    """Images without labels, as for pretrain: a folder, tar shards, "torchvision:NAME", "hf:NAME", COCO, "demo" …"""
    out: str
    """File to write: .safetensors."""
    cells: bool = False
    """The whole feature map of each image, [N, C, h, w], in place of its mean, [N, C]."""
    image_size: Annotated[int, Between(16, 100_000)] | None = None
    """Side of the images: the shorter side is resized to it, the middle is seen. Default: what suits the encoder."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the features in the file."""
    architecture: str | None = None
    """timm's name of the encoder in a file of weights that does not say it."""
    prefix: str | None = None
    """Which of several encoders in a file of weights, as for eval."""
    batch_size: Count = 128
    """Images at a time."""
    device: str = "auto"
    """"auto" (CUDA where there is a GPU, else the CPU), or torch's name for a device."""
    workers: Workers | None = None
    """Processes that load images; default: as many as cores, at most 8; none where images need not be decoded."""
    overwrite: bool = False
    """Replace the file in --out."""
