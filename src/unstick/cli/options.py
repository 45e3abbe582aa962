"""What several commands take, and who gives the command."""

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.output import warn
from unstick.domain.errors import InvalidRequestError
from unstick.domain.policy import requested_threshold

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.watched import Watched


def _threshold(said: str) -> timedelta:
    try:
        return requested_threshold(int(said) if re.fullmatch("[0-9]{1,9}", said) else said)
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error)) from None


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
SourceName = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="The source's name; without it `main`, or else the first."),
]
ThresholdMinutes = Annotated[
    timedelta | None,
    typer.Option(
        "--threshold-minutes",
        parser=_threshold,
        metavar="MINUTES",
        help="How long a queued job may wait; without it the configured time.",
    ),
]


JobName = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Reason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log and the job's story.")
]


def duration_of(option: str, said: str) -> timedelta:
    """Return the duration that an option says.

    Raises:
        InvalidRequestError: it says none.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    from unstick.config import Duration  # noqa: PLC0415

    try:
        duration: timedelta = TypeAdapter(Duration).validate_python(said)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"{option} {why}.") from None
    return duration


def config_file(ctx: typer.Context) -> Path | None:
    """Return what `--config` named."""
    file: Path | None = ctx.obj
    return file


def settings_of(ctx: typer.Context) -> "Settings":
    """Read the settings this command is to work with."""
    from unstick.config import load_settings  # noqa: PLC0415 - only commands that need settings wait for pydantic

    return load_settings(config_file(ctx))


def source_settings_of(ctx: typer.Context) -> "Settings":
    """Read the settings of a command that looks at jobs, and warn where nobody said where those are."""
    settings = settings_of(ctx)
    sentence = unconfigured(ctx, settings)
    if sentence is not None:
        warn(sentence)
    return settings


def unconfigured(ctx: typer.Context, settings: "Settings") -> str | None:
    """Return what is to be said where nobody said where the jobs are: the wrong folder looks like nothing stuck."""
    from unstick.config import EMBEDDED_FILE, nothing_configured  # noqa: PLC0415

    if not nothing_configured(settings, config_file(ctx)):
        return None
    return (
        f"No configuration found, using the embedded jobs table in {Path(EMBEDDED_FILE).absolute()}; set "
        "UNSTICK_CONFIG, or run it in the folder of unstick.toml."
    )


async def warn_of_words(watched: "Watched") -> None:
    """Warn where jobs would be missing in silence: of mistyped words, and of those that the mapping doesn't name."""
    from unstick.pipeline.state_words import doubts_about_words  # noqa: PLC0415 - only what looks at jobs needs it

    for sentence in await doubts_about_words(watched):
        warn(sentence)


def os_user() -> str:
    """Return who runs this process, by its user id: the environment could say anybody."""
    import os  # noqa: PLC0415
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
