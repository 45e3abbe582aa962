"""`unstick undo`: put jobs back as an operation found them."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, os_user, source_settings_of
from unstick.cli.output import complain, say, say_json

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.shapes import UndoShape
    from unstick.pipeline.undo import UndoOrder, UndoReport

_SHOWN = 10
"""How many jobs that couldn't be undone are named one by one."""


def undo(
    ctx: typer.Context,
    operation_id: Annotated[
        int, typer.Argument(metavar="OPERATION_ID", min=1, help="The operation, as the sweep named it.")
    ],
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="Only this job.")] = None,
    source: SourceName = None,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be undone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put jobs back as an operation found them, where they are as it left them; exit code 2 if any is not."""
    from unstick.cli.running import run
    from unstick.pipeline.shapes import undo_shape
    from unstick.pipeline.undo import UndoOrder

    order = UndoOrder(actor=f"cli:{os_user()}", operation_id=operation_id, job_id=job, reason=reason, dry_run=dry_run)
    report = run(_undo(source_settings_of(ctx), source, order))
    shape = undo_shape(report)
    if as_json:
        say_json(shape)
    else:
        say(_summary(shape))
    left = sum(number for (_, outcome), number in report.counts.items() if outcome != "applied")
    if left:
        _complain_of(shape, left)
        raise typer.Exit(2)


async def _undo(settings: "Settings", source: str | None, order: "UndoOrder") -> "UndoReport":
    from unstick.pipeline.undo import undo as carry_out
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        return await carry_out(watched, order)


def _complain_of(shape: "UndoShape", left: int) -> None:
    for failure in shape["failures"][:_SHOWN]:
        complain(f"job {failure['id']} could not be undone: {failure['detail']}")
    if left > _SHOWN:
        complain(f"{left - _SHOWN} more could not be undone; unstick_job_recoveries has the reason of each.")


def _summary(shape: "UndoShape") -> str:
    counts = shape["would_undo"] if shape["dry_run"] else shape["undone_jobs"]
    lines = [shape["message"], f"  back to      queued {counts['queued']}, running {counts['running']}"]
    if not shape["dry_run"]:
        outcomes = ", ".join(f"{name} {count}" for name, count in shape["outcomes"].items())
        lines += [f"  by outcome   {outcomes}", f"  audit log    operation {shape['operation_id']}"]
    return "\n".join(lines)
