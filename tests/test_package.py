"""The package as a whole: its imports, its build, what happens without kernels, and whether the README is true."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import maskco
from maskco.__main__ import PACKAGES
from maskco.ops import _library

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
needs_readme = pytest.mark.skipif(not README.exists(), reason="not in a checkout")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, which finds the package where this one does."""
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    return subprocess.run([sys.executable, "-c", path + code, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("layer", "layers"),
    [("maskco.ops", {"ops", "version"}), ("maskco.nn", {"nn", "ops", "version", "errors"})],
    ids=["ops", "nn"],
)
def test_ops_and_nn_import_torch_and_numpy_alone(layer, layers):
    code = f"""
import numpy, torch
before = set(sys.modules)
import {layer}
print(*sorted(set(sys.modules) - before))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    new = [name.split(".") for name in done.stdout.split()]
    assert {name[0] for name in new} - sys.stdlib_module_names - {"torch", "numpy"} == {"maskco"}
    assert {name[1] for name in new if name[0] == "maskco" and len(name) > 1} - {"_C", "_C_cuda"} == layers
    assert ["maskco", "nn", "encoder"] not in new


def test_importing_ops_and_nn_costs_little_beside_torch():
    """CPU time, and a ratio within one process: what else the machine does counts little."""
    code = """
from time import process_time as now
start = now()
import torch
torch_alone = now() - start
import maskco.ops, maskco.nn
print((now() - start) / torch_alone)
"""
    assert statistics.median(float(python(code).stdout) for _ in range(3)) <= 1.15


def test_encoders_come_when_asked_for():
    pytest.importorskip("timm")
    code = """
import maskco.nn
assert "timm" not in sys.modules and {"Encoder", "create_encoder"} < set(dir(maskco.nn))
from maskco.nn import Encoder
assert Encoder is maskco.nn.Encoder is sys.modules["maskco.nn.encoder"].Encoder
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match=r"module 'maskco\.nn' has no attribute 'Decoder'"):
        _ = maskco.nn.Decoder


BESIDE_A_BARE_TORCH = """
class Hidden:  # in place of the finder of installed packages
    hidden = set(sys.argv.pop(1).split(","))

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.hidden:
            return PathFinder.find_spec(name, path, target)

from importlib.machinery import PathFinder
sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden()
"""


@pytest.mark.parametrize("hidden", ["timm,torchvision,PIL,tqdm,tyro", "tyro", "timm"])
def test_a_command_says_in_one_line_which_packages_are_missing(hidden, tmp_path):
    run = "from maskco.__main__ import main; main()"
    out = tmp_path / "run"
    done = python(BESIDE_A_BARE_TORCH + run, hidden, "pretrain", "--data", "demo", "--out", str(out))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    named = re.fullmatch("error: the command line needs (.*)\\. Run pip install maskco\n", done.stderr).group(1)
    assert {each.replace("PIL", "pillow") for each in hidden.split(",")} <= set(named.split(", ")) <= set(PACKAGES)
    assert not out.exists()


def test_ops_and_nn_work_beside_a_bare_torch():
    use = """
import torch
from maskco.nn import FeatureQueue, InfoNCE
queue = FeatureQueue(8, 4)
queue.push(torch.randn(3, 4), normalize=True)
print(InfoNCE()(torch.randn(2, 4), torch.randn(2, 4), queue).isfinite().item())
"""
    hidden = {name for name in PACKAGES if name not in ("torch", "numpy")} - {"pillow"} | {"PIL"}
    done = python(BESIDE_A_BARE_TORCH + use, ",".join(hidden))
    assert done.stdout == "True\n", done.stderr


@needs_readme
def test_the_packages_that_the_command_line_names_are_the_dependencies():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.S | re.M).group(1)
    assert sorted(re.findall(r'^    "([\w-]+)', dependencies, re.M)) == sorted(PACKAGES)


def test_build_info_says_what_was_built_and_why():
    info = maskco.build_info()
    assert info["torch_abi_target"] == "2.11" and info["torch_running"] == torch.__version__
    assert re.match(r"built with nvcc .* for |not built: .+", info["cuda"])


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that nothing was compiled for."""
    _library._warn_once.cache_clear()
    monkeypatch.delenv("MASKCO_REQUIRE_KERNELS", raising=False)
    return torch.device("xpu")


def test_a_device_without_kernels_warns_once(no_kernels, recwarn):
    assert _library.kernels(no_kernels) is None and _library.kernels(no_kernels) is None
    assert [str(w.message) for w in recwarn] == [
        "maskco has no compiled kernels for xpu tensors (only CPU and CUDA kernels exist). "
        "The slower plain-torch reference runs instead"
    ]


def test_kernels_can_be_required(no_kernels, monkeypatch):
    monkeypatch.setenv("MASKCO_REQUIRE_KERNELS", "1")
    with pytest.raises(_library.MissingKernelsError, match="no compiled kernels for xpu tensors"):
        _library.kernels(no_kernels)


@pytest.mark.parametrize(
    "archs, capability, runs",
    [
        *(("80-real 90", capability, True) for capability in ((8, 0), (8, 6), (9, 0), (12, 0))),
        *(("80-real 90-real", capability, capability == (9, 0)) for capability in ((7, 5), (9, 0), (10, 0))),
        *(("86-virtual", capability, capability == (9, 0)) for capability in ((8, 0), (9, 0))),
        ("native", (7, 5), True),
    ],
)
def test_a_gpu_that_the_kernels_were_not_built_for_gets_the_reference(monkeypatch, archs, capability, runs):
    class Module:
        @staticmethod
        def build_info() -> dict[str, str]:
            return {"cuda_archs": archs}

    monkeypatch.delenv("MASKCO_REQUIRE_KERNELS", raising=False)
    monkeypatch.setattr(_library, "_C_cuda", Module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    for cached in (_library._runs_on, _library._warn_once):
        cached.cache_clear()
    try:
        if runs:
            assert _library.kernels(torch.device("cuda")) is torch.ops.maskco
        else:
            with pytest.warns(UserWarning, match=f"built for {archs}, not for this GPU"):
                assert _library.kernels(torch.device("cuda")) is None
    finally:
        for cached in (_library._runs_on, _library._warn_once):
            cached.cache_clear()


@pytest.mark.filterwarnings("ignore:maskco has no compiled kernels")
def test_the_reference_serves_where_kernels_are_missing(monkeypatch):
    """Every op by its public function, compiled and not: values, gradients, what is written in place."""
    torch.manual_seed(0)
    features, queue = torch.randn(2, 8, 6, 6), torch.randn(20, 8)
    boxes, masks = torch.tensor([[1, 3.0, 5.0, 40.0, 30.0]]), torch.rand(2, 3, 6, 6)

    def everything() -> list[torch.Tensor]:
        maps = features.clone().requires_grad_()
        pooled = maskco.ops.box_pool(maps, boxes, spatial_scale=1 / 8), maskco.ops.masked_pool(maps, masks)
        query = torch.cat([pooled[0], pooled[1].flatten(0, 1)])
        loss, stats = maskco.ops.info_nce(query, query.detach().roll(1, 0), queue, in_batch=True, return_stats=True)
        loss.backward()
        own_queue, cursor = queue.clone(), torch.tensor([18, 18])
        maskco.ops.queue_push_(own_queue, cursor, query.detach(), normalize=True)
        return [loss, *stats, maps.grad, own_queue, cursor]

    compiled = everything()
    monkeypatch.setattr(_library, "kernels", lambda device: None)
    for got, expected in zip(compiled, everything(), strict=True):
        torch.testing.assert_close(got, expected)


@needs_readme
def test_the_readme_s_example_runs_and_nothing_is_left_to_fill_in(capsys):
    text = README.read_text(encoding="utf-8")
    assert not re.search(r"DEMO_|TODO|XXX", text)
    example = re.search(r"```python\n(import torch\n.*?)```", text, re.S).group(1)
    assert len(example.strip().splitlines()) <= 17
    exec(compile(example, "README.md", "exec"), {})
    assert re.match(r"loss \d\.\d{3}, contrast accuracy \d", capsys.readouterr().out)
