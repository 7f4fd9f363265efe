"""What goes wrong: each is a one-line error that says what to do, and nothing is overwritten or lost."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from maskco.config import PretrainConfig
from maskco.data.sources import SourceError
from maskco.errors import ConfigError, TrainingError, UserError
from maskco.memory import OutOfMemory, memory_errors
from maskco.methods import MaskCo, StepOutput
from maskco.runs.checkpoint import CheckpointError, load_run, read_checkpoint
from maskco.training.loop import pretrain
from maskco.training.state import TrainState
from maskco.training.totals import BrokenImages
from tiny_runs import TINY, make_pictures

ONE_EPOCH = {**TINY, "epochs": 1}


def refused(error: type[Exception], match: str, **options: object) -> None:
    with pytest.raises(error, match=match) as caught:
        pretrain(**options)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(pictures, tmp_path, monkeypatch):
    forward, calls = MaskCo.forward, []

    def broken_forward(self, views, **options) -> StepOutput:
        calls.append(1)  # (the first in the rehearsal)
        output = forward(self, views, **options)
        return output._replace(loss=output.loss * math.nan) if len(calls) == 6 else output

    monkeypatch.setattr(MaskCo, "forward", broken_forward)
    with pytest.raises(
        TrainingError,
        match=r"loss is no longer finite at step 5, learning rate 0.00781. The last .*run/last.pt \(step 4\)",
    ):
        pretrain(pictures, tmp_path / "run", **TINY)
    assert read_checkpoint(tmp_path / "run/last.pt")["step"] == 4
    assert "no longer finite" in (tmp_path / "run/log.txt").read_text()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    state = TrainState(PretrainConfig.of(data="a", out="b", **TINY).filled("moco_v2"), 16, torch.device("cpu"))
    state.save(tmp_path / "last.pt")
    good = (tmp_path / "last.pt").read_bytes()
    with torch.no_grad():
        next(state.method.parameters())[0, 0, 0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"method.encoder.\S+ is no longer finite at step 0"):
        state.save(tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == good


def test_broken_pictures_are_counted_and_named_once(tmp_path):
    data = make_pictures(tmp_path / "photos", broken=3)
    result = pretrain(data, tmp_path / "run", **{**TINY, "epochs": 3})
    log = (tmp_path / "run/log.txt").read_text()
    assert result.broken_images == 3 and result.steps == 12
    assert log.count("000.png cannot be used: ") == log.count("nested/001.png cannot be used: ") == 1
    assert "3 of 16 images could not be used" in log


def test_no_file_name_can_write_lines_of_the_log(tmp_path):
    data = make_pictures(tmp_path / "photos", broken=1)
    (data / "000.png").rename(data / "0\n\x1b[31mfinished.png")
    pretrain(data, tmp_path / "run", **ONE_EPOCH)
    assert r"0\n\x1b[31mfinished.png cannot be used: " in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("broken", [10, 16])
def test_more_than_half_broken_stops_the_run(tmp_path, broken, workers):
    data = make_pictures(tmp_path / "photos", broken=broken)
    refused(
        TrainingError, "cannot be used", data=data, out=tmp_path / "run", **{**TINY, "epochs": 5, "workers": workers}
    )


def test_many_tries_are_enough_to_know():
    few, many = BrokenImages(10**6), BrokenImages(10**6)
    for batch in range(120):
        failures = [(f"{batch}-{index}", "cut off") for index in range(12)]
        many.add(10, failures)
        few.add(10, failures[:9])
    few.require_few()
    with pytest.raises(TrainingError, match="1440 of 2640 images tried"):
        many.require_few()


def test_what_is_refused_before_a_file_is_touched(pictures, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    refused(SourceError, "no such folder", data=tmp_path / "missing", out=out, **TINY)
    refused(SourceError, "empty", data=tmp_path / "empty", out=out, **TINY)
    refused(ConfigError, "batch_size 99 is larger than the data", data=pictures, out=out, **{**TINY, "batch_size": 99})
    refused(ConfigError, "Did you mean", data=pictures, out=out, **{**TINY, "encoder": "resnet5O"})
    refused(ConfigError, "^device: 'tpu' cannot be used here", data=pictures, out=out, **{**TINY, "device": "tpu"})
    refused(ConfigError, "amp fp16 needs a CUDA", data=pictures, out=out, **{**TINY, "amp": "fp16"})
    refused(ConfigError, "min_region_pixels", data=pictures, out=out, **{**TINY, "image_size": 8})
    refused(ConfigError, "data is missing", out=out)
    refused(ConfigError, "out is missing", data=pictures)
    refused(ConfigError, "no option 'epoch'", data=pictures, out=out, epoch=3)
    assert not out.exists()


def test_a_folder_with_something_in_it_is_safe(pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for extra in ({}, {"overwrite": True}, {"resume": True}):
        refused(ConfigError, "holds other files", data=pictures, out=other, **ONE_EPOCH, **extra)
    refused(ConfigError, "is a file", data=pictures, out=other / "thesis.txt", **ONE_EPOCH)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_a_run_is_kept_until_its_replacement_can_start(pictures, tmp_path):
    run = tmp_path / "run"
    options = {"data": pictures, "out": run, **ONE_EPOCH}
    pretrain(**options)
    (run / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    refused(ConfigError, "holds a run already", **options)
    refused(ConfigError, "^resume: it cannot be combined with `overwrite=True`", resume=True, overwrite=True, **options)
    refused(ConfigError, "Did you mean", overwrite=True, **{**options, "encoder": "resnet5O"})
    refused(SourceError, "no such folder", overwrite=True, **{**options, "data": tmp_path / "missing"})
    different = r"other options \(dim: 8, not 16; queue_size: 12, not 24\)"
    refused(CheckpointError, different, out=run, resume=True, dim=16, queue_size=24)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before

    assert pretrain(overwrite=True, **{**options, "dim": 16}).steps == 4
    assert (run / "notes.txt").read_text() == "mine"
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_a_damaged_checkpoint_is_named_and_left_alone(pictures, tmp_path):
    run = tmp_path / "run"
    pretrain(pictures, run, **ONE_EPOCH)
    whole = (run / "last.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (run / "last.pt").write_bytes(damaged)
        refused(CheckpointError, "damaged or truncated", out=run, resume=True)
        assert (run / "last.pt").read_bytes() == damaged
    torch.save({"another": "tool"}, run / "last.pt")
    refused(CheckpointError, "not a checkpoint of a maskco run", out=run, resume=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_run(tmp_path)


def test_other_pictures_are_refused_on_resume(tmp_path):
    data = make_pictures(tmp_path / "photos")
    pretrain(data, tmp_path / "run", **ONE_EPOCH)
    (data / "000.png").unlink()
    refused(CheckpointError, "16 images, but .* has 15", out=tmp_path / "run", resume=True, epochs=2)


def test_as_many_pictures_of_other_names_are_refused_on_resume(tmp_path):
    data = make_pictures(tmp_path / "photos")
    pretrain(data, tmp_path / "run", **ONE_EPOCH)
    (data / "000.png").rename(data / "900.png")
    refused(CheckpointError, "as many images of other names", out=tmp_path / "run", resume=True, epochs=2)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    state = TrainState(PretrainConfig.of(data="a", out="b", **TINY).filled("moco_v2"), 16, torch.device("cpu"))
    state.save(tmp_path / "last.pt")
    good = (tmp_path / "last.pt").read_bytes()
    monkeypatch.setattr("torch.save", lambda state, file: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        state.save(tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == good


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path):
    refused(ConfigError, "nowhere holds no run to resume", out=tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()
    run, data = tmp_path / "run", make_pictures(tmp_path / "photos")
    (tmp_path / "link").symlink_to("gone")
    refused(ConfigError, "link is a link to nothing. Name a folder", data=data, out=tmp_path / "link", **ONE_EPOCH)
    pretrain(data, run, **ONE_EPOCH)
    refused(ConfigError, "last.pt is a file. Name the folder of the run", out=run / "last.pt", resume=True)
    (run / "config.json").unlink()
    refused(ConfigError, "has lost its config.json. Restore it", out=run, resume=True)
    refused(ConfigError, "config.json is missing. Restore it", data=data, out=run, resume=True, **ONE_EPOCH)


def test_a_run_inside_the_data_folder_is_no_data(tmp_path):
    data = make_pictures(tmp_path / "photos")
    pretrain(data, data / "run", **ONE_EPOCH)
    make_pictures(data / "run/extra")  # as report.png would be
    assert pretrain(out=data / "run", resume=True, epochs=2).steps == 8


def test_a_name_that_is_no_utf8_is_skipped_as_any_broken_picture(tmp_path):
    data = make_pictures(tmp_path / "photos")
    (data / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no image")
    assert pretrain(data, tmp_path / "run", **{**ONE_EPOCH, "epochs": 4}).broken_images == 1
    assert "caf\\udce9.jpg cannot be used: " in (tmp_path / "run/log.txt").read_text()


def test_a_half_written_file_does_not_block_the_folder(tmp_path, pictures):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.config.json.partial").write_text("{")
    assert pretrain(pictures, tmp_path / "run", **ONE_EPOCH).steps == 4
    pretrain(pictures, tmp_path / "run", **ONE_EPOCH, overwrite=True)
    assert not (tmp_path / "run/.config.json.partial").exists()


IMPOSSIBLE = {
    "device": ["meta", "mps", "xpu", "hpu", "opencl", "privateuseone", "cuda:99", "cpu:x", "", "nonsense"],
    "seed": [-1, 2**63, 2**64, 10**30],
    "queue_size": [10**14, 2**70],
    "dim": [10**12],
    "hidden": [10**13],
    "batch_size": [10**12],
    "image_size": [1, 7, 100_000, 10**9],
    "epochs": [0, 2**63],
    "accumulate": [10**6],
    "workers": [10**6],
    "threads": [10**9],
    "stage": [99, -99, 10**9],
    "output_stride": [7, 10**9],
    "mask_head_depth": [10**9],
    "regions": [10**9],
    "crop_aspect": [(0.001, 0.001), (1, math.inf), (math.nan, 1), (1e300, 1e308)],
    "region_aspect": [(1e-300, 1e300), (1, math.inf)],
    "crop_scale": [(0, 1), (math.nan, 1)],
    "blur_sigma": [(1, math.inf), (1e12, 1e12)],
    "lr": [math.nan, math.inf, 1e300],
    "temperature": [0, math.nan, math.inf, 1e-300],
    "encoder": ["", 0],
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_impossible_values_leave_no_folder(pictures, tmp_path, option):
    for value in IMPOSSIBLE[option]:
        with pytest.raises(UserError) as caught:
            pretrain(**{**ONE_EPOCH, "data": pictures, "out": tmp_path / "run", option: value})
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_extremes_that_work(pictures, tmp_path):
    extremes = {"crop_aspect": (0.01, 100), "region_aspect": (0.01, 0.01), "blur": 1, "blur_sigma": (1000, 1000)}
    extremes |= {"key_group": 10**18, "warmup_steps": 10**18, "log_every": 10**18, "keep": 10**18, "seed": 2**63 - 1}
    assert pretrain(pictures, tmp_path / "run", **{**ONE_EPOCH, **extremes}).steps == 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …\nmore"),
        RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried to allocate 51200000000 bytes."),
    ],
)
def test_out_of_memory_says_what_to_lower(pictures, tmp_path, monkeypatch, error):
    def forward(self, views, **options):
        if views.query.shape[0] == 4 and not self.queue.valid.item():
            raise error
        return original(self, views, **options)

    original = MaskCo.forward
    monkeypatch.setattr(MaskCo, "forward", forward)
    refused(
        OutOfMemory,
        r"^out of memory.*\. Lower `batch_size`, `image_size`",
        data=pictures,
        out=tmp_path / "run",
        **ONE_EPOCH,
    )


def test_real_refusals_of_memory_are_told():
    for allocate in (lambda: torch.empty(10**14), lambda: torch.empty(10**18, 128), lambda: np.empty(10**15)):
        with pytest.raises(OutOfMemory, match=r"^out of memory.*. Lower it$") as caught, memory_errors("lower it"):
            allocate()
        assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"^other$"), memory_errors("lower it"):
        raise RuntimeError("other")
