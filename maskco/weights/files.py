"""Reads files of weights that other projects wrote.

Nothing in them is executed. Other files are recognised by their content: a git-lfs pointer, a web page, a download that
was cut off …
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskco.errors import UserError

EXPECTED = "Name a state dict of tensors (.pth, .pt or .safetensors)"
DEEPEST = 20  # dictionaries inside each other that are searched for tensors


class WeightsError(UserError, ValueError):
    """A file of weights is unreadable, or fits another encoder."""


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a .safetensors, .pth, .pt or .pth.tar file by name, and what else it says (`arch`, `epoch` …).

    Names in nested dictionaries are joined by dots: `teacher.backbone.conv1.weight`. `state_dict.`, where most files
    keep everything, is left out. Dictionaries with other keys than text, such as an optimizer's, are not searched.

    Read without unpickling code (`weights_only=True`). Well-known classes other than tensors are replaced by empty
    stand-ins (see `STAND_INS`). Any other class is refused by its name. Raises WeightsError.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}. {EXPECTED}")
    try:
        if reason := _no_weights(path):
            raise WeightsError(f"{path} {reason}")
        if _safetensors_header(path) is not None:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        content = _load(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({str(error).splitlines()[0]}). {_AGAIN}") from error
    tensors = {name.removeprefix("state_dict."): tensor for name, tensor in _tensors(content)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name. {EXPECTED}")
    if empty := next((name for name, tensor in tensors.items() if tensor.is_meta), None):
        raise WeightsError(f"{path} holds the shape of {empty!r} without its values (it was on torch's meta device)")
    return tensors, {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, (str, int, float))}


def _tensors(content: object, prefix: str = "", depth: int = 0, seen: frozenset[int] = frozenset()) -> Iterator:
    """(name, tensor) of a nested dictionary, in its order. One that holds itself is entered once."""
    if not isinstance(content, Mapping) or id(content) in seen or depth > DEEPEST:
        return
    if all(isinstance(key, str) for key in content):
        for key, value in content.items():
            if isinstance(value, Tensor):
                yield prefix + key, value.detach()
            else:
                yield from _tensors(value, f"{prefix}{key}.", depth + 1, seen | {id(content)})


# --- pickles --------------------------------------------------------------------------------------------------------


class _Ignored:
    """Takes the place of an object that is of no use here: whatever it is made from or filled with is dropped."""

    def __new__(cls, *arguments: object, **more: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _dictionary(*arguments: object) -> OrderedDict[Any, Any]:
    return OrderedDict()  # which torch's reader then fills


def _sequence(*arguments: object) -> list[Any]:
    return []


_IGNORED = (
    "argparse.Namespace types.SimpleNamespace typing.Any datetime.datetime datetime.date datetime.timedelta "
    "datetime.timezone decimal.Decimal fractions.Fraction uuid.UUID builtins.int builtins.float builtins.bool "
    "builtins.str builtins.bytes builtins.dict builtins.list builtins.tuple builtins.frozenset builtins.slice "
    "builtins.range builtins.object "
    "numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar "
    "numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct numpy.bool_ numpy.int32 numpy.int64 "
    "numpy.float16 numpy.float32 numpy.float64 "
    "omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata "
    "omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode omegaconf.nodes.IntegerNode "
    "omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode omegaconf.nodes.PathNode "
    "mmengine.logging.history_buffer.HistoryBuffer pytorch_lightning.callbacks.early_stopping.EarlyStopping "
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
)
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_DICTIONARIES = (
    "easydict.EasyDict addict.addict.Dict munch.Munch yacs.config.CfgNode fvcore.common.config.CfgNode "
    "detectron2.config.config.CfgNode mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict "
    "pytorch_lightning.utilities.parsing.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict "
    "lightning_fabric.utilities.data.AttributeDict lightning.fabric.utilities.data.AttributeDict"
)
STAND_INS: list[Any] = [
    *((_Ignored, name) for name in _IGNORED.split()),
    *((_Ignored, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *((OrderedDict, name) for name in _DICTIONARIES.split()),
    (_dictionary, "collections.defaultdict"),
    (_sequence, "collections.deque"),
]
"""Classes that a pickle may name next to tensors, and their stand-ins. The named classes are never imported."""


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals(STAND_INS), open(path, "rb") as file:  # (torch goes by the suffix of a path)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # damaged files make the reader raise almost anything
            if names := _refused_names(path, error):
                raise WeightsError(
                    f"{path} holds objects that only unpickling code could make ({', '.join(names)}). {EXPECTED}. If "
                    "you trust it, load it where these are installed, with weights_only=False, and save its "
                    "state_dict alone"
                ) from error
            text = f", and starts with {start!r}" if (start := _readable_start(path)) else ""
            raise WeightsError(f"{path} is damaged, cut off or no file of weights{text}. {EXPECTED}") from error


def _refused_names(path: Path, error: Exception) -> list[str]:
    """Classes and functions that a pickle names and that are not allowed."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:3]
    except Exception:  # not a zip, or with opcodes that the lister does not know: the refusal names the first
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]


def _readable_start(path: Path) -> str:
    with open(path, "rb") as file:
        line = file.read(60).split(b"\n")[0]
    return line.decode("ascii") if line.isascii() and line.decode("ascii").isprintable() else ""


# --- what is no file of weights -------------------------------------------------------------------------------------

_UNPACK = "Unpack it and name the file inside"
_AGAIN = "Download or copy it again"
_KINDS = (  # first bytes, what starts so, and what to do
    (b"version https://git-lfs", "is a git-lfs pointer", "Run `git lfs pull` where it came from"),
    (b"/annex/objects/", "is a git-annex pointer", "Run `git annex get` where it came from"),
    (b"\x1f\x8b", "is compressed by gzip", _UNPACK),
    (b"BZh", "is compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "is compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", _UNPACK),
    (b"7z\xbc\xaf", "is a 7z archive", _UNPACK),
    (b"Rar!", "is a RAR archive", _UNPACK),
    (b"\x89HDF", "is an HDF5 file", EXPECTED),
    (b"\x93NUMPY", "is a NumPy array", EXPECTED),
    (b"\x89PNG", "is an image", EXPECTED),
    (b"\xff\xd8\xff", "is an image", EXPECTED),
    (b"%PDF", "is a PDF", EXPECTED),
)


_LEGACY = bytes.fromhex("6cfc9c46f9206aa85019")  # torch's magic number in files that are no zip archives


def _no_weights(path: Path) -> str | None:
    """What the file is instead of weights, and what to do. None if it may be weights."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    if not head.strip(b"\0"):
        return f"is empty. {_AGAIN}" if size == 0 else f"starts with zeros, as a download that never ended. {_AGAIN}"
    if (header := _safetensors_header(path)) is not None:
        end = 8 + header + (_data_length(path, header) if 8 + header <= size else 0)
        return f"is cut off, {size} bytes of {end} or more. {_AGAIN}" if end > size else None
    for start, kind, remedy in _KINDS:
        if head.startswith(start):
            return f"{kind}, not weights. {remedy}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "is a web page, not weights. Download what the page links to"
    if text[:1] in (b"{", b"["):
        return f"is JSON, not weights. {EXPECTED}"
    if head.startswith(b"PK\x03\x04"):
        return _no_weights_in_zip(path, size)
    if head.startswith(b"\x80") and _LEGACY not in head[:20]:
        return f"is a pickle that torch did not save, and only unpickling code could make what it holds. {EXPECTED}"
    return f"is a tar archive, not weights. {_UNPACK}" if head[257:262] == b"ustar" else None


def _no_weights_in_zip(path: Path, size: int) -> str | None:
    try:
        if not zipfile.is_zipfile(path):  # its directory is at the end
            return f"is cut off after {size} bytes. {_AGAIN}"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        return f"is damaged ({error}). {_AGAIN}"
    if any(name.endswith("constants.pkl") for name in names):
        return "is a TorchScript program, not weights. Save torch.jit.load(…).state_dict()"
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return f"is a zip archive (of {', '.join(names[:3]) or 'nothing'}), not weights. {_UNPACK}"
    return None


def _safetensors_header(path: Path) -> int | None:
    """The length of a .safetensors file's header. None for any other file, whatever its name."""
    with open(path, "rb") as file:
        head = file.read(9)
    return int.from_bytes(head[:8], "little") if len(head) == 9 and head[7:8] == b"\0" and head[8:] == b"{" else None


def _data_length(path: Path, header: int) -> int:
    """The bytes of all tensors, as the header has it."""
    with open(path, "rb") as file:
        file.seek(8)
        try:
            entries = json.loads(file.read(header))
            return max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return 0  # for safetensors to say
