"""The terminal of a command: any text can be printed, errors are one line, and a reader may stop reading.

    with one_line_errors(flags={"data", "out"}):
        ...                       # a UserError or OSError becomes "error: …" and exit code 2

Imports nothing heavy.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import sys
from collections.abc import Collection, Iterator
from typing import TextIO

from maskco.errors import UserError

ASCII = dict(zip("─│╭╮╰╯├┤•…×–—≤≥→·²✓✗“”‘’", "-|+++++**.x--<>>.2+x\"\"''", strict=True)) | {
    "…": "...",
    "≤": "<=",
    "≥": ">=",
}


def printable(text: str) -> str:
    """The text with escapes for line breaks and for bytes of file names that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Stand-ins for characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in missing), error.end


codecs.register_error("maskco.stand_in", _replace)


def with_flags(message: str, flags: Collection[str]) -> str:
    """A UserError's message as the command line writes it: "--data: no such folder", "continue it with --resume".

    Args:
        message: names arguments at its start or in backticks, see `maskco.errors.UserError`.
        flags: the arguments that the command has flags for. Others stay as they are.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found[1] or found[2], found[3]
        if name not in flags:
            return found[0]
        option = name.replace("_", "-")
        if value in (None, "True", "False"):
            return f"--no-{option}" if value == "False" else f"--{option}"
        return f"--{option} {value}"

    return re.sub(r"^(\w+)(?=:| must | is (?:missing|empty)\b)|`(\w+)(?:=([^`]*))?`", flag, message)


@contextlib.contextmanager
def one_line_errors(who: str = "", flags: Collection[str] = ()) -> Iterator[None]:
    """Context manager around all that a command does.

    On UserError and OSError it prints one line on stderr and ends the process with 2. If nobody reads the output any
    more, as in `… | head -1`, it prints nothing and ends the process with 128 + SIGPIPE.

    Args:
        who: printed before "error:", such as the rank.
        flags: arguments of Python that are flags of the command, see `with_flags`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # (a stream that was replaced may lack it, a closed one is None)
            stream.reconfigure(errors="maskco.stand_in")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where a failure can still be reported
    except BrokenPipeError as error:
        if not _is_unread(sys.stdout) and not _is_unread(sys.stderr):  # it was another pipe
            _end_with(f"{who}error: {error}")
        _silence()
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        _silence()
        _end_with(f"{who}error: {with_flags(str(error), flags)}")
    except OSError as error:  # which names its file
        _silence()
        _end_with(f"{who}error: {error}")


def _end_with(line: str) -> None:
    print(" ".join(line.splitlines()), file=sys.stderr)
    sys.exit(2)


def _is_unread(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # type: ignore[union-attr]
        return bool(poll.poll(0))  # POLLERR, on macOS POLLHUP
    except (AttributeError, OSError):  # closed, or replaced by what is no file
        return False


def _silence() -> None:
    """Discards the buffer of a stream that cannot be written, since Python would try again as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
                if _is_unread(stream):
                    raise BrokenPipeError
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
