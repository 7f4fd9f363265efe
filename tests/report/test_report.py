"""What the report shows, asked of the figure itself, for runs with and without labels, metrics and evaluations."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html import unescape
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import maskco.report.runs
from drawn import boxes, image, image_names
from maskco import cli
from maskco.data.sources.demo import CLASS_NAMES
from maskco.data.views import GREY, MEAN, STD
from maskco.errors import UserError
from maskco.evaluate.options import Regions
from maskco.evaluate.results import Row, save_rows
from maskco.evaluate.run import evaluate
from maskco.report import draw_report, write_report
from maskco.report.curves import smooth
from maskco.report.page import FAINT, GREEN, RED, RUN_COLORS
from maskco.report.runs import read_runs
from maskco.report.scores import tables
from maskco.runs.checkpoint import CheckpointError, read_checkpoint, save_checkpoint


@pytest.fixture
def run(folder_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder_run, tmp_path / "a run"))


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """The same run under another name, with another seed."""
    copy = Path(shutil.copytree(run, tmp_path / "another"))
    change_config(copy, seed=3)
    return copy


def change_config(run: Path, **values) -> None:
    state = read_checkpoint(run / "last.pt")
    state["config"] |= values
    state.pop("format")
    save_checkpoint(run / "last.pt", state)


@pytest.fixture
def demo_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run, but it says it was made on the demo scenes."""
    monkeypatch.setattr(maskco.report.runs, "LABELLED_SCENES", 40)
    change_config(run, data="demo")
    return run


def labels(figure: Figure) -> list[str]:
    return [axes.get_label() for axes in figure.axes]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def panel(figure: Figure, label: str):
    return next(axes for axes in figure.axes if axes.get_label() == label)


def frames(figure: Figure) -> dict[str, str]:
    drawn = [box for box in boxes(figure) if re.match("frame of .* neighbour", box.get_label())]
    return {box.get_label(): to_hex(box.get_edgecolor()) for box in drawn}


CURVES = ["loss", "accuracy", "lr", "images_per_s", "grad_norm", "embedding_std", "effective_rank"]
SPREAD = ["variance by axis", "similarity of keys"]


def test_a_run_on_a_folder_shows_every_panel(run: Path) -> None:
    figure = draw_report(run)
    assert labels(figure) == [*CURVES, "regions of a run", *SPREAD]
    found = image_names(figure)
    assert [name for name in found if "view" in name] == [f"{v} view {i}" for i in range(3) for v in ("query", "key")]
    assert len([name for name in found if name.startswith("region ")]) == 6 * (1 + 6)
    assert "a run" in words(figure) and "step 2" in words(figure)
    assert "query" in words(figure) and "same class" not in words(figure)
    assert set(frames(figure).values()) == {FAINT}  # no labels: neither right nor wrong
    assert_text_on_page(figure)


def test_views_show_each_region_in_one_color_and_hide_it_in_the_query(run: Path) -> None:
    figure = draw_report(run)
    for index in range(3):
        drawn = [boxes(figure, of=f"{view} view {index}") for view in ("query", "key")]
        colors = [[to_hex(box.get_edgecolor()) for box in own] for own in drawn]
        assert colors[0] == colors[1] and len(set(colors[0])) == 2
        shown = image(figure, f"query view {index}")
        for box in drawn[0]:
            x, y = int(box.get_x() + box.get_width() / 2), int(box.get_y() + box.get_height() / 2)
            grey = np.array(MEAN) + GREY * np.array(STD)
            np.testing.assert_allclose(shown[y, x], grey, atol=1e-5)
        assert shown.std() > 0.01  # not everything is hidden


def test_curves_show_the_logged_values(run: Path) -> None:
    figure = draw_report(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss, accuracy = figure.axes[:2]
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[row["step"], row["loss"]] for row in rows])
    drawn = [line.get_label() for line in accuracy.lines]
    assert "top-1" in drawn and "top-5" in drawn
    chance = next(line for line in accuracy.lines if line.get_label().startswith("chance"))
    # a positive among 64 keys of the queue and one other region
    assert chance.get_ydata()[0] == pytest.approx(100 / 66)


@pytest.mark.parametrize("kept", [0, 1])
def test_few_or_no_logged_rows_are_drawn_all_the_same(run: Path, kept: int) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:kept]))
    loss = draw_report(run).axes[0]
    assert len(loss.lines) == kept
    assert [text.get_text() for text in loss.texts] == ([] if kept else ["no step logged"])
    assert write_report(run).png.stat().st_size > 10_000


def test_several_runs_are_overlaid_and_shown_beside_each_other(run: Path, other: Path) -> None:
    rows = (other / "metrics.jsonl").read_text().splitlines()
    (other / "metrics.jsonl").write_text(rows[0] + "\n")
    figure = draw_report(run, other)
    loss, accuracy = figure.axes[:2]
    assert [to_hex(line.get_color()) for line in loss.lines] == [RUN_COLORS[0]] * 2 + [RUN_COLORS[1]]
    assert [to_hex(line.get_color()) for line in accuracy.lines[:3]] == [RUN_COLORS[0]] * 2 + [RUN_COLORS[1]]
    assert {"regions of a run", "regions of another"} <= set(labels(figure))
    names = image_names(figure)
    assert names.count("query view 0") == 2 and names.count("region 0 query") == 2
    assert len(panel(figure, "variance by axis").get_legend().get_texts()) == 2
    assert "Nearest regions: another" in words(figure)
    assert_text_on_page(figure)


def test_the_spread_is_the_queue_s(run: Path) -> None:
    """Keys along one axis have effective rank 1; what is not yet valid in the queue is not looked at."""
    state = read_checkpoint(run / "last.pt")
    state["method"]["queue.features"].zero_()
    state["method"]["queue.features"][:32, 0] = torch.linspace(0.5, 1, 32)
    state["method"]["queue.features"][32:] = torch.nan
    state["method"]["queue.cursor"].copy_(torch.tensor([32, 32]))
    state.pop("format")
    save_checkpoint(run / "last.pt", state)
    figure = draw_report(run)
    text = panel(figure, "variance by axis").get_legend().get_texts()[0].get_text()
    assert text == "a run: effective rank 1.0 of 16"

    state["method"]["queue.cursor"].zero_()
    save_checkpoint(run / "last.pt", state)
    axes = panel(draw_report(run), "variance by axis")
    assert not axes.lines and axes.texts[0].get_text() == "the queue is empty"


def test_demo_scenes_are_framed_and_colored_by_class(demo_run: Path) -> None:
    figure = draw_report(demo_run)
    assert set(frames(figure).values()) <= {GREEN, RED}
    assert set(CLASS_NAMES) <= set(words(figure).splitlines())  # queries, and the legend of the map
    assert "same class as the query" in words(figure)
    dots = panel(figure, "regions of a run").collections[0]
    assert len(np.unique(dots.get_facecolors(), axis=0)) == 10
    assert_text_on_page(figure)


def test_evaluations_are_shown_where_there_are_any(demo_run: Path) -> None:
    run = demo_run
    assert not any(name.startswith("scores") for name in labels(draw_report(run)))
    options = Regions(encoders=(str(run),), untrained=True, train_images=60, test_images=30)
    trained, untrained = evaluate(options, verbose=False)
    assert trained.scores == untrained.scores  # the learning rate was 0: it ends with the weights it began with
    save_rows(run / "evaluation.json", [Row("detection", "coco", str(run), "a", {"mAP": 12.34}, {"step": 1})])
    figure = draw_report(run)
    drawn = [name for name in labels(figure) if name.startswith("scores")]
    assert drawn == ["scores Regions by frozen features, demo scenes, %", "scores Faster R-CNN, fine-tuned, coco, %"]
    widths = [bar.get_width() for bar in panel(figure, drawn[0]).patches]
    assert widths == pytest.approx([trained.scores["linear top-1"]] * 2)
    text = words(figure)
    assert f"{trained.scores['kNN top-1']:.1f}" in text and "12.3" in text and "untrained: a run" in text
    assert "a run: made at step 1" in text
    assert_text_on_page(figure)

    (run / "evaluation.json").write_text('{"scores": {}}')
    with pytest.raises(UserError, match="no file of evaluations"):
        draw_report(run)


def scored(run: Path, encoder: str, score: float, **details: object) -> None:
    save_rows(run / "evaluation.json", [Row("knn", "x", encoder, "a", {"kNN top-1": score}, details)])


def table_of(*runs: str | Path) -> dict[str, float]:
    (table,), _ = tables(read_runs(list(runs)))
    return {name: row.scores["kNN top-1"] for name, row in zip(table.names, table.rows, strict=True)}


def test_each_run_has_its_own_rows_however_it_was_called(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "A" / "run", tmp_path / "B" / "run"
    for folder, score in ((first, 1.0), (second, 2.0)):
        shutil.copytree(run, folder)
        scored(folder, "run", score, place=".", step=1)
        scored(folder, "untrained:run", score / 2, place=".", step=0)
    each = {str(first): 1.0, f"untrained: {first}": 0.5, str(second): 2.0, f"untrained: {second}": 1.0}
    assert table_of(first, second) == each
    scored(first, "../B/run", 3.0, place="../../B/run", step=1)  # of the other run, in this one's file
    assert table_of(first, second) == each
    assert table_of(first) == {"run": 1.0, "untrained: run": 0.5, "../B/run": 3.0}

    moved = first.rename(tmp_path / "old")
    shutil.copytree(run, first)
    assert table_of(moved, first)["old"] == 1.0 and "run" not in table_of(moved, first)
    monkeypatch.chdir(tmp_path)
    assert tables(read_runs(["old"]))[1] == tables(read_runs([moved]))[1] == ["old: made at step 1"]


def test_rows_of_earlier_versions_are_found_by_the_weights(run: Path, tmp_path: Path) -> None:
    scored(run, "elsewhere/run", 1.0, encoder_sha256=read_runs([run])[0].digest)
    newer = Path(shutil.copytree(run, tmp_path / "newer"))
    (newer / "evaluation.json").unlink()
    assert table_of(run, newer) == {"a run": 1.0}
    scored(newer, "timm:resnet50", 5.0, encoder_sha256="1")
    scored(run, "timm:resnet50", 5.0, encoder_sha256="1")
    assert table_of(run, newer) == {"a run": 1.0, "timm:resnet50": 5.0}


def test_a_table_has_one_data_set_and_names_settings_that_differ(run: Path) -> None:
    for data, k, chance in (("/d1/x", 20, 50.0), ("/d1/x", 1, 50.0), ("/d2/x", 20, 10.0), ("/d2/x", 20, 10.0)):
        details = {"place": ".", "settings": {"data": data, "k": k, "device": "cpu"}}
        save_rows(run / "evaluation.json", [Row("knn", "x", "a", "a", {"kNN top-1": 1, "chance": chance}, details)])
    found, _ = tables(read_runs([run]))
    assert [(table.data, table.chance, table.names) for table in found] == [
        ("/d1/x", 50.0, ["a run, k 20", "a run, k 1"]), ("/d2/x", 10.0, ["a run"]),
    ]  # fmt: skip


def assert_text_on_page(figure: Figure) -> None:
    renderer = FigureCanvasAgg(figure).get_renderer()
    page = figure.bbox
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()


def test_images_that_are_gone_leave_the_curves(run: Path) -> None:
    change_config(run, data="/nowhere/images")
    figure = draw_report(run)
    assert labels(figure) == CURVES + SPREAD
    assert "cannot be shown" in words(figure) and "/nowhere/images" in words(figure)


def test_the_files_are_the_same_every_time_and_nothing_global_changes(run: Path) -> None:
    settings, state = dict(matplotlib.rcParams), torch.random.get_rng_state()
    first = write_report(run)
    assert first == (run / "report.html", run / "report.png")
    second = write_report(run, out=run / "made" / "again")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert dict(matplotlib.rcParams) == settings and torch.equal(torch.random.get_rng_state(), state)
    with Image.open(first.png) as image:
        assert image.width == 1680
        assert np.asarray(image.convert("L")).std() > 10  # not blank


def test_the_html_stands_alone_and_says_what_the_png_says(run: Path, other: Path) -> None:
    save_rows(run / "evaluation.json", [
        Row("regions", "d & e", str(run), "a", {"linear top-1": 41.26, "chance": 10}, {"notes": ["<held out>"]}),
        Row("regions", "d & e", "timm:resnet50", "resnet50", {"linear top-1": 51.2, "chance": 10}),
    ])  # fmt: skip
    report = write_report(run, other)
    text = report.html.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert len(embedded(text)) == text.count("<section>") - 2 == 1 + 2 * 2 + 1 + 1  # less runs and table
    for pixels in embedded(text):
        assert pixels.shape[1] == 1680 and pixels.std() > 3
    assert "<td>41.3</td>" in text and '<td class="best">51.2</td>' in text and "d &amp; e" in text
    assert "&lt;held out&gt;" in text
    assert "<td>seed</td><td>0</td><td>3</td>" in text and "<td>dim</td>" not in text  # only what differs


def embedded(html: str) -> list[np.ndarray]:
    """The images in a report.html: uint8 [H, W, 3] each."""
    found = (base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', html))
    return [np.asarray(Image.open(io.BytesIO(data))) for data in found]


def place_in(page: np.ndarray, image: np.ndarray) -> int:
    """The row of the page from which on it shows the image pixel by pixel."""
    rows = range(len(page) - len(image) + 1)
    return next(row for row in rows if np.array_equal(page[row : row + len(image)], image))


def test_html_and_png_show_the_same_parts(demo_run: Path) -> None:
    """The images in report.html are pieces of report.png, in its order, and its headings are the page's."""
    row = Row("detection", "coco", str(demo_run), "a", {"mAP": 12.34}, {"step": 1})
    save_rows(demo_run / "evaluation.json", [row])
    report = write_report(demo_run)
    html, page = report.html.read_text(), np.asarray(Image.open(report.png))
    images = embedded(html)
    starts = [place_in(page, image) for image in images]
    ends = [start + len(image) for start, image in zip(starts, images, strict=True)]
    assert starts == sorted(starts) and all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    titles = [unescape(title) for title in re.findall("<h2>(.*?)</h2>", html)]
    drawn = words(draw_report(demo_run)).splitlines()
    assert (
        titles == [line for line in drawn if line in titles] and len(titles) == len(images) + 1
    )  # the scores are text
    assert titles[0] == "Training" and titles[-1] == "Evaluation"


def keep_metrics(run: Path, *names: str, **others: float) -> None:
    """Leaves only some metrics in the run's rows, and adds others."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if name in ("step", *names)} | others for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def test_a_method_without_queue_regions_and_known_metrics_is_reported(plain_run: Path, run: Path) -> None:
    keep_metrics(plain_run, "loss", "lr", **{"energy of $x_": 3.5})
    figure = draw_report(plain_run)
    found = labels(figure)
    assert found[:3] == ["loss", "energy of $x_", "lr"] and not set(SPREAD) & set(found)
    assert panel(figure, "energy of $x_").lines[-1].get_ydata().tolist() == [3.5, 3.5]
    assert "Not shown: simclr has no queue of keys." in words(figure)
    assert "Query views and their key views" in words(figure) and not boxes(figure, of="query view 0")
    assert "no queue of keys" in write_report(plain_run).html.read_text()
    assert_text_on_page(figure)

    both = draw_report(run, plain_run)  # beside one that has a queue
    assert len(panel(both, "variance by axis").get_legend().get_texts()) == 1
    assert "without a queue: plain run" in words(both)
    assert len(panel(both, "accuracy").lines) == 2 + 1  # the run's that has one, and its chance


def test_metrics_of_a_second_contrast_stand_beside_the_first_s(run: Path) -> None:
    keep_metrics(run, "loss", "accuracy", "top5", dense_accuracy=50.0, dense_top5=75.0, dense_embedding_std=0.1)
    figure = draw_report(run)
    assert labels(figure)[:4] == ["loss", "accuracy", "dense_accuracy", "dense_embedding_std"]
    dense = panel(figure, "dense_accuracy")
    assert dense.get_title("left") == "Contrast accuracy, % (dense)"
    assert sorted({line.get_ydata()[0] for line in dense.lines}) == [50, 75]


def test_a_probe_has_panels_of_its_own_with_chance(run: Path, other: Path) -> None:
    values = {"probe_regions": 40.0, "probe_regions_chance": 12.5, "probe_knn": 30.0, "probe_knn_chance": 10.0}
    keep_metrics(run, "loss", **values)
    figure = draw_report(run)
    assert labels(figure)[:4] == ["loss", "probe_regions", "probe_knn", "regions of a run"]
    for name, title in (("probe_regions", "Probe: region kNN accuracy, %"), ("probe_knn", "Probe: kNN accuracy, %")):
        axes = panel(figure, name)
        assert axes.get_title("left") == title
        assert {line.get_ydata()[0] for line in axes.lines} == {values[name], values[f"{name}_chance"]}
        (chance,) = [line for line in axes.lines if line.get_label().startswith("chance")]
        assert chance.get_label() == f"chance {values[f'{name}_chance']:.2g} %"
    keep_metrics(other, "loss")
    assert_text_on_page(draw_report(run, other))


def test_t_sne_is_drawn_where_it_can_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    figure = draw_report(run, projection="tsne")
    dots = panel(figure, "regions of a run").collections[0].get_offsets()
    assert len(dots) == 16 * 3 and np.isfinite(dots).all() and "t-SNE" in words(figure)
    with pytest.raises(UserError, match="pca or tsne"):
        draw_report(run, projection="umap")
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r"pip install 'maskco\[eval\]'"):
        draw_report(run, projection="tsne")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_line(run: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (([run, other, "--out", tmp_path / "both"], 0), ([], 2)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", *map(str, arguments)])
        assert stopped.value.code == code
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "both/report.html"), str(tmp_path / "both/report.png")]
    assert printed.err == "error: runs: none was named. Name at least one run folder\n"


@pytest.mark.parametrize("length", [1, 2, 39, 40, 500])
def test_smoothing_keeps_constants_and_length(length: int) -> None:
    np.testing.assert_allclose(smooth([3.0] * length), np.full(length, 3.0))


def test_smoothing_is_a_centred_mean() -> None:
    values = np.arange(80.0) ** 2
    np.testing.assert_allclose(smooth(values)[40], values[38:43].mean())
    np.testing.assert_allclose(smooth(values)[0], values[:3].mean())
