"""What the tests of weights share."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn


@pytest.fixture(scope="session")
def resnet() -> nn.Module:
    """torchvision's, whose batch norms have seen something."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18()
    model.train()(torch.rand(8, 3, 32, 32))
    return model.eval()
