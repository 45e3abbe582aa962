"""`unstick brake`: what holds unattended sweeps, and its release."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, os_user, source_settings_of
from unstick.cli.output import complain, say, say_json

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.domain.brake import Brake


def brake(
    ctx: typer.Context,
    release: Annotated[
        bool, typer.Option("--release", help="Let the next unattended sweep do what it was held from.")
    ] = False,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a brake holds unattended sweeps, and why; exit code 1 if one does."""
    from unstick.cli.running import run
    from unstick.pipeline.shapes import brake_shape

    found = run(_brake(source_settings_of(ctx), source, release=release))
    if as_json:
        say_json({"brake": None if found is None else brake_shape(found)})
    elif found is not None:
        say(_told(found))
    elif release:
        complain("no brake holds it, so there is none to release.")
    else:
        say("No brake holds it.")
    if found is not None and found.is_held:
        raise typer.Exit(1)


async def _brake(settings: "Settings", source: str | None, *, release: bool) -> "Brake | None":
    from unstick.domain.audit import AuditEntry, AuditOutcome
    from unstick.pipeline.braking import release_brake, show_brake
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        if not release:
            return await show_brake(watched)
        actor = f"cli:{os_user()}"
        found = await release_brake(watched, actor)
        await watched.ledger.append(
            AuditEntry(
                actor=actor,
                call="brake.release",
                outcome=AuditOutcome.REFUSED if found is None else AuditOutcome.DONE,
                parameters={"source": watched.source.name},
                result={} if found is None else {"suspects": found.suspects},
            )
        )
        return found


def _told(brake: "Brake") -> str:
    from unstick.domain.wording import say_instant

    said = (
        f"{brake.suspects} of {brake.still_open} open jobs were stuck at once at {say_instant(brake.at)}.\n"
        f"It looks like {brake.cause}."
    )
    if brake.released_at is None:
        release = f"`unstick brake --release --source {brake.source}`"
        return f"The brake holds {brake.source}: {said}\nLook into it; then {release}."
    released = f"Released by {brake.released_by} at {say_instant(brake.released_at)}"
    return f"{said}\n{released}: the next unattended sweep may recover as many."
