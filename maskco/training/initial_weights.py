"""`pretrain --init`: a run that starts from your own weights."""

from __future__ import annotations

from pathlib import Path

import torch

from maskco.config import PretrainConfig
from maskco.errors import ConfigError
from maskco.methods import Method
from maskco.runs.checkpoint import CHECKPOINT
from maskco.weights.files import WeightsError, read_weights
from maskco.weights.names import choice_line, load_named, timm_names, whole_model_state


def start_from_weights(method: Method, config: PretrainConfig) -> str:
    """Fills the encoder of a fresh method, and its momentum copy, from what `config.run.init` names.

    That is a run folder, a checkpoint, or a file of weights of another project. Random numbers do not change.

    Returns: a line that says where the weights come from.

    Raises:
        ConfigError: the file is unreadable, or does not fit `config.run.encoder`.
    """
    path = Path(config.run.init or "")
    path = path / CHECKPOINT if path.is_dir() else path
    backbone = method.encoder.backbone
    try:
        tensors, _ = read_weights(path)
        with torch.random.fork_rng(devices=[]):
            whole = whole_model_state(config.run.encoder)
        found = load_named(
            backbone,
            timm_names(backbone, whole),
            tensors,
            str(path),
            whole=whole,
            prefix=config.run.init_prefix,
            argument="encoder",
        )
    except WeightsError as error:
        raise ConfigError(f"init: {error}") from error
    for online, copy in method.key_modules():
        if online is method.encoder:
            copy.load_state_dict(online.state_dict())
    before = f" behind {found['prefix']!r}" if found["prefix"] else ""
    choice = choice_line(found, "init_prefix")
    return f"the encoder starts from {path}: {found['matched']} tensors{before}" + (f"; {choice}" if choice else "")
