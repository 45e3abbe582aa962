"""`unstick aftermath`: what became of recovered jobs, and which recoveries were wrong."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, source_settings_of
from unstick.cli.output import plain, result_console, say, say_json

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.aftermath import FollowUp
    from unstick.pipeline.late import LateReport

_LISTED = 20


def aftermath(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(metavar="JOBS", help="List at most so many late finishes.")] = _LISTED,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Look up what became of all jobs recovered within the recovery window, and show those that finished late."""
    from unstick.cli.running import run
    from unstick.pipeline.hindsight_shapes import late_finishes_shape
    from unstick.pipeline.shapes import follow_up_shape

    found, report = run(_look(source_settings_of(ctx), source, limit))
    if as_json:
        say_json({"follow_up": follow_up_shape(found), **late_finishes_shape(report)})
    else:
        say(_told(found, report))


async def _look(settings: "Settings", source: str | None, limit: int) -> "tuple[FollowUp, LateReport]":
    from unstick.pipeline.aftermath import follow_up
    from unstick.pipeline.late import report_late
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        found = await follow_up(watched, whole=True)
        return found, await report_late(watched, limit)


def _told(found: "FollowUp", report: "LateReport") -> str:
    from unstick.domain.wording import say_instant
    from unstick.pipeline.shapes import late_block

    block, since = late_block(report.counts), say_instant(report.counts.since)
    looked = f"Looked at {found.looked_at} recovered job(s); new on record: {found.late} late finish(es)"
    lines = [
        f"{looked}, {found.succeeded} success(es) of a new attempt.",
        f"Since {since}: {block['total']} late finish(es), {block['found']} found and {block['refused']} refused.",
    ]
    lines += [f"  {plain(kind)}: {number}" for kind, number in block["by_kind"].items()]
    if report.newest:
        lines += ["", _listed(report)]
    return "\n".join(lines)


def _listed(report: "LateReport") -> str:
    from rich.table import Table

    from unstick.domain.wording import say_duration, say_instant

    table = Table("JOB", "KIND", "HOW", "ENDED", "RAN FOR", "AT", box=None, pad_edge=False)
    for late in report.newest:
        ran = "-" if late.ran is None else say_duration(late.ran)
        table.add_row(plain(late.job_id), plain(late.kind or "-"), late.how, late.ended, ran, say_instant(late.at))
    console = result_console()
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
