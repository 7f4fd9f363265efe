from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import make_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures") / "photos")
