"""Errors that several layers raise. Each layer's own errors are subclasses of these."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can fix. The message is one line; the command line shows nothing else.

    It names arguments as Python does: at its start, as "data: no such folder" or "lr must be positive", and in
    backticks elsewhere, as "Continue it with `resume=True`". The command line shows its flags in their place.
    """


class ConfigError(UserError, ValueError):
    """An option has an impossible value."""


class TrainingError(UserError, RuntimeError):
    """A run cannot continue."""


class RankError(UserError, RuntimeError):
    """Another rank failed or is gone, or brings what does not fit."""


def one_line(error: BaseException | str) -> str:
    """What an error says, on one line of bearable length; of a KeyError, what was missing."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{text} is missing" if isinstance(error, KeyError) else text
    return text if len(text) <= 1000 else f"{text[:1000]} …"
