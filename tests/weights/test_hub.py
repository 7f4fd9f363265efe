"""Encoders published on the hub: what is uploaded loads by timm's name for it and gives the encoder's own outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from commands import run_main
from hub_server import OWNER, READER, Hub, Repository, serving
from labelled import make_class_folders
from maskco.errors import UserError
from maskco.evaluate.encoders import open_encoder, untrained_of
from maskco.evaluate.options import Knn
from maskco.evaluate.run import evaluate
from maskco.nn import create_encoder
from maskco.runs.checkpoint import load_run
from maskco.weights.hub import PushError, push_encoder, write_folder
from maskco.weights.names import whole_model_state
from maskco.weights.origin import ExportError, public_data
from saved_runs import IMAGES, make_run, own_maps

FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", encoder="test_resnet")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as server:
        yield server


def maps(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found = model.eval()(IMAGES)
    return found if isinstance(found, Tensor) else found[-1]


WHOLE = [
    {"encoder": "test_resnet"}, {"encoder": "test_convnext"}, {"encoder": "test_vit", "hidden": 16},
    {"encoder": "test_resnet", "output_stride": 16},
]  # fmt: skip
CUT = [
    {"encoder": "test_resnet", "stage": 2}, {"encoder": "test_resnet", "stage": -2}, {"encoder": "test_efficientnet"},
    {"encoder": "test_vit", "hidden": 16, "stage": 0}, {"encoder": "test_resnet", "stage": 3, "output_stride": 8},
]  # fmt: skip


@pytest.mark.parametrize("options", [*WHOLE, *CUT], ids=str)
def test_timm_loads_the_folder_and_gives_the_same_maps(tmp_path: Path, monkeypatch, options: dict) -> None:
    """By its name, by the lines in the card, by this package, and as one of the encoders of an evaluation."""
    run = make_run(tmp_path / "run", **options)
    notes: list[str] = []
    folder = write_folder(run, tmp_path / "model", notes=notes)
    assert {path.name for path in folder.iterdir()} == FILES and bool(notes) == (options in CUT)
    stage, name = options.get("stage", -1), f"local-dir:{folder}"
    model = timm.create_model(name, pretrained=True)
    if options in CUT:
        torch.testing.assert_close(maps(model), own_maps(run))
    else:
        assert maps(model).ndim == 2 and model.num_classes == 0
        assert timm.create_model(name, pretrained=True, num_classes=3).num_classes == 3  # to be fine-tuned
        torch.testing.assert_close(
            maps(timm.create_model(name, pretrained=True, features_only=True, out_indices=(stage,))), own_maps(run)
        )
    monkeypatch.chdir(tmp_path)
    code = re.search(r"## Load\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.S).group(1)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    torch.testing.assert_close(maps(names["encoder"]), own_maps(run))
    torch.testing.assert_close(maps(create_encoder(name, pretrained=True)), own_maps(run))
    opened = open_encoder(f"timm:{name}")
    torch.testing.assert_close(maps(opened.encoder), own_maps(run))
    itself = open_encoder(str(run))
    assert (opened.architecture, opened.stage, opened.output_stride) == (
        itself.architecture,
        stage,
        itself.output_stride,
    )
    assert opened.digest == itself.digest
    untrained = open_encoder(untrained_of(opened))
    assert untrained.stage == stage and maps(untrained.encoder).shape == own_maps(run).shape
    assert set(whole_model_state(name)) == set(whole_model_state(options["encoder"]))


def test_config_json_is_about_these_weights_and_not_timm_s(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", encoder="timm/test_vit.r160_in1k", hidden=16)
    folder = write_folder(run, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    own = config["pretrained_cfg"]
    assert config["architecture"] == "test_vit" and config["num_classes"] == 0 and config["num_features"] == 64
    assert own["mean"] == pytest.approx([0.485, 0.456, 0.406]) and own["input_size"] == [3, 64, 64]
    assert not own.keys() & {"license", "tag", "url", "hf_hub_id", "origin_url", "paper_ids", "description"}
    assert load_file(folder / "model.safetensors").keys() == whole_model_state("test_vit").keys()


def test_a_pushed_run_is_found_by_its_name(hub: Hub, run: Path, tmp_path: Path, capsys) -> None:
    assert run_main("export", run, "--push", "user/model", "--license", "apache-2.0") == 0
    assert capsys.readouterr().out == f"{hub.url}/user/model\n"
    repository = hub.repositories["user/model"]
    assert repository.files.keys() == FILES and not repository.private and repository.commits == ["Add test_resnet"]
    features = timm.create_model("hf_hub:user/model", pretrained=True, features_only=True, out_indices=(-1,))
    torch.testing.assert_close(maps(features), own_maps(run))
    torch.testing.assert_close(maps(create_encoder("hf-hub:user/model", pretrained=True)), own_maps(run))
    card = repository.files["README.md"].decode()
    front = card.split("---\n")[1].splitlines()
    assert {"library_name: timm", "pipeline_tag: image-feature-extraction", "license: apache-2.0", "- timm"} <= {*front}
    assert "timm.create_model('hf_hub:user/model', pretrained=True)" in card and "# model\n" in card
    data = str(make_class_folders(tmp_path / "colors", {"train": 12, "val": 6}))
    encoders = (str(run), "timm:hf_hub:user/model")
    rows = evaluate(Knn(encoders=encoders, data=data, image_size=32, workers=0, device="cpu", out=str(tmp_path / "x")))
    assert rows[0].scores == rows[1].scores
    assert rows[0].details["encoder_sha256"] == rows[1].details["encoder_sha256"]


def test_a_second_push_is_a_new_commit(hub: Hub, run: Path, tmp_path: Path) -> None:
    push_encoder(run, "user/model", private=True)
    other = make_run(tmp_path / "other", encoder="test_convnext")
    push_encoder(other, "user/model", private=True, message="With ConvNeXt")
    repository = hub.repositories["user/model"]
    assert repository.private and repository.commits == ["Add test_resnet", "With ConvNeXt"]
    assert "test_convnext" in repository.files["README.md"].decode()
    assert json.loads(repository.files["config.json"])["architecture"] == "test_convnext"


def test_a_card_that_was_edited_stays(hub: Hub, run: Path) -> None:
    push_encoder(run, "user/model")
    repository = hub.repositories["user/model"]
    edited = repository.files["README.md"].replace(b"not named", b"my photos of 2019")
    for card in (edited, b"# Mine\n"):
        repository.files["README.md"] = card
        notes: list[str] = []
        push_encoder(run, "user/model", notes=notes)
        assert repository.files["README.md"] == card and "README.md on the hub was edited and stays" in notes[0]
    assert len(repository.commits) == 3


@pytest.mark.parametrize(
    "files",
    [{"config.json": b'{"architecture": "resnet50"}'}, {"config.json": b"x"}, {"model.safetensors": b"theirs"}],
    ids=str,
)
def test_another_model_is_not_replaced(hub: Hub, run: Path, files: dict[str, bytes]) -> None:
    hub.repositories["user/model"] = Repository(files=dict(files))
    refused("user/model holds a model that no export wrote", run, "user/model")
    assert hub.repositories["user/model"].files == files and not hub.repositories["user/model"].commits


def test_files_of_other_kinds_are_no_hindrance(hub: Hub, run: Path) -> None:
    hub.repositories["user/model"] = Repository(files={"LICENSE": b"mine", ".gitattributes": b""})
    push_encoder(run, "user/model")
    assert hub.repositories["user/model"].files.keys() == {*FILES, "LICENSE", ".gitattributes"}


def test_what_should_be_private_is_never_made_public(hub: Hub, run: Path) -> None:
    hub.repositories["user/model"] = Repository()
    refused("user/model exists and is public. Make it private", run, "user/model", private=True)
    assert not hub.repositories["user/model"].files


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("demo", "demo"),
        ("torchvision:CIFAR10?root=/home/anna", "torchvision:CIFAR10"),
        ("hf:imagenet-1k?split=train", "hf:imagenet-1k"),
        ("hf:org/set.v2", "hf:org/set.v2"),
        ("hf:/home/anna/set", None),
        ("/home/anna/secret", None),
        ("https://anna:pass@intranet/secret-{000..100}.tar?sig=1", None),
        ("hf://datasets/anna/secret/x.tar", None),
        ("photos", None),
    ],
)
def test_only_public_data_are_named(data: str, name: str | None) -> None:
    assert public_data(data) == name


def test_nothing_uploaded_tells_of_the_user_s_machine(hub: Hub, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    run = make_run(tmp_path / "run", data=str(secret), encoder="test_resnet", init=str(secret / "start.pth"))
    push_encoder(run, "user/model")
    folder = write_folder(run, tmp_path / "model")
    assert b"| started from | other weights, not named |" in hub.repositories["user/model"].files["README.md"]
    for files in (hub.repositories["user/model"].files, {path.name: path.read_bytes() for path in folder.iterdir()}):
        assert files.keys() == FILES
        for name, content in files.items():
            assert b"secret" not in content and str(tmp_path).encode() not in content, name


def test_an_encoder_that_came_from_a_folder_goes_on(tmp_path: Path, monkeypatch) -> None:
    """A published encoder, cut at a stage, is trained further, published, and a file of its tensors as well."""
    first = make_run(tmp_path / "first", encoder="test_resnet", stage=1, output_stride=8)
    base = write_folder(first, tmp_path / "secret")
    run = make_run(tmp_path / "run", encoder=f"local-dir:{base}", stage=1)
    with pytest.raises(UserError, match=r"which comes from elsewhere. Name it with `architecture`"):
        write_folder(run, tmp_path / "x")
    again = write_folder(run, tmp_path / "again", architecture=f"local-dir:{base}")
    assert all(b"secret" not in path.read_bytes() for path in again.iterdir())
    with torch.no_grad():
        expected = load_run(run, architecture=f"local-dir:{base}")[1].encoder(IMAGES)
    torch.testing.assert_close(maps(timm.create_model(f"local-dir:{again}", pretrained=True)), expected)
    opened = open_encoder(str(again / "model.safetensors"), f"local-dir:{base}")
    torch.testing.assert_close(maps(opened.encoder), expected)
    assert (opened.architecture, opened.stage, opened.output_stride) == ("test_resnet", 1, 8)
    copy = write_folder(again / "model.safetensors", tmp_path / "copy", architecture=f"local-dir:{base}")
    torch.testing.assert_close(maps(timm.create_model(f"local-dir:{copy}", pretrained=True)), expected)


@pytest.mark.parametrize(
    ("push", "token", "message"),
    [
        ("name", OWNER, "expected USER/NAME, got 'name'"),
        ("user--x/y", OWNER, "the hub takes no such name: Cannot have -- or .."),
        ("a/b/c", OWNER, "the hub takes no such name"),
        ("user/my model", OWNER, "the hub takes no such name"),
        ("user/x.git", OWNER, "the hub takes no such name"),
        ("", OWNER, "the hub takes no such name"),
        ("user/model", None, "not logged in to the hub. Run `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before_any_work(
    hub: Hub, tmp_path: Path, monkeypatch, capsys, push: str, token: str | None, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    assert run_main("export", tmp_path / "no run", "--push", push) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --push: ") and message in printed.err and printed.err.count("\n") == 1
    assert not printed.out and not hub.tokens


@pytest.mark.parametrize(
    ("push", "token", "options", "message"),
    [
        ("other/model", OWNER, {}, "the token may not write to other/model"),
        ("user/model", READER, {}, "the token may not write to user/model"),
        ("user/model", "hf_wrong", {}, "the hub does not know the token. Log in again"),
        ("user/model", OWNER, {"license": "nonsense"}, 'the hub refuses the card: .*"license" must be one of'),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: Hub, run: Path, monkeypatch, push, token, options, message) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    refused(message, run, push, **options)
    assert not any(repository.files for repository in hub.repositories.values())


def test_an_upload_that_breaks_off_changes_nothing(hub: Hub, run: Path) -> None:
    push_encoder(run, "user/model")
    before = dict(hub.repositories["user/model"].files)
    hub.repositories["user/model"].files["config.json"] += b" "
    hub.breaks_off = True
    refused(r"the hub refuses user/model \(400: storage is full\)", run, "user/model", license="mit")
    hub.breaks_off = False
    assert len(hub.repositories["user/model"].commits) == 1
    push_encoder(run, "user/model")
    assert hub.repositories["user/model"].files == before


def test_without_a_connection(run: Path, tmp_path: Path, monkeypatch) -> None:
    with serving(monkeypatch, tmp_path / "cache"):
        pass  # a port that nobody listens at any more
    refused("the hub cannot be reached .*. Go online, and run the same command again", run, "user/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("the hub cannot be reached", run, "user/model")


def test_models_that_are_not_there(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["user/other"] = Repository(files={"README.md": b""})
    (tmp_path / "config.json").write_text("{}")
    for name, message in (
        ("hf_hub:user/none", "the hub has no such model, or a private one. Check the name, or log in"),
        ("hf-hub:user/other", "its config.json is missing, or not timm's"),
        (f"local-dir:{tmp_path}", "its config.json is missing, or not timm's"),
        (f"local-dir:{tmp_path / 'none'}", "Config file not found"),
        ("hf_hub:a--b/c", "Cannot have -- or .. in repo_id"),
        ("gopher:a/b", "Unknown model source 'gopher'"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_encoder(f"timm:{name}")
        assert "\n" not in str(error.value)


def test_a_folder_with_other_files_is_left_alone(run: Path, tmp_path: Path) -> None:
    folder = write_folder(run, tmp_path / "model")
    assert write_folder(run, folder) == folder  # over its own files
    (folder / "README.md").write_text("mine")
    refuse_folder("README.md was edited. Move it away", run, folder)
    (folder / "mine.txt").write_text("mine")
    refuse_folder("holds other files", run, folder)
    for name in ("config.json", "model.safetensors"):
        foreign = tmp_path / f"with {name}"
        foreign.mkdir()
        (foreign / name).write_text("{}")
        refuse_folder("holds other files", run, foreign)
    refuse_folder("is a file, and the hub's format is a folder", run, folder / "mine.txt")


def test_flags_that_do_not_go_together(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "x.pth"
    for arguments, message in (
        ([], "--out is missing. Name a file with --format and --out, or a model of the hub with --push"),
        (["--out", out], "--out is missing. Name a file with --format"),
        (["--push", "user/model", "--format", "timm", "--out", out], "--push: takes no --format and no --out"),
        (["--private", "--format", "timm", "--out", out], "--private must be given with --push"),
        (["--message", "x", "--format", "timm", "--out", out], "--message must be given with --push"),
        (["--license", "mit", "--format", "timm", "--out", out], "--license must be given with --push or --format hub"),
        (
            ["--architecture", "x", "--format", "timm", "--out", out],
            "--architecture: .* is a run of test_resnet. Leave",
        ),
        (
            ["--prefix", "a", "--format", "timm", "--out", out],
            "--prefix: .* is a run, no file of weights. Leave it out",
        ),
    ):
        assert run_main("export", run, *arguments) == 2
        assert re.match(f"error: {message}", printed := capsys.readouterr().err) and printed.count("\n") == 1, printed
    assert not out.exists()


def refuse_folder(message: str, run: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ExportError, match=message):
        write_folder(run, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def refused(message: str, run: Path, push: str, **options) -> None:
    with pytest.raises(PushError, match=message) as error:
        push_encoder(run, push, **options)
    assert "\n" not in str(error.value)
