"""`unstick guard`: a trigger that refuses late results of workers that don't use the kit."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unstick.cli.options import AsJson, SourceName, source_settings_of
from unstick.cli.output import say, say_json, warn

if TYPE_CHECKING:
    from unstick.sql.guard import Guard


def guard(
    ctx: typer.Context,
    install: Annotated[bool, typer.Option("--install", help="Install it, in place of an older one.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it, if it is there.")] = False,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Print a trigger on the jobs table that refuses late results; nothing is changed without --install or --remove.

    It is for workers that set a job to running when they claim it, and leave `token` and `attempt` as they are when
    they end it: a worker that counts its attempts as it ends them would be refused.
    """
    import asyncio

    from unstick.wiring import guard_table

    if install and remove:
        raise typer.BadParameter("--install and --remove can't be told at once.")
    settings = source_settings_of(ctx)
    carry_out: Literal["install", "remove"] | None = "install" if install else "remove" if remove else None
    found = asyncio.run(guard_table(settings, source, carry_out=carry_out))
    for gap in () if remove else found.gaps:
        warn(f"the guard of {found.table} is not complete: {gap}.")
    if as_json:
        say_json({"install": found.install, "remove": found.remove})
    else:
        say(_told(found, carry_out))


def _told(found: "Guard", carried_out: str | None) -> str:
    from unstick.sql.guard import script

    if carried_out == "install":
        return f"{found.table} has the trigger {found.name}; `unstick guard --remove` removes it."
    if carried_out == "remove":
        return f"{found.table} has no trigger {found.name} any more."
    return (
        f"-- Install it, as `unstick guard --install` does:\n{script(found.dialect, found.install)}\n"
        f"-- Remove it, as `unstick guard --remove` does:\n{script(found.dialect, found.remove)}"
    ).rstrip("\n")
