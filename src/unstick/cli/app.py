"""The commands put together."""

from pathlib import Path
from typing import Annotated

import typer

from unstick import __version__
from unstick.cli.aftermath import aftermath
from unstick.cli.alert import app as alert
from unstick.cli.apply import apply
from unstick.cli.brake import brake
from unstick.cli.dashboards import app as dashboards
from unstick.cli.db import app as db
from unstick.cli.demo import demo
from unstick.cli.guard import guard
from unstick.cli.inspect import inspect
from unstick.cli.job import job
from unstick.cli.output import say
from unstick.cli.policy import app as policy
from unstick.cli.recover import recover
from unstick.cli.replay import replay
from unstick.cli.serve import serve
from unstick.cli.snooze import snooze
from unstick.cli.stuck import stuck
from unstick.cli.suggest import suggest
from unstick.cli.sweep import sweep
from unstick.cli.token import app as token
from unstick.cli.undo import undo
from unstick.cli.user import app as user
from unstick.cli.watch import watch
from unstick.cli.worker import worker

app = typer.Typer(
    help="Finds background jobs that will never finish, says why, and recovers them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    serve,
    stuck,
    job,
    recover,
    snooze,
    sweep,
    apply,
    undo,
    brake,
    aftermath,
    suggest,
    replay,
    watch,
    worker,
    guard,
    inspect,
):
    app.command()(command)
app.add_typer(alert, name="alert")
app.add_typer(policy, name="policy")
app.add_typer(user, name="user")
app.add_typer(token, name="token")
app.add_typer(dashboards, name="dashboards")
app.add_typer(db, name="db")
app.command()(demo)


def _say_version(wanted: bool) -> None:
    if wanted:
        say(f"unstick {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Read this file instead of $UNSTICK_CONFIG or unstick.toml."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keep what every command takes."""
    del version
    ctx.obj = config
