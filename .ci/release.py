"""Checks that a tag may be released, and prints the notes of that release: release.py v1.2.3

The version stands in four places, which must agree: pyproject.toml, maskco/version.py, CITATION.cff, and CHANGELOG.md,
where the release is dated.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "pyproject.toml": r'^version = "(.+)"$',
    "maskco/version.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## (\S+) \(\d{4}-\d{2}-\d{2}\)$",
}


def release_notes(tag: str, root: Path) -> str:
    """What CHANGELOG.md says of the release. Raises ValueError, naming every place with another version."""
    found = {}
    for place, pattern in PLACES.items():
        match = re.search(pattern, (root / place).read_text(encoding="utf-8"), re.MULTILINE)
        found[place] = match[1] if match else "none"
    others = [f"{place} has {version}" for place, version in found.items() if f"v{version}" != tag]
    if others:
        raise ValueError(f"{tag} cannot be released: {', '.join(others)}. Correct them and move the tag")
    sections = re.split(r"^## .+$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return sections[1].strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(release_notes(sys.argv[1], ROOT))
    except ValueError as error:
        sys.exit(f"error: {error}")
