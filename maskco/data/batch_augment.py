"""Color changes, blur and normalisation of a whole batch of views at once, on any device.

    views = finish(raw, device)     # RawViews [B, …] as the loading workers give them -> Views on the device

Each view gets the values drawn for it alone. So the result is that of `TwoViews` up to rounding, in any batch. Nothing
here waits for the device: which views share a step is read from the rows while they are the host's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskco.data.augment import CONTRAST, GREY, SATURATION, shift_hue
from maskco.data.views import MEAN, STD, RawViews, Views

CHUNK = 1 << 20  # numbers that a CPU takes through all steps before the next ones: they should stay in its caches


@torch.no_grad()
def finish(raw: RawViews, device: torch.device) -> Views:
    """Recolors, blurs and normalises in float32 on the device, where the images go as they are, as uint8.

    The views are float32 [B, 3, S, S] in channels_last.
    """
    images = torch.cat([part.to(device, non_blocking=True) for part in (raw.query, raw.key)])
    with torch.autocast(device.type, enabled=False):
        images = recolor(images, torch.cat((raw.query_colors, raw.key_colors)).numpy())
    boxes = (part.to(device, non_blocking=True) for part in (raw.query_boxes, raw.key_boxes))
    return Views(*images.chunk(2), *boxes)


def recolor(images: Tensor, rows: np.ndarray) -> Tensor:
    """uint8 [N, 3, S, S] and their `Colors` as rows [N, 10] -> normalised float32 [N, 3, S, S] in channels_last."""
    device = images.device
    out = torch.empty_like(images, dtype=torch.float32, memory_format=torch.contiguous_format)
    scale, offset = (_put(values, device)[:, None, None] for values in (1 / np.array(STD), -np.divide(MEAN, STD)))
    # Sorted so that, whatever the order of their steps, all views that take one together are next to each other.
    order = np.argsort(-rows[:, 0], kind="stable")
    chunk = len(rows) if device.type != "cpu" else max(CHUNK // images[0].numel(), 1)
    for first in range(0, len(rows), chunk):
        part = order[first : first + chunk]
        place = _put(part, device)
        views = images.index_select(0, place).float().mul_(1 / 255)
        jitter(views, rows[part])
        take_color_and_blur(views, rows[part])
        out[place] = torch.addcmul(offset, views, scale, out=views)
    return out.contiguous(memory_format=torch.channels_last)  # (on the CPU, much faster than to write into it above)


def jitter(views: Tensor, rows: np.ndarray) -> None:
    """Color jitter of [n, 3, S, S], in place. Rows [n, 10] are sorted by their first number, descending.

    Brightness, contrast and saturation are one operation here. Each view takes three, some before its hue is shifted,
    the rest after. So the first few views take the k-th before the shift, and the others after it.
    """
    views = views[: int((rows[:, 0] >= 0).sum())]
    if not len(views):
        return
    rows = rows[: len(views)]
    heads = [int((rows[:, 0] > k).sum()) for k in range(3)]
    steps, factors = rows[:, 1:7:2], rows[:, 2:7:2]
    numbers = np.stack((factors, (1 - factors) * (steps == CONTRAST), (1 - factors) * (steps == SATURATION)))
    factors, of_mean, of_grey = _put(numbers, views.device)[..., None, None, None]  # each [n, 3, 1, 1, 1]

    def scale(k: int, some: slice) -> None:
        chosen = views[some]
        if len(chosen):
            grey = greyscale(chosen)
            origin = torch.addcmul(grey.mean((-2, -1), keepdim=True) * of_mean[some, k], grey, of_grey[some, k])
            torch.addcmul(origin, chosen, factors[some, k], out=chosen).clamp_(0, 1)

    for k, head in enumerate(heads):
        scale(k, slice(0, head))
    shift_hue(views, _put(rows[:, 7], views.device)[:, None, None])
    for k, head in enumerate(heads):
        scale(k, slice(head, None))


def take_color_and_blur(views: Tensor, rows: np.ndarray) -> None:
    """The steps after the jitter of [n, 3, S, S], in place. A view without color has one plane blurred for three."""
    (colorless,) = rows[:, 8].nonzero()
    planes = np.repeat(rows[:, 9:], 3, axis=1)  # sigma of each plane that is to be blurred, [n, 3]
    planes[colorless, 1:] = 0
    sigma = planes.ravel()
    order = np.argsort(-sigma, kind="stable")[: np.count_nonzero(sigma)]
    grey, place = _put(colorless, views.device), _put(order, views.device)
    if len(grey):
        views[grey, :1] = greyscale(views.index_select(0, grey))
    if len(place):
        flat = views.flatten(0, 1)  # the same memory
        flat[place] = gaussian_blur(flat.index_select(0, place), sigma[order])
    if len(grey):
        views[grey, 1:] = views[grey, :1]


def greyscale(images: Tensor) -> Tensor:
    """[n, 3, H, W] -> luminance [n, 1, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def gaussian_blur(planes: Tensor, sigma: np.ndarray) -> Tensor:
    """As `maskco.data.augment.gaussian_blur`, for [n, S, S], each with its own sigma, sorted in descending order."""
    size = planes.shape[-1]
    radius = np.minimum(np.ceil(4 * sigma), size - 1)
    distances = np.arange(1, radius[0] + 1)
    heads = [int((radius >= distance).sum()) for distance in distances]  # the planes that look so far
    weights = _put(np.exp(-0.5 * (distances[:, None] / sigma) ** 2), planes.device)[..., None, None]

    def along(axis: int, image: Tensor) -> Tensor:
        blurred = image.clone()
        for distance, (head, weight) in enumerate(zip(heads, weights, strict=True), 1):
            source, target, kept = image[:head], blurred[:head], size - distance
            target.narrow(axis, distance, kept).addcmul_(source.narrow(axis, 0, kept), weight[:head])
            target.narrow(axis, 0, kept).addcmul_(source.narrow(axis, distance, kept), weight[:head])
        return blurred

    sums = along(-1, planes.new_ones(len(planes), 1, size))
    return along(-2, along(-1, planes)).div_(sums * sums.mT)


def _put(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers of the host on the device, floats as float32, without waiting for it."""
    values = np.ascontiguousarray(values, np.float32 if values.dtype.kind == "f" else np.int64)
    return torch.from_numpy(values).to(device, non_blocking=True)
