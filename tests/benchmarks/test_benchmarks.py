"""The benchmarks run, write what README.md says, and notice what they must: wrong peers, missed targets, memory."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import harness, table, timing
from benchmarks.cases import BACKWARD, BOTH, FORWARD, OURS, Case, Implementation, Passes, Target, differentiable
from benchmarks.harness import Options, run
from benchmarks.memory import PeakMemory, resident_peak
from benchmarks.table import read_results
from benchmarks.timing import fastest, time_passes
from maskco.errors import ConfigError
from nightly import nightly

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
linux_only = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc/self/clear_refs")


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "op, plain",
    [
        ("info_nce", "eager"),
        pytest.param("region_pool", "einsum", marks=nightly),
        pytest.param("queue", "eager", marks=nightly),
        pytest.param("contrast", "eager", marks=nightly),
    ],
)
def test_quick_run_writes_rows_and_plots(op: str, plain: str, tmp_path: Path) -> None:
    printed = command(
        f"benchmarks.{op}", "--quick", "--sweeps", "--threads", "1", "--json", str(tmp_path / "rows.json")
    )
    result = json.loads((tmp_path / "rows.json").read_text())
    meta, rows = result["meta"], [row for row in result["rows"] if "skipped" not in row]
    assert meta["threads"] == 1 and meta["quick"] and meta["mm_gflops"] > 0 and meta["multiply_add_gflops"] > 0
    assert meta["versions"]["torch"] == torch.__version__
    assert {OURS, plain} <= {row["impl"] for row in rows}
    expected = {"queue": {FORWARD}, "contrast": {BOTH}}.get(op, {FORWARD, BACKWARD, BOTH})
    assert {row["pass"] for row in rows if row["impl"] == OURS} == expected
    for row in rows:
        assert row["op"] == op and row["device"] == "cpu" and row["case"] in printed
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        ours = next((r for r in rows if (r["case"], r["pass"], r["impl"]) == (row["case"], row["pass"], OURS)), None)
        assert ours is None or row["ratio"] == pytest.approx(ours["median_ms"] / row["median_ms"], rel=1e-2)
        if row["impl"] == OURS and row["pass"] != BACKWARD and os.access("/proc/self/clear_refs", os.W_OK):
            assert row["peak_mib"] is not None
    assert max(len(line) for line in printed.splitlines() if not line.startswith("  ")) <= 120

    shown = command("benchmarks.table", str(tmp_path / "rows.json"))
    assert shown.strip() in printed  # the same table again

    command("benchmarks.plot", str(tmp_path / "rows.json"), "--out", str(tmp_path))
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert "rows_ratios.png" in pictures
    assert ("rows_over_K.png" in pictures) == (op == "info_nce")


def one_case(*others: Implementation, targets: tuple[Target, ...] = ()) -> Case:
    """`maskco` is x·x here."""
    ours = Implementation(OURS, differentiable(lambda x: (x * x).sum(), ["x"]))
    return Case("squares", lambda device, dtype: {"x": torch.ones(1000, dtype=dtype)}, (ours, *others), targets=targets)


OPTIONS = Options(repeats=3, memory=False)


def test_an_implementation_with_other_results_is_refused() -> None:
    wrong_value = Implementation("wrong", differentiable(lambda x: (x * x).sum() * 1.01, ["x"]))
    wrong_gradient = Implementation("wrong", differentiable(lambda x: x.sum(), ["x"]))  # 1·1 = 1
    for wrong in (wrong_value, wrong_gradient):
        with pytest.raises(AssertionError, match=r"wrong and maskco differ by"):
            run("tests", [one_case(wrong)], OPTIONS)


def test_what_cannot_run_is_a_row_that_says_why() -> None:
    def missing(inputs: dict) -> Passes:
        import no_such_package  # noqa: F401

    def fails(inputs: dict) -> Passes:
        raise RuntimeError("no compiler\nfound")

    others = (
        Implementation("absent", missing),
        Implementation("broken", fails),
        Implementation("big", fails, skip="big"),
    )
    rows = run("tests", [one_case(*others)], OPTIONS)
    reasons = {row["impl"]: row["skipped"] for row in rows if "skipped" in row}
    assert reasons == {
        "absent": "not installed (no_such_package)",
        "broken": "RuntimeError: no compiler",
        "big": "big",
    }
    with pytest.raises(RuntimeError, match="squares: maskco could not run: RuntimeError: no compiler"):
        run("tests", [Case("squares", lambda *_: {}, (Implementation(OURS, fails),))], OPTIONS)


def test_targets_are_met_or_missed() -> None:
    slow = Implementation("slow", differentiable(lambda x: sum((x * x).sum() for _ in range(50)) / 50, ["x"]))
    targets = (Target(0.5, "slow"), Target(1e-6, "slow"), Target(9, metric="of forward+backward", on=FORWARD))
    rows = run("tests", [one_case(slow, targets=targets)], OPTIONS)
    judged = {(row["impl"], row["pass"]): [t["met"] for t in row["targets"]] for row in rows if "targets" in row}
    assert judged == {("slow", BOTH): [True, False], (OURS, FORWARD): [True]}


def test_the_end_of_a_run_lists_the_targets_that_were_missed(capsys) -> None:
    slow = Implementation("slow", differentiable(lambda x: sum((x * x).sum() for _ in range(50)) / 50, ["x"]))
    run("tests", [one_case(slow, targets=(Target(0.5, "slow"), Target(1e-6, "slow")))], OPTIONS)
    *_, count, missed = capsys.readouterr().out.splitlines()
    assert count == "1 of 2 targets met"
    assert missed.startswith("  missed: squares, float32, both against slow: ours/this 0.")
    assert missed.endswith("wanted ≤ 1e-06")
    run("tests", [one_case()], OPTIONS)
    assert "targets" not in capsys.readouterr().out


def test_a_case_measures_only_the_passes_that_it_names() -> None:
    rows = run("tests", [replace(one_case(), passes=(BOTH,), at={"N": 1000})], OPTIONS)
    assert [(row["pass"], row["at"], row["samples"]) for row in rows] == [(BOTH, {"N": 1000}, 3)]


def test_memory_beyond_the_gradients(monkeypatch) -> None:
    case = Case(
        "squares",
        lambda device, dtype: {"x": torch.ones(2 << 20, dtype=dtype)},  # 8 MiB, as its gradient
        one_case().implementations,
        targets=(Target(12, metric="beyond_gradients_mib"), Target(20, metric="beyond_gradients_mib")),
        passes=(BOTH,),
    )
    monkeypatch.setattr(harness.PeakMemory, "measure", lambda *_: {(OURS, BOTH): 24.0})
    (row,) = run("tests", [case], Options(repeats=3))
    assert (row["peak_mib"], row["beyond_gradients_mib"]) == (24, 16)
    assert [target["met"] for target in row["targets"]] == [False, True]


def test_long_cases_are_sampled_less_often(monkeypatch) -> None:
    monkeypatch.setattr(timing, "ENOUGH_MS", 100.0)
    waits = {"a": Passes(partial(time.sleep, 0.02))}
    for repeats, taken in ((20, 4), (2, 2)):
        times, _ = time_passes(waits, CPU, {FORWARD}, repeats, sample_ms=1)
        assert min(repeats, timing.FEWEST) <= len(times["a", FORWARD]) <= taken
    monkeypatch.setattr(timing, "ENOUGH_MS", 0.0)
    assert len(time_passes(waits, CPU, {FORWARD}, 20, sample_ms=1)[0]["a", FORWARD]) == timing.FEWEST


def test_times_are_those_of_the_calls() -> None:
    short, long = partial(time.sleep, 0.0001), partial(time.sleep, 0.02)  # unlike work, never faster when others wait
    times, failed = time_passes({"short": Passes(short), "long": Passes(long)}, CPU, {FORWARD, BOTH}, 5, sample_ms=1)
    assert not failed and set(times) == {("short", FORWARD), ("long", FORWARD)}
    assert min(times["long", FORWARD]) >= 20 > 10 > min(times["short", FORWARD]) >= 0.1
    assert fastest({"long": long, "short": short}, CPU) == "short"


def known_peaks() -> list[float]:
    """MiB of: two tensors of 32 MiB one after the other; two at once; none."""

    def one() -> float:
        return float(torch.ones(32 << 18).sum())

    return [
        resident_peak(lambda: (one(), one())),
        resident_peak(lambda: torch.ones(32 << 18).add(1)),
        resident_peak(lambda: None),
    ]


@linux_only
def test_peak_memory_counts_what_lives_at_once() -> None:
    memory = PeakMemory("benchmarks.queue", CPU, threads=1)
    try:
        names = {OURS: None, "eager": None}  # the helper process builds its own
        peaks = memory.measure("256 into 65536×128", names, {FORWARD}, torch.float32)
        in_turn, at_once, none = memory._pool.submit(known_peaks).result()  # in the same process
    finally:
        memory.close()
    assert set(peaks) == {(OURS, FORWARD), ("eager", FORWARD)}
    assert peaks[OURS, FORWARD] < 1  # the queue of 32 MiB is not copied
    assert in_turn == pytest.approx(32, abs=1)
    assert at_once == pytest.approx(64, abs=1)
    assert none < 0.5


@pytest.mark.parametrize("module", ["info_nce", "region_pool", "queue", "contrast", "train_step", "data"])
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "meta", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(module: str, device: str, monkeypatch, capsys) -> None:
    def no_gpu(*arguments: object, **options: object) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "ones", no_gpu)
    data = ["--data", "demo"] if module == "data" else []
    monkeypatch.setattr(sys, "argv", [module, "--device", device, *data])
    benchmark = importlib.import_module(f"benchmarks.{module}")
    with pytest.raises(SystemExit) as stopped:
        benchmark.main() if module in ("train_step", "data") else benchmark.main(
            f"benchmarks.{module}", benchmark.cases
        )
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert error.startswith(("error: device must be cpu or cuda", "error: device: 'cuda' cannot be used here"))


@pytest.mark.parametrize("options", [["--threads=0"], ["--threads=1000000000"], ["--repeats=0"], ["--case=nothing"]])
def test_numbers_out_of_bounds_are_one_line(options: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["queue", *options])
    monkeypatch.setattr(harness, "metadata", lambda options: {"multiply_add_gflops": None, "ceilings": None})
    with pytest.raises(SystemExit) as stopped:
        harness.main("benchmarks.queue", list)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("other", ["train_step_cpu", "data_cpu", "claims_photos", "encoders"])
def test_the_table_of_other_benchmarks_is_refused_in_one_line(monkeypatch, capsys, other: str) -> None:
    monkeypatch.setattr(sys, "argv", ["table", str(ROOT / f"benchmarks/results/{other}.json")])
    with pytest.raises(SystemExit):
        table.main()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "holds no results of this benchmark" in error and error.count("\n") == 1


def test_results_that_are_none_are_one_line(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", "null"):
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(ConfigError, match="holds no results"):
            read_results(tmp_path / "rows.json", "rows")
