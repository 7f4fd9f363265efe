"""The benchmark of families of encoders: its settings, its table, the page that shows it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import timm

from benchmarks import encoders
from benchmarks.encoders import FAMILIES, START, fill_page, gain, learns, settings, table
from benchmarks.table import END
from maskco.errors import ConfigError
from nightly import nightly

ROOT = Path(__file__).parents[2]
RESULTS = "benchmarks/results/encoders.json"
ROW = {
    "family": "ResNet",
    "encoder": "resnet18",
    "stage": 2,
    "seed": 0,
    "steps": 620,
    "recipe": "moco_v2",
    "parameters": 683_072,
    "accuracy": 12.34,
    "effective_rank": 9.6,
    "probe": {"linear top-1": 36.0},
    "untrained": {"linear top-1": 25.5},
}


def test_ten_families_or_more_by_names_that_timm_has():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 10
    assert all(timm.is_model(family.encoder) for family in FAMILIES)


@pytest.mark.parametrize(
    ("encoder", "recipe", "lr"), [("resnet18", "moco_v2", 0.48), ("convnext_atto", "moco_v3", 0.008)]
)
def test_runs_are_the_demos_but_for_what_the_recipe_decides(tmp_path, encoder, recipe, lr):
    (family,) = [family for family in FAMILIES if family.encoder == encoder]
    config = settings(family, 10, 0, tmp_path)
    config.check()
    assert (config.optim.recipe, config.optim.lr) == (recipe, pytest.approx(lr))
    assert (config.method.queue_size, config.views.hue, config.run.data) == (1024, 0.5, "demo")
    assert config.optim.epochs * (4000 // config.optim.batch_size) == 620


def test_a_table_has_a_line_for_each_run_failures_with_their_reasons():
    failed = {name: ROW[name] for name in ("family", "encoder", "stage", "seed", "steps")} | {
        "encoder": "regnetx_002",
        "failed": "collapsed",
    }
    lines = table([ROW, failed]).splitlines()
    assert lines[2] == "| ResNet | `resnet18`, 2 | 0.68 M | moco_v2 | 12.3 % | 10 | 36.0 | 25.5 | +10.5 |"
    assert lines[3].endswith("| collapsed |") and len({line.count("|") for line in lines}) == 1
    assert learns(ROW) and not learns(failed) and not learns(ROW | {"untrained": {"linear top-1": 28.1}})


def test_several_runs_of_an_encoder_share_a_line_unless_they_differ_by_more_than_their_seed():
    second = ROW | {"seed": 1, "probe": {"linear top-1": 38.0, "kNN top-1": 29.0}}
    first = ROW | {"probe": {"linear top-1": 36.0, "kNN top-1": 30.0}}
    changed = first | {"changed": {"lr": 0.1}}
    rows = [row | {"untrained": {"linear top-1": 25.5, "kNN top-1": 20.0}} for row in (changed, second, first)]
    lines = table(rows).splitlines()
    assert lines[2].startswith("| `resnet18` | 620 |  | 2 | 12.3 % | 37.0 | 25.5 | +11.5 (+10.5 to +12.5) | +9.5 (+9.0")
    assert lines[3:] == ["| `resnet18` | 620 | lr 0.1 | 1 | 12.3 % | 36.0 | 25.5 | +10.5 | +10.0 |"]


def test_the_table_goes_between_its_marks(tmp_path):
    page, source = tmp_path / "page.md", Path("results.json")
    page.write_text(f"before\n{START.format(source)}\nold\n{END}\nafter\n")
    for _ in range(2):
        fill_page(page, source, [ROW])
    assert page.read_text() == f"before\n{START.format(source)}\n{table([ROW])}\n{END}\nafter\n"
    with pytest.raises(ConfigError, match=r"^docs: .*other.md lacks the lines"):
        (tmp_path / "other.md").write_text("")
        fill_page(tmp_path / "other.md", source, [ROW])


@pytest.mark.parametrize("source", [RESULTS, "benchmarks/results/encoders_trials.json"])
def test_the_page_shows_the_results(source):
    rows = json.loads((ROOT / source).read_text())["rows"]
    text = (ROOT / "docs/encoders.md").read_text()
    shown = re.search(rf"{re.escape(START.format(source))}\n(.*?)\n{END}", text, re.DOTALL)
    assert shown is not None and shown[1] == table(rows)


def test_every_family_has_its_row():
    rows = json.loads((ROOT / RESULTS).read_text())["rows"]
    assert {row["encoder"] for row in rows} == {family.encoder for family in FAMILIES}


@nightly
@pytest.mark.slow
def test_a_row_is_measured_kept_and_not_computed_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoders, "FAMILIES", (encoders.Family("tiny", "test_resnet", 2),))
    monkeypatch.setattr(encoders, "ORDER", ["test_resnet"])
    monkeypatch.setattr(sys, "argv", ["encoders", "--steps", "60", "--json", str(tmp_path / "rows.json")])
    encoders.main()
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["steps"] == 62 and row["recipe"] == "moco_v2" and row["commit"] and row["device"]
    assert row["effective_rank"] > 1 and row["parameters"] > 10_000 and row["untrained"]["linear top-1"] > 10
    monkeypatch.setattr(encoders, "measure", None)
    encoders.main()
    assert f"{gain(row):+.1f} |" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["lr=abc", "foo"])
def test_a_change_that_cannot_be_read_is_one_line(change: str) -> None:
    with pytest.raises(ConfigError, match=f"change: '{change}' is not OPTION=VALUE"):
        encoders._change(change)


@pytest.mark.parametrize("other", ["info_nce_cpu.json", "claims.json", "demo.json"])
def test_files_of_other_benchmarks_are_one_line(monkeypatch, capsys, other: str) -> None:
    monkeypatch.setattr(sys, "argv", ["encoders", "--show", str(ROOT / "benchmarks/results" / other)])
    with pytest.raises(SystemExit):
        encoders.main()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "holds no results of this benchmark" in error and error.count("\n") == 1
