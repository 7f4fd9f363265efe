"""The command line, run in this process, and what it leaves on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskco import cli


def run_main(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return stopped.value.code


def read_tree(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files}
