"""The model card of an export: Markdown that says what the weights are, how they were made, how they are loaded."""

from __future__ import annotations

import hashlib
import json

import torch

from maskco.provenance import commit
from maskco.version import __version__
from maskco.weights.origin import Origin


def card_start(name: str) -> str:
    """The first line of the card of an export of this name."""
    return f"# {name}\n\n| | |\n|---|---|\n| encoder | "


def model_card(origin: Origin, name: str, tensors: str, loading: str, note: str = "") -> str:
    """The card.

    Args:
        name: of the file, or of the model on the hub.
        tensors: how many there are, and by whose names.
        loading: the lines of Python that load them.
        note: an additional remark.
    """
    made = f"maskco {__version__}" + (f", commit {commit()}" if commit() else "")
    stride = "" if origin.output_stride is None else f", output stride {origin.output_stride}"
    rows = {
        **origin.rows,
        "input": f"RGB in [0, 1], less {list(origin.mean)}, divided by {list(origin.std)}",
        "tensors": tensors,
        "made with": f"{made}, torch {torch.__version__}",
    }
    table = "\n".join(
        [f"{origin.name}, stage {origin.stage}{stride} |", *(f"| {n} | {value} |" for n, value in rows.items())]
    )
    settings = json.dumps(origin.settings, indent=2)
    return (
        f"{card_start(name)}{table}\n\n## Load\n\n```python\n{loading}\n```\n" + (f"\n{note}\n" if note else "") + "\n"
        f"## {origin.title}\n\n```json\n{settings}\n```\n"
    )


# --- cards on the hub -----------------------------------------------------------------------------------------------

TAGS = ("image-feature-extraction", "timm", "self-supervised-learning", "maskco")
SEAL = "\n<!-- written by maskco export, {} -->\n"


def hub_card(card: str, license: str | None = None) -> str:
    """The card with the front matter that the hub reads, and a seal by which `is_unchanged` knows it.

    Args:
        license: the hub's name for one, such as "apache-2.0". None: the card says none, and the publisher decides.
    """
    matter = ["library_name: timm", f"pipeline_tag: {TAGS[0]}"]
    matter += [f"license: {license}"] if license else []
    matter += ["tags:", *(f"- {tag}" for tag in TAGS)]
    text = "\n".join(["---", *matter, "---", card])
    return text + SEAL.format(_seal(text))


def is_unchanged(text: str) -> bool:
    """Whether a card is as `hub_card` made it: nobody has edited it since."""
    text = text.replace("\r\n", "\n")
    body, found, _ = text.rpartition(SEAL.partition("{}")[0])
    return bool(found) and text == body + SEAL.format(_seal(body))


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
