"""Frozen features of labelled scenes: of every box, or of every whole image.

BatchNorm's running statistics can be estimated again on the training scenes, for all encoders of a table alike. An
untrained encoder has none (mean 0, variance 1), which would make it look worse than it is. A trained one has those of
masked and augmented views. This protocol is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from maskco.data.images import ImageError
from maskco.data.loading import start_method
from maskco.data.sources.demo import Scene
from maskco.data.views import MEAN, STD
from maskco.devices import default_workers
from maskco.evaluate.datasets import Scenes, evenly_spaced
from maskco.evaluate.errors import EvaluationError
from maskco.nn import Encoder
from maskco.nn.encoder import map_scale
from maskco.ops import box_pool

OWN = torch.Generator()  # what loaders draw their workers' seeds from, instead of the caller's random numbers


class Input(NamedTuple):
    """How images become the encoder's input."""

    image_size: int | None = None  # None: as they are, which must be of one size
    whole: bool = False  # a feature for each image, its middle square seen undistorted; else one for each box,
    # the image squeezed to a square so that no box is lost
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    workers: int = 0
    noun: str = "images"  # what errors call them


def loading_workers(asked: int | None, in_memory: bool) -> int:
    """Number of processes that load images: as given, or by default none where decoding costs nothing."""
    if asked is not None:
        return asked
    return 0 if in_memory else default_workers()


Batch = tuple[Tensor, list[Tensor], list[Tensor]]  # normalised images [B, 3, H, W], the boxes and labels of each
Mapped = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]  # images, their maps [B, C, h, w], boxes and labels


class Features(NamedTuple):
    x: Tensor  # [M, C] float32, on the CPU
    labels: Tensor  # [M] int64
    skipped: list[str]  # images that could not be read, and why: each once


def extract_features(
    encoder: Encoder,
    scenes: Scenes,
    form: Input = Input(),  # noqa: B008 (immutable)
    *,
    batch_size: int = 128,
    progress: str | None = None,
    digests: list[bytes] | None = None,
) -> Features:
    """The mean of the encoder's feature map over each box, or over each whole image, scene by scene.

    Args:
        encoder: maps normalised images [B, 3, H, W] to [B, C, h, w] and has `.stride`. It is used in eval mode, without
            gradients, on the device of its parameters. Its mode is restored.
        scenes: `.image` [3, H, W] uint8, `.boxes` [n, 4] (xyxy, pixels), `.labels` [n] int64, each.
        progress: the words before a progress bar. None shows no bar.
        digests: gets a digest of each image that was read, the same for the same pixels.

    Raises:
        EvaluationError: no scene, none with a box, more than half of the images unreadable, or images of several
            sizes without `image_size`.
    """
    skipped: list[str] = []
    maps = feature_maps(
        encoder, scenes, form, batch_size=batch_size, progress=progress, skipped=skipped, digests=digests
    )
    x, labels = _pooled(encoder, maps, form)
    check_readable(len(scenes), skipped, form.noun)
    if len(x) == 0:
        raise EvaluationError(NO_BOX.format(len(scenes), form.noun))
    return Features(x, labels, list(dict.fromkeys(skipped)))


NO_BOX = "data: none of the {} {} has a labelled box. Name other data"


class HeldScenes(NamedTuple):
    """Scenes in memory, at the size and in the form in which the encoder sees them."""

    images: Tensor  # uint8 [N, 3, S, S]
    boxes: list[Tensor]
    labels: list[Tensor]
    form: Input
    skipped: list[str]  # images that could not be read, and why: each once

    @classmethod
    def read(cls, scenes: Scenes, form: Input) -> HeldScenes:
        """Reads scenes at `form.image_size`. Raises EvaluationError: more than half unreadable, or none with a box."""
        samples = list(chain.from_iterable(_loader(scenes, form, batch_size=32)))
        skipped = [sample for sample in samples if isinstance(sample, str)]
        check_readable(len(scenes), skipped, form.noun)
        read = [(image.round().byte(), *rest) for image, *rest in samples if not isinstance(image, str)]
        if sum(len(boxes) for _, boxes, *_ in read) == 0:
            raise EvaluationError(NO_BOX.format(len(scenes), form.noun))
        images, boxes, labels, _ = zip(*read, strict=True)
        return cls(torch.stack(images), list(boxes), list(labels), form, list(dict.fromkeys(skipped)))

    def first(self, count: int) -> HeldScenes:
        """The first few of them."""
        return self._replace(images=self.images[:count], boxes=self.boxes[:count], labels=self.labels[:count])

    def features(self, encoder: Encoder, *, batch_size: int = 128, amp: torch.dtype | None = None) -> Features:
        """As `extract_features`, for many calls. They are normalised on the encoder's device.

        amp: dtype of autocast in the encoder. None: it is off.
        """
        device = next(encoder.parameters()).device
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.form.mean, self.form.std))

        def batches() -> Iterator[Batch]:
            for first in range(0, len(self.images), batch_size):
                part = slice(first, first + batch_size)
                images = self.images[part].to(device).float()
                yield (images / 255 - mean) / std, self.boxes[part], self.labels[part]

        return Features(*_pooled(encoder, _maps(encoder, batches(), amp), self.form), self.skipped)


def _pooled(encoder: Encoder, maps: Iterable[Mapped], form: Input) -> tuple[Tensor, Tensor]:
    """Features [M, C] float32 of whole images or boxes, and labels [M], both on the CPU."""
    features: list[Tensor] = [torch.empty(0, encoder.channels)]
    all_labels: list[Tensor] = [torch.empty(0, dtype=torch.long)]
    for images, batch, boxes, labels in maps:
        if form.whole:
            pooled = batch.mean((-2, -1))
        else:
            try:
                scale = map_scale(batch, images, encoder.stride)
            except ValueError as error:
                raise EvaluationError(
                    f"the encoder {error}. Correct its .stride, or take another `image_size`"
                ) from error
            pooled = box_pool(batch, [b.to(batch) for b in boxes], spatial_scale=scale)
        features.append(pooled.float().cpu())
        all_labels += labels
    return torch.cat(features), torch.cat(all_labels)


def feature_maps(
    encoder: Encoder,
    scenes: Scenes,
    form: Input,
    *,
    batch_size: int,
    progress: str | None = None,
    skipped: list[str] | None = None,
    digests: list[bytes] | None = None,
) -> Iterator[Mapped]:
    """Feature maps, batch by batch.

    Each item has normalised images [B, 3, H, W] on the CPU and the encoder's maps of them [B, C, h, w] on its device.
    It also has one tensor of boxes and one of labels for each image.

    Takes the arguments of `extract_features`. skipped: gets the images that could not be read, and why.
    """
    return _maps(encoder, _batches(scenes, form, batch_size, progress, skipped, digests))


def _maps(encoder: Encoder, batches: Iterable[Batch], amp: torch.dtype | None = None) -> Iterator[Mapped]:
    """As `feature_maps`. amp: dtype of autocast in the encoder. None: it is off."""
    device = next(encoder.parameters()).device
    with _modes(encoder):
        encoder.eval()
        for images, boxes, labels in batches:
            with torch.no_grad(), torch.autocast(device.type, amp, enabled=amp is not None):
                maps = encoder(images.to(device))
            yield images, maps if amp is None else maps.float(), boxes, labels


def check_readable(count: int, skipped: list[str], noun: str) -> None:
    """Raises EvaluationError if more than half of `count` images could not be read."""
    if 2 * len(skipped) > count:
        share = "none" if len(skipped) == count else f"only {count - len(skipped)}"
        raise EvaluationError(
            f"data: {share} of the {count} {noun} could be read. The first that could not: {skipped[0]}"
        )


def reestimate_batch_norm(
    encoder: nn.Module,
    scenes: Scenes,
    form: Input = Input(),  # noqa: B008
    *,
    batch_size: int = 64,
    limit: int = 256,
) -> None:
    """Replaces the running statistics of every BatchNorm layer, in place, by their mean over batches of `scenes`.

    At most `limit` scenes are used, at equal distances, in one random order: batches of one class, as of class folders,
    have too little variance. Nothing else in the encoder changes. Other layers run as in evaluation.

    Raises EvaluationError: one value per channel is too little for statistics.
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    count = min(len(scenes), limit)
    count -= count % batch_size if count > batch_size else 0  # a short last batch would weigh as much as a full one
    spaced, order = evenly_spaced(len(scenes), count), torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen = Subset(cast("Dataset[Scene]", scenes), [spaced[place] for place in order])
    momentum = [layer.momentum for layer in layers]
    device = next(encoder.parameters()).device
    with _modes(encoder), torch.no_grad():
        encoder.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
            layer.train()
        for images, _, _ in _batches(chosen, form, batch_size):
            try:
                encoder(images.to(device))
            except ValueError as error:  # torch's, of a single image whose map is a single pixel
                if "more than 1 value per channel" not in str(error):
                    raise
                raise EvaluationError(
                    "the statistics of batch norms cannot be estimated on one image with a map of one pixel. Raise "
                    "`train_images` or `image_size`, or set `batch_norm=stored`"
                ) from error
    for layer, value in zip(layers, momentum, strict=True):
        layer.momentum = value


class _Prepared(Dataset):
    """Scenes as float32 images [3, S, S] in [0, 255] with boxes along, or as the reason why one cannot be read."""

    def __init__(self, scenes: Scenes, form: Input, digested: bool) -> None:
        self.scenes, self.form, self.digested = scenes, form, digested

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, bytes] | str:
        try:
            image, boxes, labels = self.scenes[index]
        except ImageError as error:
            return str(error)
        digest = _digest(image) if self.digested else b""
        return *fit(image, boxes, self.form), labels, digest


def fit(image: Tensor, boxes: Tensor, form: Input) -> tuple[Tensor, Tensor]:
    """An image [3, H, W] and its boxes [n, 4] as the encoder sees them.

    Returns float32 [3, S, S] in [0, 255], and boxes in its pixels. Without `form.image_size` both stay as they are.
    """
    image, boxes, size = image.float(), boxes.float(), form.image_size
    height, width = image.shape[-2:]
    if size is not None and (height, width) != (size, size):
        factor = size / min(height, width)
        new = (round(height * factor), round(width * factor)) if form.whole else (size, size)
        image = F.interpolate(image[None], size=new, mode="bilinear", antialias=True)[0]
        boxes = boxes * torch.tensor([new[1] / width, new[0] / height] * 2)
        top, left = (new[0] - size) // 2, (new[1] - size) // 2
        image = image[:, top : top + size, left : left + size]
    return image, boxes


def _digest(image: Tensor) -> bytes:
    sha = hashlib.blake2b(str(tuple(image.shape)).encode(), digest_size=16)
    sha.update(image.contiguous().numpy().tobytes())
    return sha.digest()


def _loader(scenes: Scenes, form: Input, batch_size: int, *, digested: bool = False) -> DataLoader:
    """Lists of the items of `_Prepared`."""
    prepared = _Prepared(scenes, form, digested)
    context = start_method(scenes) if form.workers else None
    return DataLoader(
        prepared, batch_size, num_workers=form.workers, collate_fn=list, generator=OWN, multiprocessing_context=context
    )


def _batches(
    scenes: Scenes,
    form: Input,
    batch_size: int,
    progress: str | None = None,
    skipped: list[str] | None = None,
    digests: list[bytes] | None = None,
) -> Iterator[Batch]:
    """Normalised images [B, 3, H, W] float32, with one tensor of boxes and one of labels an image."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (form.mean, form.std))
    loader = _loader(scenes, form, batch_size, digested=digests is not None)
    hidden = None if progress else True  # None: shown on a terminal only
    for batch in tqdm(loader, desc=progress, disable=hidden, leave=False):
        usable = [sample for sample in batch if not isinstance(sample, str)]
        if skipped is not None:
            skipped += [sample for sample in batch if isinstance(sample, str)]
        if not usable:
            continue
        images, boxes, labels, read = (list(parts) for parts in zip(*usable, strict=True))
        if digests is not None:
            digests += read
        if len({image.shape for image in images}) > 1:
            raise EvaluationError("scenes: expected images of one size, found several. Pass image_size to resize them")
        yield (torch.stack(images) / 255 - mean) / std, boxes, labels


@contextmanager
def _modes(module: nn.Module) -> Iterator[None]:
    """Restores the training or eval mode of every submodule (a frozen BatchNorm stays frozen)."""
    before = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
