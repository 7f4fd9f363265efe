"""Checks what an sdist and the wheel that was made from it hold: contents.py FOLDER"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

SDIST = re.compile(
    r"(benchmarks|cmake|csrc|docs|maskco|tests|tools)/.+|[A-Z]+\.md|CITATION\.cff|CMakeLists\.txt|LICENSE|Makefile|PKG-INFO"
    r"|pyproject\.toml|\.clang-format|\.gitignore"
)
WHEEL = re.compile(
    r"maskco/.+\.(py|png|md)|maskco/py\.typed|maskco/_C\.\S+\.so|\S+/LICENSE\.fashion-mnist|maskco-\S+\.dist-info/.+"
)
JUNK = re.compile(r"__pycache__|\.pyc$|\.partial$|\.pt$")
NEEDED_IN_SDIST = ["LICENSE", "README.md", "CMakeLists.txt", "csrc/schema.cpp", "tests/conftest.py"]
NEEDED_IN_WHEEL = [
    "maskco/_C.",
    "maskco/py.typed",
    "maskco/data/sources/demo_assets/items_train.png",
    "/entry_points.txt",
]
NEEDED_IN_WHEEL += ["/licenses/LICENSE", "/licenses/maskco/data/sources/demo_assets/LICENSE.fashion-mnist"]


def check(archive: Path, names: list[str], allowed: re.Pattern[str], needed: list[str]) -> None:
    strange = [name for name in names if not allowed.fullmatch(name) or JUNK.search(name)]
    missing = [part for part in needed if not any(part in name for name in names)]
    print(f"{archive.name}: {len(names)} files, {archive.stat().st_size >> 10} KiB")
    if strange or missing:
        sys.exit(f"not expected there: {strange}; missing: {missing}")


folder = Path(sys.argv[1])
(sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
with tarfile.open(sdist) as archive:
    files = [member.name.partition("/")[2] for member in archive if member.isfile()]
check(sdist, files, SDIST, NEEDED_IN_SDIST)
with zipfile.ZipFile(wheel) as archive:
    check(wheel, archive.namelist(), WHEEL, NEEDED_IN_WHEEL)
if "-py3-" in wheel.name:
    sys.exit(f"{wheel.name} claims to fit every Python")
