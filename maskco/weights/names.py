"""Weights by name: timm's names of an encoder's tensors, and files of weights that other projects wrote.

The common language is the state dict of timm's whole model, without its classifier. An encoder made with
`features_only` has slightly different names for the same tensors (`stages_0.…` for `stages.0.…`). Files put prefixes
before them, or number the parts (`nn.Sequential`). A file may hold several encoders that fit. `preference` chooses one,
and the choice is reported.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from maskco.nn.encoder import resolve
from maskco.weights.files import WeightsError

COUNTERS = "num_batches_tracked"  # batch norms' step counters, which some files lack and evaluation does not use
CONSTANTS = {"attn_mask", "relative_coords_table", "freqs_cos", "freqs_sin"}  # float buffers that only old files keep
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch.compile's and FSDP's, anywhere


def whole_model_state(name: str, **options: Any) -> dict[str, Tensor]:
    """Names and shapes of all tensors of timm's model without classifier, on the meta device: nothing is computed."""
    with torch.device("meta"):
        return whole_model(name, **options).state_dict()


def whole_model(name: str, **options: Any) -> nn.Module:
    """timm's model of a name that `nn.create_encoder` takes, without classifier, with fresh weights."""
    source = resolve(name)
    saved = {"pretrained_cfg": source.config, **source.arguments} if ":" in name else {}
    return timm.create_model(source.architecture, **{**saved, **options, "num_classes": 0})


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


class Candidate(NamedTuple):
    """An encoder in a file: the prefix of its tensors' names, and the file's name of each of the model's own."""

    prefix: str
    names: dict[str, str]

    def __str__(self) -> str:
        return repr(self.prefix) if self.prefix else "names without a prefix"


def load_named(
    model: nn.Module,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    whole: Iterable[str] = (),
    prefix: str | None = None,
    argument: str = "architecture",
) -> dict[str, Any]:
    """Fills all of `model` from tensors of another's state dict, behind any prefix.

    Args:
        names: the model's own name of each tensor -> the name to look for. Own names are looked for too, and so are
            numbers in place of the model's parts, as in `nn.Sequential`.
        tensors: may hold more (classifier, projection, a second encoder).
        source: name of the file in errors.
        whole: names of timm's whole model. The file may hold no other weights in the model's parts, as those of a
            deeper architecture. Empty: that is not checked.
        prefix: chooses one of several encoders, by the prefix of its tensors' names or whole words of it, such as
            "teacher". None: the one that `preference` puts first.
        argument: the caller's argument that names the architecture, for an error where that is wrong.

    Returns:
        A dictionary. "prefix" is that of the tensors. "others" has the prefixes of other encoders that fit and hold
        other values. "matched" and "unused" count the tensors that were used and left over.

    Raises:
        WeightsError: a tensor is missing, has another shape or is not finite. The message says how many fit and names
            one that does not. Also if no encoder has this prefix, several have equal rank, or the model is
            deeper.
    """
    taken, others = find_named(model, names, tensors, source, whole=whole, prefix=prefix, argument=argument)
    fill(model, taken, tensors, source)
    return facts_of(taken, others, tensors)


def find_named(
    model: nn.Module,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    whole: Iterable[str] = (),
    prefix: str | None = None,
    argument: str = "architecture",
) -> tuple[Candidate, list[str]]:
    """The encoder that `load_named` takes, and prefixes of the others. Takes and raises what that does."""
    own = model.state_dict()
    needed = {name: names[name] for name in own if not name.endswith(COUNTERS)}
    shapes = {name: _kind(own[name]) for name in needed}
    unwrapped = {_unwrapped(name): name for name in tensors}
    candidates = [
        *_by_name(needed, shapes, unwrapped, tensors),
        *_by_name({name: name for name in needed}, shapes, unwrapped, tensors),
        *_by_position(needed, shapes, unwrapped, tensors),
    ]
    found = {each.prefix: each for each in reversed(candidates)}  # the first of a prefix
    if not found:
        raise _misfit(needed, shapes, unwrapped, tensors, source, argument)
    taken, others = _choose(list(found.values())[::-1], tensors, source, prefix)
    if extra := _extra(taken, needed, tensors, whole):
        raise WeightsError(
            f"{source} also has {extra}, which a model of this architecture has not. "
            f"Name the right architecture with `{argument}`"
        )
    return taken, others


def fill(model: nn.Module, taken: Candidate, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies the tensors into the model. Raises WeightsError for NaN and infinity."""
    state = {name: tensors[called] for name, called in taken.names.items()}
    if bad := [taken.names[name] for name, value in state.items() if not value.isfinite().all()]:
        more = f" (as do {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        raise WeightsError(f"{source}: {bad[0]} contains NaN or Inf{more}. Take an earlier file")
    model.load_state_dict(model.state_dict() | state)


def facts_of(taken: Candidate, others: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The result of `load_named`."""
    unused = sum(not name.endswith(COUNTERS) for name in tensors) - len(taken.names)
    return {"prefix": taken.prefix, "others": others, "matched": len(taken.names), "unused": unused}


def rest_named(
    whole: Mapping[str, Tensor], state: Mapping[str, Tensor], taken: Candidate, tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Names in timm's model -> names in the file, of tensors that an encoder lacks, such as a last norm. The file has
    them behind the same prefix."""
    unwrapped = {_unwrapped(name): name for name in tensors}
    called = {name: unwrapped.get(taken.prefix + name) for name in whole if name not in state}
    return {n: c for n, c in called.items() if c is not None and _kind(tensors[c]) == _kind(whole[n])}


def choice_line(facts: Mapping[str, Any], argument: str = "prefix") -> str | None:
    """A line about the choice between encoders in `load_named`, and its argument. None if there was no choice."""
    if not facts.get("others"):
        return None
    taken, *others = (str(Candidate(prefix, {})) for prefix in (facts["prefix"], *facts["others"]))
    return f"the encoder taken is {taken}. The file also holds {', '.join(others)} ({argument} chooses)"


def preference(prefix: str) -> int:
    """Rank of an encoder in a file, by the words in its prefix. The lowest is taken.

    - 0: an average for evaluation (`ema`), as timm prefers it.
    - 1: the `teacher`, as DINO and iBOT evaluate it.
    - 2: any other, such as MoCo's `encoder_q`, BYOL's `online_encoder`, MoCo v3's `base_encoder`, lightly's `backbone`.
    - 3: a `student`.
    - 4: a momentum side (`k`, `key`, `m`, `momentum`, `target`).
    """
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", prefix)}
    ranks = ({"ema"}, {"teacher"}, set[str](), {"student"}, {"k", "key", "m", "momentum", "target"})
    return next((rank for rank, marks in enumerate(ranks) if words & marks), 2)


def _choose(
    found: list[Candidate], tensors: Mapping[str, Tensor], source: str, prefix: str | None
) -> tuple[Candidate, list[str]]:
    """The encoder to take, and the prefixes of the others, except further names of the same values."""
    found = sorted(found, key=lambda each: preference(each.prefix))  # (stable: else in the file's order)
    distinct = _distinct(found, tensors)
    if prefix is not None:
        asked = _unwrapped(prefix.removeprefix("state_dict.")).strip(".")
        chosen = [each for each in found if each.prefix.strip(".") == asked]
        chosen = chosen or _distinct([e for e in found if asked and f".{asked}." in f".{e.prefix}"], tensors)
        if len(chosen) != 1:
            raise WeightsError(
                f"{source}: {len(chosen) or 'no'} encoders that fit have the prefix {prefix!r}. Name one of "
                f"{', '.join(map(str, found))}"
            )
        taken = chosen[0]
    else:
        first = [each for each in distinct if preference(each.prefix) == preference(distinct[0].prefix)]
        if len(first) > 1:
            raise WeightsError(
                f"{source} holds {len(first)} encoders that fit, and nothing says which to take. Choose by their "
                f"prefix, {' or '.join(map(str, first))}"
            )
        taken = first[0]
    return taken, [each.prefix for each in distinct if not _same(each, taken, tensors)]


def _distinct(found: list[Candidate], tensors: Mapping[str, Tensor]) -> list[Candidate]:
    kept: list[Candidate] = []
    for each in found:
        if not any(_same(each, other, tensors) for other in kept):
            kept.append(each)
    return kept


def _same(one: Candidate, other: Candidate, tensors: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensors[called], tensors[other.names[name]]) for name, called in one.names.items())


Kind = tuple[tuple[int, ...], bool]  # shape, and whether the numbers are floating-point: integers would be codes


def _kind(tensor: Tensor) -> Kind:
    return tuple(tensor.shape), tensor.is_floating_point()


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(
    needed: Mapping[str, str], shapes: Mapping[str, Kind], called: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Counter[str]:
    """How many of the needed tensors have each prefix, in the file's order, which most_common keeps."""
    wanted = {name: shapes[own] for own, name in needed.items()}
    fitting: Counter[str] = Counter()
    for name, in_file in called.items():
        words, kind = name.split("."), _kind(tensors[in_file])
        for start in range(len(words)):
            end = ".".join(words[start:])
            if wanted.get(end) == kind:
                fitting[name[: len(name) - len(end)]] += 1
    return fitting


def _by_name(
    needed: Mapping[str, str], shapes: Mapping[str, Kind], called: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> list[Candidate]:
    """The encoders in a file that fit in all tensors."""
    whole = [p for p, count in _prefixes(needed, shapes, called, tensors).items() if count == len(shapes)]
    return [Candidate(p, {own: called[p + name] for own, name in needed.items()}) for p in whole]


def _by_position(
    needed: Mapping[str, str], shapes: Mapping[str, Kind], called: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> list[Candidate]:
    """The encoders that an `nn.Sequential` of the model's parts saved, with numbers in place of the parts' own names.

    `nn.Sequential(*list(resnet50().children())[:-1])`, as lightly makes its backbones, calls `layer1.0.conv1.weight`
    `4.0.conv1.weight`. Parts without tensors take numbers too, unless they were left out: those that hold tensors are
    matched in order.
    """
    rest: dict[str, dict[int, dict[str, str]]] = defaultdict(
        lambda: defaultdict(dict)
    )  # prefix, number, name in a part
    for name in called:
        words = name.split(".")
        for place, word in enumerate(words[:-1]):
            if word.isdecimal():
                prefix = "".join(f"{each}." for each in words[:place])
                rest[prefix][int(word)][".".join(words[place + 1 :])] = called[name]
    parts = list(dict.fromkeys(name.split(".")[0] for name in needed.values()))
    found = []
    for prefix, numbered in rest.items():
        inside = dict(zip(parts, (numbered[number] for number in sorted(numbered)), strict=False))
        split = {own: name.partition(".") for own, name in needed.items()}
        names = {own: inside.get(part, {}).get(end, "") for own, (part, _, end) in split.items()}
        if all(name in tensors and _kind(tensors[name]) == shapes[own] for own, name in names.items()):
            found.append(Candidate(prefix, names))
    return found


def _extra(
    taken: Candidate, needed: Mapping[str, str], tensors: Mapping[str, Tensor], whole: Iterable[str]
) -> str | None:
    """A weight in the file that belongs to one of the encoder's parts and that timm's whole model lacks."""
    known = {name.replace(".", "_") for name in whole}
    if not known:
        return None
    parts: dict[str, str] = {}  # a part's path in the file -> its name in the model
    for own, called in taken.names.items():
        for name in (needed[own], own.removeprefix("model.")):
            part, _, end = name.partition(".")
            path = _unwrapped(called)
            if end and path.endswith(f".{end}"):
                parts[path.removesuffix(end)] = part
                break
    for called, tensor in tensors.items():
        name = _unwrapped(called)
        if not tensor.is_floating_point() or name.endswith(COUNTERS) or name.rpartition(".")[2] in CONSTANTS:
            continue
        for path, part in parts.items():
            if name.startswith(path) and f"{part}.{name.removeprefix(path)}".replace(".", "_") not in known:
                return called
    return None


def _misfit(
    needed: Mapping[str, str],
    shapes: Mapping[str, Kind],
    called: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    source: str,
    argument: str,
) -> WeightsError:
    """Why no encoder in the file fits, by the one that fits best."""
    fitting = _prefixes(needed, shapes, called, tensors)
    prefix = fitting.most_common(1)[0][0] if fitting else ""
    kinds = {own: _kind(tensors[called[prefix + w]]) if prefix + w in called else None for own, w in needed.items()}
    misfits = [own for own, kind in kinds.items() if kind != shapes[own]]
    first = misfits[0]
    name, kind = prefix + needed[first], kinds[first]
    if kind is None:
        reason = f"{name} is missing"
    elif kind[1] != shapes[first][1]:
        reason = f"{name} holds integers, not floating-point numbers"
    else:
        reason = f"{name} is {list(kind[0])}, not {list(shapes[first][0])}"
    if any(each.endswith("flat_param") for each in tensors):
        reason += " (FSDP's flattened parameters: save a full state dict)"
    return WeightsError(
        f"{source} fits in {len(shapes) - len(misfits)} of {len(shapes)} tensors: {reason}. "
        f"The file holds {', '.join(list(tensors)[:3])} … Name the right architecture with `{argument}`"
    )
