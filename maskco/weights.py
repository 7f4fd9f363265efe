"""Weights by name: what timm calls an encoder's tensors, and files of weights that other projects wrote.

The common language is the state dict of timm's whole model, without its classifier: an encoder made with
`features_only` calls the same tensors slightly otherwise (`stages_0.…` for `stages.0.…`), and files put
prefixes before them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from maskco.config import UserError

COUNTERS = "num_batches_tracked"  # batch norms' step counters, which some files lack and evaluation does not use


class WeightsError(UserError, ValueError):
    """A file of weights is unreadable, or fits another encoder."""


def whole_model_state(name: str, **options: Any) -> dict[str, Tensor]:
    """Names and shapes of all tensors of timm's model without classifier, on the meta device: nothing is computed."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **options).state_dict()


def timm_names(backbone: nn.Module, whole: Iterable[str]) -> dict[str, str]:
    """The backbone's own name of each tensor -> its name in timm's whole model.

    timm's feature extractors flatten the first dots of a path to underscores, or put the model below `model.`.
    """
    by_flat_name = {name.replace(".", "_"): name for name in whole}
    return {name: by_flat_name[name.removeprefix("model.").replace(".", "_")] for name in backbone.state_dict()}


def timm_state(backbone: nn.Module, name: str) -> dict[str, Tensor]:
    """The backbone's tensors by the names of timm's whole model `name`."""
    names = timm_names(backbone, whole_model_state(name))
    return {names[own]: value for own, value in backbone.state_dict().items()}


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a .safetensors, .pth, .pt or .pth.tar file by name, and what else it says (`arch`, `epoch` …).

    Read without unpickling code (`weights_only=True`). A nested state dict is looked for where projects put it:
    `state_dict`, `model`, or the first entry that holds tensors. Raises WeightsError.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # no such file, no permission: the text names it
    except Exception as error:  # damaged files make the readers raise almost anything
        reason = "holds objects that only unpickling code could make" if "weights_only" in str(error) else "is damaged"
        raise WeightsError(f"{path} {reason}: expected a state dict of tensors (.pth, .pt or .safetensors)") from error
    tensors = _find_tensors(content)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors by name: expected a state dict")
    facts = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, (str, int, float))}
    return tensors, facts


def _find_tensors(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if len(tensors) > len(content) / 2:
        return tensors
    likely = [content[key] for key in ("state_dict", "model") if key in content]
    return next(filter(None, map(_find_tensors, [*likely, *content.values()])), tensors)


def load_named(
    model: nn.Module, names: Mapping[str, str], tensors: Mapping[str, Tensor], source: str
) -> dict[str, Any]:
    """Fills all of `model` from tensors of another's state dict, whatever prefix they stand behind.

    Args:
        names: the model's own name of each tensor -> the name to look for.
        tensors: may hold more (classifier, projection, a second encoder): of several prefixes that fit equally well the
            first in the file is taken, which in MoCo's is `module.encoder_q.`.
        source: what to call the file in errors.

    Returns: {"prefix", "matched", "unused"}: how the tensors were called, how many were used, how many left over.

    Raises:
        WeightsError: a tensor is missing or has another shape; says how many fit and names some that do not.
    """
    own = model.state_dict()
    needed = {name: names[name] for name in own if not name.endswith(COUNTERS)}
    shapes = {wanted: own[name].shape for name, wanted in needed.items()}
    fitting: Counter[str] = Counter()
    for name, tensor in tensors.items():  # in the file's order, which most_common keeps among equals
        parts = name.split(".")
        for start in range(len(parts)):
            if shapes.get(".".join(parts[start:])) == tensor.shape:
                fitting[name[: len(name) - len(".".join(parts[start:]))]] += 1
    prefix = fitting.most_common(1)[0][0] if fitting else ""
    misfits = [wanted for wanted, shape in shapes.items() if _shape(tensors, prefix + wanted) != shape]
    if misfits:
        first = misfits[0]
        found = _shape(tensors, prefix + first)
        reason = (
            f"{prefix}{first} is missing"
            if found is None
            else (f"{prefix}{first} is {list(found)}, not {list(shapes[first])}")
        )
        raise WeightsError(
            f"{source} fits in {len(shapes) - len(misfits)} of {len(shapes)} tensors: {reason}; "
            f"the file holds {', '.join(list(tensors)[:3])} …: name the right architecture with --architecture"
        )
    state = {name: tensors[prefix + wanted] for name, wanted in needed.items()}
    model.load_state_dict(own | state)
    unused = [name for name in tensors if not name.endswith(COUNTERS)]
    return {"prefix": prefix, "matched": len(shapes), "unused": len(unused) - len(shapes)}


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
