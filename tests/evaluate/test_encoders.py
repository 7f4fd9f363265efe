"""Everything that can stand in a table: runs, timm's models, and files as torchvision, timm and MoCo write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from maskco.config import PretrainConfig
from maskco.errors import UserError
from maskco.evaluate.encoders import open_encoder, scene_size, untrained_of
from maskco.evaluate.errors import EvaluationError
from maskco.methods import build_method
from maskco.runs.checkpoint import CheckpointError, save_checkpoint
from maskco.runs.trust import ForeignRunError
from maskco.weights.names import WeightsError, timm_names, whole_model_state

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def maps(encoder: nn.Module) -> Tensor:
    with torch.no_grad():
        return encoder.eval()(IMAGES)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose encoder differs from the one it began with."""
    config = PretrainConfig.of(
        data="demo",
        out=str(tmp_path / "run"),
        encoder="test_resnet",
        stage=2,
        image_size=32,
        dim=8,
        queue_size=8,
        seed=5,
    )
    torch.manual_seed(config.run.seed)
    method = build_method(config)
    torch.nn.init.normal_(next(method.encoder.parameters()))
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run/last.pt", {"config": config.to_dict(), "method": method.state_dict(), "step": 12})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """torchvision's, whose batch norms have seen something."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18(num_classes=7)
    model.train()(torch.rand(8, 3, 32, 32))
    return model.eval()


def features(model: nn.Module) -> Tensor:
    """The last map of torchvision's ResNet."""
    with torch.no_grad():
        return nn.Sequential(*list(model.children())[:-2])(IMAGES)


def test_a_run_and_what_it_began_with(run: Path) -> None:
    trained, untrained = open_encoder(str(run)), open_encoder(f"untrained:{run}")
    assert (trained.architecture, trained.stage, trained.image_size) == ("test_resnet", 2, 64)
    assert trained.facts == {"method": "maskco", "step": 12} and untrained.facts["step"] == 0
    torch.manual_seed(5)
    began = build_method(PretrainConfig.of(data="demo", out="", encoder="test_resnet", stage=2, image_size=32)).encoder
    torch.testing.assert_close(maps(untrained.encoder), maps(began))
    assert not torch.allclose(maps(trained.encoder), maps(untrained.encoder))
    assert untrained_of(trained) == f"untrained:{run}"
    assert trained.digest == open_encoder(str(run)).digest != untrained.digest


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q."])
@pytest.mark.parametrize("box", [lambda s: s, lambda s: {"epoch": 3, "arch": "resnet18", "state_dict": s}])
def test_files_of_other_projects_give_equal_maps(tmp_path: Path, resnet: nn.Module, prefix: str, box) -> None:
    """torchvision's state dict as it is, as DataParallel saves it, and as MoCo does, with a second encoder beside."""
    state = {prefix + name: value for name, value in resnet.state_dict().items()}
    if prefix.endswith("encoder_q."):
        state |= {f"module.encoder_k.{name}": torch.zeros_like(value) for name, value in resnet.state_dict().items()}
        state["module.queue"] = torch.zeros(4, 8)
    torch.save(box(state), tmp_path / "file.pth.tar")
    opened = open_encoder(str(tmp_path / "file.pth.tar"), "resnet18")
    torch.testing.assert_close(maps(opened.encoder), features(resnet))
    assert opened.facts["prefix"] == prefix and opened.facts["matched"] == 100


def test_a_file_may_say_its_architecture(tmp_path: Path, resnet: nn.Module) -> None:
    torch.save({"arch": "resnet18", "state_dict": resnet.state_dict()}, tmp_path / "moco.pth")
    assert open_encoder(str(tmp_path / "moco.pth")).architecture == "resnet18"
    torch.save(resnet.state_dict(), tmp_path / "silent.pth")
    refused(str(tmp_path / "silent.pth"), WeightsError, "does not say which architecture")


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet", "test_resnet"])
def test_timm_s_whole_models_by_whatever_names_its_extractors_use(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    opened = open_encoder(str(tmp_path / "model.safetensors"), name)
    size = opened.image_size or 64
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected = model.forward_intermediates(images, indices=1, intermediates_only=True)[-1]
        torch.testing.assert_close(opened.encoder(images), expected)


def test_every_tensor_has_a_name_in_the_whole_model() -> None:
    for name in ("test_resnet", "test_convnext", "test_vit", "densenet121", "swin_tiny_patch4_window7_224"):
        whole = whole_model_state(name)
        with torch.device("meta"):
            backbone = timm.create_model(name, features_only=True, out_indices=(-1,))
        names = timm_names(backbone, whole)
        assert len(set(names.values())) == len(names)
        assert all(whole[names[own]].shape == value.shape for own, value in backbone.state_dict().items())


def test_a_file_that_does_not_fit_says_how_much_of_it_does(tmp_path: Path, resnet: nn.Module) -> None:
    state = resnet.state_dict()
    path = str(tmp_path / "file.pth")
    torch.save({name: value for name, value in state.items() if "layer4.1" not in name}, path)
    refused(path, WeightsError, r"fits in 90 of 100 tensors: layer4.1.conv1.weight is missing", "resnet18")
    torch.save(state, path)
    refused(path, WeightsError, r"fits in \d+ of 265 tensors: .* Name the right architecture", "resnet50")
    torch.save(state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    refused(path, WeightsError, r"conv1.weight is \[64, 1, 7, 7\], not \[64, 3, 7, 7\]", "resnet18")


def test_one_of_a_run_s_checkpoints(run: Path) -> None:
    opened = open_encoder(str(run / "last.pt"))
    torch.testing.assert_close(maps(opened.encoder), maps(open_encoder(str(run)).encoder))
    assert opened.run == run and opened.stage == 2 and untrained_of(opened) == f"untrained:{run}"


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    for name, content in (("text.pth", b"hello"), ("text.safetensors", b"hello")):
        (tmp_path / name).write_bytes(content)
        refused(str(tmp_path / name), WeightsError, "is damaged")
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "pickled.pth")
    refused(str(tmp_path / "pickled.pth"), WeightsError, "only unpickling code could make")
    torch.save({"a": 1}, tmp_path / "nothing.pth")
    refused(str(tmp_path / "nothing.pth"), WeightsError, "holds no tensors")


def test_names_of_nothing_are_refused_with_a_hint(tmp_path: Path) -> None:
    refused("resnet50", EvaluationError, "Did you mean timm:resnet50")
    refused("no/such/run", EvaluationError, "neither a run folder")
    refused("untrained:resnet5", EvaluationError, "not a timm model. Did you mean")
    refused(str(tmp_path), CheckpointError, "does not exist")


def test_timm_s_own_weights_come_with_their_mean_and_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(model: nn.Module, **options) -> None:  # stands for the download
        nn.init.constant_(next(model.parameters()), 0.25)

    monkeypatch.setattr("timm.models._builder.load_pretrained", load)
    opened = open_encoder("timm:test_resnet")
    assert next(opened.encoder.parameters()).eq(0.25).all() and opened.mean == opened.std == (0.5, 0.5, 0.5)
    assert "weights" in opened.facts["method"] and untrained_of(opened) == "untrained:test_resnet"
    fresh = open_encoder(untrained_of(opened))
    assert not next(fresh.encoder.parameters()).eq(0.25).any() and fresh.facts["method"] == "untrained"


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    refused(
        "timm:test_resnet", EvaluationError, "could not be downloaded. Go online once, or take untrained:test_resnet"
    )


def refused(name: str, kind: type[Exception], message: str, architecture: str | None = None) -> None:
    with pytest.raises(kind, match=message) as error:
        open_encoder(name, architecture)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "image_size, crop_scale, fixed, expected",
    [(64, (0.15, 1.0), None, 96), (224, (0.2, 1.0), None, 320), (64, (1.0, 1.0), None, 64), (64, (0.2, 1.0), 64, 64)],
)
def test_whole_pictures_are_seen_larger_than_views(image_size, crop_scale, fixed, expected) -> None:
    """A crop of 57.5 % of an image enlarges what it shows by 1.32: 64 pixels become 84, and 96 is a multiple of 32."""
    config = PretrainConfig.of(data="demo", out="run", image_size=image_size, crop_scale=crop_scale)
    encoder = nn.Identity()
    encoder.image_size = fixed
    assert scene_size(config, encoder) == expected


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever is asked of the hub, or for timm's weights, is noted and refused."""
    asked: list[str] = []

    def refuse(*arguments, **options):
        asked.append(repr(arguments))
        raise OSError("offline")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", refuse)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_path", refuse, raising=False)
    return asked


def rewrite(run: Path, **options) -> Path:
    state = torch.load(run / "last.pt", weights_only=True)
    torch.save({**state, "config": {**state["config"], **options}}, run / "last.pt")
    return run


@pytest.mark.parametrize(
    "encoder", ["hf-hub:somebody/else", "local-dir:/etc", "hf_hub:somebody/else", "timm/hf-hub:a/b"]
)
def test_an_encoder_that_only_a_run_names_is_neither_fetched_nor_opened(
    run: Path, offline: list[str], encoder: str
) -> None:
    rewrite(run, encoder=encoder)
    for name in (str(run), f"untrained:{run}", str(run / "last.pt")):
        refused(name, ForeignRunError, "which comes from elsewhere. Name it with `architecture`")
    assert not offline
    with pytest.raises(UserError) as error:
        open_encoder(str(run), encoder)  # named by the user, it is
    assert not isinstance(error.value, ForeignRunError) and (offline or not encoder.startswith("hf"))


def test_a_run_that_began_with_timm_s_weights_fetches_none(run: Path, offline: list[str]) -> None:
    rewrite(run, pretrained=True)
    trained, untrained = open_encoder(str(run)), open_encoder(f"untrained:{run}")
    assert not offline and not trained.notes
    assert untrained.notes == [
        f"untrained:{run}: fresh weights, though the run began with timm's weights (timm:test_resnet)"
    ]


def test_an_architecture_that_only_a_file_names_is_timm_s_own(
    tmp_path: Path, resnet: nn.Module, offline: list[str]
) -> None:
    for said in ("hf-hub:somebody/else", "local-dir:/etc", "vit_small_of_dino", ""):
        torch.save({"arch": said, "state_dict": resnet.state_dict()}, tmp_path / "x.pth")
        message = "which timm does not have. Name timm's" if said else "does not say which architecture"
        refused(str(tmp_path / "x.pth"), WeightsError, message)
    assert not offline
