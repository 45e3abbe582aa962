"""`unstick recover`: recover one job that is stuck."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, JobName, Reason, SourceName, os_user, source_settings_of
from unstick.cli.output import complain, plain, say, say_json
from unstick.domain.errors import InvalidRequestError
from unstick.domain.recovery import Action

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.job_shapes import RecoveredShape
    from unstick.pipeline.recovering import RecoverOrder


def recover(
    ctx: typer.Context,
    job_id: JobName,
    action: Annotated[Action | None, typer.Option(help="What is done to it; without it what its policy says.")] = None,
    reason: Reason = None,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Recover this job, if it is stuck now; exit code 2 if it isn't, or couldn't be changed."""
    from unstick.cli.running import run
    from unstick.pipeline.recovering import RecoverOrder

    if action is Action.LEAVE:
        raise InvalidRequestError("--action is mark_failed or retry; to have a job left alone, snooze it.")
    order = RecoverOrder(actor=f"cli:{os_user()}", job_id=job_id, action=action, reason=reason)
    shape = run(_recover(source_settings_of(ctx), source, order))
    if as_json:
        say_json(shape)
    elif shape["recovered"]:
        say(f"{plain(shape['message'])}\n  audit log    operation {shape['operation_id']}")
    if not shape["recovered"]:
        complain(shape["message"])
        raise typer.Exit(2)


async def _recover(settings: "Settings", source: str | None, order: "RecoverOrder") -> "RecoveredShape":
    from unstick.pipeline.job_shapes import recovered_shape
    from unstick.pipeline.recovering import recover_job
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        return recovered_shape(watched.source.name, await recover_job(watched, order))
