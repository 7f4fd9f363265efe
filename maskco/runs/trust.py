"""Runs and checkpoints may come from others: nothing in them is executed, fetched, or opened outside their folder.

A run may name such things:

- its data, and those of its probe
- an encoder of the Hugging Face hub, or weights to start from
- loggers
- a link in place of a file

They are used only if the user names them in this very call. There is one exception: loggers and local paths of images
in a run that this user started. The run's config.json has a signature of these paths, made with a key that only the
user can read.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import shlex
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from maskco.config import STARTS_FROM, read_config, ungrouped
from maskco.data.cache import cache_folder, one_at_a_time
from maskco.data.sources import is_remote
from maskco.data.sources.python import PREFIX
from maskco.errors import ConfigError

CONFIG = "config.json"
SIGNATURE = "signature"  # in config.json
DATA = ("data", "probe")  # options that name images
KEY_BYTES = 32


class ForeignRunError(ConfigError):
    """A run asks for something outside its folder that was not named in this call."""


def stored_options(run: Path, named: Collection[str] = ()) -> dict[str, Any]:
    """The options in a run's config.json as defaults for resuming it. Those of `DATA` that the run has are "" unless
    they are among those `named` in this call: `stored_data` says whether the run's own may be opened.

    Raises ConfigError if there is no readable config.json, or an option that is not named would have to be fetched.
    """
    config = read_config(own_file(run, CONFIG))
    if "encoder" not in named:
        refuse_source(config.run.encoder, f"{run / CONFIG}", "Name it again with `encoder`")
    if not own_file(run, "last.pt").is_file():  # a checkpoint has the weights already
        for name in STARTS_FROM:
            if name not in named and getattr(config.run, name):
                raise ForeignRunError(
                    f"{run / CONFIG} asks for weights from elsewhere ({name}: {getattr(config.run, name)}). "
                    f"Name them again with `{name}`"
                )
    if config.run.log and "log" not in named and not started_here(run, config.run.data):
        raise ForeignRunError(
            f"log: {run} was not started by you on this machine, so its loggers ({', '.join(config.run.log)}) "
            "must be named. Name them with `log`, or give `log` without names to use none"
        )
    options = config.flat()
    return options | {name: "" for name in DATA if options[name] is not None}


def refuse_source(encoder: str, where: str, remedy: str) -> None:
    """Raises ForeignRunError for a stored encoder whose architecture is not timm's own but in a folder or on a hub."""
    if ":" in encoder:
        raise ForeignRunError(f"{where} asks for the encoder {encoder!r}, which comes from elsewhere. {remedy}")


def stored_data(run: Path, data: str, command: str, option: str = "data") -> str:
    """`data` that a run or its checkpoint stores, if it may be opened without being named in this call: "demo", or a
    local path in a run that this user started.

    Args:
        command: of `maskco`, to be shown with the flag that it lacks.
        option: of `DATA`, which the data are stored as.

    Raises ForeignRunError.
    """
    if data == "demo":
        return data
    local = os.path.isabs(data) and not is_remote(data)
    if local and started_here(run, data, option):
        return data
    if data.startswith(PREFIX):
        raise ForeignRunError(
            f"{option}: {run} was trained on a data set in Python, which it does not store. Give it there, as "
            f"maskco.pretrain(data=…, out=…, resume=True), or name images: maskco {command} --{option} FOLDER"
        )
    why = "was not started by you on this machine" if local else "stores no local folder"
    named = shlex.quote(data) if data.isprintable() else "FOLDER"
    whose = "its images" if option == "data" else f"the images of its {option}"
    raise ForeignRunError(f"{option}: {run} {why}, so {whose} must be named: maskco {command} --{option} {named}")


def sign(data: str, probe: str | None = None) -> str | None:
    """The signature by which this user's later calls know a run's images, and those of its probe, as their own. None
    where no key can be kept."""
    key, named = _key(), b"data\0" + os.fsencode(data)
    if probe is not None:
        named += b"\0probe\0" + os.fsencode(probe)
    return None if key is None else hmac.new(key, named, "sha256").hexdigest()


def own_file(run: Path, name: str) -> Path:
    """The path of a file or folder of a run. Raises ForeignRunError if it is a link out of the run, or a pipe or device
    in place of a file."""
    path = run / name
    if path.is_symlink() and not _inside(path, run):
        raise ForeignRunError(f"{path} is a link to {os.readlink(path)!r}, outside the run. Put the file itself there")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ForeignRunError(f"{path} is no regular file. Remove it")
    return path


def _inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def started_here(run: Path, data: str, option: str = "data") -> bool:
    """Whether this user started the run on this machine, with these data as an option of `DATA`."""
    try:
        values = json.loads(own_file(run, CONFIG).read_text(encoding="utf-8"))
        stored = values.get(SIGNATURE)
        options = dict(ungrouped(values))
        named: dict[str, Any] = {name: options.get(name) for name in DATA} | {option: data}
        own = sign(**named)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False
    return own is not None and isinstance(stored, str) and hmac.compare_digest(own.encode(), os.fsencode(stored))


def _key() -> bytes | None:
    """This user's key, made at the first call by any process. None if it cannot be kept, or others can read it."""
    with contextlib.suppress(OSError):
        path = cache_folder("keys") / f"{os.getuid()}.key"
        with one_at_a_time(path):
            if not path.exists():
                handle, partial = tempfile.mkstemp(dir=path.parent)  # of mode 0600
                with open(handle, "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                os.replace(partial, path)
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                key = file.read()
        if status.st_uid == os.getuid() and not status.st_mode & 0o077 and len(key) == KEY_BYTES:
            return key
    return None
