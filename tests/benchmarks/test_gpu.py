"""`make gpu` without a GPU: its commands, how a step ends, what runs between samples, and the tables of its results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    blocks,
    contrast,
    counters,
    flash_shapes,
    gpu,
    harness,
    info_nce,
    queue,
    region_pool,
    tables,
    timing,
    train_step,
)
from benchmarks.cases import BACKWARD, BOTH, FORWARD, OURS, Passes
from benchmarks.gpu import Command, Options, run_step
from benchmarks.table import END
from maskco.cli import commands as maskco_commands
from maskco.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
BENCHMARKS = {"contrast": contrast, "info_nce": info_nce, "region_pool": region_pool, "queue": queue}
CEILINGS = {"copy_gbs": 1000.0, "bf16_tflops": 400.0, "tf32_tflops": 200.0, "float32_tflops": 40.0}


def python(*code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "; ".join(code))


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check")

    monkeypatch.setattr(torch, "ones", fails)


@pytest.mark.parametrize(
    "main, arguments",
    [
        *((gpu.main, [step]) for step in gpu.STEPS),
        *((gpu.main, [step, "--device", "sim"]) for step in ("bench", "train")),
        (counters.main, ["--json", "counters_cuda.json"]),
        *((lambda m=m: harness.main(m.__name__, m.cases), ["--device", "cuda"]) for m in BENCHMARKS.values()),
    ],
)
def test_a_missing_gpu_is_one_line_that_says_what_to_do(main, arguments, no_gpu, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "GPU" in error and not list(tmp_path.iterdir())


def test_kernels_that_were_not_built_are_noticed(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "check_device", lambda name: None)
    monkeypatch.setattr(gpu, "build_info", lambda: {"cuda_kernels": "not built"})
    with pytest.raises(ConfigError, match=r"no CUDA kernels here \(not built\).*MASKCO_CUDA=ON CUDAARCHS=native pip"):
        gpu.check(Options("bench"))


@pytest.mark.skipif(shutil.which("make") is None or not (ROOT / "Makefile").exists(), reason="no make, or no checkout")
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
@pytest.mark.parametrize("target", ["gpu", "gpu-test", "gpu-bench", "gpu-train", "sanitize"])
def test_make_notices_a_missing_gpu_before_it_builds(target: str) -> None:
    done = subprocess.run(["make", "-s", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode and done.stderr.startswith("error: nvidia-smi lists no GPU") and not done.stdout


def test_the_commands_of_the_steps() -> None:
    steps = {name: step(Options(name, out=Path("logs"))) for name, step in gpu.STEPS.items()}
    names = {name: [command.name for command in commands] for name, commands in steps.items()}
    assert names == {
        "test": ["tests", "memcheck"],
        "bench": ["queue", "region_pool", "info_nce", "contrast", "counters"],
        "train": ["train_step", "pretrain", "eval"],
        "sanitize": ["memcheck", "racecheck", "synccheck"],
    }
    for name in ("test", "bench", "train"):
        assert sum(command.limit for command in steps[name]) <= 600
    tests, memcheck = steps["test"]
    assert tests.words[2:] == ("pytest", "tests/ops", "-q", "--device", "cuda")
    assert tests.environment == {"MASKCO_REQUIRE_CUDA": "1"}
    assert memcheck.words[memcheck.words.index("-k") + 1] == f"({gpu.SHORT}) and not graph"
    assert all("not graph" in command.words for command in steps["sanitize"])
    assert memcheck.words[0] == memcheck.needs == "compute-sanitizer" and steps["bench"][-1].needs == "ncu"
    (simulated,) = gpu.test(Options("test", device="sim", only="queue"))
    assert simulated.words[-4:] == ("--device", "sim", "-k", "queue")
    assert simulated.environment == {"MASKCO_REQUIRE_SIM": "1"}


def test_the_commands_are_ones_that_the_programs_take(tmp_path: Path, monkeypatch) -> None:
    for command in gpu.bench(Options("bench"))[:-1]:
        module = BENCHMARKS[command.name]
        assert command.words[2] == module.__name__
        assert command.words[-1] == str(ROOT / f"benchmarks/results/{command.name}_cuda.json")
        assert command.environment == {"MASKCO_REQUIRE_KERNELS": "1"}
        monkeypatch.setattr(sys, "argv", [command.name, *command.words[3:]])
        monkeypatch.setattr(harness, "check_options", stop)
        with pytest.raises(Parsed):
            harness.main(module.__name__, module.cases)
    (tmp_path / "run").mkdir()
    step, *runs = gpu.train(Options("train", out=tmp_path))
    chosen = gpu.tyro.cli(train_step.Options, args=step.words[3:])
    assert (chosen.device, chosen.amp, chosen.augment, chosen.batch_size) == ("cuda", "bf16", "device", 256)
    counted = gpu.tyro.cli(counters.Options, args=gpu.bench(Options("bench"))[-1].words[3:])
    assert counted.json == ROOT / "benchmarks/results/counters_cuda.json"
    for command in runs:
        words = list(command.words[3:])
        gpu.tyro.cli(maskco_commands(words), args=words, console_outputs=False)


class Parsed(Exception):
    pass


def stop(options: harness.Options) -> None:
    raise Parsed


def test_a_step_tells_each_command_and_sums_up(tmp_path: Path, capsys) -> None:
    commands = [
        Command("first", python("print('begin')", "print('=== 3 passed ===')", "print()")),
        Command("second", python("import os", "print(os.environ['A'])"), 60, {"A": "of its own"}),
        Command("third", ("no-such-program",), needs="no-such-program"),
    ]
    run_step(commands, tmp_path / "logs")
    first, second, third, *summary = capsys.readouterr().out.splitlines()
    assert first.startswith(f"first: {sys.executable} -c ") and first.endswith(" s") and second.startswith("second: ")
    assert third == "third: left out, no-such-program is not on PATH"
    assert summary == ["", "first: 3 passed", "second: of its own", f"logs: {tmp_path / 'logs'}"]
    assert (tmp_path / "logs/first.log").read_text().startswith("begin")


def test_a_step_stops_at_a_failure_and_names_the_log(tmp_path: Path) -> None:
    commands = [Command("bad", python("print('the cause')", "raise SystemExit(3)")), Command("next", python("pass"))]
    with pytest.raises(UserError) as error:
        run_step(commands, tmp_path)
    assert str(error.value) == f"bad failed with exit code 3: the cause. Its log is {tmp_path / 'bad.log'}"
    assert not (tmp_path / "next.log").exists()


def test_a_command_that_takes_too_long_ends_with_its_processes(tmp_path: Path) -> None:
    sleeps = python("import subprocess, sys", "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])")
    with pytest.raises(UserError, match=r"slow took longer than 1 s: no output. Its log is .*slow\.log"):
        run_step([Command("slow", sleeps, 1)], tmp_path)  # (conftest.py fails if a process is left)


def test_the_cache_is_emptied_before_each_call_and_outside_of_its_time(monkeypatch) -> None:
    done: list[str] = []

    def told(name: str):
        return lambda *_: done.append(name)

    monkeypatch.setattr(timing, "clock", lambda device: (told("mark"), lambda start, end: 5.0))
    monkeypatch.setattr(timing, "flusher", lambda device: told("flush"))
    passes = Passes(told("forward"), told("training"), told("backward"))
    times, _ = timing.time_passes({"a": passes}, CPU, {FORWARD, BACKWARD, BOTH}, repeats=3, sample_ms=10)
    forward = ["flush", "mark", "forward", "mark"]
    training = ["flush", "mark", "training", "mark", "backward", "mark"]
    calls = [*forward, *training]
    assert done == [*calls, *calls, *([*forward, *forward, *training, *training] * 3)]
    assert times == {("a", each): [5.0] * 3 for each in (FORWARD, BACKWARD, BOTH)}

    done.clear()
    timing.best_ms(told("call"), CPU, 2)
    assert done == ["flush", "mark", "call", "mark"] * 2


def test_twice_the_cache_is_written(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=3000))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device, **options: empty(*size, **options))
    written = timing.flusher.__wrapped__(torch.device("cuda"))()
    assert written.nbytes == 6000 and not written.any()
    assert timing.flusher(CPU)() is None


def test_ceilings_are_measured() -> None:
    before = torch.get_float32_matmul_precision()
    found = harness.ceilings(CPU, size=64, mib=1)
    assert set(found) == set(CEILINGS) and all(value >= 0 for value in found.values()) and found["copy_gbs"] > 0
    assert torch.get_float32_matmul_precision() == before


NCU = """==PROF== Connected to process 1 (/usr/bin/python)
==PROF== Profiling "info_nce_flash_kernel" - 0: 0%....50%....100% - 8 passes
"ID","Process ID","Kernel Name","Grid Size","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","void info_nce_flash_kernel<float, Shape<8, 1>>(Features<float>)","(2, 66, 1)","GPU Speed Of Light","Duration","ns","1,234"
"0","1","void info_nce_flash_kernel<float, Shape<8, 1>>(Features<float>)","(2, 66, 1)","Occupancy","Achieved Occupancy","%","12.5"
"1","1","contrast_read_kernel(int)","(1, 1, 1)","GPU Speed Of Light","Elapsed Cycles","cycle","9"
"""  # noqa: E501


def test_counters_are_read_from_what_ncu_prints() -> None:
    assert counters.rows_of(NCU, dtype="float32") == [
        {
            "dtype": "float32",
            "kernel": "info_nce_flash_kernel",
            "grid": "(2, 66, 1)",
            "figures": {"Duration, ns": 1234.0, "Achieved Occupancy, %": 12.5},
        },
        {"dtype": "float32", "kernel": "contrast_read_kernel", "grid": "(1, 1, 1)", "figures": {}},
    ]


@pytest.mark.parametrize("dtype", counters.DTYPES)
def test_the_steps_that_ncu_watches_run(dtype: str) -> None:
    counters.steps(dtype, device="cpu", keys=64, rows=16)


@pytest.mark.parametrize(
    "code, out, message",
    [(0, "==ERROR== ERR_NVGPUCTRPERM", "may not read the GPU's counters"), (1, "==ERROR== no", "failed in float32"),
     (0, "==WARNING== No kernels were profiled.", "failed in float32")],
)  # fmt: skip
def test_a_failure_of_ncu_is_told(code: int, out: str, message: str, monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code, stdout=out, stderr=""))
    with pytest.raises(UserError, match=message):
        counters.measure("float32")


def test_counters_that_may_not_be_read_do_not_fail_the_step(monkeypatch, capsys, tmp_path) -> None:
    def denied(dtype: str) -> list:
        raise counters.Denied("ncu may not read them")

    monkeypatch.setattr(counters, "measure", denied)
    monkeypatch.setattr(harness, "check_device", lambda name: None)
    monkeypatch.setattr(harness, "metadata", lambda options: {})
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["counters", "--json", str(tmp_path / "counters_cuda.json")])
    counters.main()
    assert capsys.readouterr().out == "nothing was measured: ncu may not read them\n" and not list(tmp_path.iterdir())


def pages(root: Path) -> Path:
    """A root with every page, its marks, and no results."""
    (root / "benchmarks/results").mkdir(parents=True)
    (root / "docs/results").mkdir(parents=True)
    for block in tables.BLOCKS:
        with (root / block.page).open("a") as page:
            page.write(f"before\n{block.start}\nold\n{END}\nafter\n")
    return root


def shown(root: Path, page: str, source: str) -> str:
    """What stands between the marks."""
    text = (root / page).read_text()
    start = tables.START.format(f"{tables.RESULTS}/{source}")
    assert text.count(start) == 1
    return text.partition(f"{start}\n")[2].partition(f"\n{END}")[0]


def made_up(root: Path, name: str, *rows: dict) -> None:
    meta = {"device": "A GPU", "threads": 8, "keep_freed": False, "versions": {"torch": "2"}, "ceilings": CEILINGS}
    common = {"op": name, "case": "N=2", "dtype": "float32", "device": "cuda"}
    result = {"meta": meta, "rows": [common | row for row in rows]}
    (root / f"benchmarks/results/{name}_cuda.json").write_text(json.dumps(result))


def timed(impl: str, on: str, ms: float, ratio: float) -> dict:
    return {"impl": impl, "pass": on, "median_ms": ms, "ratio": ratio}


def test_without_results_the_pages_say_so(tmp_path: Path) -> None:
    tables.update(pages(tmp_path))
    for block in tables.BLOCKS:
        text = shown(tmp_path, block.page, block.name)
        assert text == (blocks.NOTHING if block.source == "*_cuda.json" else block.absent)
    (block,) = (block for block in tables.BLOCKS if block.source == "claims_mask_fill.json")
    assert f"before\n{block.start}\n{block.absent}\n{END}\nafter\n" in (tmp_path / block.page).read_text()


def test_results_of_a_gpu_go_between_the_marks(tmp_path: Path) -> None:
    pages(tmp_path)
    skipped = {"impl": "absent", "skipped": "not installed"}
    made_up(tmp_path, "queue", timed(OURS, FORWARD, 0.01234, 1), timed("eager", FORWARD, 0.05, 0.247), skipped)
    made_up(tmp_path, "info_nce", timed(OURS, FORWARD, 1, 1), timed(OURS, BOTH, 2, 1) | {"peak_mib": 17.0},
            timed("SDPA", FORWARD, 3, 0.3),
            timed("eager", BOTH, 8, 0.25) | {"peak_mib": 1500.4})  # fmt: skip
    over_n = {"at": {"loss": "clip", "N": 16, "C": 64}, "beyond_gradients_mib": 3.0}
    made_up(tmp_path, "contrast", timed(OURS, BOTH, 1, 1) | over_n, timed("eager", BOTH, 2, 0.5) | over_n)
    made_up(tmp_path, "train_step", {"part": "data", "median_ms": 1, "share": 0.1},
            {"group": "encoders", "median_ms": 123.45, "share": 0.9})  # fmt: skip
    made_up(tmp_path, "counters", *counters.rows_of(NCU))
    for _ in range(2):
        tables.update(tmp_path)
    assert shown(tmp_path, "README.md", "*_cuda.json").startswith(
        "Measured on A GPU: `info_nce`, `contrast`, `queue`, "
    )
    text = shown(tmp_path, "docs/results/gpu.md", "*_cuda.json")
    for line in (
        "| N=2, float32 | forward | 0.0123 ms | eager 0.05 ms (0.25) |",
        "| N=2, float32 | forward+backward | 2 ms, 17 MiB | eager 8 ms, 1500 MiB (0.25) |",
        "| clip | float32 | 64 | 0.50 | 3.0 |",
        "| encoders | 123.5 | 90.0% |",
        "| info_nce_flash_kernel | float32 | (2, 66, 1) | 1234 | 12.5 |",
        "A GPU, torch 2:",
    ):
        assert line in text.splitlines(), text
    assert "a copy reaches 1000 GB/s, cuBLAS's products 400 in bf16, 200 in tf32, 40 in float32 TFLOP/s" in text


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="not in a checkout")
@pytest.mark.parametrize("block", tables.BLOCKS, ids=lambda block: f"{Path(block.page).stem} {block.name}")
def test_the_pages_show_the_results(block: tables.Block) -> None:
    assert shown(ROOT, block.page, block.name) == block.text(ROOT / tables.RESULTS)


def test_shapes_need_a_gpu_too(no_gpu, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["flash_shapes", "2:128:8x1x64x1"])
    with pytest.raises(ConfigError, match="Check that nvidia-smi lists a GPU"):
        flash_shapes.main()
