"""Options as `--help` shows them.

tyro breaks help texts where the docstring's lines end, and shows an option that may be None as
"{None}|INT … (default: None)". Help texts here explain a default of None.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

ARG = type(tyro.conf.arg())


@functools.cache
def described(kind: type[Any]) -> type[Any]:
    """Attaches help to the options of a dataclass that have none of their own. Returns the same class."""
    texts = attribute_docs(kind)
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if not any(isinstance(note, ARG) for note in getattr(hint, "__metadata__", ())):
            text, optional = texts.get(field.name), NoneType in get_args(hint)
            shown = (
                tyro.conf.arg(help=text, metavar=metavar(hint), help_behavior_hint=_unless_none)
                if optional
                else tyro.conf.arg(help=text)
            )
            kind.__annotations__[field.name] = Annotated[hint, shown]
    return kind


def attribute_docs(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of its bases, as one line."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if dataclasses.is_dataclass(each):
            try:
                (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
            except OSError:  # installed without sources
                continue
            assert isinstance(tree, ast.ClassDef)
            for statement, text in pairwise(tree.body):
                if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert isinstance(statement.target, ast.Name)
                    texts[statement.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts


def metavar(hint: Any) -> str:
    """The placeholder for an option's value: "INT", "{off,bf16}"."""
    if get_origin(hint) is Annotated:
        return metavar(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, get_args(hint)))}}}"
    if get_origin(hint) is tuple:
        return f"{metavar(get_args(hint)[0])} …"
    if some := [each for each in get_args(hint) if each is not NoneType]:
        return "|".join(map(metavar, some))
    return "{True,False}" if hint is bool else hint.__name__.upper()


def _unless_none(default: str) -> str:
    return "" if default == "None" else f"(default: {default})"


def flags(command: Any) -> set[str]:
    """Names of the options that a command has flags for, those in its groups included."""
    kinds = get_type_hints(type(command), include_extras=True)
    named: set[str] = set()
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if dataclasses.is_dataclass(value):
            named |= flags(value)
        elif tyro.conf.Positional not in getattr(kinds[field.name], "__metadata__", ()):
            named.add(field.name)
    return named
