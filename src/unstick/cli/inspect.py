"""`unstick inspect`: a database looked at, and the `unstick.toml` it calls for."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unstick.cli.options import AsJson, config_file
from unstick.cli.output import complain, note, say, say_json, warn
from unstick.domain.errors import ConfigurationError, UnstickError

if TYPE_CHECKING:
    from unstick.sql.inspection import Found, Inspection

_ERROR = 2


def inspect(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="The database, as postgresql://user:password@host/name.")],
    table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="The jobs table; without it the likeliest one.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the proposal to the file that settings are read from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a database and propose what to configure, with every doubt about it; exit with 2 if it can't work so."""
    import asyncio

    from unstick.config import DEFAULT_FILE, settings_file
    from unstick.wiring import inspect_url, proposed_passwords, proposed_toml

    file = (settings_file(config_file(ctx)) or Path(DEFAULT_FILE)) if write else None
    _refuse_to_overwrite(file)
    found = asyncio.run(inspect_url(url, table))
    toml = proposed_toml(url, found)
    if file is not None:
        _write(file, toml)
        for left_out in proposed_passwords(url, found):
            warn(left_out)
    if file is None:
        _warn_of_what_is_configured(ctx, url)
    if as_json:
        say_json(_shape(found, toml, file))
    else:
        _tell(found, toml, file)
    if found.blocked:
        complain(f"{file or 'What is proposed'} can't work as it stands: settle in it what is called a blocker.")
        raise typer.Exit(_ERROR)


def _warn_of_what_is_configured(ctx: typer.Context, url: str) -> None:
    """Hold the configuration there is against the same database; it may be wrong, which is why somebody inspects."""
    import asyncio

    from unstick.config import load_settings, settings_file
    from unstick.wiring import doubts_about

    if settings_file(config_file(ctx)) is None:
        return
    try:
        doubts = asyncio.run(doubts_about(load_settings(config_file(ctx)), url))
    except UnstickError as error:
        doubts = (f"What is configured doesn't work: {error}",)
    for sentence in doubts:
        warn(sentence)


def _tell(found: "Found", toml: str, file: Path | None) -> None:
    if file is None:
        say(toml.rstrip("\n"))
    else:
        say(f"Wrote {file}.")
        _note_doubts(found)
    for each in found.unread:
        warn(f"{each.sentence}.")
    if found.inspection is not None and found.inspection.others:
        note(f"It could also be: {', '.join(found.inspection.others)}. Name one with --table.")


def _refuse_to_overwrite(file: Path | None) -> None:
    if file is not None and file.exists():
        raise ConfigurationError(f"{file} is already there and is not overwritten: move it away, or name another file.")


def _write(file: Path, toml: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(toml)
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error.strerror}.") from error


def _note_doubts(found: "Found") -> None:
    for each in found.systems:
        note(f"{each.system} is there{'' if each.problem is None else f', and will only be read: {each.problem}'}")
    if found.inspection is None:
        return
    for doubt in found.inspection.doubts:
        note(f"{doubt.severity}, {doubt.key}: {doubt.message}")


def _shape(found: "Found", toml: str, file: Path | None) -> dict[str, object]:
    systems = [
        {"source": each.source, "preset": each.preset, "table": each.table, "problem": each.problem}
        for each in found.systems
    ]
    table = {} if found.inspection is None else _shape_of_table(found.inspection)
    unread = [{"table": each.table, "cause": each.cause, "remedy": each.remedy} for each in found.unread]
    written_to = None if file is None else str(file)
    return {"systems": systems, **table, "unread": unread, "toml": toml, "written_to": written_to}


def _shape_of_table(inspection: "Inspection") -> dict[str, object]:
    proposal = inspection.proposal
    return {
        "table": inspection.facts.spelling,
        "columns": proposal.columns,
        "states": {state.value: list(words) for state, words in proposal.states.items()},
        "doubts": [{"severity": d.severity, "key": d.key, "message": d.message} for d in inspection.doubts],
        "blocked": inspection.blocked,
        "sampled": inspection.sampled,
        "others": list(inspection.others),
    }
