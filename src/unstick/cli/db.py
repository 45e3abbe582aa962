"""`unstick db`: Unstick's own tables in a source's database."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import typer

from unstick.cli.options import AsJson, SourceName, source_settings_of
from unstick.cli.output import say, say_json

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


def _say(revisions: tuple[str, ...], sentence: str, *, as_json: bool) -> None:
    if as_json:
        say_json({"revisions": list(revisions)})
    else:
        say(sentence)
