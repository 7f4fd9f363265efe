"""How the command line words errors: arguments of Python become flags, but only those that the command has."""

from __future__ import annotations

import pytest

from commands import run_main
from maskco import cli
from maskco.console import one_line_errors, with_flags
from maskco.errors import UserError

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


def test_every_command_knows_its_flags():
    flags = {name: cli.flags(kind) for name, kind in cli.COMMANDS.items()}
    assert {"data", "out", "resume", "batch_size"} <= flags["pretrain"]
    assert {"data", "k", "lr", "architecture"} <= flags["eval"] and "task" not in flags["eval"]  # nested
    assert flags["export"] == {"format", "out"}  # run is positional
    assert flags["info"] == set()


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if cli.flags(cli.COMMANDS[name])])
def test_the_flags_are_those_of_help(command, capsys):
    tasks = ["knn", "linear", "regions", "detection"] if command == "eval" else [""]
    shown = ""
    for task in tasks:
        assert run_main(*f"{command} {task} --help".split()) == 0
        shown += capsys.readouterr().out
    for name in cli.flags(cli.COMMANDS[command]):
        assert f"--{name.replace('_', '-')}" in shown
