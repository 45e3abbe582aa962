"""`unstick dashboards`: what Grafana and Prometheus are to be given."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from unstick.cli.options import AsJson, settings_of
from unstick.cli.output import say, say_json
from unstick.domain.errors import ConfigurationError

app = typer.Typer(help="Write a dashboard for Grafana and rules for Prometheus.", no_args_is_help=True)


@app.callback()
def dashboards() -> None:
    """Keep `export` a command of its own, though it is the only one."""


@app.command()
def export(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Write there; it is made where it is missing.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that differ.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a Grafana dashboard and Prometheus rules, whose alerts wait as long as the configured intervals need."""
    from unstick.telemetry.dashboards import files

    texts = {directory / name: text for name, text in files(settings_of(ctx).sweep.timetable()).items()}
    try:
        differing = [file for file, text in texts.items() if not _holds(file, text)]
        if not force:
            _refuse_to_overwrite([file for file in differing if file.exists()])
        _write({file: texts[file] for file in differing}, directory)
    except OSError as error:
        raise ConfigurationError(f"{error.filename or directory} can't be written: {error.strerror}.") from error
    if as_json:
        unchanged = [str(file) for file in texts if file not in differing]
        say_json({"written": [str(file) for file in differing], "unchanged": unchanged})
    else:
        say("\n".join(f"Wrote {file}." if file in differing else f"{file} is up to date." for file in texts))


def _holds(file: Path, text: str) -> bool:
    return file.exists() and file.read_bytes() == text.encode()


def _refuse_to_overwrite(there: list[Path]) -> None:
    if there:
        names = " and ".join(map(str, there))
        raise ConfigurationError(
            f"{names} would be overwritten, and what stands there differs: add --force, or name another directory."
        )


def _write(texts: Mapping[Path, str], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
