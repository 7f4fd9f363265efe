"""Files of weights: what other projects pickle along, what is no such file, and that nothing in them is executed."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from maskco.weights.files import STAND_INS, WeightsError, read_weights

WEIGHT = torch.arange(6.0).view(2, 3)
LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("legacy", [{}, LEGACY], ids=["zip", "legacy"])
def test_harmless_objects_beside_the_tensors_are_read_over(tmp_path: Path, legacy: dict) -> None:
    content = {
        "args": argparse.Namespace(lr=np.float64(0.1), out=pathlib.Path("x"), dtype=torch.float16),
        "best": np.float32(71.5),
        "epoch": 7,
        "history": collections.deque([1.0, 2.0]),
        "counts": collections.defaultdict(list, a=[1]),
        "random": np.random.get_state(),
        "flags": [np.bool_(True), np.arange(3), np.str_("a"), torch.device("cpu"), slice(1, 2)],
        "state_dict": collections.OrderedDict(weight=WEIGHT),
    }
    torch.save(content, tmp_path / "file.pth", **legacy)
    tensors, facts = read_weights(tmp_path / "file.pth")
    assert list(tensors) == ["weight"] and torch.equal(tensors["weight"], WEIGHT) and facts == {"epoch": 7}
    assert not any(isinstance(each, type) and each.__module__ == "argparse" for each, _ in STAND_INS)
    with pytest.raises(pickle.UnpicklingError):  # what is allowed here is allowed nowhere else
        torch.load(tmp_path / "file.pth", weights_only=True)


def test_settings_of_packages_that_are_not_installed_are_read_over(tmp_path: Path) -> None:
    kinds = {}
    for name in ("omegaconf.dictconfig.DictConfig", "pytorch_lightning.utilities.parsing.AttributeDict"):
        module, _, kind = name.rpartition(".")
        base = dict if kind == "AttributeDict" else object
        kinds[name] = type(kind, (base,), {"__module__": module, "__qualname__": kind})
    content = {name: kind() for name, kind in kinds.items()}
    content["omegaconf.dictconfig.DictConfig"].__dict__["_content"] = {"a": 1}
    content["pytorch_lightning.utilities.parsing.AttributeDict"]["lr"] = 0.1
    import sys
    import types

    made = {}
    try:
        for name, kind in kinds.items():
            parts = name.split(".")[:-1]
            for end in range(1, len(parts) + 1):
                module = ".".join(parts[:end])
                if module not in sys.modules:
                    made[module] = sys.modules[module] = types.ModuleType(module)
            setattr(sys.modules[".".join(parts)], kind.__name__, kind)
        torch.save({"hyper_parameters": content, "state_dict": {"weight": WEIGHT}}, tmp_path / "file.ckpt")
    finally:
        for module in made:
            del sys.modules[module]
    assert torch.equal(read_weights(tmp_path / "file.ckpt")[0]["weight"], WEIGHT)
    assert not made.keys() & sys.modules.keys()  # the classes were not imported


class Executes:
    """What pickle would call: a function with an argument."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("function", [os.system, eval, exec, os.mkdir, getattr], ids=lambda f: f.__name__)
def test_a_file_that_would_execute_something_is_refused_by_name(tmp_path: Path, function, legacy: dict) -> None:
    made = tmp_path / "made"
    arguments = {
        os.system: (f"mkdir {made}",),
        os.mkdir: (str(made),),
        getattr: (collections.OrderedDict(), "keys"),
    }.get(function, (f"__import__('os').mkdir({str(made)!r})",))
    torch.save({"state_dict": {"weight": WEIGHT}, "args": Executes(function, *arguments)}, tmp_path / "x.pth", **legacy)
    refused(
        tmp_path / "x.pth", rf"only unpickling code could make \(\w+\.?{function.__name__}\)|\({function.__name__}\)"
    )
    assert not made.exists()


def test_a_pickle_that_torch_did_not_save_is_not_opened(tmp_path: Path) -> None:
    content = {"weight": Executes(os.mkdir, str(tmp_path / "made"))}
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        refused(tmp_path / "x.pkl", "is a pickle that torch did not save")
    assert not (tmp_path / "made").exists()


class Foreign:
    """A class of some project."""


def test_what_is_not_allowed_is_named_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"config": Foreign(), "state_dict": {"weight": WEIGHT}}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"\(\w*\.?test_weight_files\.Foreign\)\. .*save its state_dict alone")
    torch.save(nn.Linear(1, 1), tmp_path / "model.pth")
    refused(tmp_path / "model.pth", r"\(torch\.nn\.modules\.linear\.Linear\)")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.pth.tar"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 97\n", "git-lfs pointer.*git lfs pull"),
        (b"/annex/objects/SHA256E-s97--4d7a.pth\n", "git-annex pointer.*git annex get"),
        (b"<!DOCTYPE html><html><head>", "is a web page, not weights. Download"),
        (b"\n\n  <html lang='en'>", "is a web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is a web page"),
        (b'{"message": "Not Found"}', "is JSON"),
        (b'[{"weight_map": 1}]', "is JSON"),
        (b"", "is empty"),
        (bytes(5000), "starts with zeros"),
        (b"Entry not found", "is damaged.* starts with 'Entry not found'"),
        (b"\x1f\x8b\x08\x00rest", "compressed by gzip.*Unpack it"),
        (b"\x89HDF\r\n\x1a\nrest", "HDF5"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"\x89PNG\r\n\x1a\n", "is an image"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_what_is_no_file_of_weights_is_told_by_its_content(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_archives_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("resnet/weights.pth", b"x")
    refused(tmp_path / "x.pth", r"is a zip archive \(of resnet/weights.pth\), not weights. Unpack it")
    np.savez(tmp_path / "x.npz", weight=np.zeros(3))
    refused(tmp_path / "x.npz", r"is a zip archive \(of weight.npy\)")
    with tarfile.open(tmp_path / "x.pth.tar", "w") as archive:
        archive.add(tmp_path / "x.npz", "x.npz")
    refused(tmp_path / "x.pth.tar", "is a tar archive")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"")
    refused(tmp_path / "script.pt", "is a TorchScript program.*state_dict")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_download_that_was_cut_off(tmp_path: Path, kind: str, share: float) -> None:
    path, state = tmp_path / "x.pth", {"weight": torch.randn(100, 100), "bias": torch.randn(100)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, **(LEGACY if kind == "legacy" else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "cut off")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_flipped_or_cut_off_it_is_one_line(tmp_path: Path, kind: str) -> None:
    path, state, outcomes = tmp_path / "x.pth", {"weight": torch.randn(3, 4), "bias": torch.arange(3)}, set()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3}, path, **(LEGACY if kind == "legacy" else {}))
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.randrange(len(damaged))] if draw.random() < 0.3 else damaged)
        try:
            read_weights(path)
            outcomes.add("read")
        except WeightsError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_safetensors_file_is_one_by_any_name(tmp_path: Path) -> None:
    save_file({"weight": WEIGHT.bfloat16()}, tmp_path / "x.pth", {"architecture": "resnet18"})
    tensors, facts = read_weights(tmp_path / "x.pth")
    assert torch.equal(tensors["weight"], WEIGHT.bfloat16()) and facts == {"architecture": "resnet18"}
    torch.save({"weight": WEIGHT}, tmp_path / "x.safetensors")
    assert torch.equal(read_weights(tmp_path / "x.safetensors")[0]["weight"], WEIGHT)
    header = b'{"weight": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}'
    (tmp_path / "bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(tmp_path / "bad.safetensors", "is damaged")


def test_folders_and_missing_files(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    refused(tmp_path / "x.pth", "does not exist")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "does not exist")  # and is not waited for


def test_tensors_without_values_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": WEIGHT, "bias": torch.empty(3, device="meta")}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "holds the shape of 'bias' without its values")


def test_nested_dictionaries_are_joined_by_dots(tmp_path: Path) -> None:
    content: dict = {"teacher": {"module": {"weight": WEIGHT}}, "optimizer": {"state": {0: {"exp_avg": WEIGHT}}}}
    content["itself"] = content
    torch.save(content, tmp_path / "x.pth")
    assert list(read_weights(tmp_path / "x.pth")[0]) == ["teacher.module.weight"]


def refused(path: Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        read_weights(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
