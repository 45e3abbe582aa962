"""`unstick replay`: what a threshold would have done to the jobs that ended lately."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, source_settings_of
from unstick.cli.output import plain, result_console, say, say_json

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.hindsight_shapes import ReplayShape
    from unstick.pipeline.history import ReplayOrder, ReplayReport


def _duration(said: str) -> timedelta:
    from pydantic import TypeAdapter, ValidationError

    from unstick.config import Duration

    try:
        return TypeAdapter[timedelta](Duration).validate_python(said)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def replay(
    ctx: typer.Context,
    days: Annotated[int, typer.Option(metavar="DAYS", help="Count jobs that ended within so many days.")] = 30,
    running_after: Annotated[
        timedelta | None,
        typer.Option(parser=_duration, metavar="TIME", help="How long a job may run; without it the configured time."),
    ] = None,
    queued_after: Annotated[
        timedelta | None,
        typer.Option(
            parser=_duration, metavar="TIME", help="How long a job may wait; without it waiting is not asked."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only kinds that this names, such as 'thesis.*'.")
    ] = None,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Tell what thresholds would have done to the jobs that ended lately, and how many of those succeeded after all."""
    import asyncio

    from unstick.pipeline.hindsight_shapes import replay_shape
    from unstick.pipeline.history import ReplayOrder

    order = ReplayOrder(days=days, running_after=running_after, queued_after=queued_after, kind=kind)
    shape = replay_shape(asyncio.run(_report(source_settings_of(ctx), source, order)))
    if as_json:
        say_json(shape)
    else:
        say(_told(shape))


async def _report(settings: "Settings", source: str | None, order: "ReplayOrder") -> "ReplayReport":
    from unstick.pipeline.history import replay as carry_out
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        return await carry_out(watched, order)


def _told(shape: "ReplayShape") -> str:
    if not shape["total"]["recovered"]:
        return shape["message"]
    from rich.table import Table

    table = Table("KIND", "ENDED", "RECOVERED", "QUEUED", "RUNNING", "SUCCEEDED AFTER ALL", box=None, pad_edge=False)
    for each in shape["by_kind"]:
        numbers = (each["ended"], each["recovered"], each["queued"], each["running"], each["succeeded"])
        table.add_row(plain(each["kind"] or "-"), *(f"{number:,}" for number in numbers))
    console = result_console()
    with console.capture() as captured:
        console.print(table)
    return "\n".join([*(line.rstrip() for line in captured.get().splitlines()), "", shape["message"]])
