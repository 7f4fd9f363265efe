"""The scripts that draw the figures of docs/ still run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "figures" / "method.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="not in a checkout")
def test_the_method_is_drawn():
    figure = runpy.run_path(str(SCRIPT))["draw"]()
    (axes,) = figure.axes
    assert len(axes.images) == 3  # a picture and two views of it
    assert {"encoder", "info_nce", "queries", "keys", "loss"} <= {text.get_text() for text in axes.texts}
