"""How commands speak: results on stdout, sentences about what went wrong on stderr."""

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING

import typer

from unstick.domain.errors import UnstickError

if TYPE_CHECKING:
    from rich.console import Console

_BROKEN_PIPE = 141
"""What a shell reports of a command whose reader went away; 1 would say that stuck jobs were found."""
UNLIMITED = 10_000
"""The width of what no terminal shows: nothing is cut or wrapped."""


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


def plain(text: object) -> str:
    """Return text from elsewhere without what could steer a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def stdout_console() -> "Console":
    """Return the console to lay results out for: as wide as the terminal, without limit for a file or a pipe."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and most commands print no table

    interactive = sys.stdout.isatty()
    return Console(width=None if interactive else UNLIMITED, markup=False, highlight=False, soft_wrap=not interactive)


def _forget_the_rest() -> None:
    """Let the flush at exit succeed, which would complain of the same error again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
