"""What several commands take, and who gives the command."""

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from unstick.config import Settings

LONGEST_THRESHOLD_MINUTES = 525_600


def _threshold(said: str) -> int:
    number = int(said) if re.fullmatch("[0-9]{1,9}", said) else 0
    if not 1 <= number <= LONGEST_THRESHOLD_MINUTES:
        raise typer.BadParameter(f"must be a whole number from 1 to {LONGEST_THRESHOLD_MINUTES}.")
    return number


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
SourceName = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="The source's name; without it `main`, or else the first."),
]
ThresholdMinutes = Annotated[
    int | None,
    typer.Option(
        "--threshold-minutes",
        parser=_threshold,
        metavar="MINUTES",
        help="How long a queued job may wait; without it the configured time.",
    ),
]


def config_file(ctx: typer.Context) -> Path | None:
    """Return what `--config` named."""
    file: Path | None = ctx.obj
    return file


def settings_of(ctx: typer.Context) -> "Settings":
    """Read the settings this command is to work with."""
    from unstick.config import load_settings  # noqa: PLC0415 - only commands that need settings wait for pydantic

    return load_settings(config_file(ctx))


def queued_after(threshold_minutes: int | None) -> timedelta | None:
    """Return the threshold as the pipeline takes it."""
    return None if threshold_minutes is None else timedelta(minutes=threshold_minutes)


def os_user() -> str:
    """Return who runs this process, by its user id: the environment could say anybody."""
    import os  # noqa: PLC0415
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
