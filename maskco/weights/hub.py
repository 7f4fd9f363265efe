"""Publishes an encoder on the Hugging Face Hub, as timm keeps its own models there.

    push_encoder("RUN", "USER/NAME")                       # needs `hf auth login` once, or HF_TOKEN
    timm.create_model("hf_hub:USER/NAME", pretrained=True)

The repository gets three files: model.safetensors and config.json, by timm's own writer, and README.md, the model card.
None of them describes the user's machine: see `maskco.weights.origin.public_config`. The hub keeps what they replace in
its history.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from maskco.errors import UserError, one_line
from maskco.files import user_path
from maskco.memory import memory_errors
from maskco.nn.encoder import resolve
from maskco.weights.card import hub_card, is_unchanged, model_card
from maskco.weights.origin import ExportError, Origin, open_origin

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MARK = "maskco"  # a key of config.json by which an export knows another


class PushError(UserError, RuntimeError):
    """The hub refuses what should be published, or cannot be reached."""


@memory_errors("export on a machine with more memory")
def push_encoder(
    source: str | Path,
    push: str,
    *,
    private: bool = False,
    message: str | None = None,
    license: str | None = None,
    architecture: str | None = None,
    prefix: str | None = None,
    notes: list[str] | None = None,
) -> str:
    """Uploads an encoder to the model repository `push` of the Hugging Face Hub, which is made if it is missing.
    Returns its address.

    Replaces the files of an earlier export in a new commit. A model card that was edited on the hub stays as it is.

    Args:
        source: a run folder, a checkpoint in it, or a file of weights that another project wrote.
        push: "USER/NAME", or "ORGANISATION/NAME".
        private: whether a new repository can be seen by its owners alone.
        message: of the commit.
        license: the hub's name for one, such as "apache-2.0", for the card. None: the card says none.
        architecture, prefix: of a file of weights, as for `maskco.weights.export.export_encoder`.
        notes: gets what the user should know.

    Raises:
        PushError: a name that the hub refuses, no token or permission, no connection. Also a repository that holds
            another model, or a public one with `private`.
        CheckpointError, ConfigError, WeightsError: as `export_encoder`.
    """
    from huggingface_hub import HfApi, get_token

    check_name(push)
    if get_token() is None:
        raise PushError("push: this machine is not logged in to the hub. Run `hf auth login`, or set HF_TOKEN")
    notes = [] if notes is None else notes
    origin = open_origin(source, architecture, prefix, public=True, notes=notes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(origin, folder, f"hf_hub:{push}", license, notes)
        with _named_failures(push):
            api = HfApi(library_name="maskco")
            keeps_card = _prepare(api, push, private)
            done = api.upload_folder(
                repo_id=push,
                folder_path=folder,
                ignore_patterns=[CARD] if keeps_card else None,
                commit_message=message or f"Add {origin.name}",
            )
    if keeps_card:
        notes.append(f"{CARD} on the hub was edited and stays as it is. Delete it there to get a new one")
    return str(done.repo_url)


@memory_errors("export on a machine with more memory")
def write_folder(
    source: str | Path,
    out: str | Path,
    *,
    license: str | None = None,
    architecture: str | None = None,
    prefix: str | None = None,
    notes: list[str] | None = None,
) -> Path:
    """Writes to a folder what `push_encoder` uploads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Only the files of an earlier export are replaced, and no card that was edited. Returns the folder.

    Takes what `push_encoder` takes. Raises ExportError if the folder holds other files, and what that raises of the
    encoder.
    """
    folder = user_path(out)
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"out: {folder} is a file, and the hub's format is a folder. Name another")
    others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if others and not ({*others} <= {WEIGHTS, CONFIG, CARD} and _is_export(folder / CONFIG)):
        raise ExportError(f"out: {folder} holds other files ({others[0]} …). Name a new or empty folder")
    if (folder / CARD).is_file() and not is_unchanged((folder / CARD).read_text(encoding="utf-8", errors="replace")):
        raise ExportError(f"out: {folder / CARD} was edited. Move it away, or name another folder")
    notes = [] if notes is None else notes
    origin = open_origin(source, architecture, prefix, public=True, notes=notes)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        write_model(origin, Path(temporary), f"local-dir:{folder.resolve().name}", license, notes)
        for name in (WEIGHTS, CONFIG, CARD):  # all whole by now
            os.replace(Path(temporary, name), folder / name)
    return folder


def check_name(push: str) -> None:
    """Raises PushError for a name that the hub would refuse."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(push)
    except HFValidationError as error:
        raise PushError(f"push: the hub takes no such name: {' '.join(str(error).split())}") from error
    if push.count("/") != 1:
        raise PushError(f"push: expected USER/NAME, got {push!r}. Name the user or organisation, too")


# --- the files ------------------------------------------------------------------------------------------------------


def write_model(origin: Origin, folder: Path, called: str, license: str | None, notes: list[str]) -> None:
    """Writes model.safetensors, config.json and README.md.

    timm loads strictly, so the file has all tensors of timm's model. If layers with random weights are among those that
    the encoder ends before, config.json makes timm build the encoder alone, which gives its map. If they are norms,
    which start as 1 and 0, it builds the whole model.

    Args:
        called: the model's name for `timm.create_model`.
        notes: gets what the user should know.
    """
    missing = origin.missing()
    is_cut = any(value.ndim > 1 for value in missing.values())
    options = {name: value for name, value in origin.options().items() if name != "num_classes"}
    cut = {"features_only": True, "out_indices": [origin.stage]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model(origin.name, num_classes=0, **options)
    model.load_state_dict(origin.tensors, strict=False)
    model.pretrained_cfg = _timm_config(origin)
    save_for_hf(
        model,
        str(folder),
        model_config={MARK: origin.settings},
        model_args={**options, **cut} if is_cut else options,
        safe_serialization=True,
    )
    loading, note = _loading(called, origin.stage, [*missing], is_cut)
    name = called.partition(":")[2].rpartition("/")[2]
    card = model_card(origin, name, f"{len(origin.tensors)}, timm's names", loading, note)
    (folder / CARD).write_text(hub_card(card, license), encoding="utf-8")
    if is_cut:
        notes.append(f"the encoder ends before {next(iter(missing))}: timm.create_model builds it alone, for its map")


def _timm_config(origin: Origin) -> dict[str, Any]:
    """timm's `pretrained_cfg` of the weights. Of timm's own for this architecture, which is about other weights with
    another author and license, only what describes the layers is kept."""
    own = resolve(origin.encoder).config
    kept = {name: own[name] for name in ("first_conv", "classifier", "fixed_input_size") if own.get(name) is not None}
    channels, *sides = own.get("input_size", (3, 224, 224))
    size = (origin.image_size, origin.image_size) if origin.image_size else tuple(sides)
    return {
        **kept,
        "architecture": origin.architecture,
        "input_size": (channels, *size),
        "mean": origin.mean,
        "std": origin.std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": 0,
    }


def _loading(called: str, stage: int, missing: list[str], is_cut: bool) -> tuple[str, str]:
    """The lines that load the model and give its map, and what to know of them."""
    create = f"timm.create_model({called!r}, pretrained=True"
    if is_cut:
        return f"import timm\n\nencoder = {create}).eval()\n# encoder(images)[-1] is the feature map", (
            f"The model is the encoder alone, which ends before {len(missing)} of timm's tensors ({missing[0]} …). "
            "The file holds fresh, untrained values for them, since timm loads strictly."
        )
    loading = (
        f"import timm\n\nmodel = {create}).eval()\n"
        f"encoder = {create}, features_only=True, out_indices=({stage},)).eval()\n"
        "# model(images) is a vector for each image, encoder(images)[-1] the feature map"
    )
    if not missing:
        return loading, ""
    named = ", ".join(missing[:3]) + (" …" if missing[3:] else "")
    return loading, f"The map was pretrained. What `model` does after it is not: {named} have timm's fresh values."


# --- the repository -------------------------------------------------------------------------------------------------


def _prepare(api: Any, push: str, private: bool) -> bool:
    """Makes the repository if it is missing. Returns whether its card has to stay.

    Raises PushError if it holds what no export wrote, or is public though it should be private.
    """
    from huggingface_hub.utils import RepositoryNotFoundError

    try:
        info = api.model_info(push)
    except RepositoryNotFoundError:
        api.create_repo(push, private=private, exist_ok=True)
        info = api.model_info(push)
    if private and not info.private:
        raise PushError(f"push: {push} exists and is public. Make it private on the hub, or leave out `private`")
    files = {each.rfilename for each in info.siblings or ()}
    is_export = CONFIG in files and _is_export(Path(api.hf_hub_download(push, CONFIG)))
    if not is_export and (other := next((name for name in (CONFIG, WEIGHTS) if name in files), None)):
        raise PushError(f"push: {push} holds a model that no export wrote ({other}). Name another repository")
    if CARD not in files:
        return False
    card = Path(api.hf_hub_download(push, CARD)).read_text(encoding="utf-8", errors="replace")
    return not is_unchanged(card)


def _is_export(config: Path) -> bool:
    """Whether an export wrote this config.json."""
    try:
        return MARK in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


@contextmanager
def _named_failures(push: str) -> Iterator[None]:
    """The error of the hub's client, of several libraries' types, as a PushError that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error
        while type(cause) is RuntimeError and isinstance(cause.__cause__, Exception):  # of an upload that broke off
            cause = cause.__cause__
        raise PushError(f"push: {_reason(cause, push)}") from error


def _reason(error: Exception, push: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or str(error).strip().split("\n")[0] or type(error).__name__
    if status == 401:
        return "the hub does not know the token. Log in again with `hf auth login`"
    if status == 403:
        return f"the token may not write to {push} ({said}). Take one with write access, or another user's name"
    if status is not None:
        return f"the hub refuses {push} ({status}: {said})"
    kinds = [each.__name__ for each in type(error).__mro__]  # (of several libraries, which differ with its version)
    if any(word in kind for kind in kinds for word in ("Connect", "Timeout", "Transport", "LocalEntryNotFound")):
        return f"the hub cannot be reached ({said}). Go online, and run the same command again"
    if isinstance(error, ValueError):  # of front matter, which the client asks the hub about
        return f"the hub refuses the card: {one_line(error)}"
    return f"the hub's client failed ({type(error).__name__}: {said})"
