"""`unstick sweep`: one pass that recovers what is stuck."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import sys
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unstick.cli.options import AsJson, SourceName, ThresholdMinutes, os_user, source_settings_of, warn_of_words
from unstick.cli.output import complain, is_watched, say, say_json, warn
from unstick.domain.brake import say_grace
from unstick.domain.recovery import Action, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unstick.config import Settings
    from unstick.pipeline.course import Progress
    from unstick.pipeline.shapes import CleanupShape
    from unstick.pipeline.sweep import SweepOrder, SweepReport
    from unstick.pipeline.watched import Watched

_SHOWN = 10
"""How many jobs that couldn't be changed are named one by one."""
_OBSERVE_WITHIN = timedelta(minutes=1)
_DELIVER_WITHIN = timedelta(seconds=20)
"""How long a command waits for those who are told of alerts; what they weren't told is left to the next one."""


def sweep(
    ctx: typer.Context,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="With --dry-run: keep that as a plan, which `unstick apply` carries out.")
    ] = False,
    action: Annotated[
        Literal["mark_failed", "retry"] | None,
        typer.Option(help="What is done to a stuck job; without it what is configured."),
    ] = None,
    unattended: Annotated[
        bool,
        typer.Option(
            "--unattended", help="Nobody watches, as from cron: stop at the brake, leave what needs a person."
        ),
    ] = False,
    threshold_minutes: ThresholdMinutes = None,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Recover the jobs that are stuck, once; exit code 2 if any of them couldn't be changed, 3 if the brake holds."""
    from unstick.cli.running import run
    from unstick.pipeline.shapes import cleanup_shape
    from unstick.pipeline.sweep import SweepOrder

    if plan and not dry_run:
        raise typer.BadParameter("--plan goes with --dry-run: a plan is what a dry run found.")
    order = SweepOrder(
        actor=f"cli:{os_user()}",
        queued_after=threshold_minutes,
        action=None if action is None else Action(action),
        dry_run=dry_run,
        unattended=unattended,
        plan=plan,
    )
    watch_it = is_watched(sys.stderr) and not as_json
    tell_cleanup(cleanup_shape(run(_sweep(source_settings_of(ctx), source, order, watch_it=watch_it))), as_json=as_json)


def tell_cleanup(shape: "CleanupShape", *, as_json: bool) -> None:
    """Print what a cleanup did; exit with 2 if any job couldn't be changed."""
    if as_json:
        say_json(shape)
    else:
        say(_summary(shape))
    follow_up = shape["follow_up"]
    if follow_up is not None and follow_up["problem"] is not None:
        warn(follow_up["problem"])
    failed = shape["outcomes"].get(Outcome.FAILED, 0)
    if failed:
        _complain_of(shape, failed)
        raise typer.Exit(2)
    if shape["brake"] is not None:
        raise typer.Exit(3)


def _complain_of(shape: "CleanupShape", failed: int) -> None:
    for failure in shape["failures"][:_SHOWN]:
        complain(f"job {failure['id']} could not be changed: {failure['detail']}")
    if failed > _SHOWN:
        complain(f"{failed - _SHOWN} more could not be changed; unstick_job_recoveries has the reason of each.")


async def _sweep(settings: "Settings", source: str | None, order: "SweepOrder", *, watch_it: bool) -> "SweepReport":
    from unstick.pipeline.sweep import sweep as carry_out
    from unstick.wiring import open_watched

    if order.unattended and not order.dry_run:
        return await _unattended_sweep(settings, source, order, watch_it=watch_it)
    async with open_watched(settings, source) as watched:
        await warn_of_words(watched)
        return await (_watched_sweep(watched, order) if watch_it else carry_out(watched, order))


async def _unattended_sweep(
    settings: "Settings", source: str | None, order: "SweepOrder", *, watch_it: bool
) -> "SweepReport":
    """Sweep as the runner does: look first, so that what is stuck is told before it is recovered; tell at the end."""
    from unstick.cli.alert import Warner
    from unstick.pipeline.rounds import observe_and_tell
    from unstick.pipeline.sweep import sweep as carry_out
    from unstick.wiring import open_unattended

    async with open_unattended(settings, source, [Warner()]) as (watched, courier):
        await warn_of_words(watched)
        await observe_and_tell(watched, _OBSERVE_WITHIN)
        try:
            report = await (_watched_sweep(watched, order) if watch_it else carry_out(watched, order))
        except Exception:
            await courier.deliver_due(_DELIVER_WITHIN)
            raise
        await courier.deliver_due(_DELIVER_WITHIN)
        return report


async def _watched_sweep(watched: "Watched", order: "SweepOrder") -> "SweepReport":
    """Sweep while a bar on stderr shows how far it is."""
    from unstick.pipeline.judging import count_stuck
    from unstick.pipeline.looking import take_look, take_scopes
    from unstick.pipeline.sweep import sweep as carry_out

    counts = await count_stuck(watched, await take_scopes(watched, await take_look(watched, order.queued_after)))
    with progress_bar("Looking" if order.dry_run else "Recovering", counts.stuck.total) as progress:
        return await carry_out(watched, order, progress)


@contextmanager
def progress_bar(doing: str, total: int) -> "Iterator[Progress]":
    """Show on stderr how far something is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda seen: bar.update(task, completed=seen)


def _summary(shape: "CleanupShape") -> str:
    counts = shape["would_clean"] if shape["dry_run"] else shape["cleaned_jobs"]
    lines = [
        shape["message"],
        f"  by state     queued {counts['queued']}, running {counts['running']}",
        f"  by action    {_pairs(shape['actions'])}, of them poison {shape['poison']}",
    ]
    if shape["dry_run"] and "plan" in shape:
        plan = shape["plan"]
        lines.append(f"  plan         {plan['id']}, of {plan['jobs']} job(s), good until {plan['expires_at']}")
        lines.append(f"  carry it out unstick apply {plan['id']}")
    if not shape["dry_run"]:
        lines.append(f"  by outcome   {_pairs(shape['outcomes'])}")
    if shape["grace_until"] is not None and shape["outcomes"][Outcome.LEFT]:
        lines.append(f"  left         some {say_grace(datetime.fromisoformat(shape['grace_until']))}")
    if shape["operation_id"] is not None:
        lines.append(f"  audit log    operation {shape['operation_id']}")
        lines += [f"  take it back unstick undo {shape['operation_id']}"] if counts["total"] else []
    found = shape["follow_up"]
    if found is not None and found["late_finishes"]:
        lines.append(f"  late         {found['late_finishes']} recovered before finished after all: unstick aftermath")
    return "\n".join(lines)


def _pairs(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
