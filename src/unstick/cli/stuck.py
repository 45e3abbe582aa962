"""`unstick stuck`: what is stuck now, and why."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, ThresholdMinutes, source_settings_of, warn_of_words
from unstick.cli.output import UNLIMITED, plain, result_console, say, say_json
from unstick.domain.wording import say_duration, say_instant

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from unstick.config import Settings
    from unstick.pipeline.report import Finding, StuckReport, UnservedQueue

_STUCK_FOUND = 1
_UUID = 36
_AGE = 10


def stuck(
    ctx: typer.Context,
    threshold_minutes: ThresholdMinutes = None,
    source: SourceName = None,
    limit: Annotated[
        int | None, typer.Option(metavar="JOBS", help="List at most so many jobs in each state.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the jobs that are stuck, and why; exit with 1 if there are any."""
    import asyncio

    from unstick.pipeline.shapes import stuck_shape

    report = asyncio.run(_report(source_settings_of(ctx), source, threshold_minutes, limit))
    if as_json:
        say_json(stuck_shape(report))
    else:
        say(render(report, result_console()))
    raise typer.Exit(_STUCK_FOUND if report.counts.total else 0)


def render(report: "StuckReport", console: "Console") -> str:
    """Lay a report out: the table as wide as its sentences where there is room, else a narrow one."""
    findings = [*report.queued, *report.running]
    if not findings:
        return _summary(report)
    table = _wide(findings)
    if _width(table, console) > console.width:
        table = _narrow(findings)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*lines, "", _summary(report)])


async def _report(
    settings: "Settings", source: str | None, threshold: timedelta | None, limit: int | None
) -> "StuckReport":
    from unstick.pipeline.report import DEFAULT_LIMIT, report_stuck
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        await warn_of_words(watched)
        return await report_stuck(
            watched,
            queued_after=threshold,
            limit=DEFAULT_LIMIT if limit is None else limit,
        )


def _wide(findings: "list[Finding]") -> "Table":
    """One line a job."""
    from rich.table import Table

    table = Table("ID", "STATE", "KIND", "STUCK FOR", "WHY", box=None, pad_edge=False)
    for finding in findings:
        job_id, state, kind, age, why = _cells(finding)
        table.add_row(job_id, state, kind, age, why)
    return table


def _narrow(findings: "list[Finding]") -> "Table":
    """A few lines a job; text too long for its column goes on below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, leading=1, expand=True)
    table.add_column("JOB", overflow="fold", max_width=_UUID)
    table.add_column("STUCK", max_width=_AGE)
    table.add_column("WHY", overflow="fold", ratio=1)
    for finding in findings:
        job_id, state, kind, age, why = _cells(finding)
        table.add_row(f"{job_id}\n{kind}", f"{state}\n{age}", why)
    return table


def _width(table: "Table", console: "Console") -> int:
    """Return how wide a table is where nothing has to be cut."""
    return console.measure(table, options=console.options.update(max_width=UNLIMITED)).maximum


def _cells(finding: "Finding") -> tuple[str, ...]:
    job = finding.job
    why = "; ".join(filter(None, (finding.diagnosis.sentence, finding.outlook)))
    said = (job.id, job.status, job.kind or "-", say_duration(finding.age), why)
    return tuple(plain(word) for word in said)


def _summary(report: "StuckReport") -> str:
    from unstick.pipeline.report import MAX_LIMIT

    counts, look = report.counts, report.look
    said = f"{counts.total} stuck at {say_instant(look.taken_at)}: {counts.queued} queued, {counts.running} running."
    if report.snoozed:
        said += f" Snoozed, and not among them: {report.snoozed}."
    limits = f"Limits: queued {say_duration(look.queued_after)}, running {say_duration(look.running_after)}."
    listed = len(report.queued) + len(report.running)
    rest = (
        f"\nThe {listed} oldest are listed; --limit lists up to {MAX_LIMIT} in each state."
        if report.next_cursor
        else ""
    )
    unserved = "".join(f"\n{_unserved(each)}" for each in report.unserved)
    return f"{said}{unserved}\n{limits}{rest}"


def _unserved(found: "UnservedQueue") -> str:
    """Say once of queues what would else be said of each of their jobs."""
    named = "" if found.queues is None else f" of {'queue' if len(found.queues) == 1 else 'queues'} "
    jobs = f"{found.jobs} queued job{'' if found.jobs == 1 else 's'}{named}{plain(', '.join(found.queues or ()))}"
    return f"No worker lives that could take the {jobs}: start one."
