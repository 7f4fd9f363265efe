"""Detection transfer: fine-tunes torchvision's Faster R-CNN with a feature pyramid, and measures COCO's precision.

The recipe is the field's (He et al., arXiv 1911.05722, Lin et al., 1612.03144). Every layer is trained, but batch norms
stay frozen. SGD has a short warm-up. Its learning rate is divided by 10 after 2/3 and 8/9 of the steps. Images are
flipped. Training resumes from its last saved step when the same evaluation is asked for again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import FeatureInfo
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from tqdm import tqdm

from maskco.data.images import ImageError
from maskco.evaluate.datasets import Annotated, LabelledSet, Scenes
from maskco.evaluate.encoders import OpenedEncoder
from maskco.evaluate.errors import EvaluationError
from maskco.evaluate.features import OWN, Input, reestimate_batch_norm
from maskco.evaluate.options import Detection
from maskco.files import write_atomically
from maskco.nn.encoder import map_scale
from maskco.weights.names import load_named, timm_names, timm_state, whole_model_state

FINEST = 4  # pixels: the finest map that a pyramid is built on
WIDTH = 256  # channels of the pyramid
SAVE_MINUTES = 10
NO_BOX = "data: the test images have no box. Name other data, or raise `test_images`"
SCORES = {"mAP": "map", "mAP 50": "map_50", "mAP 75": "map_75"}  # a table's heads: torchmetrics' names

Target = dict[str, Tensor]
Batch = tuple[list[Tensor], list[Target]]


def evaluate_detection(
    opened: OpenedEncoder,
    data: LabelledSet,
    options: Detection,
    image_size: int,
    folder: Path,
    workers: int = 0,
    verbose: bool = True,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Fine-tunes a detector from the encoder and returns its average precision in per cent, and details for a row.

    Args:
        image_size: the shorter side of the images in pixels. The longer is at most 5/3 of it.
        folder: where the detector is saved and looked for, named by a digest of all that determines it.

    Raises:
        EvaluationError: no boxes, an encoder that cannot carry a pyramid, a loss of NaN or infinity, or a package of
            `maskco[eval]` is missing.
    """
    metric = _mean_average_precision()
    boxes = {name: sum(map(len, part.boxes or ())) for name, part in (("train", data.train), ("test", data.test))}
    if not data.has_boxes:
        raise EvaluationError(f"data: detection needs boxes, and {data.name} has none. Name COCO's layout, VOC or demo")
    if not boxes["test"]:
        raise EvaluationError(NO_BOX)
    device = next(opened.encoder.parameters()).device
    if options.batch_norm == "data":  # statistics stay frozen, so they had better fit
        form = Input(image_size, False, opened.mean, opened.std, workers)
        reestimate_batch_norm(opened.encoder, data.train, form)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(options.seed)
        detector = build_detector(opened, len(data.classes), image_size, options.proposals).to(device)
        settings = {k: v for k, v in asdict(options).items() if k not in ("encoders", "out", "untrained", "workers")}
        identity = json.dumps(
            [opened.facts["encoder_sha256"], data.name, _digest(data), image_size, settings], sort_keys=True
        )
        path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"
        training = Training(detector, data.train, options, path, workers)
        finished = training.step == training.steps
        training.run(opened.name if verbose else None)
    scores = average_precision(detector, data.test, metric, workers, f"{opened.name}, test" if verbose else None)
    notes = [f"{opened.name}: {path} was trained before on the same data, and was only tested"] if finished else []
    return scores, {
        "boxes": boxes,
        "pyramid": [int(stride) for stride in detector.backbone.strides],
        "steps": training.steps,
        "last_loss": training.loss,
        "detector": str(path),
        "notes": notes,
    }


def _digest(data: LabelledSet) -> str:
    """SHA-256 of what a detector learns from: the training images' names or places, their boxes, labels and classes."""
    part, digest = data.train, hashlib.sha256(json.dumps(list(data.classes)).encode())
    name = getattr(part.source, "name", str)
    for index, labels, boxes in zip(part.indices, part.labels, part.boxes or (), strict=True):
        digest.update(json.dumps([name(index), labels.tolist(), boxes.tolist()]).encode())
    return digest.hexdigest()


# --- the detector ---------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """The encoder's maps of every scale from stride 4 on, made into a feature pyramid: images -> maps by name."""

    out_channels = WIDTH

    def __init__(self, opened: OpenedEncoder) -> None:
        super().__init__()
        if opened.encoder.image_size is not None:
            raise EvaluationError(
                f"{opened.name} takes images of {opened.encoder.image_size} pixels only. Detection needs an encoder "
                "that takes any size, such as a ResNet"
            )
        infos = cast("FeatureInfo", timm.create_model(opened.architecture, features_only=True).feature_info).get_dicts()
        last = range(len(infos))[opened.stage]
        coarsest = opened.output_stride or math.inf
        strides = [min(info["reduction"], coarsest) for info in infos[: last + 1]]
        stages = [i for i, s in enumerate(strides) if s >= FINEST and (i == last or strides[i + 1] > s)]
        options: dict[str, Any] = {} if opened.output_stride is None else {"output_stride": opened.output_stride}
        body = timm.create_model(opened.architecture, features_only=True, out_indices=stages, **options)
        whole = whole_model_state(opened.architecture)
        load_named(body, timm_names(body, whole), timm_state(opened.encoder.backbone, opened.architecture), opened.name)
        self.body = freeze_batch_norm_2d(body)
        self.strides = [strides[i] for i in stages]
        self.strides.append(2 * self.strides[-1])  # of the extra, pooled level
        self.channels_last = opened.encoder.channels_last
        channels = [infos[i]["num_chs"] for i in stages]
        self.pyramid = FeaturePyramidNetwork(channels, WIDTH, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        try:  # regions are pooled from these maps by their sizes
            for stride, features in zip(self.strides, maps, strict=False):
                map_scale(features, images, int(stride))
        except ValueError as error:
            raise EvaluationError(f"the encoder {error}. Take another `image_size`, or another encoder") from error
        return self.pyramid(OrderedDict((str(i), m) for i, m in enumerate(maps)))


def build_detector(opened: OpenedEncoder, classes: int, image_size: int, proposals: int = 512) -> FasterRCNN:
    """Faster R-CNN on the encoder, with fresh heads for so many classes and anchors of 8 strides at every level."""
    backbone = Pyramid(opened)
    levels = [str(i) for i in range(len(backbone.strides) - 1)]
    return FasterRCNN(
        backbone,
        classes + 1,  # 0 is the background
        min_size=image_size,
        max_size=image_size * 5 // 3,
        image_mean=list(opened.mean),
        image_std=list(opened.std),
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * stride,) for stride in backbone.strides), ((0.5, 1.0, 2.0),) * len(backbone.strides)
        ),
        box_batch_size_per_image=proposals,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
    )


# --- training -------------------------------------------------------------------------------------------------------


class Training:
    """Fine-tuning that saves itself now and then, and resumes from the file at `path`."""

    def __init__(self, detector: FasterRCNN, scenes: Scenes, options: Detection, path: Path, workers: int) -> None:
        self.detector, self.options, self.path, self.workers = detector, options, path, workers
        self.scenes = DetectionSet(scenes, options.seed)
        self.peak = options.lr * options.batch_size / 16
        self.optimizer = torch.optim.SGD(
            [p for p in detector.parameters() if p.requires_grad], lr=self.peak, momentum=0.9, weight_decay=1e-4
        )
        self.step, self.loss = 0, math.nan
        self.steps = options.epochs * self.batches_per_epoch
        if path.exists():
            try:
                self._load(torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # damaged files make the readers raise almost anything
                raise EvaluationError(f"{path} holds no detector to resume from, or is damaged. Remove it") from error

    def _load(self, state: dict[str, Any]) -> None:
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.loss = int(state["step"]), float(state["loss"])
        torch.set_rng_state(state["random"])  # RPN and heads draw their samples from it

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.scenes) // self.options.batch_size)

    def run(self, progress: str | None) -> None:
        self.detector.train()
        device = next(self.detector.parameters()).device
        saved = time.monotonic()
        hidden = None if progress else True  # None: shown on a terminal only
        with tqdm(total=self.steps, initial=self.step, desc=progress, disable=hidden, leave=False) as bar:
            for images, targets in _readable(self._batches()):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr(self.step)
                images = [image.to(device) for image in images]
                targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
                with torch.autocast(device.type, torch.bfloat16, enabled=self.options.amp == "bf16"):
                    loss = sum(self.detector(images, targets).values())
                self.loss = loss.item()
                if not math.isfinite(self.loss):
                    raise EvaluationError(
                        f"the detector's loss is no longer finite at step {self.step + 1}, learning rate "
                        f"{self.lr(self.step):.3g}. Take a lower `lr`"
                    )
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.step += 1
                bar.update()
                bar.set_postfix_str(f"loss {self.loss:.3f}")
                if time.monotonic() - saved > 60 * SAVE_MINUTES or self.step == self.steps:
                    self.save()
                    saved = time.monotonic()

    def lr(self, step: int) -> float:
        warmup = min(500, self.steps // 10)
        rise = min(1.0, (step + 1) / (warmup + 1))
        return self.peak * rise * 0.1 ** ((step >= self.steps * 2 / 3) + (step >= self.steps * 8 / 9))

    def save(self) -> None:
        state = {
            "step": self.step,
            "loss": self.loss,
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda file: torch.save(state, file))

    def _batches(self) -> Iterator[Batch | str]:
        """The remaining batches of all epochs. The order of images and their flips follow from seed and epoch."""
        size = self.options.batch_size
        for epoch in range(self.step // self.batches_per_epoch, self.options.epochs):
            generator = torch.Generator().manual_seed(self.options.seed * 100_003 + epoch)
            order = [(epoch, i) for i in torch.randperm(len(self.scenes), generator=generator).tolist()]
            chunks = [order[i : i + size] for i in range(0, len(order), size)]
            first = self.step % self.batches_per_epoch
            yield from DataLoader(
                self.scenes, batch_sampler=chunks[first:], num_workers=self.workers, collate_fn=_collate, generator=OWN
            )


class DetectionSet(Dataset):
    """Scenes as torchvision's detectors want them: an image [3, H, W] in [0, 1] and boxes with labels from 1 on.

    A key (epoch, index) is an image to learn from, mirrored by chance. An index alone is one to test on. An image that
    cannot be read is replaced by the reason.
    """

    def __init__(self, scenes: Scenes, seed: int = 0) -> None:
        self.scenes, self.seed = scenes, seed

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Target] | str:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        try:
            image, boxes, labels = self.scenes[index]
        except ImageError as error:
            return str(error)
        image, boxes = image / 255, boxes.float()
        if epoch is None:
            return image, {"boxes": boxes, "labels": labels + 1}
        generator = torch.Generator().manual_seed((self.seed * 1009 + epoch) * 1_000_003 + index)
        if torch.rand((), generator=generator) < 0.5:
            image, width = image.flip(-1), image.shape[-1]
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        return image, {"boxes": boxes, "labels": labels + 1}


def _collate(samples: list[tuple[Tensor, Target] | str]) -> Batch | str:
    if reasons := [sample for sample in samples if isinstance(sample, str)]:
        return reasons[0]
    images, targets = zip(*cast("list[tuple[Tensor, Target]]", samples), strict=True)
    return list(images), list(targets)


def _readable(batches: Iterable[Batch | str]) -> Iterator[Batch]:
    """Raises EvaluationError for the first image that cannot be read, since COCO's measure is of all images."""
    for batch in batches:  # (an error raised in a loading worker would come with the traceback of its process)
        if isinstance(batch, str):
            raise EvaluationError(f"data: {batch}. Restore it, or take it out of the annotation file")
        yield batch


# --- testing --------------------------------------------------------------------------------------------------------


def average_precision(
    detector: FasterRCNN, scenes: Scenes, metric: Any, workers: int = 0, progress: str | None = None
) -> dict[str, float]:
    """COCO's average precision in per cent, by torchmetrics. Raises EvaluationError if there is no box to find."""
    detector.eval()
    device = next(detector.parameters()).device
    loader = DataLoader(DetectionSet(scenes), 4, num_workers=workers, collate_fn=_collate, generator=OWN)
    hidden = None if progress else True
    index = 0
    with torch.no_grad():
        for images, targets in _readable(tqdm(loader, desc=progress, disable=hidden, leave=False)):
            found = detector([image.to(device) for image in images])
            for target in targets:
                _add_crowds(target, scenes, index)
                index += 1
            metric.update([{k: v.cpu() for k, v in each.items()} for each in found], targets)
    result = metric.compute()
    scores = {name: 100 * float(result[key]) for name, key in SCORES.items()}
    if scores["mAP"] < 0:  # pycocotools says -1
        raise EvaluationError(NO_BOX)
    return scores


def _add_crowds(target: Target, scenes: Scenes, index: int) -> None:
    """Adds boxes around groups. COCO's measure ignores matches to them."""
    if isinstance(scenes, Annotated) and scenes.crowds is not None:
        crowd = scenes.crowds[index]
        target["iscrowd"] = torch.cat([torch.zeros_like(target["labels"]), crowd.crowd.long()])
        target["boxes"] = torch.cat([target["boxes"], crowd.boxes])
        target["labels"] = torch.cat([target["labels"], crowd.labels + 1])


def _mean_average_precision() -> Any:
    try:
        from torchmetrics.detection import MeanAveragePrecision

        return MeanAveragePrecision(backend="pycocotools")
    except ImportError as error:  # torchmetrics says ModuleNotFoundError for a missing pycocotools too
        raise EvaluationError("detection needs torchmetrics and pycocotools. Run pip install 'maskco[eval]'") from error
