"""How commands speak: results on stdout, sentences about what went wrong on stderr."""

import contextlib
import io
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, TextIO

import typer

from unstick.domain.errors import UnstickError

if TYPE_CHECKING:
    from rich.console import Console

_BROKEN_PIPE = 141
"""What a shell reports of a command whose reader went away; 1 would say that stuck jobs were found."""
UNLIMITED = 10_000
"""The width of what no terminal shows: nothing is cut or wrapped."""
_NARROWEST = 72
"""A table that is squeezed further can't be read; the terminal may wrap it."""


def say(text: str) -> None:
    """Print a result.

    Raises:
        UnstickError: it can't be written, to a full disk for example.
    """
    try:
        typer.echo(text)
    except OSError as error:
        _forget_the_rest()
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(_BROKEN_PIPE) from None
        raise UnstickError(f"The result can't be written: {error.strerror}.") from error


def say_json(document: object) -> None:
    """Print a result as the one JSON document on stdout."""
    say(json.dumps(document, indent=2))


def note(sentence: str) -> None:
    """Say something beside the result."""
    with contextlib.suppress(OSError):
        typer.echo(plain(sentence), err=True)


def complain(sentence: str) -> None:
    """Say what went wrong."""
    note(f"unstick: {sentence}")


def warn(sentence: str) -> None:
    """Say what the result alone would hide."""
    note(f"unstick: warning: {sentence}")


def plain(text: object) -> str:
    """Return text from elsewhere on one line, without what could steer a terminal."""
    line = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)


def is_watched(stream: TextIO | None) -> bool:
    """Tell whether a person looks at a stream, which is None where it was closed from the start."""
    return stream is not None and stream.isatty()


def result_console(narrowest: int = _NARROWEST) -> "Console":
    """Return the console to lay results out for: as wide as the terminal, without limit for a file or a pipe."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and most commands print no table

    watched = is_watched(sys.stdout)
    width = max(narrowest, shutil.get_terminal_size().columns) if watched else UNLIMITED
    # It only lays out; what it captured is printed by `say`.
    return Console(file=io.StringIO(), width=width, force_terminal=watched, markup=False, highlight=False)


def _forget_the_rest() -> None:
    """Let the flush at exit succeed, which would complain of the same error again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
