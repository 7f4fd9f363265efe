"""Exported encoders, loaded by the libraries they are for as the card says, give the encoder's own outputs."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

from maskco import cli
from maskco.config import PretrainConfig
from maskco.errors import UserError
from maskco.evaluate.encoders import open_encoder
from maskco.methods import build_method
from maskco.runs.checkpoint import load_run, save_checkpoint
from maskco.weights.export import detectron2_name, export_encoder
from saved_runs import IMAGES, make_run, own_maps


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of any options, made once: no test changes it."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def made(**options) -> Path:
        return make_run(folder / str(len([*folder.iterdir()])), **options)

    return made


@pytest.fixture
def resnet18(run_of) -> Path:
    return run_of(encoder="resnet18")


@pytest.fixture
def small(run_of) -> Path:
    return run_of(encoder="test_resnet")


def load_as_the_card_says(card: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    code = re.search(r"## Load\n\n```python\n(.*?)```", card.read_text(), re.S).group(1)
    monkeypatch.chdir(card.parent)
    names: dict[str, object] = {}
    exec(compile(code, str(card), "exec"), names)
    return names["model"].eval()


@pytest.mark.parametrize("name", ["backbone.pth", "backbone.safetensors"])
def test_torchvision_s_resnet_gives_the_same_maps(resnet18: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    out, card = export_encoder(resnet18, "torchvision", tmp_path / name)
    model = load_as_the_card_says(card, monkeypatch)
    assert type(model).__module__.startswith("torchvision")
    with torch.no_grad():
        torch.testing.assert_close(nn.Sequential(*list(model.children())[:-2])(IMAGES), own_maps(resnet18))
    assert out == tmp_path / name


@pytest.mark.parametrize(
    ("format", "name"), [("timm", "b.pth"), ("timm", "b.safetensors"), ("safetensors", "b.safetensors")]
)
@pytest.mark.parametrize("options", [
    {"encoder": "resnet18"}, {"encoder": "test_resnet", "stage": 2}, {"encoder": "test_convnext"},
    {"encoder": "test_vit", "hidden": 16}, {"encoder": "test_resnet", "output_stride": 16},
], ids=str)  # fmt: skip
def test_timm_s_model_gives_the_same_maps(
    run_of, tmp_path: Path, monkeypatch, options: dict, format: str, name: str
) -> None:
    run = run_of(**options)
    _, card = export_encoder(run, format, tmp_path / name)
    model = load_as_the_card_says(card, monkeypatch)
    with torch.no_grad():
        found = model.forward_intermediates(IMAGES, indices=[options.get("stage", -1)], intermediates_only=True)[0]
    torch.testing.assert_close(found, own_maps(run))


def test_an_export_can_be_evaluated_again(small: Path, tmp_path: Path) -> None:
    out, _ = export_encoder(small, "safetensors", tmp_path / "b.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(open_encoder(str(out)).encoder(IMAGES), own_maps(small))
    with safe_open(out, "pt") as file:
        assert '"data": "photos"' in file.metadata()["maskco"]


def detectron2_names(depth: int) -> set[str]:
    """As detectron2/modeling/backbone/resnet.py builds them: a stem, and stages of blocks with shortcuts."""
    blocks, convs = {18: ((2, 2, 2, 2), 2), 50: ((3, 4, 6, 3), 3)}[depth]

    def layer(name: str) -> set[str]:
        norm = (f"{name}.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
        return {f"{name}.weight", *norm}

    names = layer("stem.conv1")
    for stage, count in enumerate(blocks, 2):
        for block in range(count):
            for conv in range(1, convs + 1):
                names |= layer(f"res{stage}.{block}.conv{conv}")
            if block == 0 and (stage > 2 or depth == 50):  # where the number of channels changes
                names |= layer(f"res{stage}.{block}.shortcut")
    return names


@pytest.mark.parametrize("depth", [18, 50])
def test_detectron2_finds_every_tensor_by_its_name(run_of, tmp_path: Path, depth: int) -> None:
    run = run_of(encoder=f"resnet{depth}")
    out, card = export_encoder(run, "detectron2", tmp_path / "backbone.pth")
    content = torch.load(out, weights_only=True)
    assert content.keys() == {"model", "__author__", "matching_heuristics"} and content["matching_heuristics"]
    assert content["model"].keys() == detectron2_names(depth)
    state = load_run(run)[1].encoder.backbone.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(content["model"][moco_name(name)], value)
    assert f"DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = {depth}, False" in card.read_text()
    assert ("RES2_OUT_CHANNELS = 64" in card.read_text()) == (depth == 18)
    assert "[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]" in card.read_text()


def moco_name(name: str) -> str:
    """The rules of MoCo's detection/convert-pretrain-to-detectron2.py, in its order."""
    if "layer" not in name:
        name = "stem." + name
    for t in range(1, 5):
        name = name.replace(f"layer{t}", f"res{t + 1}")
    for t in range(1, 4):
        name = name.replace(f"bn{t}", f"conv{t}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def test_detectron2_s_names_agree_with_moco_s_script() -> None:
    for name in timm.create_model("resnet50", num_classes=0).state_dict():
        assert detectron2_name(name) == moco_name(name)


def test_the_card_says_what_it_is(resnet18: Path, tmp_path: Path) -> None:
    _, card = export_encoder(resnet18, "torchvision", tmp_path / "backbone.pth")
    text = card.read_text()
    for said in ("# backbone.pth", "resnet18, stage -1", "maskco, without labels", "`photos`", "1,234 of 256 images",
                 f"torch {torch.__version__}", '"queue_size": 8', "RGB in [0, 1]"):  # fmt: skip
        assert said in text, said


@pytest.mark.parametrize(
    ("options", "format", "name", "message"),
    [
        ({"encoder": "test_convnext"}, "torchvision", "b.pth", "torchvision has no test_convnext. Take `format=timm`"),
        ({"encoder": "test_convnext"}, "detectron2", "b.pth", "detectron2 has no test_convnext"),
        ({"encoder": "resnet18", "stage": 3}, "torchvision", "b.pth", "ends at stage 3 of resnet18, before layer4.0"),
        ({"encoder": "resnet18"}, "onnx", "b.onnx", "format must be one of torchvision, timm"),
        ({"encoder": "resnet18"}, "detectron2", "b.pkl", r"detectron2 reads .pth files, got 'b.pkl'"),
        ({"encoder": "resnet18"}, "safetensors", "b.pth", r"safetensors reads .safetensors files"),
        ({"encoder": "resnext50_32x4d", "image_size": 32}, "detectron2", "b.pth", "detectron2 has no resnext50_32x4d"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(run_of, tmp_path: Path, options, format, name, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        export_encoder(run_of(**options), format, tmp_path / name)
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]


def test_the_command_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["timm", "--out", str(tmp_path / "b.pth")], 0), (["timm", "--out", "b.txt"], 2)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["export", str(small), "--format", *arguments])
        assert stopped.value.code == code
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "b.pth"), str(tmp_path / "b.md")]
    assert printed.err.startswith("error: --out: timm reads .pth")


def test_other_files_are_not_overwritten(resnet18: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# README.pth\n\nMine.\n")
    out, card = export_encoder(resnet18, "torchvision", tmp_path / "README.pth")
    assert card == tmp_path / "README.pth.md" and readme.read_text() == "# README.pth\n\nMine.\n"
    export_encoder(resnet18, "timm", out)  # over its own files
    assert "timm's names" in card.read_text()
    with pytest.raises(SystemExit):
        cli.main(["export", str(resnet18), "--format", "timm", "--out", str(out)])
    printed = capsys.readouterr()
    assert printed.out.split() == [str(out), str(card)] and "README.pth.md is the card" in printed.err
    card.write_text("mine as well")
    assert_refused(resnet18, tmp_path / "README.pth", "README.pth exists, and no card next to it says")
    out.unlink()
    assert_refused(resnet18, tmp_path / "README.pth", r"README.md and README.pth.md exist, and no export")
    assert card.read_text() == "mine as well" and not out.exists()


def test_weights_that_no_export_wrote_are_not_overwritten(small: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.pth").write_bytes(b"theirs")
    assert_refused(small, tmp_path / "theirs.pth", "theirs.pth exists, and no card")
    run = make_run(tmp_path / "run", encoder="test_resnet")
    before = (run / "last.pt").read_bytes()
    assert_refused(run, run / "last.pt", "last.pt exists, and no card")
    assert (run / "last.pt").read_bytes() == before and (tmp_path / "theirs.pth").read_bytes() == b"theirs"


def test_two_exports_of_one_stem_have_a_card_each(small: Path, tmp_path: Path) -> None:
    for _ in range(2):
        cards = [export_encoder(small, "timm", tmp_path / name)[1].name for name in ("b.pth", "b.safetensors")]
        assert cards == ["b.md", "b.safetensors.md"]
    assert (tmp_path / "b.md").read_text().startswith("# b.pth\n")


def test_folders_links_and_half_written_files(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    assert_refused(small, tmp_path / "models", r"models is a folder. Name a file in it, such as .*models/encoder\.")
    assert_refused(small, tmp_path / "backbone", "reads .pth and .pt and .safetensors files, got 'backbone'")
    (tmp_path / "b.md").symlink_to(tmp_path / "nowhere.md")  # writing through it would make a file elsewhere
    assert export_encoder(small, "timm", tmp_path / "b.pth")[1].name == "b.pth.md"
    before = sorted(tmp_path.rglob("*"))

    def full(path: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskco.files.os.fsync", full)
    for name in ("c.pth", "c.safetensors"):
        with pytest.raises(OSError, match="No space left"):
            export_encoder(small, "timm", tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_home_folder_is_expanded(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(small)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "~/run", "--format", "timm", "--out", "~/made/b.pth"])
    assert stopped.value.code == 0 and (tmp_path / "made/b.pth").is_file() and (tmp_path / "made/b.md").is_file()


@pytest.mark.parametrize("content", ["null\n", "[]\n", '{"seconds": "x"}\n', '{"seconds": null}\n', "3\n"])
def test_foreign_metrics_are_no_hindrance(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path / "run", encoder="test_resnet")
    (run / "metrics.jsonl").write_text(content)
    assert " h |" not in export_encoder(run, "timm", tmp_path / "b.pth")[1].read_text()


def assert_refused(run: Path, out: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        export_encoder(run, "timm", out)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("encoder", "options"),
    [("test_resnet", {"stage": 2}), ("resnet18", {"output_stride": 16}), ("vit_tiny_patch16_224", {"image_size": 96})],
)
def test_an_export_of_a_cut_or_resized_encoder_is_read_as_such(tmp_path: Path, encoder: str, options: dict) -> None:
    config = PretrainConfig.of(
        data="demo", out=str(tmp_path), encoder=encoder, dim=8, queue_size=8, **{"image_size": 64} | options
    )
    state = {"config": config.to_dict(), "method": build_method(config).state_dict(), "step": 1}
    save_checkpoint(tmp_path / "last.pt", state)
    out, _ = export_encoder(str(tmp_path), "timm", str(tmp_path / "made.safetensors"))
    assert open_encoder(str(out)).digest == open_encoder(str(tmp_path)).digest
