"""Fixtures of the ops' tests."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def kind(request, monkeypatch) -> str:
    if request.param == "tf32":
        monkeypatch.setattr(importlib.import_module("maskco.ops.contrastive"), "allow_tf32", lambda: True)
    return request.param
