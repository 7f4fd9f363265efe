"""A dry forward and backward pass before a run writes anything: does this encoder work at this image size?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maskco.config import PretrainConfig
from maskco.data.views import Views
from maskco.errors import ConfigError
from maskco.memory import memory_errors
from maskco.methods import Method, StepOutput
from maskco.nn.encoder import map_scale
from maskco.nn.ranks import alone
from maskco.runs.folder import METRICS_OF_OURS

EXPLODES = 100.0  # gradient norm with masks over that without; sound encoders stay below 5 (ours)
IMAGES = 2  # batch norms need more than one


def rehearse(method: Method, config: PretrainConfig, device: torch.device, dtype: torch.dtype | None) -> list[str]:
    """Names of learned parameters that get no gradient, in the method's order.

    Runs the method once, forward and backward, on two images of noise at the run's size and with full queues. If the
    method has masks, it runs again without them (`Method.plain_loss`). Weights, gradients, buffers and random numbers
    stay as they are. Each rank calls it on its own.

    Args:
        dtype: of autocast. None: it is off.

    Raises:
        ConfigError: the encoder or the method fails, the encoder's map has another shape than it says, the method does
            not return a StepOutput as it should be, a gradient is not finite, or masks make it explode. The message
            names encoder and image size.
    """
    who = f"encoder {config.run.encoder} at image_size {config.views.image_size}"
    learned = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    with alone(), no_trace(method, device), torch.autocast(device.type, dtype, enabled=dtype is not None):
        torch.manual_seed(0)
        for queue in method.queues.values():
            queue.cursor[1] = len(queue.features)
        views = noise_views(config, device)
        with told_in_one_line(who, "Choose an image_size that it takes, or another encoder"):
            with torch.no_grad(), memory_errors("lower image_size, or choose a smaller encoder"):
                features = method.encoder(views.query)
            check_map(who, features, views.query, method.encoder.channels, method.encoder.stride)
        named = f"method {config.run.method} with {who}"
        with told_in_one_line(named, "Choose another image_size or encoder, or correct the method if it is yours"):
            output = method(views)
            check_output(named, method, output)
            gradients = gradients_of(output.loss, list(learned.values()))
            loss = method.plain_loss(views)
            plain = gradients if loss is None else gradients_of(loss, list(learned.values()))
    check_gradients(who, dict(zip(learned, gradients, strict=True)), dict(zip(learned, plain, strict=True)))
    return [name for name, gradient in zip(learned, gradients, strict=True) if gradient is None]


def unused_line(unused: list[str]) -> str:
    """One line about parameters without gradient."""
    more = ", …" if len(unused) > 3 else ""
    return f"{len(unused)} parameters get no gradient and stay as they are: {', '.join(unused[:3])}{more}"


@contextmanager
def told_in_one_line(who: str, advice: str) -> Iterator[None]:
    """Raises ConfigError for whatever else is raised inside. Encoders and methods are anyone's code."""
    try:
        yield
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        raise ConfigError(f"{who} fails in its first pass ({type(error).__name__}: {reason}). {advice}") from error


@contextmanager
def no_trace(method: Method, device: torch.device) -> Iterator[None]:
    """Restores random numbers and buffers (batch norms' statistics, counters, cursors), and compiles nothing. The
    features of queues are not copied, since only a push changes them."""
    features = [queue.features for queue in method.queues.values()]
    before = {name: buffer.clone() for name, buffer in method.named_buffers() if not any(buffer is f for f in features)}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in method.named_buffers():
                    if name in before:
                        buffer.copy_(before[name])


def noise_views(config: PretrainConfig, device: torch.device) -> Views:
    """Noise, with each region of the largest size in a corner of the image."""
    size = config.views.image_size
    query, key = torch.randn(2, IMAGES, 3, size, size, device=device)
    query, key = (images.contiguous(memory_format=torch.channels_last) for images in (query, key))
    side = config.views.region_scale[1] * size
    corners = torch.tensor([[0.0, 0.0], [size - side, size - side], [0.0, size - side], [size - side, 0.0]])
    corners = corners[torch.arange(config.views.regions) % len(corners)]
    boxes = torch.cat([corners, corners + side], dim=1).to(device).expand(IMAGES, -1, -1)
    return Views(query, key, boxes, boxes)


def check_output(who: str, method: Method, output: object) -> None:
    """Raises ConfigError unless a method returns what the loop takes."""
    wrong = None
    pushes_itself = type(method).end_step is not Method.end_step  # perhaps more than the queues that the loop knows
    if not isinstance(output, StepOutput):
        wrong = f"returns {type(output).__name__}, not a StepOutput"
    elif not isinstance(output.loss, Tensor) or output.loss.shape or not output.loss.requires_grad:
        wrong = "returns a loss that is no tensor of shape [] with a gradient"
    elif bad := [name for name, value in output.metrics.items() if not isinstance(value, Tensor) or value.shape]:
        wrong = f"returns a metric {bad[0]!r} that is no tensor of shape []"
    elif taken := sorted((METRICS_OF_OURS | {"images_per_s"}) & output.metrics.keys()):
        wrong = f"returns a metric {taken[0]!r}, which is the name of one of every run. Rename it"
    elif method.queues.keys() - output.pushes.keys() or (output.pushes.keys() - method.queues and not pushes_itself):
        names = [", ".join(each) or "none" for each in (output.pushes, method.queues)]
        wrong = f"returns keys for the queues {names[0]}, and its queues are {names[1]}"
    if wrong:
        raise ConfigError(f"{who} {wrong}")


def gradients_of(loss: Tensor, learned: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    with memory_errors("lower image_size, or choose a smaller encoder"):
        return torch.autograd.grad(loss, learned, allow_unused=True)


def check_map(who: str, features: Tensor, images: Tensor, channels: int, stride: int) -> None:
    """Raises ConfigError unless the map is [B, channels, h, w], with h and w of size / stride, rounded up or down."""
    batch, found = features.shape[:2]
    if batch != IMAGES or found != channels:
        raise ConfigError(
            f"{who} returns maps {list(features.shape)}, not [{IMAGES}, {channels}, h, w]. "
            "Set its .channels to the number that it returns, and return channels first"
        )
    try:
        map_scale(features, images, stride)
    except ValueError as error:
        raise ConfigError(f"{who} {error}. Choose another image_size or encoder") from error


def check_gradients(who: str, masked: dict[str, Tensor | None], plain: dict[str, Tensor | None]) -> None:
    """Raises ConfigError if a gradient is not finite, or if masks make the whole explode. The message says where."""
    norms = {name: norm(gradient) for name, gradient in masked.items() if gradient is not None}
    others = {name: norm(gradient) for name, gradient in plain.items() if gradient is not None}
    for what, found in (("", others), (" with masks", norms)):
        worst = next((name for name, value in found.items() if not math.isfinite(value)), None)
        if worst:
            raise ConfigError(f"{who}: the gradient of {worst} is not finite{what}. {advice(what)}")
    whole, other = math.hypot(*norms.values()), math.hypot(*others.values())
    if whole > EXPLODES * other:
        worst = max(norms, key=norms.__getitem__)
        raise ConfigError(
            f"{who}: masks make the gradient explode (norm {whole:.2g} with, {other:.2g} without, most of it in "
            f"{worst}). {advice(' with masks')}"
        )


def advice(what: str) -> str:
    return "Choose another mask_fill, grey or noise" if what else "Choose another encoder, or amp bf16 or off"


def norm(gradient: Tensor) -> float:
    return gradient.double().norm().item()
