"""One step tried on a copy before a run starts: does the encoder run at this size, and are its gradients sound?

timm has over a thousand encoders. Some need a larger image than the run's, some return no map, some have parameters
that the chosen map does not depend on, and in some the masks make gradients explode. All of that shows here, in one
line and before a file is touched, instead of at the first step.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from maskco.config import ConfigError, PretrainConfig, UserError
from maskco.data.views import Views
from maskco.methods import Method

PICTURES = 4  # of the trial batch
SOUND = 1e3  # norm of the encoder's first gradient. Sound ones lie below 50, exploding ones reach infinity
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def rehearse(method: Method, config: PretrainConfig, device: torch.device) -> list[str]:
    """Runs one step on a copy of `method`, and freezes those parameters of `method` that it gave no gradient.

    The frozen ones would wait for their gradient in vain under DistributedDataParallel, and weight decay has never
    touched them. Nothing else changes: weights, batch statistics, queue and random numbers stay as they are.

    Returns lines for the log.

    Raises:
        ConfigError: the encoder fails at this image size, or its gradient is not finite or explodes.
    """
    trial = copy.deepcopy(method).train()
    trial.shuffle_keys = False  # no other rank is asked
    trial.queue.cursor[1] = len(trial.queue.features)  # the random rows: without negatives there is no gradient
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        amp = torch.autocast(device.type, AMP_DTYPES[config.amp]) if config.amp != "off" else nullcontext()
        try:
            with amp:
                loss = trial(_views(config, device), whole_step=False).loss
            loss.backward()
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # each encoder fails in its own way
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(
                f"encoder {config.encoder} cannot be trained at image_size {config.image_size}: {reason} "
                "Choose another image_size, stage or encoder."
            ) from error
    _require_sound_gradients(trial, config)
    return _freeze_unused(method, trial)


def _views(config: PretrainConfig, device: torch.device) -> Views:
    """Smooth random images with regions in their corners, on the CPU from a generator of their own."""
    count, side = min(PICTURES, config.batch_size), config.image_size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2 * count, 3, 8, 8, generator=generator)
    images = interpolate(coarse, size=(side, side), mode="bilinear")
    images += 0.1 * torch.randn(images.shape, generator=generator)
    query, key = images.to(device, memory_format=torch.channels_last).chunk(2)
    region = min(max(sum(config.region_scale) / 2 * side, config.min_region_pixels), side)
    corners = torch.tensor([[i % 2, i // 2 % 2] for i in range(config.regions)]) * (side - region)  # [R, 2]
    boxes = torch.cat([corners, corners + region], dim=1).to(device).expand(count, -1, -1)  # [B, R, 4]
    return Views(query, key, boxes, boxes)


def _require_sound_gradients(trial: Method, config: PretrainConfig) -> None:
    norms = {name: p.grad.float().norm() for name, p in trial.encoder.named_parameters() if p.grad is not None}
    if not norms:
        raise ConfigError(f"encoder {config.encoder}: none of its parameters gets a gradient. Choose another stage.")
    values = torch.stack(list(norms.values())).double().cpu()
    total = values.norm().item()
    if total <= SOUND:
        return
    worst = list(norms)[int(values.nan_to_num(math.inf, math.inf).argmax())].rpartition(".")[0]
    advice = "Choose another encoder or stage."
    if getattr(trial, "mask_fill", None) == "mean":
        advice = "Masks filled with the mean colour do this to encoders with LayerNorm: choose another mask_fill."
    raise ConfigError(
        f"encoder {config.encoder} explodes: its first gradient has norm {total:.2g}, where sound ones stay below 100 "
        f"(most of it in {worst}). {advice}"
    )


def _freeze_unused(method: nn.Module, trial: nn.Module) -> list[str]:
    gradients: dict[str, Tensor | None] = {name: p.grad for name, p in trial.named_parameters() if p.requires_grad}
    unused = [name for name, gradient in gradients.items() if gradient is None]
    for name in unused:
        method.get_parameter(name).requires_grad_(False)
    if not unused:
        return []
    shown = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
    return [f"{len(unused)} of {len(gradients)} parameters do not take part and are left as they are: {shown}"]
