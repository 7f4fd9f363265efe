"""Every `maskco …`, `python -m benchmarks.…` and `make …` in the README and docs/ is a command that exists."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import tyro

from maskco.cli import Demo, Export, Features, Report, Sheet, Start, commands
from maskco.config import METHODS, OptimOptions, PretrainConfig, find_method
from maskco.evaluate.options import Detection, Knn, Linear, Regions
from maskco.run_options import RunOptions
from maskco.view_options import MaskOptions, ViewConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_BENCHMARKS = [*PAGES, ROOT / "benchmarks/README.md"]
FOREIGN = {"no-build-isolation", "gpus", "shm-size"}  # pip's and Docker's
SUBCOMMANDS = (Sheet, Knn, Linear, Regions, Detection, Features, Export, Report, Demo)

pytestmark = pytest.mark.skipif(not PAGES[0].exists(), reason="not in a checkout")


def shown_lines(page: Path) -> list[str]:
    """Those of code blocks."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    shell = [block.replace("\\\n", " ") for language, block in blocks if language in ("", "bash")]
    return [line.strip() for block in shell for line in block.splitlines()]


def shown_commands(page: Path) -> list[list[str]]:
    """The words after `maskco`, in code blocks and in the text; comments, and what starts the call, are left out."""
    lines = shown_lines(page) + re.findall(r"(?<!`)`(maskco [^`]+)`(?!`)", page.read_text(encoding="utf-8"))
    calls = [re.search(r"(?:^|-m )maskco (.+)", line) for line in lines]
    return [shlex.split(call[1], comments=True) for call in calls if call]


def shown_benchmarks(page: Path) -> list[list[str]]:
    """The words after `python -m`."""
    lines = shown_lines(page) + re.findall(r"`(python -m benchmarks[^`]+)`", page.read_text(encoding="utf-8"))
    calls = [re.match(r"python -m (benchmarks\..+)", line) for line in lines]
    return [shlex.split(call[1], comments=True) for call in calls if call and "…" not in call[1]]


def test_the_readme_is_read_in_one_go():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 130


def test_commands_are_found():
    found = {page.name: len(shown_commands(page)) for page in PAGES}
    assert found["README.md"] >= 4 and found["training.md"] >= 2
    assert len(shown_commands(ROOT / "docs/training.md")) >= 15
    assert len(shown_benchmarks(ROOT / "docs/results/claims.md")) >= 5


@pytest.mark.parametrize("page", WITH_BENCHMARKS, ids=lambda page: str(page.relative_to(ROOT)))
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


class Parsed(Exception):
    """A program has read its arguments."""


@pytest.mark.parametrize("page", WITH_BENCHMARKS, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
def test_commands_of_benchmarks_parse(page, monkeypatch, capsys):
    parse, parse_args = tyro.cli, argparse.ArgumentParser.parse_args

    def stop(read):
        def reading(*args, **kwargs):
            read(*args, **kwargs)
            raise Parsed

        return reading

    monkeypatch.setattr(tyro, "cli", stop(parse))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop(parse_args))
    for name, *words in shown_benchmarks(page):
        if name == "benchmarks.cupy_example":
            continue  # needs cupy, and takes no arguments
        monkeypatch.setattr("sys.argv", [name, *words])
        with pytest.raises(Parsed):
            runpy.run_module(name, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("page", [*WITH_BENCHMARKS, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_targets_of_make_exist(page):
    text = page.read_text(encoding="utf-8")
    lines = [line.partition("#")[0] for line in shown_lines(page)] + re.findall(r"`(make [a-z0-9 -]+)`", text)
    shown = {word for line in lines if line.startswith("make ") for word in line.split()[1:]}
    targets = re.findall(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert shown <= set(targets[0].split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_named_in_the_text_exist(page):
    kinds = [
        *SUBCOMMANDS,
        Start,
        RunOptions,
        MaskOptions,
        ViewConfig,
        OptimOptions,
        *(find_method(name).Options for name in METHODS),
    ]
    if page.parent.name == "results":
        from benchmarks.claims.__main__ import Options as Claims

        kinds.append(Claims)
    fields = {field.name.replace("_", "-") for kind in kinds for field in dataclasses.fields(kind)}
    named = set(re.findall(r"(?<!`)`--([a-z-]+)[^`]*`", page.read_text(encoding="utf-8")))
    assert named - FOREIGN <= fields
