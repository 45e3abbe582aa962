"""`unstick suggest`: which thresholds would fit the jobs of a source, and why."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

from typing import TYPE_CHECKING

import typer

from unstick.cli.options import AsJson, SourceName, source_settings_of
from unstick.cli.output import plain, say, say_json

if TYPE_CHECKING:
    from unstick.config import Settings
    from unstick.pipeline.hindsight_shapes import SuggestionShape, SuggestionsShape
    from unstick.pipeline.history import SuggestionReport


def suggest(ctx: typer.Context, source: SourceName = None, as_json: AsJson = False) -> None:
    """Propose thresholds from how long jobs took and which were recovered wrongly, as TOML to paste."""
    import asyncio

    from unstick.pipeline.hindsight_shapes import suggestions_shape

    shape = suggestions_shape(asyncio.run(_report(source_settings_of(ctx), source)))
    if as_json:
        say_json(shape)
    else:
        say(_told(shape))


async def _report(settings: "Settings", source: str | None) -> "SuggestionReport":
    from unstick.pipeline.history import report_suggestions
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        return await report_suggestions(watched)


def _told(shape: "SuggestionsShape") -> str:
    """Say all of it as TOML: what isn't to be pasted is a comment."""
    lines = [f"# From {shape['basis']}."] + [f"# {note}" for note in shape["notes"]]
    lines += [_line(each) for each in shape["suggestions"]]
    if not shape["suggestions"]:
        lines.append("# No job succeeded in the sample, so there is nothing to propose anything from.")
    return "\n".join([*lines, "", shape["toml"] or "# Nothing to change."])


def _line(each: "SuggestionShape") -> str:
    of = "all jobs" if each["kind"] is None else plain(each["kind"])
    of += "" if each["queue"] is None else f" in queue {plain(each['queue'])}"
    proposed = "no proposal" if each["proposed"] is None else f"{each['threshold']} {each['proposed']}"
    return f"# {of}: {proposed}: {each['why']}"
