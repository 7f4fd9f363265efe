"""Colour changes, blur and normalisation of a whole batch of views at once, on any device.

    views = finish(raw, device)     # RawViews [B, …] as the loading workers give them -> Views on the device

Each view gets what was drawn for it alone, so the result is that of `TwoViews` up to rounding: it depends on nothing
else in the batch. Nothing here waits for the device: which views share a step is read from the rows while they are
still the host's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskco.data.colour import CONTRAST, GREY, SATURATION, shift_hue
from maskco.data.views import MEAN, STD, RawViews, Views

CHUNK = 1 << 20  # numbers that the CPU's caches hold while step follows step


@torch.no_grad()
def finish(raw: RawViews, device: torch.device) -> Views:
    """Recolours, blurs and normalises in float32 on the device, where the images go as they are, as uint8.

    The views are float32 [B, 3, S, S] in channels_last.
    """
    count = len(raw.query)
    images = torch.cat([part.to(device, non_blocking=True) for part in (raw.query, raw.key)])
    with torch.autocast(device.type, enabled=False):
        images = recolour(images, torch.cat((raw.query_colours, raw.key_colours)))
    boxes = (part.to(device, non_blocking=True) for part in (raw.query_boxes, raw.key_boxes))
    return Views(images[:count], images[count:], *boxes)


def recolour(images: Tensor, rows: Tensor) -> Tensor:
    """uint8 [N, 3, S, S] on any device and their `Colours` as rows [N, 10] on the CPU -> float32 [N, 3, S, S]."""
    out = torch.empty(images.shape, dtype=torch.float32, device=images.device, memory_format=torch.channels_last)
    # Sorted so that, whatever the order of their steps, all views that take one together stand side by side.
    order = rows[:, 0].argsort(descending=True, stable=True)
    chunk = len(rows) if images.is_cuda else max(CHUNK // images[0].numel(), 1)
    scale, offset = _channels(1 / s for s in STD), _channels(-m / s for m, s in zip(MEAN, STD, strict=True))
    scale, offset = _put(scale, images), _put(offset, images)
    for part in order.split(chunk):
        place, own = _put(part, images), rows[part]
        views = images[place] * (1 / 255)
        jitter(views, own)
        (grey,) = own[:, 8].numpy().nonzero()
        if len(grey):
            grey = _put(torch.from_numpy(grey), images)
            views[grey] = greyscale(views[grey]).expand(-1, 3, -1, -1)
        (blurred,) = own[:, 9].numpy().nonzero()
        if len(blurred):
            sigma = own[blurred, 9]
            blurred = _put(torch.from_numpy(blurred), images)
            views[blurred] = gaussian_blur(views[blurred], sigma)
        out[place] = torch.addcmul(offset, views, scale)
    return out


def jitter(views: Tensor, rows: Tensor) -> None:
    """Colour jitter of [n, 3, S, S], in place; rows [n, 10] on the CPU, sorted by the first column, descending.

    Brightness, contrast and saturation are one operation in the batch, of which each view takes three: some before its
    hue is shifted, the rest after. So the k-th before is that of the first views, the k-th after that of the last.
    """
    before = rows[:, 0].numpy()
    jittered = int((before >= 0).sum())
    if not jittered:
        return
    heads = [int((before > k).sum()) for k in range(3)]
    numbers = _put(rows[:jittered], views)[:, :, None, None, None]  # [n, 10, 1, 1, 1]
    steps, factors, hue = numbers[:, 1:7:2], numbers[:, 2:7:2], numbers[:, 7, 0]
    from_mean, from_grey = ((1 - factors) * (steps == step) for step in (CONTRAST, SATURATION))

    def scale(k: int, some: slice) -> None:
        chosen = views[some]
        if len(chosen):
            grey = greyscale(chosen)
            mean = grey.mean((-2, -1), keepdim=True)
            origin = torch.addcmul(mean * from_mean[some, k], grey, from_grey[some, k])
            torch.addcmul(origin, chosen, factors[some, k], out=chosen).clamp_(0, 1)

    for k, head in enumerate(heads):
        scale(k, slice(0, head))
    views[:jittered] = shift_hue(views[:jittered], hue)
    for k, head in enumerate(heads):
        scale(k, slice(head, jittered))


def greyscale(images: Tensor) -> Tensor:
    """[n, 3, H, W] -> luminance [n, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).unsqueeze(1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """[n, C, S, S] blurred by sigma [n], which is on the CPU; at the border as `colour.gaussian_blur` does it."""
    size = images.shape[-1]
    radius = (4 * sigma).ceil()
    reach = min(int(radius.max()), size - 1)
    distance = torch.arange(reach + 1.0)
    weights = (-0.5 * (distance / sigma[:, None]) ** 2).exp() * (distance <= radius[:, None])  # [n, reach + 1]
    weights = _put(weights, images).mT[:, :, None, None, None]

    def along(axis: int, image: Tensor) -> Tensor:
        blurred = image.clone()
        for distance in range(1, reach + 1):
            kept = size - distance
            blurred.narrow(axis, distance, kept).addcmul_(image.narrow(axis, 0, kept), weights[distance])
            blurred.narrow(axis, 0, kept).addcmul_(image.narrow(axis, distance, kept), weights[distance])
        return blurred

    sums = along(-1, images.new_ones(len(images), 1, 1, size))
    return along(-2, along(-1, images)).div_(sums * sums.mT)


def _channels(values) -> Tensor:
    return torch.tensor(tuple(values)).view(3, 1, 1)


def _put(tensor: Tensor, beside: Tensor) -> Tensor:
    return tensor.to(beside.device, non_blocking=True)
