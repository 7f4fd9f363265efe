"""How the command line words errors: arguments of Python become flags, but only those that the command has."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import tyro

from commands import run_main
from maskco import cli
from maskco.console import one_line_errors, with_flags
from maskco.errors import UserError
from maskco.files import write_atomically

FLAGS = {"data", "lr", "batch_size", "resume", "amp", "workers"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("data: no such folder: x", "--data: no such folder: x"),
        ("batch_size must be at least 1, got 0", "--batch-size must be at least 1, got 0"),
        ("lower `workers` or `batch_size`", "lower --workers or --batch-size"),
        ("continue it with `resume=True`", "continue it with --resume"),
        ("start over with `resume=False`, or take `amp=off`", "start over with --no-resume, or take --amp off"),
        ("out: holds a run, not `queue`", "out: holds a run, not `queue`"),
        ("lr is 3; the data: none; datasets: x", "lr is 3; the data: none; datasets: x"),
    ],
)
def test_arguments_become_the_flags_of_the_command(message, shown):
    assert with_flags(message, FLAGS) == shown


def test_errors_show_flags_but_keep_python_names_in_python(capsys):
    error = UserError("lr must be positive: lower `workers`")
    with pytest.raises(SystemExit) as stopped, one_line_errors("[rank 1] ", FLAGS):
        raise error
    assert stopped.value.code == 2 and str(error) == "lr must be positive: lower `workers`"
    assert capsys.readouterr().err == "[rank 1] error: --lr must be positive: lower --workers\n"


def parsed(line: str) -> object:
    arguments = line.split()
    return tyro.cli(cli.commands(arguments), prog="maskco", args=arguments)


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("pretrain --data x --out y", {"data", "out", "resume", "batch_size", "lr", "crop_scale", "queue_size"}),
        ("pretrain --data x --out y --method simclr", {"temperature", "resume"}),
        ("views --data x", {"data", "count", "crop_scale"}),
        ("eval knn timm:resnet18", {"data", "k", "architecture"}),
        ("eval detection timm:resnet18", {"data", "proposals"}),
        ("export run --format timm --out x.pth", {"format", "out"}),
        ("report run", {"out", "projection"}),
        ("info", set()),
        ("demo", {"epochs"}),
    ],
)
def test_flags_are_those_of_help(line, some, capsys):
    flags = cli.flags(parsed(line))
    assert flags >= some and not flags & {"run", "runs", "encoders", "task"}  # positional ones and groups
    assert run_main(*line.split(), "--help") == 0
    shown = capsys.readouterr().out
    for name in flags:
        assert f"--{name.replace('_', '-')}" in shown


def test_commands_show_their_own_flags(tmp_path, capsys):
    """Before the options are parsed, after it, and for an argument that the command has no flag for."""
    assert run_main("pretrain", "--out", tmp_path / "none", "--resume") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out: ") and "or name --data to start one" in error
    assert run_main("report") == 2
    assert capsys.readouterr().err.startswith("error: runs: none was named. Name at least one run folder")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys):
    def write(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit), one_line_errors():
        write_atomically(tmp_path / "x.png", write)
    assert capsys.readouterr().err == f"error: [Errno 28] No space left on device: '{tmp_path}/x.png'\n"
    assert not any(tmp_path.iterdir())
