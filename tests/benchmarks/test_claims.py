"""The claims benchmark: its scenes are what their labels say, its tables add up, and its runs go on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.claims import __main__ as claims
from benchmarks.claims.encoder import NAME, NARROW, PHOTOS
from benchmarks.claims.figure import _panel
from benchmarks.claims.pictures import SIDE, Mosaics, Pictures, load_pictures
from benchmarks.claims.probe import NEIGHBOURS, REGION, SHOWN, classes_shown, probe, shown
from benchmarks.claims.probe_set import ProbeSet
from benchmarks.claims.row_file import add, load, save
from benchmarks.claims.run import fresh, options_of, run, shifted_and_flipped
from benchmarks.claims.sets import NARROW_SCENES, OBJECTS, SCENES, open_set
from benchmarks.claims.settings import (
    BOUNDS,
    LAPTOP,
    LONG,
    MASKCO,
    METHODS,
    MOCO,
    SCALES,
    SUPERVISED,
    UNTRAINED,
)
from benchmarks.claims.study import Job, compute
from benchmarks.claims.table import collect, overview, tables, verdicts
from benchmarks.claims.tries import LAPTOP_TRIES, PHOTOGRAPH_TRIES, tries_of
from maskco.config import PretrainConfig
from maskco.errors import UserError
from maskco.files import write_atomically
from maskco.nn import create_encoder
from nightly import nightly

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
COLOURS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200], [180, 180, 60]])
SHORT = dataclasses.replace(LAPTOP, steps=6, batch_size=100, options=LAPTOP.options | {"queue_size": 64})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four classes that a look at the color tells apart: what a supervised encoder must learn in no time."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, color in enumerate(COLOURS.tolist()):
        (folder / f"class{label}").mkdir()
        for index in range(40):
            picture = np.clip(random.normal(color, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"class{label}" / f"{index}.png")
    return str(folder)


def test_a_scene_shows_each_label_s_picture_in_its_box():
    images = torch.randint(256, (30, 3, SIDE, SIDE), dtype=torch.uint8)
    scenes = Mosaics(Pictures(images, torch.arange(30)), tiles=3, count=4, seed=0)
    for index in range(len(scenes)):
        image, boxes, labels = scenes[index]
        assert image.shape == (3, 3 * SIDE, 3 * SIDE)
        for (x1, y1, x2, y2), label in zip(boxes.long().tolist(), labels.tolist(), strict=True):
            assert torch.equal(image[:, y1:y2, x1:x2], images[label])


def test_parts_share_no_picture_and_are_always_the_same(photos):
    parts, again = load_pictures(photos), load_pictures(photos)
    assert [len(part.labels) for part in parts] == [112, 16, 32]
    assert all(torch.equal(one.images, other.images) for one, other in zip(parts, again, strict=True))
    distinct = {part.images[i].numpy().tobytes() for part in parts for i in range(len(part.labels))}
    assert len(distinct) == 160


def test_pictures_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^images: there is no"):
        load_pictures(str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"^images: .* two classes or more"):
        load_pictures(str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (SIDE, SIDE + 1)).save(tmp_path / name / "0.png")
    with pytest.raises(UserError, match=r"^images: a/0\.png in .* is not 32x32 pixels"):
        load_pictures(str(tmp_path))


def test_moved_boxes_show_what_they_showed():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, 16:32, 8:24] = 255
    scenes = Mosaics(Pictures(torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8), torch.arange(4)), 2, 1, 0)
    scene = scenes[0]._replace(image=image, boxes=torch.tensor([[8.0, 16, 24, 32]]))
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        images, boxes = shifted_and_flipped([scene])
        x1, y1, x2, y2 = boxes[0][0].long().tolist()
        bright = images[0, 0] > 0
        assert bright[y1:y2, x1:x2].all() and bright.sum() == 256
        seen.add((x1, y1))
    assert len(seen) > 4


def test_classes_shown_is_perfect_for_telling_features_and_poor_for_noise():
    table = torch.rand(400, 3) < 0.4
    telling, noise = table.float() + 0.01 * torch.randn(400, 3), torch.randn(400, 3)
    assert classes_shown(telling[:200], telling[200:], table[:200], table[200:]) > 99.9
    assert 30 < classes_shown(noise[:200], noise[200:], table[:200], table[200:]) < 55


def test_classes_shown_leaves_out_what_cannot_be_learnt_or_tested():
    table = torch.rand(400, 3) < 0.4
    telling, train, test = table.float() + 0.01 * torch.randn(400, 3), table[:200].clone(), table[200:].clone()
    train[:, 0], test[:, 1] = False, False
    assert classes_shown(telling[:200], telling[200:], train, test) > 99.9
    train[:, 2] = True
    with pytest.raises(UserError, match="no class can be learnt and tested"):
        classes_shown(telling[:200], telling[200:], train, test)


def test_shown_marks_the_classes_of_each_scene():
    scenes = Mosaics(Pictures(torch.zeros(9, 3, SIDE, SIDE, dtype=torch.uint8), torch.arange(9)), 2, 5, 0)
    for row, index in zip(shown(scenes, 9), range(5), strict=True):
        assert row.nonzero().flatten().tolist() == sorted(set(scenes[index].labels.tolist()))


def _rows(**means: float) -> list[dict]:
    names = {"maskco": MASKCO, "moco": MOCO}
    return [
        {"scale": "laptop", "set": SCENES, "part": "test", "method": names[name], "seed": seed}
        | {"scores": {REGION: value + seed, NEIGHBOURS: value}}
        for name, value in means.items()
        for seed in range(3)
    ]


def test_tables_give_mean_and_deviation_over_seeds():
    rows = _rows(maskco=40.0, moco=30.0)
    assert collect(rows)[SCENES][MASKCO][REGION] == [40, 41, 42]
    assert f"| {MASKCO} | 41.0 ± 1.0 | 40.0 ± 0.0 |" in tables(rows)


def test_the_overview_has_a_column_for_each_set_and_a_gap_where_nothing_was_measured():
    rows = [*_rows(maskco=40.0, moco=30.0), *(row | {"set": OBJECTS} for row in _rows(moco=50.0))]
    assert overview(rows).splitlines() == [
        f"| regions, linear / kNN | {OBJECTS} | {SCENES} |",
        "|---|---|---|",
        f"| {MASKCO} |  | 41.0 ± 1.0 / 40.0 ± 0.0 |",
        f"| {MOCO} | 51.0 ± 1.0 / 50.0 ± 0.0 | 31.0 ± 1.0 / 30.0 ± 0.0 |",
    ]


def test_a_method_keeps_its_row_where_another_was_not_measured():
    figure = Figure()
    axes = figure.subplots()
    _panel(axes, [MASKCO, MOCO], {MOCO: [30.0, 31.0]})
    (dots,) = axes.collections
    assert dots.get_offsets()[:, 1].tolist() == [1, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [MASKCO, MOCO]


@pytest.mark.parametrize(("lead", "holds"), [(5.1, True), (4.0, False), (2.0, False)])
def test_a_claim_holds_only_with_its_lead_and_with_seeds_apart(lead: float, holds: bool):
    """Seeds are two points apart: a lead of 4 is enough on average, but 2 points short of parting them by 3."""
    linear = verdicts(_rows(maskco=30 + lead, moco=30.0))[0]
    rows = _rows(maskco=30 + lead, moco=30.0)
    rows[2]["scores"][REGION] += 0 if holds else -4  # a seed that lies among the other's
    assert linear.startswith("holds" if lead >= 3 else "FAILS")
    assert verdicts(rows)[0].startswith("holds" if holds else "FAILS")


def test_every_setting_is_an_option_and_every_method_shares_the_rest():
    data = ProbeSet("x", "demo", (), (), (), 2)
    for own in (METHODS | LAPTOP_TRIES | PHOTOGRAPH_TRIES | BOUNDS).values():
        for scale in SCALES.values():
            options = options_of(own, data, scale, seed=0)
            PretrainConfig.of(data="demo", out="x", **options).check()
            left_out = scale.options.keys() - options.keys()
            assert not left_out or (
                own["method"] == "simclr" and left_out <= {"queue_size", "key_momentum", "key_group"}
            )
    assert METHODS[MOCO].keys() <= {"method"}


@pytest.mark.parametrize(("name", "stage", "seen"), [(NAME, 2, 55), (NARROW, 2, 23), (PHOTOS, 3, 95)])
def test_a_pixel_of_the_map_depends_on_as_many_of_the_picture_as_is_said(name: str, stage: int, seen: int):
    encoder = create_encoder(name, stage=stage, output_stride=8).eval()
    image = torch.rand(1, 3, 128, 128, requires_grad=True)
    encoder(image)[0, :, 8, 8].sum().backward()
    rows, columns = image.grad[0].abs().sum(0).nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == seen and columns.max() - columns.min() + 1 == seen


def test_the_narrow_encoder_learns_from_the_same_scenes(photos, tmp_path):
    wide, narrow = (open_set(name, photos, tmp_path, quick=True) for name in (SCENES, NARROW_SCENES))
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    for path in other.rglob("1?.png"):
        Image.new("RGB", (SIDE, SIDE)).save(path)
    assert open_set(SCENES, str(other), tmp_path, quick=True).pretrain != wide.pretrain, "of other pictures"
    assert narrow.pretrain == wide.pretrain and narrow.options == {"encoder": NARROW} and not wide.options
    assert all(torch.equal(a.image, b.image) for a, b in zip(narrow.val, wide.val, strict=True))


def test_a_run_trains_probes_and_is_not_done_twice(photos, tmp_path):
    data = open_set(SCENES, photos, tmp_path / "pictures", quick=True)
    first = run(MASKCO, METHODS[MASKCO], data, SHORT, 0, "val", tmp_path / "run")
    assert set(first["scores"]) == {REGION, NEIGHBOURS, SHOWN}
    assert first["steps"] == 8 and first["options"]["regions"] == METHODS[MASKCO]["regions"]
    before = (tmp_path / "run" / "last.pt").stat().st_mtime_ns
    again = run(MASKCO, METHODS[MASKCO], data, SHORT, 0, "val", tmp_path / "run")
    assert again["scores"] == first["scores"]
    assert (tmp_path / "run" / "last.pt").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_supervised_encoder_learns_and_an_untrained_one_is_what_a_run_begins_with(photos, tmp_path):
    data = open_set(SCENES, photos, tmp_path / "pictures", quick=True)
    scale = dataclasses.replace(SHORT, steps=40, batch_size=16)
    bound = run(SUPERVISED, {}, data, scale, 0, "test", tmp_path / "none")
    assert bound["scores"][REGION] > 95 and not (tmp_path / "none").exists()
    untrained = run(UNTRAINED, {}, data, scale, 3, "test", tmp_path / "none")
    config = PretrainConfig.of(data="demo", out="x", seed=3, image_size=48, **LAPTOP.options)
    assert untrained["scores"] == probe(fresh(config), data.train, data.test, data.classes)


@nightly
@pytest.mark.slow
def test_the_command_adds_only_missing_rows_and_shows_them(photos, tmp_path):
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.claims", "--images", photos, "--folder", str(tmp_path), "--quick"]
    command += ["--methods", UNTRAINED, "--json", str(file), "--sets"]
    first = subprocess.run([*command, SCENES], capture_output=True, text=True, check=True)
    assert f"{SCENES}, {UNTRAINED}, seed 0" in first.stdout and (tmp_path / "results.png").exists()
    (row,) = json.loads(file.read_text())["rows"]
    assert row["part"] == "test" and {"commit", "versions", "options"} <= row.keys()
    again = subprocess.run([*command, SCENES], capture_output=True, text=True, check=True)
    assert "seed 0" not in again.stdout and "| untrained |" in again.stdout
    refused = subprocess.run([*command, "atlantis"], capture_output=True, text=True)
    assert refused.returncode == 2 and "'atlantis' is none of" in refused.stderr


def test_scales_are_not_mixed_in_one_file(tmp_path):
    file = tmp_path / "rows.json"
    save(file, _rows(maskco=40.0))
    with pytest.raises(UserError, match=r"has rows of scale laptop\. Name another file for long"):
        compute([Job(LONG, SCENES, MASKCO, {}, 0, "test")], "no pictures", tmp_path, file, together=1)


@dataclasses.dataclass(frozen=True)
class Stub(Job):
    """A job that trains nothing. Seed 9 fails, seed 8 waits."""

    def run(self, pictures: Sequence[str], folder: Path) -> dict:
        if self.seed == 9:
            raise UserError("no picture can be read")
        if self.seed == 8:
            write_atomically(folder / "began", lambda file: file.write(str(os.getpid()).encode()))
            time.sleep(120)
        return _rows(maskco=40.0)[0] | {"seed": self.seed, "part": self.part, "method": self.method, "seconds": 1}


def stub(seed: int, own: dict | None = None, part: str = "test") -> Job:
    return Stub(LAPTOP, SCENES, MASKCO, own or {}, seed, part)


def test_a_job_that_fails_does_not_end_the_others_and_none_is_made_twice(tmp_path, capsys):
    file = tmp_path / "new" / "rows.json"
    with pytest.raises(UserError, match=r"1 of 3 runs failed, see above\. Then give the same command again"):
        compute([stub(9), stub(0), stub(1), stub(0)], (), tmp_path, file, together=1)
    assert [row["seed"] for row in load(file)] == [0, 1]
    assert capsys.readouterr().err == "laptop-scenes_2x2-test-MaskCo-9 failed: no picture can be read\n"


def test_two_studies_add_to_one_file(tmp_path):
    file = tmp_path / "rows.json"
    first, second = (_rows(**{name: 40.0}) for name in ("maskco", "moco"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: add(file, [row]), first + second))
    assert len(load(file)) == 6
    add(file, [first[0] | {"scores": {REGION: 1.0}}])
    assert len(load(file)) == 6 and {REGION: 1.0} in [row["scores"] for row in load(file)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_study_that_is_killed_leaves_no_run_behind(tmp_path):
    code = (
        "import sys; from pathlib import Path; from test_claims import compute, stub\n"
        "if __name__ == '__main__':\n"
        "    compute([stub(8)], (), Path(sys.argv[1]), Path(sys.argv[1], 'rows.json'), 1)\n"
    )
    (tmp_path / "study.py").write_text(code)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen([sys.executable, str(tmp_path / "study.py"), str(tmp_path)], env=environment) as study:
        assert eventually(lambda: (tmp_path / "began").exists() or study.poll() is not None)
        run = Path("/proc", (tmp_path / "began").read_text())
        assert run.exists()
        study.kill()
    assert eventually(lambda: not run.exists() or "State:\tZ" in (run / "status").read_text())


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def test_rows_of_other_options_are_not_taken_for_these(tmp_path):
    file = tmp_path / "rows.json"
    save(file, [row | {"options": {"method": "maskco", "regions": 4}} for row in _rows(maskco=40.0)])
    compute([stub(0, {"method": "maskco", "regions": 4})], (), tmp_path, file, together=1)
    with pytest.raises(UserError, match=r"has a row of laptop, scenes 2x2, test, MaskCo, 0 with another regions\."):
        compute([stub(0, {"method": "maskco", "regions": 2})], (), tmp_path, file, together=1)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("claims*.json")), ids=lambda path: path.stem)
def test_committed_rows_are_of_the_settings_as_they_are(path: Path):
    if path.stem == "claims_tries":  # of a prototype
        return
    for row in load(path):
        scale = SCALES[row["scale"]]
        own = (METHODS | BOUNDS if row["part"] == "test" else tries_of(scale) | METHODS | BOUNDS)[row["method"]]
        assert Job(scale, row["set"], row["method"], own, row["seed"], row["part"]).is_done(row, path)


def test_the_file_must_be_of_this_benchmark(tmp_path):
    other = tmp_path / "other.json"
    (row, *_) = _rows(maskco=40.0)
    bad = [row | {"set": "atlantis"}, row | {"part": "train"}, row | {"scores": {REGION: "40"}}]
    bad += [row | {"scores": {REGION: math.nan}}, row | {"options": None}, row | {"curve": [[1, 2]]}]
    contents = ["[]", '{"rows": {}}', '{"rows": [1]}', '{"rows": [{"try": "MoCo v2", "loss": 6.9}]}', "[" * 100_000]
    for content in contents + [json.dumps({"rows": [each]}) for each in bad]:
        other.write_text(content)
        with pytest.raises(UserError, match="holds no results"):
            load(other)
    other.write_text(json.dumps({"rows": [row, row]}))
    with pytest.raises(UserError, match="holds two rows of laptop, scenes 2x2, test, MaskCo, 0"):
        load(other)
    for name in ("claims_tries", "encoders", "detection_coco128", "data_cpu"):
        with pytest.raises(UserError, match="holds no results"):
            load(RESULTS / f"{name}.json")


def test_a_file_without_rows_is_not_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "none.json").write_text('{"rows": []}')
    monkeypatch.setattr("sys.argv", ["claims", "--show", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit):
        claims.main()
    assert "none.json holds no rows" in capsys.readouterr().err


def test_the_command_shows_committed_rows_and_bounds_its_options(tmp_path, monkeypatch, capsys):
    (tmp_path / "claims.json").write_bytes((RESULTS / "claims.json").read_bytes())
    monkeypatch.setattr("sys.argv", ["claims", "--show", str(tmp_path / "claims.json")])
    claims.main()
    assert "MaskCo, no head" in capsys.readouterr().out and (tmp_path / "claims.png").exists()
    monkeypatch.setattr("sys.argv", ["claims", "--seeds", "0"])
    with pytest.raises(SystemExit) as ended:
        claims.main()
    assert ended.value.code == 2 and "--seeds must be between 1" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["claims", "--json", "rows.png"])
    with pytest.raises(SystemExit):
        claims.main()
    assert "error: --json: rows.png must end with .json" in capsys.readouterr().err
