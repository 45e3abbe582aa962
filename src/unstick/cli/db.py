"""`unstick db`: Unstick's own tables in a source's database."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, SourceName, source_settings_of
from unstick.cli.output import say, say_json

if TYPE_CHECKING:
    from datetime import timedelta

    from unstick.config import Settings
    from unstick.domain.retention import Pruned

app = typer.Typer(help="Make, upgrade or show Unstick's own tables in a source's database.", no_args_is_help=True)


@app.command()
def upgrade(ctx: typer.Context, source: SourceName = None, as_json: AsJson = False) -> None:
    """Make the tables, or bring them to the newest revision."""
    import asyncio

    from unstick.wiring import upgrade_database

    revisions = asyncio.run(upgrade_database(source_settings_of(ctx), source))
    _say(revisions, f"Unstick's own tables are at {', '.join(revisions)}.", as_json=as_json)


@app.command()
def current(ctx: typer.Context, source: SourceName = None, as_json: AsJson = False) -> None:
    """Show the revision the tables are at."""
    import asyncio

    from unstick.wiring import current_revision

    revisions = asyncio.run(current_revision(source_settings_of(ctx), source))
    _say(revisions, ", ".join(revisions) or "None: Unstick's own tables are not there yet.", as_json=as_json)


@app.command()
def sql(ctx: typer.Context, source: SourceName = None, as_json: AsJson = False) -> None:
    """Print the statements that make the tables; nothing is run."""
    from unstick.wiring import upgrade_sql

    statements = upgrade_sql(source_settings_of(ctx), source)
    if as_json:
        say_json({"sql": statements})
    else:
        say(statements.strip())


@app.command()
def prune(
    ctx: typer.Context,
    audit: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Strike audit log and recoveries that are older, too, as 365d."),
    ] = None,
    source: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """Strike records that were kept long enough, as `[retention]` says; the runner does so by itself once a day."""
    from unstick.cli.running import run

    pruned = run(_prune(source_settings_of(ctx), source, audit))
    rows = dict(pruned.rows)
    if as_json:
        say_json({"pruned": rows})
    else:
        say("\n".join(f"{number} row(s) of {table}" for table, number in rows.items()) or "Nothing is that old.")


def _age(said: str) -> "timedelta | None":
    from pydantic import ValidationError

    from unstick.config import RetentionSettings

    try:
        return RetentionSettings.model_validate({"audit": said}).audit
    except ValidationError as error:
        raise typer.BadParameter(f"--audit {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


async def _prune(settings: "Settings", source: str | None, audit: str | None) -> "Pruned":
    from dataclasses import replace

    from unstick.cli.options import os_user
    from unstick.pipeline.pruning import prune
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        kept = watched.retention if audit is None else replace(watched.retention, audit=_age(audit))
        return await prune(replace(watched, retention=kept), f"cli:{os_user()}")


def _say(revisions: tuple[str, ...], sentence: str, *, as_json: bool) -> None:
    if as_json:
        say_json({"revisions": list(revisions)})
    else:
        say(sentence)
