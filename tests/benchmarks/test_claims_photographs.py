"""Photographs in the claims benchmark: who sees which image, how regions are scored, and what the tables say."""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import tables as page
from benchmarks.claims import __main__ as claims
from benchmarks.claims import pack, voc_subset
from benchmarks.claims.figure import draw
from benchmarks.claims.head import draw_head, head_worth, worth_table
from benchmarks.claims.lengths import lengths_table
from benchmarks.claims.names import CALTECH, COCO, COMPARED, DEMO, SCENES, VOC, find_sets
from benchmarks.claims.photographs import open_photographs
from benchmarks.claims.probe import NEIGHBOURS, REGION, SHOWN, TOP1, WithWhole, probe
from benchmarks.claims.row_file import save
from benchmarks.claims.run import Fitted, run, supervised
from benchmarks.claims.sets import place_of, places_of
from benchmarks.claims.settings import (
    BOUNDS,
    DENSECL,
    HIDDEN,
    HIDDEN_NO_HEAD,
    LAPTOP,
    MAIN,
    MASKCO,
    METHODS,
    MOCO,
    NO_HEAD,
    PHOTOGRAPHS,
    REGIONS,
    SIMCLR,
)
from benchmarks.claims.table import overview, tables, tried, verdicts
from benchmarks.claims.tries import PHOTOGRAPH_TRIES, budgets
from maskco.data.sources import SourceError, open_source
from maskco.data.sources.coco import CocoSource
from maskco.errors import UserError
from maskco.evaluate.datasets import open_labelled
from maskco.evaluate.features import Input
from maskco.nn import create_encoder
from voc_devkit import write_devkit

SHORT = dataclasses.replace(PHOTOGRAPHS, steps=2, probed=32, batch_size=8)
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def write_coco(root: Path, counts: dict[str, int]) -> Path:
    """Photographs of several sizes, half of one class and half of another, with a box for each half."""
    (root / "annotations").mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in counts.items():
        (root / f"{part}2017").mkdir()
        images, boxes = [], []
        for number in range(1, count + 1):
            width, height = int(random.integers(60, 90)), int(random.integers(50, 80))
            picture = np.zeros((height, width, 3), np.uint8)
            classes = random.permutation(3)[:2].tolist()
            for side, label in enumerate(classes):
                columns = slice(side * width // 2, (side + 1) * width // 2)
                noise = random.normal(COLOURS[label], 20, picture[:, columns].shape)
                picture[:, columns] = np.clip(noise, 0, 255).astype(np.uint8)
                box = [side * width // 2, 0, width // 2, height]
                boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label + 1, "bbox": box})
            Image.fromarray(picture).save(root / f"{part}2017/{number}.jpg")
            images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        categories = [{"id": label + 1, "name": f"class{label}"} for label in range(3)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / f"annotations/instances_{part}2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("photographs") / "voc", {"train": 40, "val": 20})


def test_nothing_is_pretrained_on_what_a_run_is_judged_by(coco, tmp_path):
    found, again = (open_photographs(VOC, str(coco), tmp_path / name) for name in ("a", "b"))
    assert (len(found.train), len(found.val), len(found.test), found.classes) == (32, 8, 20, 3)
    seen = open_source(found.pretrain)
    names = {part: {p.source.name(i) for i in p.indices} for part, p in (("train", found.train), ("val", found.val))}
    assert {seen.name(index) for index in range(len(seen))} == names["train"] and not names["train"] & names["val"]
    assert found.val.indices == again.val.indices
    image = found.train[5].image  # of the same index as in the source, held in memory
    assert not hasattr(seen, "open") and torch.equal(seen[5], image)
    assert hasattr(open_source(open_photographs(COCO, str(coco), tmp_path).pretrain), "open"), "COCO is read from files"
    with pytest.raises(UserError, match="is no list of images"):
        open_source(f"listed:{tmp_path / 'missing.json'}")


def test_class_folders_are_scenes_of_one_object(tmp_path):
    for part, count in (("train", 10), ("val", 3)):
        for label, color in enumerate(COLOURS):
            folder = tmp_path / f"{part}/class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40 + index, 50), color).save(folder / f"{index}.jpg")
    found = open_photographs(CALTECH, str(tmp_path), tmp_path / "lists")
    assert (len(found.train), len(found.val), len(found.test)) == (24, 6, 9)
    image, boxes, labels = found.train[0]
    assert boxes.tolist() == [[0, 0, image.shape[2], image.shape[1]]] and labels.shape == (1,)
    assert open_source(found.pretrain).name(0).startswith("class")


def test_places_are_named_for_all_or_set_by_set(coco, tmp_path, monkeypatch):
    both = coco.parent
    assert place_of(VOC, [f"voc={coco}"]) == place_of(VOC, [str(coco)]) == place_of(VOC, [str(both)]) == str(coco)
    assert place_of(VOC, [f"voc={coco}", "elsewhere"]) == str(coco)
    assert place_of(SCENES, ["torchvision:a", f"voc={coco}"]) == "torchvision:a"
    assert place_of(SCENES, []) == "torchvision:data" and place_of(SCENES, ["a=b"]) == "a=b"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"data/caltech101 holds no photographs of Caltech-101\. .*--images caltech101=FOLDER"
    ):
        place_of(CALTECH, [f"voc={coco}"])


def test_no_layout_is_another_set(coco, tmp_path):
    for part in ("train", "val"):
        for index in range(4):
            path = tmp_path / "folders" / part / ("ant", "bee")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    with pytest.raises(UserError, match="has no boxes, and VOC needs some"):
        open_photographs(VOC, str(tmp_path / "folders"), tmp_path)
    with pytest.raises(UserError, match="has boxes, and Caltech-101 needs none"):
        open_photographs(CALTECH, str(coco), tmp_path)
    with pytest.raises(UserError, match="cannot be VOC and Caltech-101"):
        places_of((VOC, CALTECH), [str(coco)])
    (tmp_path / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is one year of VOC\. Name the folder above it"):
        open_photographs(VOC, str(tmp_path / "VOC2007"), tmp_path)
    with pytest.raises(UserError, match="is VOC, not COCO"):
        open_photographs(COCO, str(tmp_path), tmp_path)
    one = write_coco(tmp_path / "one", {"train": 6})
    with pytest.raises(UserError, match=r"one has one part only\. Name a folder with VOC's train and val"):
        open_photographs(VOC, str(one), tmp_path)


def test_images_that_cannot_be_read_are_refused_and_named(tmp_path):
    """No method may see fewer images than another."""
    root = write_coco(tmp_path / "voc", {"train": 40, "val": 20})
    (root / "val2017/3.jpg").write_bytes((root / "val2017/3.jpg").read_bytes()[:200])
    found = open_photographs(VOC, str(root), tmp_path / "lists")
    encoder = create_encoder("claims_photos", stage=3, output_stride=8)
    with pytest.raises(UserError, match=r"images: 1 cannot be read, the first of them .*3\.jpg.*\. Restore them"):
        probe(encoder, found.train, found.test, 3, 32)
    name = found.train.source.name(found.train.indices[4])
    (root / "train2017" / name).write_bytes(b"no image")
    with pytest.raises(SourceError, match=rf"images: .*{name}.*\. Restore it"):
        open_source(found.pretrain)


def test_a_set_has_one_name_however_it_is_written_and_says_its_scale():
    assert find_sets(["voc", "Caltech101", "caltech-101", "scenes2x2", "demo-scenes"]) == (VOC, CALTECH, SCENES, DEMO)
    scales = {"voc": "photos", "coco": "photos", "demo scenes": "laptop"}
    for name, scale in scales.items():
        assert claims.scale_of(claims.Options(sets=(name,))).name == scale
    quick = claims.scale_of(claims.Options(sets=("voc",), quick=True))
    assert quick.name == "photos-quick" and quick.options == PHOTOGRAPHS.options and quick.steps < PHOTOGRAPHS.steps
    assert claims.scale_of(claims.Options(scale="photos", quick=True)) is quick
    with pytest.raises(UserError, match=r"has all of voc, demo scenes needs a GPU\. Name it with `scale=gpu`, or"):
        claims.scale_of(claims.Options(sets=("voc", "demo scenes"), quick=True))
    with pytest.raises(UserError, match="no scale has all of voc, scenes 3x3, stl10"):
        claims.scale_of(claims.Options(sets=("voc", "scenes 3x3", "stl10")))
    quick = claims.jobs(claims.Options(sets=("voc",), quick=True), PHOTOGRAPHS)
    assert [(job.set, job.seed, job.part) for job in quick] == [(VOC, 0, "test")] * 4
    assert len({job.method for job in claims.jobs(claims.Options(), PHOTOGRAPHS)}) == len(METHODS) + 2
    laptop = {job.method for job in claims.jobs(claims.Options(), LAPTOP)}
    assert laptop == {*MAIN, *BOUNDS}


def test_regions_are_scored_by_the_mean_over_classes_and_each_photograph_is_read_once(coco):
    found = open_photographs(VOC, str(coco), coco.parent / "lists")
    encoder = create_encoder("claims_photos", stage=3, output_stride=8)
    reads = []

    class Counted(WithWhole):
        def __getitem__(self, index: int):
            reads.append(index)
            return self.scenes[index]

    train, test = Counted(found.train), Counted(found.test)
    scores = probe(encoder, train, test, 3, 32, balanced=True)
    assert set(scores) == {REGION, NEIGHBOURS, SHOWN, REGION + TOP1, NEIGHBOURS + TOP1}
    assert len(reads) <= 36 * 4 + 20 * 2  # features, batch norm, and labels of both parts
    image, boxes, labels = WithWhole(found.train)[0]
    assert boxes[-1].tolist() == [0, 0, image.shape[2], image.shape[1]] and labels.tolist()[-1] == -1
    plain = probe(encoder, found.train, found.test, 3, 32)
    assert plain[REGION] == pytest.approx(scores[REGION + TOP1]) and REGION + TOP1 not in plain


def test_supervised_training_takes_photographs_of_any_size(coco, tmp_path):
    found = open_photographs(VOC, str(coco), tmp_path)
    image, boxes, _ = Fitted(found.train, Input(32))[0]
    assert image.shape == (3, 32, 32) and boxes[0, [0, 1, 3]].tolist() == [0, 0, 32] and 14 < boxes[0, 2] < 17
    encoder = create_encoder("claims_photos", stage=3, output_stride=8)
    before = [value.clone() for value in encoder.parameters()]
    supervised(encoder, found, SHORT, seed=0)
    assert any(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))


def test_a_run_notes_contrast_accuracy_and_rank_along_the_way(coco, tmp_path):
    found = open_photographs(VOC, str(coco), tmp_path)
    scale = dataclasses.replace(SHORT, steps=4, options=SHORT.options | {"image_size": 32, "queue_size": 32})
    row = run(SIMCLR, METHODS[SIMCLR], found, scale, 0, "val", tmp_path / "run")
    assert [point[0] for point in row["curve"]] == [1, 2, 3, 4]
    assert row["curve"][-1][1:] == [row["contrast_accuracy"], row["effective_rank"]] and row["effective_rank"] > 1
    assert "queue_size" not in row["options"] and row["options"]["optimizer"] == "sgd"


def test_the_subset_of_voc_is_made_of_a_devkit(tmp_path, monkeypatch):
    devkit, names = write_devkit(tmp_path), tmp_path / "names.txt"
    names.write_text("# train\n2008_000001\n000003\n# val\n000001\n")
    monkeypatch.setattr(voc_subset, "SIDES", (30, 25))
    made = voc_subset.subset(devkit, tmp_path / "made", names)
    assert made == voc_subset.subset(devkit, tmp_path / "made", names)
    train, val = (CocoSource(made / f"annotations/instances_{part}2017.json") for part in ("train", "val"))
    assert train.names == ["2008_000001.jpg", "000003.jpg"] and train[0].size == (25, 20)
    assert train.objects[0].boxes.tolist() == [[5, 5, 20, 20]]
    assert len(val.objects[0].boxes) == 3, "difficult objects are in"
    out = tmp_path / "again.txt"
    monkeypatch.setattr("sys.argv", ["voc_subset", "--of", str(made), "--out", str(out)])
    voc_subset.main()
    assert out.read_text() == names.read_text()
    names.write_text("# train\n2008_000001\n# val\n000001\n")  # (no cat in train)
    found = open_labelled(str(voc_subset.subset(devkit, tmp_path / "made", names)))
    assert found.classes == ("cat", "dog") and len(found.train) == len(found.test) == 1
    (devkit / "VOC2007/JPEGImages/000001.jpg").unlink()
    with pytest.raises(UserError, match=r"000001.jpg cannot be read. Unpack VOC2007 again"):
        voc_subset.subset(devkit, tmp_path / "other", names)
    shutil.rmtree(devkit / "VOC2012/Annotations")
    with pytest.raises(UserError, match=r"has no whole VOC2012. Unpack VOC 2007's trainval and test, and VOC 2012's"):
        voc_subset.subset(devkit, tmp_path / "other", names)


def test_the_committed_list_names_every_image_once():
    names = voc_subset.read_names(voc_subset.NAMES)
    assert {part: len(own) for part, own in names.items()} == {"train": 5603, "val": 1120}
    assert len({*names["train"], *names["val"]}) == 6723


def test_photographs_travel_in_one_file(coco, tmp_path):
    out = tmp_path / "photographs.tar"
    pack.pack({"voc": coco}, out, limit=1 << 20)
    direct, packed = (open_photographs(VOC, str(place), tmp_path / "lists") for place in (coco, out))
    assert len(packed.train) == len(direct.train) and packed.val.indices == direct.val.indices
    for one, other in zip(direct.train, packed.train, strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.labels, other.labels)
        assert (one.image.float() - other.image.float()).abs().mean() < 12
    buffer = io.BytesIO()
    Image.open(coco / "train2017/1.jpg").save(buffer, "WEBP", quality=85, method=4)
    assert buffer.getvalue() == pack.as_webp(coco / "train2017/1.jpg", 85)
    with pytest.raises(UserError, match="the pictures take more than 0 MiB"):
        pack.pack({"voc": coco}, tmp_path / "small.tar", limit=4096)
    with pytest.raises(UserError, match=r"photographs.tar holds voc, and no coco. Pack it with this set"):
        open_photographs(COCO, str(out), tmp_path / "lists")
    for content in (b"no tar", gzip.compress(out.read_bytes())[:9000]):
        (tmp_path / "broken.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"broken.tar cannot be unpacked"):
            open_photographs(VOC, str(tmp_path / "broken.tar"), tmp_path / "lists")


def test_what_cannot_travel_is_not_packed(coco, tmp_path, monkeypatch, capsys):
    def refused(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["pack", "--out", str(tmp_path / "out.tar"), *options])
        with pytest.raises(SystemExit):
            pack.main()
        assert not (tmp_path / "out.tar").exists()
        return capsys.readouterr().err

    assert "has boxes, and Caltech-101 needs none" in refused("--sets", "caltech101", "--images", str(coco))
    assert "objects has no photographs to pack" in refused("--sets", "objects", "--images", str(coco))
    root = tmp_path / "folders"
    for part, name in itertools.product(("train", "val"), ("a/1.png", "a/2.png", "b/1.png", "b/2.png")):
        (root / part / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), COLOURS[0]).save(root / part / name)
    Image.new("RGB", (20, 20)).save(root / "train/a/1.jpg")
    command = ("--sets", "caltech101", "--images", str(root))
    assert "caltech101 has two images called" in refused(*command)
    (root / "train/a/1.jpg").write_bytes(b"no image")
    (root / "train/a/1.png").unlink()
    assert "train/a/1.jpg cannot be read" in refused(*command)


def test_a_devkit_is_packed_as_its_subset(tmp_path, monkeypatch):
    devkit, names, out = write_devkit(tmp_path), tmp_path / "names.txt", tmp_path / "voc.tar"
    names.write_text("# train\n2008_000001\n000003\n# val\n000001\n")
    monkeypatch.setattr(voc_subset.subset, "__defaults__", (names,))
    monkeypatch.setattr("sys.argv", ["pack", "--sets", "voc", "--images", f"voc={devkit}", "--out", str(out)])
    pack.main()
    with tarfile.open(out) as packed:
        inside = {Path(name).relative_to("voc").as_posix() for name in packed.getnames()}
    assert inside == {
        *(f"annotations/instances_{part}2017.json" for part in ("train", "val")),
        *(f"train2017/{name}.webp" for name in ("2008_000001", "000003")), "val2017/000001.webp",
    }  # fmt: skip


def test_a_run_for_a_gpu_ends_in_one_line_without_one(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["claims", "--scale", "gpu", "--images", "absent.tar"])
    with pytest.raises(SystemExit):
        claims.main()
    said = capsys.readouterr().err
    assert said.startswith("error: device: 'cuda' cannot be used here") and said.count("\n") == 1


def test_both_methods_have_equally_many_tries_and_each_of_the_head_s_a_counterpart():
    counts = budgets(PHOTOGRAPH_TRIES)
    assert counts[MASKCO] == counts[MOCO] > 20
    rows = [row(name, own, 20.0, part="val") for name, own in PHOTOGRAPH_TRIES.items()]
    assert len(head_worth(rows)) == counts[NO_HEAD] == 14
    counted = f"MaskCo {counts[MASKCO]}, MaskCo, no head 14, DenseCL 1, SimCLR 1, MoCo v2 {counts[MOCO]}"
    assert tried(rows) == [f"tries, VOC: {counted}"]
    assert overview(rows) == "", "no test part was scored"


def row(method: str, own: dict[str, Any], score: float, seed: int = 0, part: str = "test") -> dict[str, Any]:
    scores = {REGION: score, NEIGHBOURS: score - 5, REGION + TOP1: score + 20}
    options = json.loads(json.dumps(own | {"seed": seed}))
    result = {"scale": "photos", "set": VOC, "part": part, "method": method, "seed": seed, "scores": scores}
    result |= {"options": options, "contrast_accuracy": 12.0, "effective_rank": 30.0}
    return result | {"curve": [[1, 5.0, 40.0], [2, 14.0, 35.0], [3, 12.0, 30.0]]}


def test_the_head_s_worth_pairs_runs_that_differ_in_nothing_else(tmp_path):
    rows = [row(HIDDEN, METHODS[HIDDEN], 30 + seed, seed) for seed in range(3)]
    rows += [row(HIDDEN_NO_HEAD, METHODS[HIDDEN_NO_HEAD], 27.5, seed) for seed in range(2)]
    rows += [
        row(NO_HEAD, METHODS[NO_HEAD], 10),
        row("other", REGIONS | {"regions": 2}, 50),
        row(MOCO, METHODS[MOCO], 9),
    ]
    (pair,) = head_worth(rows)
    assert pair.title == HIDDEN and [lead[REGION] for lead in pair.leads] == [2.5, 3.5]
    assert f"| {VOC}: {HIDDEN} | test | 1 | 0.25 to 0.4 | 4 | 2 | +3.0 | +3.0 |" in worth_table([pair])
    assert draw_head([pair], tmp_path / "head.png").stat().st_size > 1000
    assert any(
        line.startswith("holds  3, in some regime: the head is worth 2 points: VOC, region linear +3.00")
        for line in verdicts(rows)
    )
    del rows[1]["scores"][REGION]  # a row that was not scored so is in neither table nor figure
    assert [lead[REGION] for lead in head_worth(rows)[0].leads] == [2.5]
    assert draw([each | {"part": "val"} for each in rows[1:2]], tmp_path / "rows.png").stat().st_size > 1000
    rows[1]["scores"][REGION] = 31
    rows[0]["options"]["lr"] = 1.0
    assert [lead[REGION] for lead in head_worth(rows)[0].leads] == [3.5]


@pytest.mark.parametrize(("densecl", "holds"), [(28.0, True), (31.0, False)])
def test_maskco_must_lead_densecl_with_seeds_apart(densecl: float, holds: bool):
    rows = [row(MASKCO, REGIONS, 30 + 2 * seed, seed) for seed in range(3)]
    rows += [row(DENSECL, METHODS[DENSECL], densecl, seed) for seed in range(3)]
    (line,) = [line for line in verdicts(rows) if "DenseCL: VOC, region linear" in line]
    assert line.startswith("holds" if holds else "FAILS")


def test_every_table_of_photographs_says_what_it_compares_with(tmp_path):
    rows = [row(MASKCO, REGIONS, 30.0), row(NO_HEAD, METHODS[NO_HEAD], 27.0)]
    rows += [each | {"part": "val"} for each in rows]
    for text, count in ((overview(rows), 1), (tables(rows), 2), (worth_table(head_worth(rows)), 1)):
        assert text.count(COMPARED) == count
    assert f"| {MASKCO} | 30.0 | 25.0 | 50.0 | 12.0 | 14.0 | 30.0 |" in tables(rows)
    found = [block for block in page.BLOCKS if block.source == "claims_photos.json"]
    assert {block.text(tmp_path) for block in found} == {page.NO_PHOTOGRAPHS}
    save(tmp_path / "claims_photos.json", rows)
    texts = {block.what: block.text(tmp_path) for block in found}
    assert texts[""].startswith(overview(rows))
    assert [texts[what].count(COMPARED) for what in ("", "the head", "all scores")] == [1, 1, 2]


def test_lengths_are_compared_by_one_seed_and_shown_only_if_there_are_two(tmp_path):
    def at(steps: int, *rows: dict[str, Any]) -> list[dict[str, Any]]:
        return [each | {"steps": steps} for each in rows]

    base = at(980, row(MASKCO, REGIONS, 30.0), row(MOCO, METHODS[MOCO], 28.0), row(MASKCO, REGIONS, 70.0, seed=1))
    assert lengths_table([*base, row(MASKCO, REGIONS, 1.0, part="val") | {"steps": 1}]) == ""
    longer = at(2940, row(MASKCO, REGIONS, 33.0), row(NO_HEAD, METHODS[NO_HEAD], 30.5))
    longer += at(2940, row(HIDDEN, METHODS[HIDDEN], 29.0), row(HIDDEN_NO_HEAD, METHODS[HIDDEN_NO_HEAD], 30.0))
    base += at(1000, row("supervised", {}, 60.0))  # of another length, and no method
    expected = (
        f"| {VOC} | 980 | 30.0 / 25.0 |  | 28.0 / 23.0 | +2.0 / +2.0 |  |  |\n"
        f"| {VOC} | 2940 | 33.0 / 28.0 | 30.5 / 25.5 |  |  | +2.5 / +2.5 | -1.0 / -1.0 |\n\n{COMPARED}"
    )
    assert lengths_table(longer + base).endswith(expected)
    (block,) = (block for block in page.BLOCKS if block.source == "claims_photos*.json")
    assert block.text(tmp_path) == block.absent
    save(tmp_path / "claims_photos.json", base)
    assert block.text(tmp_path) == block.absent
    save(tmp_path / "claims_photos_long.json", longer)
    assert block.text(tmp_path).endswith(expected)
