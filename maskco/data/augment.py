"""Color changes and blur of one image, as float32 [3, H, W] with colors in [0, 1], on the CPU.

The values are those of torchvision's functions, in a fraction of their time. Most of a view's time is spent here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # of red, green and blue in luminance, as torchvision has it

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the steps of color jitter


class Colors(NamedTuple):
    """The values drawn for one view by MoCo v2's color augmentations."""

    jitter: list[tuple[int, float]]  # the four steps in the order drawn, with factor or shift; none: no jitter
    grey: bool
    sigma: float  # of the blur in pixels; 0: none

    def row(self) -> list[float]:
        """As ten numbers, for a batch.

        The first is how many of the three steps other than the shift of hue come before it (-1: no jitter). Step and
        factor of each of the three follow, then the shift of hue, grey and sigma.
        """
        steps = [step for step, _ in self.jitter]
        if not steps:
            return [-1, 0, 1, 0, 1, 0, 1, 0, self.grey, self.sigma]
        scalings = [number for step, factor in self.jitter if step != HUE for number in (step, factor)]
        hue = steps.index(HUE)
        return [hue, *scalings, self.jitter[hue][1], self.grey, self.sigma]


def recolor(view: Tensor, colors: Colors) -> Tensor:
    """[3, S, S], overwritten, with its colors changed and blurred as drawn. [1, S, S] if it lost its color."""
    for step, amount in colors.jitter:
        if step == BRIGHTNESS:
            view = scale_from(None, view, amount)
        elif step == CONTRAST:
            view = scale_from(mean_grey(view), view, amount)
        elif step == SATURATION:
            view = scale_from(greyscale(view), view, amount)
        else:
            view = shift_hue(view, amount)
    if colors.grey:
        view = greyscale(view)
    return gaussian_blur(view, colors.sigma) if colors.sigma else view


def scale_from(origin: Tensor | None, image: Tensor, factor: float) -> Tensor:
    """origin + factor × (image - origin), cut off at 0 and 1. Overwrites the image.

    It changes brightness from black (None), contrast from `mean_grey`, and saturation from `greyscale`.
    """
    image = image.mul_(factor) if origin is None else image.lerp_(origin, 1 - factor)
    return image.clamp_(0, 1) if factor > 1 else image  # a factor of at most 1 leads nowhere outside


def greyscale(image: Tensor) -> Tensor:
    """[3, H, W] -> luminance [1, H, W]."""
    return (torch.tensor([GREY]) @ image.flatten(1)).view(1, *image.shape[1:])


def mean_grey(image: Tensor) -> Tensor:
    """The mean luminance of [3, H, W], 0-d."""
    return image.mean((1, 2)) @ torch.tensor(GREY)


def shift_hue(image: Tensor, shift: float | Tensor) -> Tensor:
    """Turn the hue of [3, H, W] colors in [0, 1] by `shift` turns, at most one. Brightness and saturation stay.
    Also takes [n, 3, H, W], on any device, with shifts [n, 1, 1]. Overwrites the image.

    Let h be the hue in sixths of a turn. A channel is value - chroma × p(h - its own hue). The function p has period 6.
    For |h| <= 3 it is |h| - 1 within [0, 1]. It follows that |h| = 2 + p(red) - p(green) - p(blue), and that h is
    positive where green exceeds blue. So nothing has to find the largest channel, which would take long.
    """
    red, green, blue = image.unbind(-3)
    value = image.amax(-3)
    chroma = value - image.amin(-3)
    hue = (green + blue).sub_(red).sub_(value).div_(chroma.clamp_min(1e-12)).add_(2).copysign_(green - blue)
    hue.add_(6 * shift)
    hue.sub_(hue.div(6).round_(), alpha=6)  # into [-3, 3]
    # For |h| <= 6, and here it is at most 5, p is 2 - ||h| - 3| within [0, 1].
    own = torch.tensor((0.0, 2.0, -2.0)).view(3, 1, 1).to(image.device, non_blocking=True)
    folded = (hue.unsqueeze(-3) - own).abs_().sub_(3).abs_().clamp_(1, 2)
    return torch.addcmul(value.sub_(chroma, alpha=2).unsqueeze(-3), chroma.unsqueeze(-3), folded, out=image)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """[C, S, S] blurred over both axes. Weights that fall outside go to the others, so that the border does not darken.

    It is a sum of shifted images: with so few channels, torch's convolutions take several times longer.
    """
    size, radius = image.shape[-1], math.ceil(4 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    for axis in (-1, -2):
        blurred = image.clone()
        for distance in range(1, min(radius, size - 1) + 1):
            weight, kept = weights[radius + distance], size - distance
            blurred.narrow(axis, distance, kept).add_(image.narrow(axis, 0, kept), alpha=weight)
            blurred.narrow(axis, 0, kept).add_(image.narrow(axis, distance, kept), alpha=weight)
        image = blurred
    sums = torch.from_numpy(np.convolve(np.ones(size), weights)[radius : radius + size]).float()
    return image.div_(sums[:, None] * sums)
