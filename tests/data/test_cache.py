"""The cache folder by the environment, and where no home folder is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskco.data.cache import cache_folder
from maskco.runs import trust


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any of the variables, and without a home folder."""
    for name in ("MASKCO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does if there is none
    return monkeypatch


def test_variables_need_no_home_folder(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("a") == tmp_path / "xdg/maskco/a" and (tmp_path / "xdg/maskco/a").is_dir()
    environment.setenv("MASKCO_CACHE", str(tmp_path / "own"))
    assert cache_folder("a") == tmp_path / "own/a"


@pytest.mark.parametrize("own", ["", "~/cache"])
def test_without_a_home_folder_the_error_says_what_to_set(environment: pytest.MonkeyPatch, own: str) -> None:
    environment.setenv("MASKCO_CACHE", own)
    with pytest.raises(OSError, match=r"^no home folder is known\. Set MASKCO_CACHE$"):
        cache_folder("a")
    assert trust.sign("photos") is None, "runs go on without a key"
