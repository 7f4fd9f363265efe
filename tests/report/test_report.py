"""What the report shows, asked of the figure itself, for runs with and without labels, metrics and an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import maskco.report
from maskco.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from maskco.data.views import MEAN
from maskco.evaluate import evaluate_run
from maskco.report import GREEN, RED, draw_report, smooth, write_report


@pytest.fixture
def run(folder_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder_run, tmp_path / "a run"))


@pytest.fixture
def demo_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run, but it says it was made on the demo scenes."""
    monkeypatch.setattr(maskco.report, "LABELLED_SCENES", 40)
    state = read_checkpoint(run / "last.pt")
    state["config"]["data"] = "demo"
    state.pop("format")
    save_checkpoint(run / "last.pt", state)
    return run


def labels(figure: Figure) -> list[str]:
    return [axes.get_label() for axes in figure.axes]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def frames(figure: Figure) -> dict[str, str]:
    return {
        a.get_label(): to_hex(a.spines["left"].get_edgecolor()) for a in figure.axes if "neighbour" in a.get_label()
    }


def test_a_run_on_a_folder_shows_every_panel(run: Path) -> None:
    figure = draw_report(run)
    found = labels(figure)
    assert found[:4] == ["loss", "accuracy", "learning rate", "speed"]
    assert [name for name in found if "view" in name] == [f"{v} view {i}" for i in range(4) for v in ("query", "key")]
    regions = [axes for axes in figure.axes if axes.get_label().startswith("region")]
    assert len(regions) == 6 * (1 + 6) and all(len(axes.images) == 1 for axes in regions)
    assert "a run" in words(figure) and "step 2" in words(figure)
    assert "query" in words(figure) and "same class" not in words(figure)
    assert set(frames(figure).values()) == {maskco.report.FAINT}  # no labels: neither right nor wrong


def test_views_show_each_region_in_one_colour_and_hide_it_in_the_query(run: Path) -> None:
    figure = draw_report(run)
    panels = {axes.get_label(): axes for axes in figure.axes}
    for index in range(4):
        query, key = panels[f"query view {index}"], panels[f"key view {index}"]
        colours = [[to_hex(box.get_edgecolor()) for box in axes.patches] for axes in (query, key)]
        assert colours[0] == colours[1] and len(set(colours[0])) == 2
        for box in query.patches:
            x, y = int(box.get_x() + box.get_width() / 2), int(box.get_y() + box.get_height() / 2)
            np.testing.assert_allclose(query.images[0].get_array()[y, x], MEAN, atol=1e-5)
        assert query.images[0].get_array().std() > 0.01  # not everything is hidden


def test_curves_show_the_logged_values(run: Path) -> None:
    figure = draw_report(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss, accuracy = figure.axes[:2]
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[row["step"], row["loss"]] for row in rows])
    drawn = [line.get_label() for line in accuracy.lines]
    assert "top-1" in drawn and "top-5" in drawn
    chance = next(line for line in accuracy.lines if line.get_label().startswith("chance"))
    assert chance.get_ydata()[0] == pytest.approx(
        100 / 66
    )  # a positive among 64 keys of the queue and one other region


@pytest.mark.parametrize("kept", [0, 1])
def test_few_or_no_logged_rows_are_drawn_all_the_same(run: Path, kept: int) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:kept]))
    loss = draw_report(run).axes[0]
    assert len(loss.lines) == kept
    assert [text.get_text() for text in loss.texts] == ([] if kept else ["no step logged"])
    assert write_report(run).stat().st_size > 10_000


def test_demo_scenes_are_framed_by_whether_the_class_is_right(demo_run: Path) -> None:
    figure = draw_report(demo_run)
    assert set(frames(figure).values()) <= {GREEN, RED}
    names = maskco.report.CLASS_NAMES
    assert [name for name in names if name in words(figure).splitlines()] == list(names[:6])  # one query for each
    assert "same class as the query" in words(figure)


def test_the_evaluation_is_shown_where_there_is_one(run: Path) -> None:
    assert "scores" not in labels(draw_report(run))
    result = evaluate_run(run, train_scenes=60, test_scenes=30, verbose=False)
    # The run's learning rate was 0: it ends with the weights it began with, and those are the untrained encoder's.
    assert result.scores["regions"].difference == 0 and result.scores["knn"].difference == 0
    figure = draw_report(run)
    assert "scores" in labels(figure)
    assert f"{result.scores['regions'].trained:.1f}" in words(figure)
    assert "made at step" not in words(figure)
    assert_text_on_page(figure)

    values = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps(values | {"step": 1}))
    assert "made at step 1" in words(draw_report(run))


def assert_text_on_page(figure: Figure) -> None:
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()


def test_pictures_that_are_gone_leave_the_curves(run: Path) -> None:
    state = read_checkpoint(run / "last.pt")
    state["config"]["data"] = "/nowhere/pictures"
    state.pop("format")
    save_checkpoint(run / "last.pt", state)
    figure = draw_report(run)
    assert labels(figure) == ["loss", "accuracy", "learning rate", "speed"]
    assert "cannot be shown" in words(figure) and "/nowhere/pictures" in words(figure)


def test_the_file_is_the_same_every_time_and_nothing_global_changes(run: Path) -> None:
    settings, state = dict(matplotlib.rcParams), torch.random.get_rng_state()
    first = write_report(run)
    assert first == run / "report.png"
    second = write_report(run, run / "again.png")
    assert first.read_bytes() == second.read_bytes()
    assert dict(matplotlib.rcParams) == settings and torch.equal(torch.random.get_rng_state(), state)
    with Image.open(first) as picture:
        assert picture.width == 1680
        assert np.asarray(picture.convert("L")).std() > 10  # not blank


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [1, 2, 39, 40, 500])
def test_smoothing_keeps_constants_and_length(length: int) -> None:
    np.testing.assert_allclose(smooth([3.0] * length), np.full(length, 3.0))


def test_smoothing_is_a_centred_mean() -> None:
    values = np.arange(80.0) ** 2
    np.testing.assert_allclose(smooth(values)[40], values[38:43].mean())
    np.testing.assert_allclose(smooth(values)[0], values[:3].mean())
