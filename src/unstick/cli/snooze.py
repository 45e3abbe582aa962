"""`unstick snooze`: have a job left alone for a time."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, JobName, Reason, SourceName, duration_of, os_user, source_settings_of
from unstick.cli.output import plain, say, say_json
from unstick.domain.errors import InvalidRequestError

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.job_shapes import SnoozedShape
    from unstick.pipeline.snoozing import SnoozeOrder


def snooze(
    ctx: typer.Context,
    job_id: JobName,
    lasting: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="How long from now, as 90s, 5m, 12h or 3d.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Have it left alone no longer.")] = False,
    reason: Reason = None,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Have this job left alone: until then no sweep recovers it, and no report counts it as stuck."""
    import asyncio

    from unstick.pipeline.snoozing import SnoozeOrder

    duration = _duration(lasting, off=off)
    order = SnoozeOrder(actor=f"cli:{os_user()}", job_id=job_id, reason=reason, lasting=duration)
    shape = asyncio.run(_snooze(source_settings_of(ctx), source, order))
    if as_json:
        say_json(shape)
    else:
        say(plain(shape["message"]))


def _duration(lasting: str | None, *, off: bool) -> timedelta | None:
    if off == (lasting is not None):
        raise InvalidRequestError("Say either for how long, with --for 2h, or --off to end a snooze.")
    return None if lasting is None else duration_of("--for", lasting)


async def _snooze(settings: "Settings", source: str | None, order: "SnoozeOrder") -> "SnoozedShape":
    from unstick.pipeline.job_shapes import snoozed_shape
    from unstick.pipeline.snoozing import snooze as carry_out
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        return snoozed_shape(watched.source.name, await carry_out(watched, order))
