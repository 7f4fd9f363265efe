"""The benchmark of the losses over all pairs: its cases, its table and its plot."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from benchmarks import contrast
from benchmarks.cases import BOTH, OURS, Target
from benchmarks.contrast import CHANNELS, CORNERS, DRAWN, DTYPES, LARGE, LOSSES, ROWS, Loss, all_pairs, cases
from benchmarks.harness import Options, run
from benchmarks.plot import figures
from benchmarks.table import END, fill, over_rows
from maskco.errors import ConfigError

losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
QUICKLY = Options(quick=True, memory=False)  # without torch.compile


@dtypes
@losses
def test_cases_run_and_agree_with_plain_torch_and_all_packages(loss: Loss, dtype: torch.dtype) -> None:
    case = replace(
        all_pairs(loss, 256, DRAWN, dtype), make_inputs=partial(contrast.make_inputs, loss.name, 24, 12), name="tiny"
    )
    rows = run("benchmarks.contrast", [case], QUICKLY)
    assert [row["impl"] for row in rows] == [OURS, "eager", *(peer.name for peer in loss.peers)]
    for row in rows:
        if "skipped" in row:  # (not a fault of the adapter)
            assert row["impl"] not in (OURS, "eager") and row["skipped"].startswith("not installed")
        else:
            assert row["pass"] == BOTH and row["median_ms"] > 0


@losses
def test_the_compiled_code_is_the_plain_code(loss: Loss, monkeypatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compiled.append(function) or function)
    case = all_pairs(loss, contrast.COMPILED, DRAWN, torch.float32)
    tiny = partial(contrast.make_inputs, loss.name, 8, 4)
    case = replace(case, make_inputs=tiny, implementations=case.implementations[:3], targets=())
    run("benchmarks.contrast", [case], Options(repeats=1, memory=False))
    assert loss.plain in compiled


@losses
def test_every_input_that_can_have_a_gradient_has_one(loss: Loss) -> None:
    inputs = contrast.make_inputs(loss.name, 8, 4, torch.device("cpu"), torch.bfloat16)
    assert list(loss.wrt) == [name for name, value in inputs.items() if value.is_floating_point()]
    for name in loss.wrt:  # scalars are float32, as parameters are
        assert inputs[name].dtype == (torch.bfloat16 if inputs[name].ndim else torch.float32)


def test_an_op_with_a_wrong_gradient_is_refused() -> None:
    def wrong(image: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
        return contrast.clip(image, text.detach(), logit_scale) + (text - text.detach()).sum()

    case = all_pairs(replace(LOSSES[0], ours=wrong), 256, DRAWN, torch.float32)
    case = replace(case, make_inputs=partial(contrast.make_inputs, "clip", 24, 12))
    with pytest.raises(AssertionError, match="eager and maskco differ"):
        run("benchmarks.contrast", [case], QUICKLY)


def test_the_whole_range_has_cases_and_targets() -> None:
    found = {(c.at["loss"], c.at["N"], c.at["C"], c.dtype): c for c in cases()}
    assert len(found) == len(cases()) == len(LOSSES) * len(ROWS) * len(CHANNELS) * len(DTYPES) == 224
    for (loss, n, c, _), case in found.items():
        small, large = (1.05, 0.7 if loss == "siglip" else 0.8)
        ratio = Target(large if n >= 2048 else small, "eager")
        assert list(case.targets) == [ratio, *([Target(32, metric="beyond_gradients_mib")] if n >= 2048 else [])]
        assert case.passes == (BOTH,)
        assert (case.sweep is None) == (c == 512 or (n, c) in CORNERS)
        assert case.implementations[0].memory  # which the last target needs
    assert {(16, 64), (16, 1024), (2048, 64), (2048, 1024), (8192, 64), (8192, 1024)} == CORNERS
    assert LARGE == 2048 and (min(ROWS), max(ROWS), min(CHANNELS), max(CHANNELS)) == (16, 8192, 64, 1024)


def result(ratio: float = 0.5, beyond: float = 3.25) -> dict:
    """Rows as the harness writes them, without timing anything."""
    rows = []
    for case in cases():
        if case.sweep is None:
            common = {
                "op": "contrast",
                "case": case.name,
                "dtype": str(case.dtype).removeprefix("torch."),
                "sweep": None,
            }
            common |= {"at": case.at, "pass": BOTH, "note": ""}
            judged = {"metric": "ratio", "limit": case.targets[0].limit, "met": ratio <= case.targets[0].limit}
            ours = {"impl": OURS, "ratio": 1.0, "beyond_gradients_mib": beyond}
            eager = {"impl": "eager", "ratio": ratio, "beyond_gradients_mib": None, "targets": [judged]}
            rows += [common | ours, common | eager, common | {"impl": "other", "skipped": "not installed"}]
    meta = {"device": "a CPU", "instruction_set": "AVX2", "threads": 2, "quick": False, "keep_freed": True}
    return {"meta": meta | {"versions": {"torch": "2"}}, "rows": rows}


def test_the_table_has_a_line_for_each_loss_dtype_and_channels_and_marks_what_was_missed() -> None:
    where, _, head, _, *lines = over_rows(result(ratio=0.75)).splitlines()
    assert where == "a CPU, 2 threads, torch 2, freed memory kept:"
    assert head.startswith("| loss | dtype | C | N = 16 |") and head.endswith("| N = 8192 | MiB beyond gradients |")
    assert len(lines) == len(LOSSES) * len(DTYPES) * 3
    line = {tuple(cell.strip() for cell in text.split("|")[1:4]): text for text in lines}
    assert "✗" not in line["clip", "float32", "512"] and line["clip", "float32", "512"].count("0.75") == len(ROWS)
    assert line["siglip", "bfloat16", "512"].count("0.75 ✗") == 3  # from 2048 on
    assert line["supcon", "float32", "64"] == "| supcon | float32 | 64 | 0.75 |  |  |  | 0.75 |  | 0.75 | 3.2 |"
    with pytest.raises(ConfigError, match="no losses over N"):
        over_rows({"meta": {}, "rows": [{"op": "queue"}]})


def test_the_plot_has_a_panel_for_each_loss_and_a_line_for_each_dtype() -> None:
    drawn = result()
    ((name, figure),) = figures(drawn["rows"], "here")
    assert name == "ratios" and len(figure.axes) == len(LOSSES)
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == len(ROWS)}
        assert set(lines) == {"float32", "bfloat16"}
        assert all(list(line.get_xdata()) == list(ROWS) and set(line.get_ydata()) == {0.5} for line in lines.values())
        low, high = axes.get_ylim()
        assert low < 0.5 and high > 1 and all(math.isfinite(limit) for limit in (low, high))
    plt.close(figure)
    assert not list(figures([row for row in drawn["rows"] if row["at"]["C"] == 64], "here"))


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\nSTART\nold\n{END}\nafter\n")
    for _ in range(2):
        fill(page, "START", "new")
    assert page.read_text() == f"before\nSTART\nnew\n{END}\nafter\n"
