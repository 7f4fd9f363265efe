"""Files of weights of other projects, evaluated and exported, above all MaskCo's public form `encoder_q.0.…`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

from commands import run_main
from hub_server import serving
from maskco.errors import UserError
from maskco.evaluate.encoders import open_encoder
from maskco.nn import create_encoder
from maskco.weights.export import detectron2_name, export_encoder
from maskco.weights.files import WeightsError
from maskco.weights.hub import push_encoder, write_folder
from maskco.weights.names import load_named, timm_names, whole_model_state
from saved_runs import IMAGES

State = dict[str, Tensor]


def body(model: nn.Module) -> State:
    """Without the classifier, as OpenSelfSup's and MMSelfSup's backbones come."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}


def behind(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def head(channels: int) -> State:
    """A projection as OpenSelfSup's neck has it."""
    return {
        "mlp.0.weight": torch.zeros(16, channels),
        "mlp.0.bias": torch.zeros(16),
        "mlp.2.weight": torch.zeros(8, 16),
    }


def public_form(model: nn.Module, form: str) -> tuple[object, str]:
    """A file's content as MaskCo's public weights have it, or other projects of the same code, and the prefix."""
    state, neck = body(model), head(512 if model.fc.in_features == 512 else 2048)
    queue = {"queue": torch.zeros(8, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    both = {
        **behind("encoder_q.0.", state), **behind("encoder_q.1.", neck),
        **behind("encoder_k.0.", other(state)), **behind("encoder_k.1.", neck), **queue,
    }  # fmt: skip
    predictor = behind("head.predictor.", neck)
    return {
        "query alone": (behind("encoder_q.0.", state), "encoder_q.0."),
        "bare": (both, "encoder_q.0."),
        "wrapped": ({"state_dict": both, "meta": {"epoch": 200, "mmcv_version": "0.3"}}, "encoder_q.0."),
        "with optimizer": (
            {"state_dict": {**both, **predictor}, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}},
             "param_groups": [{"lr": 0.1, "params": [0]}]}}, "encoder_q.0.",
        ),
        "distributed": ({"state_dict": behind("module.", both)}, "module.encoder_q.0."),
        "backbone": ({"state_dict": {n.replace("_q.0.", "_q.backbone.").replace("_k.0.", "_k.backbone."): v for n, v in
                     both.items()}}, "encoder_q.backbone."),
        "with the classifier": (
            {"state_dict": {**behind("module.", both), "module.encoder_q.0.fc.weight": torch.zeros(1000, 512)}},
            "module.encoder_q.0.",
        ),
    }[form]  # fmt: skip


FORMS = ("query alone", "bare", "wrapped", "with optimizer", "distributed", "backbone", "with the classifier")


def maps(model: nn.Module) -> Tensor:
    """torchvision's and timm's last map."""
    with torch.no_grad():
        if hasattr(model, "forward_intermediates"):
            return model.eval().forward_intermediates(IMAGES, indices=[-1], intermediates_only=True)[0]
        return nn.Sequential(*list(model.eval().children())[:-2])(IMAGES)


def load_as_the_card_says(card: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    code = re.search(r"## Load\n\n```python\n(.*?)```", card.read_text(), re.S).group(1)
    monkeypatch.chdir(card.parent)
    names: dict = {}
    exec(compile(code, str(card), "exec"), names)
    return names["model"]


@pytest.mark.parametrize("form", FORMS)
def test_public_forms_are_evaluated_and_exported(tmp_path: Path, resnet: nn.Module, monkeypatch, form: str) -> None:
    content, prefix = public_form(resnet, form)
    path = tmp_path / "maskco_800ep.pth"
    torch.save(content, path)
    opened = open_encoder(str(path), "resnet18")
    assert opened.facts["prefix"] == prefix and opened.facts["matched"] == 100
    with torch.no_grad():
        torch.testing.assert_close(opened.encoder(IMAGES), maps(resnet))
    out, card = export_encoder(path, "torchvision", tmp_path / "a.pth", architecture="resnet18")
    exported = torch.load(out, weights_only=True)
    assert exported.keys() == body(resnet).keys() and torch.equal(exported["conv1.weight"], resnet.conv1.weight)
    assert f"behind `{prefix}`" in card.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["query alone", "with the classifier"])
def test_every_format_gives_the_same_maps(tmp_path: Path, resnet: nn.Module, monkeypatch, form: str) -> None:
    path = tmp_path / "maskco_800ep.pth"
    torch.save(public_form(resnet, form)[0], path)
    for format, name in (("torchvision", "a.pth"), ("timm", "b.pth"), ("safetensors", "c.safetensors")):
        _, card = export_encoder(path, format, tmp_path / name, architecture="resnet18")
        torch.testing.assert_close(maps(load_as_the_card_says(card, monkeypatch)), maps(resnet))
    out, _ = export_encoder(path, "detectron2", tmp_path / "d.pth", architecture="resnet18")
    named = torch.load(out, weights_only=True)["model"]
    for name, value in body(resnet).items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(named[detectron2_name(name)], value)
    folder = write_folder(path, tmp_path / "model", architecture="resnet18")
    torch.testing.assert_close(maps(timm.create_model(f"local-dir:{folder}", pretrained=True)), maps(resnet))


@pytest.mark.slow
def test_a_resnet_50_of_this_form(tmp_path: Path, capsys) -> None:
    """The public weights' own size, on the command line, to the hub as well."""
    torch.manual_seed(2)
    model = torchvision.models.resnet50()
    path = tmp_path / "maskco_r50.pth"
    torch.save(public_form(model, "wrapped")[0], path)
    out = tmp_path / "r50.pth"
    assert run_main("export", path, "--architecture", "resnet50", "--format", "torchvision", "--out", out) == 0
    exported = torch.load(out, weights_only=True)
    assert exported.keys() == body(model).keys()
    assert all(torch.equal(exported[name], value) for name, value in body(model).items())
    printed = capsys.readouterr()
    assert printed.out.split() == [str(out), str(out.with_suffix(".md"))]
    assert "the encoder taken is 'encoder_q.0.'. The file also holds 'encoder_k.0.'" in printed.err


@pytest.mark.slow
def test_a_file_is_pushed(tmp_path: Path, resnet: nn.Module, monkeypatch) -> None:
    torch.save(public_form(resnet, "distributed")[0], tmp_path / "x.pth")
    with serving(monkeypatch, tmp_path / "cache") as hub:
        notes: list[str] = []
        push_encoder(tmp_path / "x.pth", "user/model", architecture="resnet18", prefix="encoder_k", notes=notes)
        assert "module.encoder_k.0." in notes[0]
        found = timm.create_model("hf_hub:user/model", pretrained=True)
        assert torch.equal(found.state_dict()["conv1.weight"], resnet.conv1.weight + 1)
        assert all(str(tmp_path).encode() not in content for content in hub.repositories["user/model"].files.values())


def test_the_card_says_where_the_weights_come_from(tmp_path: Path, resnet: nn.Module) -> None:
    content, _ = public_form(resnet, "distributed")
    path = tmp_path / "their.pth.tar"
    torch.save(content, path)
    out, card = export_encoder(path, "safetensors", tmp_path / "x.safetensors", architecture="resnet18")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = card.read_text()
    for said in (
        "| weights | `their.pth.tar`, not trained here |", f"| SHA-256 | `{digest}` |",
        "| taken | 100 tensors behind `module.encoder_q.0.` |", "`module.encoder_k` (103)", "`module.encoder_q.1` (3)",
        "`module.queue` (1)", "`module.queue_ptr` (1)", "resnet18, stage -1",
    ):  # fmt: skip
        assert said in text, said
    assert "## Configuration" not in text and "pretrained by" not in text
    origin = json.loads(re.search(r"## Origin\n\n```json\n(.*?)```", text, re.S).group(1))
    assert (origin["file"], origin["sha256"], origin["prefix"]) == ("their.pth.tar", digest, "module.encoder_q.0.")
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["maskco"]) == origin
    with torch.no_grad():  # and what was exported says its architecture itself
        torch.testing.assert_close(open_encoder(str(out)).encoder(IMAGES), maps(resnet))
    _, again = export_encoder(out, "timm", tmp_path / "again.pth")
    assert "x.safetensors" in again.read_text()


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_what_follows_the_map_is_taken_where_the_file_has_it(tmp_path: Path, name: str, monkeypatch) -> None:
    """A last norm, or a last convolution: timm's model is whole then, and gives its own output."""
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=5)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand_like(value)
    torch.save({"model": behind("module.encoder.", model.state_dict())}, tmp_path / "x.pth")
    _, card = export_encoder(tmp_path / "x.pth", "timm", tmp_path / "y.pth", architecture=name)
    folder = write_folder(tmp_path / "x.pth", tmp_path / "model", architecture=name)
    model.reset_classifier(0)
    size = model.pretrained_cfg["input_size"][-1]
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected = model.eval()(images)
        torch.testing.assert_close(load_as_the_card_says(card, monkeypatch).eval()(images), expected)
        torch.testing.assert_close(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), expected)
    assert re.search(r"left out \| `model.module.encoder.\w+` \(2\) \|\n", card.read_text())  # the classifier


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_other_precision_become_the_model_s(tmp_path: Path, resnet: nn.Module, kind: torch.dtype) -> None:
    state = {n: v.to(kind) if v.is_floating_point() else v for n, v in body(resnet).items()}
    torch.save(behind("encoder_q.0.", state), tmp_path / "x.pth")
    out, _ = export_encoder(tmp_path / "x.pth", "torchvision", tmp_path / "y.pth", architecture="resnet18")
    assert torch.load(out, weights_only=True)["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "maskco.pth does not say which architecture it is. Name it, such as --architecture resnet50"),
        (["--architecture", "resnet50"], r"fits in \d+ of 265 tensors: .*. Name the right architecture with --archit"),
        (["--architecture", "resnet34"], r"fits in \d+ of 180 tensors"),
        (["--architecture", "resnet81"], "encoder 'resnet81' is not a timm model. Did you mean"),
        (["--architecture", "resnet18", "--prefix", "encoder_x"], "no encoders that fit have the prefix 'encoder_x'"),
        (["--architecture", "test_convnext"], "fits in 0 of"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, resnet: nn.Module, capsys, options, message) -> None:
    path = tmp_path / "maskco.pth"
    torch.save(public_form(resnet, "wrapped")[0], path)
    for target in (["--format", "timm", "--out", tmp_path / "x.pth"], ["--format", "hub", "--out", tmp_path / "x"]):
        assert run_main("export", path, *options, *target) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and re.search(message, printed) and printed.count("\n") == 1, printed
    assert [each.name for each in tmp_path.iterdir()] == ["maskco.pth"]


@pytest.mark.parametrize("wrapped", ["", "module.encoder_q.", "lightly"])
def test_a_deeper_model_is_no_shallower_one(tmp_path: Path, wrapped: str) -> None:
    deeper = torchvision.models.resnet34()
    if wrapped == "lightly":
        state, name = nn.Sequential(*list(deeper.children())[:-1]).state_dict(), "4.2.conv1.weight"
    else:
        state, name = behind(wrapped, deeper.state_dict()), f"{wrapped}layer1.2.conv1.weight"
    torch.save(state, tmp_path / "deep.pth")
    with pytest.raises(UserError, match=rf"also has {name}, which a model of this .* with `architecture`"):
        open_encoder(str(tmp_path / "deep.pth"), "resnet18")


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_other_families_may_hold_a_head_but_no_more_blocks(tmp_path: Path, name: str) -> None:
    state, path = timm.create_model(name).state_dict(), tmp_path / "model.pth"
    block = next(each for each in reversed(state) if "blocks." in each)
    buffers = {block.rpartition(".")[0] + ".attn_mask": torch.zeros(2), "head.extra": torch.zeros(2)}
    torch.save(state | buffers, path)
    open_encoder(str(path), name)
    more = re.sub(r"blocks\.\d+", "blocks.9", block)
    torch.save(state | {more: torch.zeros(2)}, path)
    with pytest.raises(UserError, match=f"also has {more}"):
        open_encoder(str(path), name)


def test_an_encoder_cut_at_a_stage_takes_a_whole_model() -> None:
    backbone = create_encoder("test_convnext", stage=1).backbone
    whole, tensors = whole_model_state("test_convnext"), timm.create_model("test_convnext").state_dict()
    load_named(backbone, timm_names(backbone, whole), tensors, "file", whole=whole)
    with pytest.raises(WeightsError, match=r"also has stages\.3\.blocks\.7\.gamma"):
        more = tensors | {"stages.3.blocks.7.gamma": torch.zeros(2)}
        load_named(backbone, timm_names(backbone, whole), more, "file", whole=whole)


@pytest.mark.parametrize("format", ["detectron2", "torchvision"])
def test_only_resnets_become_torchvision_s_and_detectron2_s(tmp_path: Path, format: str) -> None:
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"{format} has no test_convnext. Take `format=timm`") as error:
        export_encoder(tmp_path / "x.pth", format, tmp_path / "y.pth", architecture="test_convnext")
    assert "\n" not in str(error.value) and not (tmp_path / "y.pth").exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>")
    torch.save({"a": 1}, tmp_path / "nothing.pth")
    for name, message in (
        ("page.pth", "is a web page"),
        ("nothing.pth", "holds no tensors"),
        ("none.pth", "not exist"),
    ):
        with pytest.raises(UserError, match=message) as error:
            export_encoder(tmp_path / name, "timm", tmp_path / "x.pth", architecture="resnet18")
        assert "\n" not in str(error.value)
