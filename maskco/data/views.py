"""Two augmented views of one image, with regions that both of them show.

    views = TwoViews(ViewConfig(image_size=224, regions=4))(image)
    query = mask_boxes(views.query[None], views.query_boxes[None])      # what MaskCo's query branch sees

The views are MoCo v2's: a random resized crop, color jitter, greyscale, blur and flip, drawn independently for each
view. MaskCo adds that the two crops must share an area, because a region is masked in one and found in the other.
It is not known how the paper makes crops overlap and draws regions. All of that is ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from maskco.data.augment import Colors, recolor
from maskco.data.images import EncodedImage, ImageError
from maskco.view_options import MaskFill, ViewConfig

__all__ = [
    "MEAN",
    "STD",
    "RawViews",
    "TwoViews",
    "ViewConfig",
    "Views",
    "denormalize",
    "draw_fill",
    "hidden_boxes",
    "mask_boxes",
]

MEAN = (0.485, 0.456, 0.406)  # ImageNet, red green blue, of values in [0, 1]
STD = (0.229, 0.224, 0.225)

GREY = 0.1  # of normalised images; see draw_fill

CROP_TRIES = 10  # for a second crop that overlaps the first, before one is constructed
REGION_TRIES = 12  # candidates for each region, before the least overlapping one is taken


class Views(NamedTuple):
    """Two views and the same R regions in each. Boxes are x1, y1, x2, y2 in pixels of their own view. Box i of one view
    and box i of the other surround the same content."""

    query: Tensor  # [B, 3, S, S] float32, normalised; one sample: [3, S, S]
    key: Tensor  # [B, 3, S, S]
    query_boxes: Tensor  # [B, R, 4] float32; one sample: [R, 4]
    key_boxes: Tensor  # [B, R, 4]


class RawViews(NamedTuple):
    """Two views whose colors are drawn but not yet applied: `batch_augment.finish` makes `Views` of them."""

    query: Tensor  # [B, 3, S, S] uint8; one sample: [3, S, S]
    key: Tensor  # [B, 3, S, S]
    query_boxes: Tensor  # [B, R, 4] float32, as those of `Views`
    key_boxes: Tensor  # [B, R, 4]
    query_colors: Tensor  # [B, 10] float64: rows of `Colors`; one sample: [10]
    key_colors: Tensor  # [B, 10]


class Crop(NamedTuple):
    """A rectangle of whole pixels of the image, as torchvision's crop functions take it."""

    top: int
    left: int
    height: int
    width: int

    def shrunk(self, shrink: int, height: int, width: int) -> Crop:
        """The same part of the image after it was shrunk to height × width."""
        rows, columns = min(round(self.height / shrink), height), min(round(self.width / shrink), width)
        top, left = min(round(self.top / shrink), height - rows), min(round(self.left / shrink), width - columns)
        return Crop(top, left, rows, columns)


class TwoViews:
    """EncodedImage -> `Views`. Draws from torch's global generator only, so a seed fixes everything.

    Regions lie wholly inside the area that both crops show. Those of one image may touch but should not coincide. Each
    is the first of a few random candidates whose IoU with every earlier region is at most `max_region_overlap`. There
    may be none, in a small shared area or with many regions. Then it is the candidate with the least IoU.
    """

    def __init__(self, config: ViewConfig) -> None:
        """Raises ConfigError for options that cannot work."""
        config.check()
        self.config = config
        self._scale, self._offset = 1 / _channels(STD), -_channels(MEAN) / _channels(STD)

    def __call__(self, picture: EncodedImage | Image.Image | Tensor) -> Views:
        """picture: an image still to be decoded, an RGB PIL image, or a uint8 tensor [3, H, W].

        Raises ImageError if it is too small, or cannot be decoded.
        """
        (query, query_boxes, query_colors), (key, key_boxes, key_colors) = self._draw(picture)
        return Views(self._finish(query, query_colors), self._finish(key, key_colors), query_boxes, key_boxes)

    def raw(self, picture: EncodedImage | Image.Image | Tensor) -> RawViews:
        """The same views from the same random numbers, with the colors left for a whole batch at once."""
        (query, query_boxes, query_colors), (key, key_boxes, key_colors) = self._draw(picture)
        rows = torch.tensor((query_colors.row(), key_colors.row()), dtype=torch.float64)
        return RawViews(query, key, query_boxes, key_boxes, *rows)

    def _draw(self, picture: EncodedImage | Image.Image | Tensor) -> tuple[tuple[Tensor, Tensor, Colors], ...]:
        """All that is random about the query and the key view: uint8 [3, S, S], boxes [R, 4], colors."""
        height, width = picture.size if isinstance(picture, EncodedImage) else F.get_size(picture)
        if min(height, width) < self.config.min_image_side:
            reason = f"{width}x{height} pixels, and the shorter side must have at least {self.config.min_image_side}"
            raise ImageError("image", reason)
        query, key = self.crops(height, width)
        if isinstance(picture, EncodedImage):
            image, query, key = self._decode(picture, query, key)
        else:
            image = picture if isinstance(picture, Tensor) else F.pil_to_tensor(picture)
        regions = self._regions(query, key)
        return tuple((*self._cut(image, regions, crop), self._colors()) for crop in (query, key))

    def _decode(self, picture: EncodedImage, query: Crop, key: Crop) -> tuple[Tensor, Crop, Crop]:
        """The image [3, H, W], as small as no view has to be enlarged for it, and the crops in pixels of that."""
        least = min(query.height, query.width, key.height, key.width)
        shrink = next(shrink for shrink in (8, 4, 2, 1) if shrink == 1 or least >= shrink * self.config.image_size)
        image = picture.tensor(shrink)
        height, width = image.shape[1:]
        if (height, width) == picture.size:  # nothing was to be gained, or this format cannot
            return image, query, key
        return image, query.shrunk(shrink, height, width), key.shrunk(shrink, height, width)

    def crops(self, height: int, width: int) -> tuple[Crop, Crop]:
        """Crops of the query and the key view, for an image of this size: the first random draw of a call."""
        config = self.config
        query = self._random_crop(height, width)
        if not config.regions and not config.min_overlap:
            return query, self._random_crop(height, width)
        for _ in range(CROP_TRIES):
            key = self._random_crop(height, width)
            left, top, right, bottom = _shared(query, key)
            if right <= left or bottom <= top:
                continue
            share = (right - left) * (bottom - top) / max(query.height * query.width, key.height * key.width)
            least_width, least_height = self._smallest_region(query, key)
            if share >= config.min_overlap and right - left >= least_width and bottom - top >= least_height:
                return query, key
        # The query's own rectangle, moved so little that `keep` of each side stays shared: this meets every condition.
        keep = math.sqrt(config.min_overlap)
        if config.regions:
            keep = max(keep, config.region_scale[0], config.min_region_pixels / config.image_size)
        down, right = (int(_uniform(-1, 1) * (1 - keep) * side) for side in (query.height, query.width))
        top = min(max(query.top + down, 0), height - query.height)
        left = min(max(query.left + right, 0), width - query.width)
        return query, Crop(top, left, query.height, query.width)

    def _random_crop(self, height: int, width: int) -> Crop:
        """As torchvision's RandomResizedCrop draws it, by area and aspect. If ten of these do not fit, it is the
        image's middle, as much of it as the aspects allow."""
        area, (least, most) = height * width, self.config.crop_aspect
        for scale, aspect, down, across in torch.rand(10, 4, dtype=torch.float64).tolist():
            low, high = self.config.crop_scale
            target = (low + scale * (high - low)) * area
            ratio = least * (most / least) ** aspect
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Crop(int(down * (height - h + 1)), int(across * (width - w + 1)), h, w)
        w, h = min(width, max(round(height * most), 1)), min(height, max(round(width / least), 1))
        return Crop((height - h) // 2, (width - w) // 2, h, w)

    def _smallest_region(self, query: Crop, key: Crop) -> tuple[float, float]:
        """Width and height, in pixels of the image, that any region of these crops should be able to have."""
        if not self.config.regions:
            return 0.0, 0.0
        pixels, scale = self.config.min_region_pixels / self.config.image_size, self.config.region_scale[0]
        return (
            max(scale * query.width, pixels * max(query.width, key.width)),
            max(scale * query.height, pixels * max(query.height, key.height)),
        )

    def _regions(self, query: Crop, key: Crop) -> Tensor:
        """R boxes [R, 4] in pixels of the image, inside both crops."""
        config = self.config
        left, top, right, bottom = _shared(query, key)
        pixels = config.min_region_pixels / config.image_size
        least_width, least_height = pixels * max(query.width, key.width), pixels * max(query.height, key.height)
        (low, high), aspects = config.region_scale, [math.log(aspect) for aspect in config.region_aspect]
        regions: list[tuple[float, ...]] = []
        for candidates in torch.rand(config.regions, REGION_TRIES, 4).tolist():
            best: tuple[float, ...] = ()
            best_overlap = math.inf
            for scale, aspect, across, down in candidates:
                side = low + scale * (high - low)
                stretch = math.exp((aspects[0] + aspect * (aspects[1] - aspects[0])) / 2)
                width = min(max(side * stretch * query.width, least_width), right - left)
                height = min(max(side / stretch * query.height, least_height), bottom - top)
                x, y = left + across * (right - left - width), top + down * (bottom - top - height)
                box = (x, y, x + width, y + height)
                overlap = max((_iou(box, other) for other in regions), default=0.0)
                if overlap < best_overlap:
                    best, best_overlap = box, overlap
                if overlap <= config.max_region_overlap:
                    break
            regions.append(best)
        return torch.tensor(regions).view(-1, 4)

    def _cut(self, image: Tensor, regions: Tensor, crop: Crop) -> tuple[Tensor, Tensor]:
        """Cut one crop out, and flip it or not: uint8 [3, S, S] and the regions [R, 4] in its pixels."""
        size = self.config.image_size
        top, left, height, width = crop
        boxes = regions - torch.tensor((left, top, left, top))
        boxes.mul_(torch.tensor((size / width, size / height) * 2)).clamp_(0, size)
        view = image[None, :, top : top + height, left : left + width]
        # as torchvision's resize, without its dispatch
        view = interpolate(view, (size, size), mode="bilinear", antialias=True)[0]
        if _chance(self.config.flip):
            x1, y1, x2, y2 = boxes.unbind(1)
            view, boxes = view.flip(-1), torch.stack((size - x2, y1, size - x1, y2), dim=1)
        return view, boxes

    def _colors(self) -> Colors:
        config = self.config
        jitter: list[tuple[int, float]] = []
        if _chance(config.jitter):
            ranges = [(1 - share, 1 + share) for share in (config.brightness, config.contrast, config.saturation)]
            ranges.append((-config.hue, config.hue))
            jitter = [(step, _uniform(*ranges[step])) for step in torch.randperm(4).tolist()]
        grey = _chance(config.grayscale)
        sigma = _uniform(*config.blur_sigma) * config.image_size / 224 if _chance(config.blur) else 0.0
        return Colors(jitter, grey, sigma)

    def _finish(self, view: Tensor, colors: Colors) -> Tensor:
        """uint8 [3, S, S] -> recolored, blurred, normalised float32."""
        view = recolor(view.contiguous().float().mul_(1 / 255), colors)
        return torch.addcmul(self._offset, view, self._scale)


def mask_boxes(
    images: Tensor, boxes: Tensor, *, share: float = 1.0, patch: int = 1, fill: float | Tensor = 0.0
) -> Tensor:
    """Hide what the boxes surround. Edges are rounded outward to whole pixels, so nothing inside leaks.

    images: [B, 3, H, W]. Returns a new tensor.
    boxes: [B, R, 4] x1, y1, x2, y2 in pixels. Empty boxes hide nothing.
    share: area of each mask over its box's. Both have one shape and centre, so below 1 a box shows some surroundings.
    patch: above 1, whole patches of this side are hidden, see `hidden_boxes`.
    fill: a number or a tensor that broadcasts to `images`, see `draw_fill`.
    Any device, no synchronisation, traceable by torch.compile.
    """
    (height, width), boxes = images.shape[-2:], hidden_boxes(boxes, share=share, patch=patch)
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(-2)  # each [B, R, 1]
    in_rows = (rows >= y1.floor()) & (rows < y2.ceil()) & (y1 < y2)  # [B, R, H]
    in_columns = (columns >= x1.floor()) & (columns < x2.ceil()) & (x1 < x2)  # [B, R, W]
    # Counting by a batched product needs no [B, R, H, W] tensor.
    hidden = (in_rows.float().mT @ in_columns.float()) > 0  # [B, H, W]
    return torch.where(hidden[:, None], fill, images)  # unlike masked_fill, keeps channels_last


def hidden_boxes(boxes: Tensor, *, share: float = 1.0, patch: int = 1) -> Tensor:
    """The areas that a mask of some boxes hides: [..., 4] in, [..., 4] float32 out, x1, y1, x2, y2 in pixels.

    share: area of the mask over the box's, around the same centre. Above 1 it may reach out of the image.
    patch: above 1, edges are moved to the nearest multiple of it. A side that would vanish becomes the patch around its
        middle, so that each box hides one patch or more. Boxes that are empty stay so.
    """
    boxes = boxes.float()
    if share != 1:
        corner, other = boxes.split(2, dim=-1)
        rim = (other - corner) * ((1 - math.sqrt(share)) / 2)
        boxes = torch.cat([corner + rim, other - rim], dim=-1)
    if patch > 1:
        corner, other = boxes.split(2, dim=-1)
        low, high = (corner / patch).round(), (other / patch).round()
        around = ((corner + other) / (2 * patch)).floor()
        thin = (low >= high) & (corner < other)
        low, high = torch.where(thin, around, low), torch.where(thin, around + 1, high)
        boxes = torch.cat([low, high], dim=-1) * patch
    return boxes


def draw_fill(kind: MaskFill, images: Tensor, *, generator: torch.Generator | None = None) -> float | Tensor:
    """The fill of masks of normalised images [B, 3, H, W], for `mask_boxes` (all fills are ours).

    "grey" and "token": a constant near the mean color. "noise": standard normal numbers of the images' shape, from
    `generator` or else torch's own of the device. "mean": 0, the mean color.

    A fresh network without biases maps exactly 0 to feature vectors without variance. Each LayerNorm multiplies the
    gradient of such a vector by 1/√eps, which no learning rate survives. The grey is as far from 0 as it takes.
    """
    if kind == "noise":
        return torch.empty_like(images).normal_(generator=generator)
    return 0.0 if kind == "mean" else GREY


def denormalize(images: Tensor) -> Tensor:
    """Normalised views [..., 3, H, W] back to colors in [0, 1], for looking at."""
    return (images * _channels(STD).to(images) + _channels(MEAN).to(images)).clamp(0, 1)


def _shared(a: Crop, b: Crop) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the area two crops share. If there is none, right <= left or bottom <= top."""
    return (
        max(a.left, b.left),
        max(a.top, b.top),
        min(a.left + a.width, b.left + b.width),
        min(a.top + a.height, b.top + b.height),
    )


def _iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _channels(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _chance(probability: float) -> bool:
    return torch.rand(()).item() < probability
