"""`pytest --device` of conftest.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_the_tests_of_one_device_are_left():
    path = Path(__file__).parent / "ops/test_queue_push.py"
    command = [sys.executable, "-m", "pytest", str(path), "--collect-only", "-q", "--device", "sim"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parents[2])
    found = [line for line in done.stdout.splitlines() if "::" in line]
    devices = {part for line in found for part in re.split(r"[\[\]-]", line) if part in ("cpu", "sim", "cuda")}
    assert devices == {"sim"} and "deselected" in done.stdout, done.stdout + done.stderr
