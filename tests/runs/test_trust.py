"""A run from someone else: nothing in its folder is executed, fetched or opened elsewhere unless this call names it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from commands import read_tree, run_main
from labelled import make_class_folders
from maskco.errors import UserError
from maskco.evaluate.encoders import open_encoder
from maskco.report import write_report
from maskco.runs import trust
from maskco.runs.checkpoint import CheckpointError, load_run, read_checkpoint, save_checkpoint
from maskco.training.loop import pretrain
from tiny_runs import TINY, make_pictures, rows

ONE_EPOCH = {**TINY, "epochs": 1}


@pytest.fixture(scope="session")
def made(pictures, tmp_path_factory) -> Path:
    """A folder with a run, and the user's cache folder with the key that signed the run's data."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKCO_CACHE", str(root / "cache"))
        pretrain(pictures, root / "run", **ONE_EPOCH)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(made, own_cache, tmp_path) -> Path:
    """A run of this user's."""
    shutil.copytree(made / "cache", own_cache)
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def requests():
    """A server on this machine: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def make_foreign(run: Path, **options: object) -> None:
    """Writes options into config.json and checkpoint as its author could, who has not got this user's key."""
    state = read_checkpoint(run / "last.pt")
    put(state["config"], options)
    state.pop("format")
    save_checkpoint(run / "last.pt", state)
    config = json.loads((run / "config.json").read_text())
    put(config, options)
    (run / "config.json").write_text(json.dumps(config))


def put(config: dict[str, dict[str, object]], options: dict[str, object]) -> None:
    """Sets options in the groups that have them, others in the first."""
    for name, value in options.items():
        groups = (group for group in config.values() if isinstance(group, dict) and name in group)
        next(groups, config["run"])[name] = value


ENTRIES: dict[str, Callable[[Path], object]] = {
    "pretrain": lambda run: pretrain(out=run, resume=True, epochs=2),
    "maskco pretrain": lambda run: run_main("pretrain", "--out", run, "--resume", "--epochs", 2),
    "report": write_report,
    "maskco report": lambda run: run_main("report", run),
    "load_run": load_run,
    "evaluation": lambda run: open_encoder(str(run)),
}


def call(entry: str, run: Path) -> None:
    """Refused with a UserError of one line, or done without what is foreign: never anything else."""
    with contextlib.suppress(UserError):
        ENTRIES[entry](run)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", ["pipe", "http", "torchvision", "folder", "file", "relative"])
def test_stored_data_are_not_opened(run, requests, tmp_path, monkeypatch, entry, kind):
    address, asked = requests
    opened = []
    for opener in ("maskco.training.start.open_source", "maskco.report.runs.open_source"):
        monkeypatch.setattr(opener, lambda data: opened.append(data) or 1 / 0)
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "x.tar")  # whoever opens it hangs
    make_foreign(run, data={
        "pipe": f"pipe:touch {tmp_path}/made",
        "http": f"{address}/{{00..01}}.tar",
        "torchvision": "torchvision:FakeData",
        "folder": str(make_pictures(tmp_path / "theirs")),
        "file": str(tmp_path / "x.tar"),
        "relative": "theirs",
    }[kind])  # fmt: skip
    call(entry, run)
    assert not opened and not asked and not (tmp_path / "made").exists()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", ["pipe", "http", "torchvision", "folder", "relative"])
def test_a_stored_probe_is_not_opened(run, requests, tmp_path, monkeypatch, entry, kind):
    address, asked = requests
    opened = []
    monkeypatch.setattr("maskco.training.monitors.probe.open_labelled", lambda *data, **options: opened.append(data))
    monkeypatch.chdir(tmp_path)
    make_foreign(run, probe={
        "pipe": f"pipe:touch {tmp_path}/made",
        "http": f"{address}/{{00..01}}.tar",
        "torchvision": "torchvision:FakeData",
        "folder": str(make_pictures(tmp_path / "theirs")),
        "relative": "theirs",
    }[kind])  # fmt: skip
    call(entry, run)
    if entry == "pretrain":
        with pytest.raises(UserError, match=r"^probe: "):
            pretrain(json.loads((run / "config.json").read_text())["run"]["data"], run, resume=True, epochs=2)
    assert not opened and not asked and not (tmp_path / "made").exists()


def test_the_probe_of_one_s_own_run_is_opened_again_and_another_s_must_be_named(pictures, tmp_path, monkeypatch):
    labelled, run = make_class_folders(tmp_path / "labelled", {"train": 12, "val": 6}), tmp_path / "run"
    pretrain(pictures, run, probe=labelled, **{**TINY, "epochs": 1})
    assert pretrain(out=run, resume=True, epochs=2).steps == 8
    assert run_main("pretrain", "--out", run, "--resume", "--epochs", 3) == 0
    assert [row["step"] for row in rows(run) if "probe_knn" in row] == [4, 8, 12]
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "another's"))
    with pytest.raises(UserError) as caught:
        pretrain(pictures, run, resume=True, epochs=4)
    assert str(caught.value) == (
        f"probe: {run} was not started by you on this machine, so the images of its probe must be named: "
        f"maskco pretrain --out {run} --resume --probe {labelled}"
    )
    assert pretrain(pictures, run, resume=True, epochs=4, probe=None).steps == 16
    assert pretrain(out=run, resume=True, epochs=5, probe=labelled).steps == 20  # the images are theirs by now


def test_the_signature_of_a_run_s_data_is_not_its_probe_s(pictures, run, tmp_path):
    """A path put in beside signed ones, or one of them in the other's place."""
    private = make_class_folders(tmp_path / "private", {"train": 12, "val": 6})
    for probe in (str(private), str(pictures)):
        make_foreign(run, probe=probe)
        with pytest.raises(UserError, match="was not started by you"):
            pretrain(out=run, resume=True, epochs=2)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("encoder", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:{tmp}/model"])
def test_a_stored_encoder_from_elsewhere_is_not_fetched(run, tmp_path, monkeypatch, capsys, entry, encoder):
    import timm

    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *arguments, **options: pytest.fail("timm was asked"))
    make_foreign(run, encoder=encoder.format(tmp=tmp_path))
    if entry.startswith("maskco"):
        assert ENTRIES[entry](run) == 2
        told = capsys.readouterr().err
    else:
        with pytest.raises(UserError) as caught:
            ENTRIES[entry](run)
        told = str(caught.value) + "\n"
    assert "which comes from elsewhere. Name it" in told and told.count("\n") == 1


def test_resuming_a_pretrained_run_downloads_nothing(run, monkeypatch):
    """The checkpoint has the weights."""
    make_foreign(run, pretrained=True)
    create = pytest.importorskip("timm").create_model

    def no_download(name, *, pretrained=False, **options):
        assert not pretrained
        return create(name, **options)

    monkeypatch.setattr("timm.create_model", no_download)
    load_run(run)
    assert pretrain(out=run, resume=True, epochs=2).steps == 8
    assert "the run began with timm's weights" in open_encoder(f"untrained:{run}").notes[0]
    (run / "last.pt").unlink()
    with pytest.raises(UserError, match=r"weights from elsewhere \(pretrained: True\). Name them again"):
        pretrain(out=run, resume=True)


def test_only_the_user_who_started_a_run_resumes_it_without_naming_its_data(run, pictures, tmp_path, monkeypatch):
    assert pretrain(out=run, resume=True, epochs=2).steps == 8
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "another's"))
    with pytest.raises(UserError) as caught:
        pretrain(out=run, resume=True, epochs=3)
    assert str(caught.value) == (
        f"data: {run} was not started by you on this machine, so its images must be named: "
        f"maskco pretrain --out {run} --resume --data {pictures}"
    )
    assert run_main("pretrain", "--out", run, "--resume", "--epochs", 3) == 2
    assert run_main("pretrain", "--out", run, "--resume", "--epochs", 3, "--data", pictures) == 0
    assert pretrain(out=run, resume=True, epochs=4).steps == 16  # from now on it is theirs


def test_a_run_stays_one_s_own_when_its_folder_is_moved(run, tmp_path):
    moved = Path(shutil.move(run, tmp_path / "moved"))
    assert pretrain(out=moved, resume=True, epochs=2).steps == 8


def test_the_signature_of_one_path_is_not_another_s(run, tmp_path):
    make_foreign(run, data=str(make_pictures(tmp_path / "private")))
    with pytest.raises(UserError, match="was not started by you"):
        pretrain(out=run, resume=True, epochs=2)


def test_a_report_without_pictures_says_so_and_takes_them_by_name(run, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "another's"))
    assert run_main("report", run) == 0
    told = f"maskco report {run} --data {pictures}"
    assert told in capsys.readouterr().err
    without = (run / "report.html").stat().st_size
    assert run_main("report", run, "--data", pictures) == 0
    assert told not in capsys.readouterr().err
    assert (run / "report.html").stat().st_size > without + 20_000
    assert run_main("report", run, "--data", tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.startswith("error: --data: no such folder")


def test_the_key_is_the_user_s_alone(own_cache):
    first = trust.sign("photos")
    (key,) = own_cache.glob("keys/*.key")
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    assert first == trust.sign("photos") != trust.sign("other")
    key.chmod(0o644)
    assert trust.sign("photos") is None  # others can read it
    key.chmod(0o600)
    key.write_bytes(b"")
    assert trust.sign("photos") is None


def test_processes_that_start_together_share_one_key(own_cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(trust.sign("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and found[0]


def test_a_run_goes_on_where_no_key_can_be_kept(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MASKCO_CACHE", str(tmp_path / "file/cache"))
    out = pretrain(pictures, tmp_path / "run", **ONE_EPOCH).out
    with pytest.raises(UserError, match="must be named"):
        pretrain(out=out, resume=True, epochs=2)
    assert pretrain(pictures, out, resume=True, epochs=2).steps == 8


# ---- links and pipes in the folder


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "last.pt", "config.json", "tensorboard"])
def test_links_out_of_a_run_are_refused_and_never_written_through(run, pictures, tmp_path, name):
    outside = Path(shutil.move(run / name, tmp_path / "outside"))
    before = read_tree(outside)
    (run / name).symlink_to(outside)
    with pytest.raises(UserError, match=f"{name} is a link to .*, outside the run"):
        pretrain(pictures, run, resume=True, epochs=2)
    pretrain(pictures, run, overwrite=True, **ONE_EPOCH)
    assert read_tree(outside) == before and not (run / name).is_symlink()


def test_half_written_files_that_are_links_are_not_written_through(run, tmp_path):
    (tmp_path / "precious").write_text("years of work")
    for name in ("config.json", "metrics.jsonl", "last.pt", "report.html", "report.png"):
        (run / f".{name}.partial").symlink_to(tmp_path / "precious")
    write_report(run)
    with pytest.raises(UserError, match="outside the run"):
        pretrain(out=run, resume=True, epochs=2)
    assert (tmp_path / "precious").read_text() == "years of work"


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json", "last.pt", "log.txt"])
@pytest.mark.timeout(60)
def test_pipes_in_a_run_do_not_hang(run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    for entry in ("pretrain", "report"):
        call(entry, run)


def test_a_link_within_the_run_is_followed(run):
    (run / "last.pt").rename(run / "step-4.pt")
    (run / "last.pt").symlink_to("step-4.pt")
    assert load_run(run)[2] == 4


# ---- values


@pytest.mark.parametrize(
    "options",
    [
        {"queue_size": 10**14},
        {"dim": 10**12},
        {"hidden": 10**15},
        {"encoder": ["resnet50"]},
        {"encoder": "../../etc"},
        {"method": "__import__"},
        {"seed": 10**400},
        {"regions": None},
        {"temperature": 10**400},
        {"data": {"a": 1}},
        {"unheard_of": 1},
    ],
)
def test_odd_options_are_one_line(run, options):
    make_foreign(run, **options)
    for entry in ("pretrain", "report", "load_run"):
        with pytest.raises(UserError) as caught:
            ENTRIES[entry](run)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["config", "method", "optimizer", "step", "random", "totals", "broken", "seconds"])
@pytest.mark.parametrize("value", ["missing", "text", None, [1]])
def test_checkpoints_that_lack_a_part_are_one_line(run, name, value):
    state = read_checkpoint(run / "last.pt")
    state.pop("format")
    state[name] = value
    if value == "missing":
        del state[name]
    save_checkpoint(run / "last.pt", state)
    with pytest.raises(CheckpointError) as caught:
        pretrain(out=run, resume=True, epochs=2)
    assert "\n" not in str(caught.value) and "last.pt" in str(caught.value)
    call("load_run", run)


def test_foreign_rows_of_metrics_break_neither_curves_nor_resuming(run):
    good = rows(run)
    with open(run / "metrics.jsonl", "ab") as file:
        for line in (
            "null", "[1, 2]", '"text"', "{}", '{"step": "4"}', '{"step": null, "loss": 1}', '{"step": -1}',
            '{"step": 1e400, "loss": 2}', '{"step": 3, "loss": "low", "epoch": null}', '{"step": 4, "loss": NaN}',
            '{"step": 4, "lr": 1e308, "accuracy": [1], "seconds": Infinity, "epoch": {}}', "[" * 100_000,
            '{"step": true}', '{"step": 99999999999999999999}', '{"step": 4, "loss": 1' + "0" * 5000 + "}",
        ):  # fmt: skip
            file.write(line.encode() + b"\n")
        file.write(b"\xff\xfe\n")
    write_report(run)
    assert pretrain(out=run, resume=True, epochs=2).steps == 8
    assert rows(run)[: len(good)] == good


def test_nothing_of_a_run_is_script_in_the_report(run, tmp_path):
    script = "<script>alert(1)</script>"
    renamed = Path(shutil.move(run, tmp_path / "<img src=x onerror=alert(1)> $\\bad{"))
    row = {"task": "knn", "data": script, "encoder": script, "architecture": script, "scores": {script: 3, "b": 1e999}}
    row["details"] = {"image_size": script, "notes": [script], "step": script}
    (renamed / "evaluation.json").write_text(json.dumps({"rows": [row, {**row, "encoder": str(renamed)}]}))
    text = write_report(renamed).html.read_text()
    assert "<script" not in text and "<img src=x" not in text and "&lt;script&gt;" in text
    for bad in ({"scores": {"a": "1"}}, {"scores": [1]}, {"details": 3}, {"details": {"notes": 3}}, {"encoder": None}):
        (renamed / "evaluation.json").write_text(json.dumps({"rows": [row | bad]}))
        with pytest.raises(UserError, match="no file of evaluations"):
            write_report(renamed)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("optimizer", "momentum", "x"),
        ("optimizer", "lr_scale", "x"),
        ("totals", "count", "x"),
        ("totals", "names", ["foo"]),
        ("totals", "last_loss", "x"),
        ("best", "loss", "x"),
        ("best", "end_epoch", 3),
        ("broken", "tried", "x"),
    ],
)
def test_checkpoints_with_odd_parts_are_one_line_or_go_on(run, part, name, value):
    state = read_checkpoint(run / "last.pt")
    state.pop("format")
    (state[part]["param_groups"][0] if part == "optimizer" else state[part])[name] = value
    save_checkpoint(run / "last.pt", state)
    with contextlib.suppress(UserError):
        assert pretrain(out=run, resume=True, epochs=2).steps == 8


def test_hyperparameters_are_the_options_not_the_checkpoints(run):
    state = read_checkpoint(run / "last.pt")
    state.pop("format")
    state["optimizer"]["param_groups"][0]["weight_decay"] = 5.0
    save_checkpoint(run / "last.pt", state)
    pretrain(out=run, resume=True, epochs=2)
    assert read_checkpoint(run / "last.pt")["optimizer"]["param_groups"][0]["weight_decay"] == 1e-4


def test_tensors_without_values_among_the_options_are_one_line(run):
    for value in (torch.zeros(2, device="meta"), torch.eye(2).to_sparse()):
        state = read_checkpoint(run / "last.pt")
        state.pop("format")
        state["config"]["optim"]["lr"] = value
        save_checkpoint(run / "last.pt", state)
        with pytest.raises(UserError):
            load_run(run)
