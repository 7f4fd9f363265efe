"""Methods with a tiny encoder, random views, and whole steps without an optimizer."""

from __future__ import annotations

import torch
from torch import nn

from maskco.config import find_method
from maskco.data.views import Views
from maskco.methods import Method, StepOutput
from maskco.nn import Encoder

SIZE, REGIONS, BATCH = 64, 3, 4
QUEUE = {"queue_size": 32, "key_momentum": 0.9}  # of methods that have one


def tiny_encoder() -> Encoder:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 2, 2)]
    return Encoder(nn.Sequential(*layers), channels=16, stride=8)


def random_views(seed: int = 0, batch: int = BATCH, regions: int = REGIONS) -> Views:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, batch, 3, SIZE, SIZE, generator=generator)
    corner = torch.rand(2, batch, regions, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 12 + 10 * torch.rand(2, batch, regions, 2, generator=generator)], -1)
    return Views(images[0], images[1], boxes[0], boxes[1])


def make(name: str, **options: object) -> Method:
    torch.manual_seed(1)
    kind = find_method(name)
    queue = {option: value for option, value in QUEUE.items() if option in kind.Options.__dataclass_fields__}
    return kind(tiny_encoder(), dim=8, **queue, **options)


def step(method: Method, views: Views) -> StepOutput:
    """All of a step but the optimizer's part."""
    method.start_step()
    output = method(views)
    method.end_step([output])
    return output


def states(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
