"""Writes an encoder as another library's weights, with a model card next to it.

    export_encoder("RUN", "torchvision", "resnet50_maskco.pth")
    export_encoder("moco_v2_800ep.pth.tar", "detectron2", "moco_v2.pth", architecture="resnet50")

A name that ends in .safetensors is written in that format, any other by `torch.save` as tensors and plain values, which
`torch.load(weights_only=True)` reads. Projection, mask head, queue and momentum side are left out: pretraining is done.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save
from torch import Tensor

from maskco.files import user_path, write_atomically
from maskco.memory import memory_errors
from maskco.weights.card import card_start, model_card
from maskco.weights.origin import ExportError, Origin, open_origin


@dataclass(frozen=True)
class Exported:
    """Content of the file, and how it is loaded."""

    tensors: dict[str, Tensor]
    loading: str  # Python
    note: str = ""
    wrap: Callable[[dict[str, Tensor]], dict[str, Any]] = lambda tensors: tensors  # what torch.save gets


@memory_errors("export on a machine with more memory")
def export_encoder(
    source: str | Path,
    format: str,
    out: str | Path,
    *,
    architecture: str | None = None,
    prefix: str | None = None,
    notes: list[str] | None = None,
) -> tuple[Path, Path]:
    """Writes an encoder to `out` and a card to `out` with .md in place of its suffix. Returns both paths.

    Only what an earlier export to `out` wrote is replaced. If the card's name is taken by another file, .md is added to
    the whole name of `out`.

    Args:
        source: a run folder, a checkpoint in it, or a file of weights that another project wrote.
        format: "torchvision", "timm", "detectron2" or "safetensors".
        architecture: timm's name for the encoder in a file of weights that does not say it.
        prefix: chooses one of several encoders in a file of weights, by the prefix of its tensors' names.
        notes: gets lines for the user, such as which of several encoders was taken.

    Raises:
        ExportError: no such format, an encoder that the library lacks, or a suffix that readers of the format do not
            take. Also existing files that no export to `out` wrote.
        CheckpointError, ConfigError: a run without a usable checkpoint.
        WeightsError: a file of weights that is unreadable, of an unknown architecture, or of another.
    """
    out = user_path(out)
    if format not in FORMATS:
        raise ExportError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    suffixes = SUFFIXES[format]
    if out.is_dir():
        raise ExportError(f"out: {out} is a folder. Name a file in it, such as {out / ('encoder' + suffixes[-1])}")
    if out.suffix not in suffixes:
        raise ExportError(f"out: {format} reads {' and '.join(suffixes)} files, got {out.name!r}")
    card = _card_of(out)
    notes = [] if notes is None else notes
    origin = open_origin(source, architecture, prefix, notes=notes)
    exported = FORMATS[format](origin, out)
    tensors = {name: value.detach().contiguous() for name, value in exported.tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        # (`maskco eval` asks the header for the architecture)
        header = {"format": "pt", "architecture": origin.name, "maskco": json.dumps(origin.settings)}
        content = save(tensors, header)
        write_atomically(out, lambda file: file.write(content))
    else:
        packed = io.BytesIO()  # (on a full disk torch.save itself would hide the reason)
        torch.save(exported.wrap(tensors), packed)
        write_atomically(out, lambda file: file.write(packed.getbuffer()))
    text = model_card(origin, out.name, f"{len(tensors)}, {format}'s names", exported.loading, exported.note)
    write_atomically(card, lambda file: file.write(text.encode()))
    if card != out.with_suffix(".md"):
        notes.append(f"{card.name} is the card: {out.stem}.md was there before and is not this export's")
    return out, card


def _card_of(out: Path) -> Path:
    """Where the card goes. Raises ExportError if it exists and no export to `out` wrote it."""
    names = (out.with_suffix(".md"), out.with_name(f"{out.name}.md"))
    own = next((card for card in names if _is_card_of(card, out)), None)
    if out.exists() and own is None:
        raise ExportError(f"out: {out} exists, and no card next to it says that it is an export. Name another file")
    card = own or next((card for card in names if not os.path.lexists(card)), None)
    if card is None:
        raise ExportError(
            f"out: {names[0]} and {names[1].name} exist, and no export to {out.name} wrote them. Name "
            "another file, or move one away"
        )
    return card


def _is_card_of(card: Path, out: Path) -> bool:
    """Whether a file is the model card of an export to `out`, by its first lines."""
    start = card_start(out.name).encode()
    if not card.is_file():
        return False
    with open(card, "rb") as file:
        return file.read(len(start)) == start


# --- formats --------------------------------------------------------------------------------------------------------


def _timm(origin: Origin, out: Path) -> Exported:
    options = ", ".join(f"{name}={value!r}" for name, value in origin.options().items())
    made = f"{origin.name!r}, {options}"
    missing = origin.missing()
    if not missing:
        return Exported(
            origin.tensors, f"import timm\n\nmodel = timm.create_model({made}, checkpoint_path={out.name!r})"
        )
    loading = (
        f"import timm\nfrom timm.models import load_state_dict\n\nmodel = timm.create_model({made})\n"
        f"model.load_state_dict(load_state_dict({out.name!r}), strict=False)"
    )
    note = f"The encoder ends before {len(missing)} of the model's tensors, which stay as timm makes them: "
    note += ", ".join([*missing][:3]) + (" …" if len(missing) > 3 else "") + ". "
    note += f"`model.forward_intermediates(images, indices=[{origin.stage}], intermediates_only=True)` is its map."
    return Exported(origin.tensors, loading, note)


def _torchvision(origin: Origin, out: Path) -> Exported:
    _require_torchvisions_resnet(origin, "torchvision")
    packages, read = "import torch\nimport torchvision", f"torch.load({out.name!r}, weights_only=True)"
    if out.suffix == ".safetensors":
        packages, read = "import torchvision\nfrom safetensors.torch import load_file", f"load_file({out.name!r})"
    loading = (
        f"{packages}\n\nmodel = torchvision.models.{origin.architecture}()\n"
        f"model.load_state_dict({read}, strict=False)  # all but the classifier, fc"
    )
    return Exported(origin.tensors, loading, _dilated(origin))


def _detectron2(origin: Origin, out: Path) -> Exported:
    _require_torchvisions_resnet(origin, "detectron2")
    tensors = {detectron2_name(n): v for n, v in origin.tensors.items() if not n.endswith("num_batches_tracked")}
    depth = re.fullmatch(r"resnet(\d+)", origin.architecture)
    if depth is None:
        raise ExportError(f"detectron2 has no {origin.encoder}. It has resnet18, 34, 50, 101 and 152")
    mean, std = ([round(255 * value, 3) for value in values] for values in (origin.mean, origin.std))
    loading = (
        f"cfg.MODEL.WEIGHTS = {out.name!r}\n"
        f"cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = {depth[1]}, False\n"
        f'cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", {mean}, {std}'
    )
    if depth[1] in ("18", "34"):
        loading += "\ncfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64"
    note = (
        "`cfg` is detectron2's (`detectron2.config.get_cfg()`). As for MoCo's weights, `RESNETS.NORM` and `FPN.NORM` "
    )
    note += 'are best "SyncBN" when batch norms are to be trained. ' + _dilated(origin)
    # What detectron2's DetectionCheckpointer wants; the heuristics find res2.… below backbone.bottom_up. too.
    return Exported(tensors, loading, note, lambda t: {"model": t, "__author__": "maskco", "matching_heuristics": True})


def _dilated(origin: Origin) -> str:
    stride = origin.output_stride
    return "" if stride in (None, 32) else f"It was pretrained dilated to output stride {stride}; here it is not."


def detectron2_name(name: str) -> str:
    """torchvision's name of a ResNet's tensor -> detectron2's, as MoCo's convert-pretrain-to-detectron2.py has it.

    layer1.0.bn2.weight -> res2.0.conv2.norm.weight, layer1.0.downsample.1.bias -> res2.0.shortcut.norm.bias.
    """
    name = re.sub(r"^layer(\d)", lambda layer: f"res{int(layer[1]) + 1}", name)
    name = re.sub(r"^(?=conv1|bn1)", "stem.", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _require_torchvisions_resnet(origin: Origin, format: str) -> None:
    name = origin.architecture
    known = {n for n in torchvision.models.list_models(torchvision.models) if "resne" in n}
    hint = "Take `format=timm` or safetensors"
    if name not in known:
        raise ExportError(f"{format} has no {origin.encoder}. {hint}")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
    expected = {n: value.shape for n, value in theirs.items() if not n.startswith("fc.")}
    missing = sorted(expected.keys() - origin.tensors.keys())
    if missing:
        raise ExportError(
            f"the encoder ends at stage {origin.stage} of {origin.encoder}, before {missing[0]}, "
            f"and {format} needs all of it. {hint}"
        )
    if {n: value.shape for n, value in origin.tensors.items()} != expected:
        raise ExportError(f"{format}'s {name} differs from timm's {origin.encoder}. {hint}")


FORMATS = {"torchvision": _torchvision, "timm": _timm, "detectron2": _detectron2, "safetensors": _timm}
SUFFIXES = {
    "torchvision": (".pth", ".pt", ".safetensors"),
    "timm": (".pth", ".pt", ".safetensors"),
    "detectron2": (".pth",),  # .pkl would be unpickled, other suffixes mean other projects' layouts there
    "safetensors": (".safetensors",),
}
