"""Errors that several layers raise. Each layer's own errors are subclasses of these."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can fix. The message is one line, and the command line shows nothing else.

    It names arguments as Python does. At its start they stand as they are: "data: no such folder" or "lr must be
    positive". Elsewhere they are in backticks: "Continue it with `resume=True`". The command line shows its flags in
    their place.
    """


class ConfigError(UserError, ValueError):
    """An option has an impossible value."""


class TrainingError(UserError, RuntimeError):
    """A run cannot continue."""


class RankError(UserError, RuntimeError):
    """Another rank failed or is gone, or its values do not fit."""


def one_line(error: BaseException | str) -> str:
    """An error's message, on one line of bearable length. Of a KeyError, the key that was missing."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{text} is missing" if isinstance(error, KeyError) else text
    return text if len(text) <= 1000 else f"{text[:1000]} …"
