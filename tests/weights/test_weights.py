"""Which tensors of a file become the encoder: names of other projects, and files that hold several encoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskco.evaluate.encoders import open_encoder
from maskco.weights.names import WeightsError, preference

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
State = dict[str, Tensor]


def behind(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def opened(path: Path, content, architecture: str = "resnet18", prefix: str | None = None):
    torch.save(content, path)
    return open_encoder(str(path), architecture, prefix)


def assert_is(found, model: nn.Module) -> None:
    with torch.no_grad():
        expected = nn.Sequential(*list(model.children())[:-2])(IMAGES)
        torch.testing.assert_close(found.encoder.eval()(IMAGES), expected)


@pytest.mark.parametrize("prefix", ["", "backbone.", "encoder.", "features.", "module.encoder.", "net.0.", "model.f."])
@pytest.mark.parametrize("parts", ["without fc", "without pooling", "with tensors only"])
def test_an_nn_sequential_of_the_model_s_parts(tmp_path: Path, resnet: nn.Module, prefix: str, parts: str) -> None:
    """`backbone.4.0.conv1.weight` for `layer1.0.conv1.weight`, as lightly and many a SimCLR have it."""
    children = list(resnet.children())
    chosen = {
        "without fc": children[:-1],
        "without pooling": children[:-2],
        "with tensors only": [each for each in children[:-1] if list(each.parameters())],
    }[parts]
    state = behind(prefix, nn.Sequential(*chosen).state_dict())
    head = {"projection_head.layers.0.weight": torch.zeros(8, 512), f"{prefix}12.weight": torch.zeros(3, 512)}
    found = opened(tmp_path / "x.ckpt", {"state_dict": state | head, "epoch": 3})
    assert_is(found, resnet)
    assert found.facts["prefix"] == prefix and found.facts["matched"] == 100 and not found.notes


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_an_nn_sequential_of_any_of_timm_s_models(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=0)
    state = nn.Sequential(*model.children()).state_dict()
    found = opened(tmp_path / "x.pth", behind("backbone.", state), name)
    for own, value in found.encoder.backbone.state_dict().items():
        assert any(value.shape == each.shape and torch.equal(value, each) for each in state.values()), own


def test_an_nn_sequential_in_another_order_is_refused(tmp_path: Path, resnet: nn.Module) -> None:
    state = nn.Sequential(*list(resnet.children())[:-1]).state_dict()
    swapped = {
        name.replace("5.", "x.", 1).replace("6.", "5.", 1).replace("x.", "6.", 1): v for name, v in state.items()
    }
    torch.save(swapped, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"fits in \d of 100 tensors")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.backbone.",
        "encoder_q.",
        "encoder.0.",
        "_fsdp_wrapped_module.",
        "net.",
    ],
)
def test_prefixes_and_wrappers(tmp_path: Path, resnet: nn.Module, prefix: str) -> None:
    assert_is(opened(tmp_path / "x.pth", {"model": behind(prefix, resnet.state_dict())}), resnet)
    inside = {
        name.replace("layer2.", "layer2._fsdp_wrapped_module._orig_mod.", 1): v
        for name, v in resnet.state_dict().items()
    }
    assert_is(opened(tmp_path / "x.pth", behind(prefix, inside)), resnet)


def test_what_timm_s_extractors_call_their_tensors(tmp_path: Path) -> None:
    torch.manual_seed(3)
    for name in ("test_convnext", "test_vit"):
        model = timm.create_model(name, features_only=True, out_indices=(-1,))
        found = opened(tmp_path / "x.pth", behind("module.backbone.", model.state_dict()), name)
        for own, value in model.state_dict().items():
            assert torch.equal(found.encoder.backbone.state_dict()[own], value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_other_precision(tmp_path: Path, resnet: nn.Module, kind: torch.dtype) -> None:
    rounded = {n: v.to(kind) if v.is_floating_point() else v for n, v in resnet.state_dict().items()}
    save_file(rounded, tmp_path / "x.safetensors")
    state = open_encoder(str(tmp_path / "x.safetensors"), "resnet18").encoder.backbone.state_dict()
    assert torch.equal(state["conv1.weight"], rounded["conv1.weight"].float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taken", "left"),
    [  # both orders in the file are tried
        ("module.encoder_q.", "module.encoder_k."),  # MoCo, DenseCL
        ("module.base_encoder.", "module.momentum_encoder."),  # MoCo v3
        ("online_encoder.net.", "target_encoder.net."),  # BYOL
        ("backbone.", "backbone_momentum."),  # lightly
        ("backbone.", "momentum_backbone."),  # solo-learn
        ("teacher.backbone.", "student.module.backbone."),  # DINO, iBOT
        ("teacher_backbone.", "student_backbone."),
        ("state_dict_ema.", ""),  # timm
        ("model_ema.", "model."),
        ("modelEMA.", "teacher."),
        ("encoder.", "encoder_m."),
    ],
)
def test_of_several_encoders_the_documented_one_is_taken_and_said(
    tmp_path: Path, resnet: nn.Module, taken: str, left: str
) -> None:
    mine, theirs = behind(taken, resnet.state_dict()), behind(left, other(resnet.state_dict()))
    for content in (mine | theirs, theirs | mine):
        found = opened(tmp_path / "x.pth", content)
        assert_is(found, resnet)
        assert (found.facts["prefix"], found.facts["others"]) == (taken, [left])
        (note,) = found.notes
        assert (
            repr(taken) in note and (repr(left) if left else "without a prefix") in note and "(prefix chooses)" in note
        )
    assert preference(taken) < preference(left)


@pytest.mark.parametrize(
    "asked", ["module.encoder_k.", "module.encoder_k", "encoder_k", "state_dict.module.encoder_k."]
)
def test_a_prefix_chooses(tmp_path: Path, resnet: nn.Module, asked: str) -> None:
    state = resnet.state_dict()
    content = behind("module.encoder_q.", other(state)) | behind("module.encoder_k.", state)
    found = opened(tmp_path / "x.pth", {"state_dict": content}, prefix=asked)
    assert_is(found, resnet)
    assert found.facts["others"] == ["module.encoder_q."] and "'module.encoder_k.'" in found.notes[0]


def test_a_prefix_that_chooses_none_or_several_is_refused(tmp_path: Path, resnet: nn.Module) -> None:
    state = resnet.state_dict()
    torch.save({"teacher": behind("a.", state) | behind("b.", other(state))}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "no encoders that fit have the prefix 'c'. Name one of 'teacher.a.', 'teacher.b.'", "c")
    refused(tmp_path / "x.pth", "2 encoders that fit have the prefix 'teacher'", "teacher")
    refused(tmp_path / "x.pth", "no encoders that fit have the prefix ''", "")


def test_an_empty_prefix_chooses_names_without_one(tmp_path: Path, resnet: nn.Module) -> None:
    content = {"state_dict": resnet.state_dict(), "state_dict_ema": other(resnet.state_dict())}
    assert_is(opened(tmp_path / "x.pth", content, prefix=""), resnet)


def test_where_nothing_tells_which_to_take_none_is(tmp_path: Path, resnet: nn.Module) -> None:
    state = resnet.state_dict()
    torch.save(behind("encoder_1.", state) | behind("encoder_2.", other(state)), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "holds 2 encoders that fit, and nothing says .*'encoder_1.' or 'encoder_2.'")


def test_two_names_of_one_encoder_are_no_choice(tmp_path: Path, resnet: nn.Module) -> None:
    """OpenSelfSup's MoCo: `backbone.` and `encoder_q.0.` are the same."""
    state = resnet.state_dict()
    found = opened(tmp_path / "x.pth", behind("backbone.", state) | behind("encoder_q.0.", state))
    assert found.facts["prefix"] == "backbone." and not found.notes
    found = open_encoder(str(tmp_path / "x.pth"), "resnet18", "encoder_q")
    assert found.facts["prefix"] == "encoder_q.0." and not found.notes
    found = opened(tmp_path / "x.pth", behind("encoder_k.", state) | behind("encoder_q.", state))  # before any step
    assert found.facts["prefix"] == "encoder_q." and not found.notes


def test_numbers_that_no_encoder_can_have_are_refused(tmp_path: Path, resnet: nn.Module) -> None:
    state = dict(resnet.state_dict())
    torch.save(state | {"layer1.0.conv1.weight": state["layer1.0.conv1.weight"] * torch.nan}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "layer1.0.conv1.weight contains NaN or Inf. Take an earlier file")
    torch.save(state | {"conv1.weight": state["conv1.weight"].to(torch.int8)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "conv1.weight holds integers")


def refused(path: Path, message: str, prefix: str | None = None) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        open_encoder(str(path), "resnet18", prefix)
    assert "\n" not in str(error.value)
