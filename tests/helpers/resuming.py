"""Runs that are interrupted, and states that must be equal."""

from __future__ import annotations

import os
import signal

import torch

from maskco.data.samples import PretrainDataset


def same(first: object, second: object) -> bool:
    """Bitwise equality of nested states, clock times left out."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first if k != "seconds")
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or first != first


class SignalAt(PretrainDataset):
    """Sends this process a signal when the given image of the run is loaded."""

    at, loaded = -1, 0

    def __getitem__(self, key):
        SignalAt.loaded += 1
        if SignalAt.loaded == SignalAt.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(key)
