"""Runs that start from weights of one's own: which tensors they get, what is said, stored and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from maskco import cli, pretrain
from maskco.config import PretrainConfig
from maskco.errors import ConfigError, UserError
from maskco.methods import build_method
from maskco.runs.checkpoint import read_checkpoint
from tiny_runs import TINY, make_pictures, rows, tiny

FROZEN = {**TINY, "lr": 0.0, "optimizer_momentum": 0.0, "weight_decay": 0.0, "key_momentum": 1.0, "epochs": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("photos") / "set")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(7)
    return timm.create_model("test_resnet", num_classes=3)


@pytest.fixture
def weights(tmp_path: Path, model: nn.Module) -> Path:
    """MoCo's kind: two encoders in one file."""
    q = {f"module.encoder_q.{name}": value for name, value in model.state_dict().items()}
    k = {f"module.encoder_k.{name}": value + 1 for name, value in model.state_dict().items()}
    torch.save({"arch": "x", "state_dict": k | q}, tmp_path / "moco.pth")
    return tmp_path / "moco.pth"


def parameters(run: Path, side: str) -> dict[str, Tensor]:
    state = read_checkpoint(run / "last.pt")["method"]
    start = f"{side}.backbone."
    stored = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
    return {name: value for name, value in stored.items() if "running" not in name and "tracked" not in name}


def own_names(parameters: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    whole = {name.replace(".", "_"): value for name, value in model.state_dict().items()}
    return {name: whole[name.replace(".", "_")] for name in parameters}


@pytest.mark.parametrize("method", ["maskco", "moco_v2"])
def test_both_sides_of_the_encoder_hold_the_weights(
    tmp_path: Path, photos: Path, model: nn.Module, weights: Path, method: str
) -> None:
    run = tmp_path / "run"
    pretrain(photos, run, init=str(weights), **tiny(method, **FROZEN))
    for side in ("encoder", "momentum_encoder"):
        found = parameters(run, side)
        torch.testing.assert_close(found, own_names(found, model), rtol=0, atol=0)
    log = (run / "log.txt").read_text()
    assert f"the encoder starts from {weights}: " in log and "behind 'module.encoder_q.'" in log
    assert "The file also holds 'module.encoder_k.' (init_prefix chooses)" in log
    assert json.loads((run / "config.json").read_text())["run"]["init"] == str(weights)


def test_the_prefix_chooses(tmp_path: Path, photos: Path, model: nn.Module, weights: Path) -> None:
    run = tmp_path / "run"
    pretrain(photos, run, init=str(weights), init_prefix="encoder_k", **FROZEN)
    found = parameters(run, "encoder")
    torch.testing.assert_close(found, {n: v + 1 for n, v in own_names(found, model).items()})


@pytest.mark.parametrize("name", ["first", "first/last.pt"])
def test_a_run_of_ours_starts_another(tmp_path: Path, photos: Path, name: str) -> None:
    pretrain(photos, tmp_path / "first", **{**TINY, "epochs": 1})
    pretrain(photos, tmp_path / "second", init=str(tmp_path / name), **tiny("moco_v2", **FROZEN | {"dim": 12}))
    trained = parameters(tmp_path / "first", "encoder")
    for side in ("encoder", "momentum_encoder"):
        torch.testing.assert_close(parameters(tmp_path / "second", side), trained, rtol=0, atol=0)
    assert any((trained[n] != v).any() for n, v in parameters(tmp_path / "first", "momentum_encoder").items())


def test_a_run_resumes_bit_for_bit_without_its_first_weights(tmp_path: Path, photos: Path, weights: Path) -> None:
    options = {**TINY, "init": str(weights), "lr": 0.1}
    pretrain(photos, tmp_path / "whole", **{**options, "epochs": 3})
    stopped = tmp_path / "stopped"
    pretrain(photos, stopped, **{**options, "epochs": 3, "save_every_steps": 5, "keep": 9})
    (stopped / "step-5.pt").replace(stopped / "last.pt")
    weights.unlink()
    result = pretrain(out=stopped, resume=True)
    assert result.steps == 12 and rows(stopped) == rows(tmp_path / "whole")
    one, two = (read_checkpoint(tmp_path / name / "last.pt")["method"] for name in ("whole", "stopped"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert (stopped / "log.txt").read_text().count("the encoder starts from") == 1


def test_a_stored_file_is_not_opened_unless_this_call_names_it(
    tmp_path: Path, photos: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed before its first checkpoint, or a foreign one."""
    run = tmp_path / "run"
    pretrain(photos, run, init=str(weights), **FROZEN)
    (run / "last.pt").unlink()
    with pytest.raises(ConfigError, match=r"weights from elsewhere \(init: .*moco.pth\). Name them again"):
        pretrain(out=run, resume=True)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["pretrain", "--out", str(run), "--resume"])
    assert stopped.value.code == 2 and "Name them again with --init" in capsys.readouterr().err
    assert pretrain(out=run, resume=True, init=str(weights)).steps == 4
    (run / "last.pt").unlink()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["pretrain", f"--out={run}", "--resume", "--init", str(weights)])
    assert stopped.value.code == 0


def test_other_first_weights_are_another_run(tmp_path: Path, photos: Path, weights: Path) -> None:
    pretrain(photos, tmp_path / "run", init=str(weights), **FROZEN)
    with pytest.raises(UserError, match="its run has other options"):
        pretrain(out=tmp_path / "run", resume=True, init=str(tmp_path / "other.pth"))


def test_a_home_folder_is_expanded(
    tmp_path: Path, photos: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pretrain(photos, tmp_path / "run", init="~/moco.pth", **FROZEN)
    assert json.loads((tmp_path / "run/config.json").read_text())["run"]["init"] == str(weights)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "init: .*x.pth does not exist"),
        (b"version https://git-lfs.github.com/spec/v1\n", {}, "init: .*git-lfs pointer"),
        ({"weight": torch.ones(1)}, {}, r"init: .*x.pth fits in 0 of \d+ tensors: .*right architecture with `encoder`"),
        ({}, {"pretrained": True}, "^init: it cannot be combined with `pretrained=True`"),
        ({}, {"init": ""}, "init is empty"),
        ({}, {"init": None, "init_prefix": "x"}, "^init_prefix: 'x' was given without `init`"),
    ],
)  # fmt: skip
def test_bad_starts_are_one_line_and_write_nothing(tmp_path: Path, photos: Path, content, options, message) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=message) as error:
        pretrain(photos, tmp_path / "run", **{**TINY, "init": str(path), **options})
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_random_numbers_are_those_of_a_run_without(weights: Path) -> None:
    from maskco.training.initial_weights import start_from_weights

    config = PretrainConfig.of(
        data="demo", out="x", encoder="test_resnet", image_size=32, queue_size=8, init=str(weights)
    )
    method = build_method(config)
    state = torch.random.get_rng_state()
    start_from_weights(method, config)
    assert torch.equal(torch.random.get_rng_state(), state)
