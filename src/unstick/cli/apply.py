"""`unstick apply`: what a dry run has planned, done."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, os_user, source_settings_of
from unstick.cli.output import is_watched
from unstick.cli.sweep import progress_bar, tell_cleanup

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.applying import ApplyOrder
    from unstick.pipeline.sweep import SweepReport


def apply(
    ctx: typer.Context,
    plan_id: Annotated[
        str, typer.Argument(metavar="PLAN_ID", help="What `unstick sweep --dry-run --plan` said, or the API.")
    ],
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Do what a plan says and no more, each job only if it still is as the plan saw it; exit code 2 as for a sweep."""
    from unstick.cli.running import run
    from unstick.pipeline.applying import ApplyOrder
    from unstick.pipeline.shapes import cleanup_shape

    order = ApplyOrder(plan_id=plan_id, actor=f"cli:{os_user()}")
    watch_it = is_watched(sys.stderr) and not as_json
    report = run(_apply(source_settings_of(ctx), source, order, watch_it=watch_it))
    tell_cleanup(cleanup_shape(report), as_json=as_json)


async def _apply(settings: "Settings", source: str | None, order: "ApplyOrder", *, watch_it: bool) -> "SweepReport":
    from unstick.pipeline.applying import apply_plan
    from unstick.pipeline.planning import find_plan
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        if not watch_it:
            return await apply_plan(watched, order)
        with progress_bar("Applying", (await find_plan(watched, order.plan_id)).jobs) as progress:
            return await apply_plan(watched, order, progress)
