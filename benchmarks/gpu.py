"""What the owner of a GPU runs: the ops' tests, the benchmarks, and training, each in under ten minutes.

    python -m benchmarks.gpu test         # the ops' tests on the GPU, then some of them under compute-sanitizer
    python -m benchmarks.gpu bench        # the benchmarks, into benchmarks/results/*_cuda.json
    python -m benchmarks.gpu train        # the parts of a training step, and a short run that is evaluated
    python -m benchmarks.gpu sanitize     # all of compute-sanitizer, without time limits

`make gpu` builds maskco for the GPU and runs the first three. This module needs maskco installed with its CUDA kernels.
A step stops at the first command that fails or runs out of time.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.harness import check_device
from maskco import build_info
from maskco.console import one_line_errors
from maskco.devices import usable_cores
from maskco.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (sys.executable, "-m")
MOST_WORKERS = 14  # loading processes
SHORT = "test_cuda or test_equals or test_values_and_gradients or queue_push"  # every op, a third of all tests
# Without torch's caching allocator every tensor has bounds of its own. Graphs cannot be captured without it.
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "MASKCO_REQUIRE_CUDA": "1"}
KERNELS = {"MASKCO_REQUIRE_KERNELS": "1"}  # or else plain torch would be timed under our name


@dataclass(frozen=True)
class Command:
    name: str
    words: tuple[str, ...]
    limit: int | None = None  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # a program; where it is missing, the command is left out


@dataclass
class Options:
    step: Annotated[Literal["test", "bench", "train", "sanitize"], tyro.conf.Positional]
    out: Path = Path("build/gpu")
    """Folder for logs, and for the run of train."""
    device: Literal["cuda", "sim"] = "cuda"
    """Where the tests run. sim: the simulated GPU, which needs nvcc and no GPU, and takes much longer."""
    only: str = ""
    """Run only the tests that match this expression, as pytest -k does."""
    data: str = "demo"
    """Folder of images for the timed training step, from the checkout's root, or "demo"."""
    batch_size: int = 256
    """Images of the timed training step. Choose fewer if the GPU's memory is too small."""


def test(options: Options) -> list[Command]:
    chosen = ("-k", options.only) if options.only else ()
    pytest = (*PYTHON, "pytest", "tests/ops", "-q", "--device", options.device, *chosen)
    if options.device == "sim":
        return [Command("tests", pytest, environment={"MASKCO_REQUIRE_SIM": "1"})]
    return [
        Command("tests", pytest, 300, {"MASKCO_REQUIRE_CUDA": "1"}),
        sanitizer("memcheck", options.only or SHORT, 240),
    ]


def sanitize(options: Options) -> list[Command]:
    return [sanitizer(tool, options.only) for tool in ("memcheck", "racecheck", "synccheck")]


def sanitizer(tool: str, tests: str, limit: int | None = None) -> Command:
    checked = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1")
    chosen = f"({tests}) and not graph" if tests else "not graph"
    pytest = (*PYTHON, "pytest", "tests/ops", "-q", "--device", "cuda", "-k", chosen, "--timeout", "0")
    return Command(tool, (*checked, *pytest), limit, SANITIZED, needs="compute-sanitizer")


def bench(options: Options) -> list[Command]:
    """The short ones first. The losses over all pairs, a hundred cases, are compared with plain torch alone, since
    compiling and the packages would take longer than all the rest."""
    return [
        benchmark("queue", 40),
        benchmark("region_pool", 100),
        benchmark("info_nce", 190),
        benchmark("contrast", 150, "--impl", "eager"),
        Command("counters", (*PYTHON, "benchmarks.counters", "--json", result("counters")), 100, KERNELS, needs="ncu"),
    ]


def train(options: Options) -> list[Command]:
    workers = max(1, min(MOST_WORKERS, usable_cores() - 2))
    run = str(options.out.resolve() / "run")
    step = ("--amp", "bf16", "--augment", "device", "--workers", str(workers), "--data", options.data)
    small = ("--encoder", "resnet18", "--image-size", "96", "--batch-size", "256", "--queue-size", "16384")
    pretrain = ("maskco", "pretrain", "--data", "demo", "--out", run, *small, "--epochs", "30", "--amp", "bf16",
                "--augment", "device", "--overwrite")  # fmt: skip
    return [
        benchmark("train_step", 180, *step, "--batch-size", str(options.batch_size)),
        Command("pretrain", (*PYTHON, *pretrain), 270, KERNELS),
        Command("eval", (*PYTHON, "maskco", "eval", "regions", run, "--untrained"), 120, KERNELS),
    ]


STEPS: dict[str, Callable[[Options], list[Command]]] = {
    "test": test,
    "bench": bench,
    "train": train,
    "sanitize": sanitize,
}


def benchmark(name: str, limit: int, *options: str) -> Command:
    words = (*PYTHON, f"benchmarks.{name}", "--device", "cuda", *options, "--json", result(name))
    return Command(name, words, limit, KERNELS)


def result(name: str) -> str:
    return str(ROOT / f"benchmarks/results/{name}_cuda.json")


def check(options: Options) -> None:
    """Raises ConfigError if what the step needs is missing, with what to do."""
    if options.device == "sim":
        if options.step != "test":
            raise ConfigError(f"device: {options.step} needs a GPU. Only test runs on the simulated one")
        if shutil.which("nvcc") is None:
            raise ConfigError("device: the simulated GPU needs nvcc. Put it on PATH")
        return
    check_device("cuda")
    if (status := build_info()["cuda_kernels"]) != "loaded":
        raise ConfigError(
            f"maskco has no CUDA kernels here ({status}). Install it by "
            "MASKCO_CUDA=ON CUDAARCHS=native pip install --no-build-isolation -e ."
        )
    if options.step == "sanitize" and shutil.which("compute-sanitizer") is None:
        raise ConfigError("sanitize needs compute-sanitizer, which comes with CUDA. Put it on PATH")


def run_step(commands: Sequence[Command], out: Path) -> None:
    """Runs the commands in turn from the checkout's root, with a log each in `out`, and sums up.

    Prints a line for each. Raises UserError, which names the log, at the first that fails or runs out of time.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary = []
    for command in commands:
        log = out / f"{command.name}.log"
        if command.needs and shutil.which(command.needs) is None:
            print(f"{command.name}: left out, {command.needs} is not on PATH", flush=True)
            continue
        print(f"{command.name}: {shlex.join(command.words)}", end="", flush=True)
        started = time.monotonic()
        try:
            problem = run_command(command, log)
        finally:
            print(f"    {time.monotonic() - started:.0f} s", flush=True)
        if problem:
            raise UserError(f"{command.name} {problem}: {last_line(log)}. Its log is {log}")
        summary.append(f"{command.name}: {last_line(log)}")
    print("", *summary, f"logs: {out}", sep="\n")


def run_command(command: Command, log: Path) -> str:
    """What went wrong, or "". Ends all processes of a command that does not end in time."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | command.environment
    with log.open("wb") as file:
        process = subprocess.Popen(
            command.words, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(command.limit)
        except subprocess.TimeoutExpired:
            return f"took longer than {command.limit} s"
        finally:
            if process.poll() is None:  # also if this process is interrupted, which its own session would not notice
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"failed with exit code {code}" if code else ""


def last_line(log: Path) -> str:
    """The last line of a log that holds a word; pytest's has "=" around it."""
    lines = [line.strip("= ") for line in log.read_text(errors="replace").splitlines() if re.search(r"\w", line)]
    return lines[-1] if lines else "no output"


def main() -> None:
    with one_line_errors(flags={"device"}):
        options = tyro.cli(Options, prog="python -m benchmarks.gpu")
        check(options)
        run_step(STEPS[options.step](options), options.out)


if __name__ == "__main__":
    main()
