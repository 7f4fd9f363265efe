"""What the sets are called, in rows and tables. On the command line case, spaces and punctuation do not count."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from maskco.errors import UserError

OBJECTS, SCENES, SCENES_3, DEMO, STL10, COCO = "objects", "scenes 2x2", "scenes 3x3", "demo scenes", "STL-10", "COCO"
NARROW_SCENES = "scenes 2x2, narrow encoder"  # the same scenes, but an encoder that cannot look around a mask
VOC, CALTECH = "VOC", "Caltech-101"
SETS = (OBJECTS, STL10, CALTECH, SCENES, NARROW_SCENES, SCENES_3, DEMO, VOC, COCO)  # in the order of tables
PHOTOGRAPHS = (VOC, CALTECH, COCO)  # classes are not equally frequent there
COMPARED = "These numbers compare with each other and with nothing published."  # next to every table of photographs


def plain(name: str) -> str:
    """ "Caltech-101" -> "caltech101"."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def find_sets(asked: Sequence[str]) -> tuple[str, ...]:
    """The sets that are meant, each once. Raises UserError for names that there are not."""
    known = {plain(name): name for name in SETS}
    return tuple(dict.fromkeys(known.get(plain(name)) or _refused("sets", name, SETS) for name in asked))


def require_known(kind: str, asked: Sequence[str], there: Collection[str]) -> None:
    """Raises UserError for names that there are not."""
    for name in asked:
        if name not in there:
            _refused(kind, name, there)


def _refused(kind: str, name: str, there: Collection[str]) -> str:
    raise UserError(f"{kind}: {name!r} is none of {', '.join(there)}")
