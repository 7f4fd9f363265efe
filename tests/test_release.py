"""A tag is released only if all places with a version agree with it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "release.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not in a checkout")
FILES = {
    "pyproject.toml": '[project]\nname = "maskco"\nversion = "1.2.3"\n\n[tool.ruff]\nline-length = 120\n',
    "maskco/version.py": '"""The version."""\n\n__version__ = "1.2.3"\n',
    "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.3\n",
    "CHANGELOG.md": "# Changes\n\n## 1.2.3 (2026-11-29)\n\n- New.\n\n### Fixed\n\n- That.\n\n## 1.2.2 (2026-01-01)\n",
}


@pytest.fixture
def release():
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_notes_are_the_newest_section(release, checkout):
    assert release.release_notes("v1.2.3", checkout) == "- New.\n\n### Fixed\n\n- That."


@pytest.mark.parametrize("place", FILES)
def test_a_place_with_another_version_is_named(release, checkout, place):
    (checkout / place).write_text(FILES[place].replace("1.2.3", "1.2.4", 1))
    with pytest.raises(ValueError, match=rf"^v1\.2\.3 cannot be released: {place} has 1\.2\.4\. Correct"):
        release.release_notes("v1.2.3", checkout)


def test_an_undated_section_is_not_released(release, checkout):
    (checkout / "CHANGELOG.md").write_text("# Changes\n\n## 1.2.3 (unreleased)\n\n- New.\n")
    with pytest.raises(ValueError, match=r"CHANGELOG\.md has none"):
        release.release_notes("v1.2.3", checkout)


def test_this_checkout_has_one_version(release):
    """The changelog's may still lack its date."""
    versions = {
        re.search(pattern.replace(r"\d{4}-\d{2}-\d{2}", ".+"), (ROOT / place).read_text(), re.MULTILINE)[1]
        for place, pattern in release.PLACES.items()
    }
    assert len(versions) == 1
