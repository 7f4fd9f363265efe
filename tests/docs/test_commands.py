"""Every `maskco …` command in the README and docs/ is one that the command line takes."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import tyro

from maskco.cli import Demo, Export, Features, PretrainRun, Report, ShowViews, commands
from maskco.config import METHODS, OptimOptions, PretrainConfig, find_method
from maskco.evaluate.options import Detection, Knn, Linear, Regions
from maskco.view_options import ViewConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FOREIGN = {"no-build-isolation", "gpus", "shm-size"}  # pip's and Docker's
SUBCOMMANDS = (ShowViews, Knn, Linear, Regions, Detection, Features, Export, Report, Demo)

pytestmark = pytest.mark.skipif(not PAGES[0].exists(), reason="not in a checkout")


def shown_commands(page: Path) -> list[list[str]]:
    """The words after `maskco`, in code blocks and in the text; comments, and what starts the call, are left out."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    shell = [block.replace("\\\n", " ") for language, block in blocks if language in ("", "bash")]
    lines = [line for block in shell for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`(maskco [^`]+)`(?!`)", text)
    calls = [re.search(r"(?:^|-m )maskco (.+)", line.strip()) for line in lines]
    return [shlex.split(call[1], comments=True) for call in calls if call]


def test_commands_are_found():
    found = {page.name: len(shown_commands(page)) for page in PAGES}
    assert found["README.md"] >= 6 and found["training.md"] >= 15


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks/README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PretrainConfig.of(data="PHOTOS", out="RUN").to_dict()
    Path("RUN").mkdir()
    Path("RUN", "config.json").write_text(json.dumps({"maskco": "", **config}), encoding="utf-8")  # for --resume
    for words in shown_commands(page):
        if words[-1] == "--help" or len(words) == 1:
            continue  # names a subcommand in passing
        try:
            tyro.cli(commands(words), args=words, console_outputs=False)
        except SystemExit as end:
            pytest.fail(f"maskco {' '.join(words)}: exits with {end.code}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_named_in_the_text_exist(page):
    kinds = [*SUBCOMMANDS, PretrainRun, ViewConfig, OptimOptions, *(find_method(name).Options for name in METHODS)]
    fields = {field.name.replace("_", "-") for kind in kinds for field in dataclasses.fields(kind)}
    named = set(re.findall(r"(?<!`)`--([a-z-]+)[^`]*`", page.read_text(encoding="utf-8")))
    assert named - FOREIGN <= fields
