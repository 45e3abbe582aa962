"""`unstick job`: the story of one job."""
# ruff: noqa: PLC0415 - a command loads what it needs when it runs, so that `unstick --help` is quick

import json
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from unstick.cli.options import AsJson, JobName, SourceName, source_settings_of
from unstick.cli.output import plain, result_console, say, say_json
from unstick.domain.wording import say_duration, say_instant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.table import Table

    from unstick.config import Settings
    from unstick.pipeline.job_shapes import DiagnosisShape, GoverningShape, JobNowShape, StoryShape

_NARROWEST = 40
_ONE_LINE_FROM = 96
"""In a narrower terminal the time of an event stands above it, not before it."""


def job(ctx: typer.Context, job_id: JobName, source: SourceName = None, as_json: AsJson = False) -> None:
    """Show how this job stands and why, what a sweep would do to it, and all that happened to it."""
    import asyncio

    shape = asyncio.run(_story(source_settings_of(ctx), source, job_id))
    if as_json:
        say_json(shape)
    else:
        say(render(shape, result_console(_NARROWEST)))


async def _story(settings: "Settings", source: str | None, job_id: str) -> "StoryShape":
    from unstick.pipeline.job_shapes import story_shape
    from unstick.pipeline.story import tell_story
    from unstick.wiring import open_watched

    async with open_watched(settings, source) as watched:
        return story_shape(await tell_story(watched, job_id), watched.policy.rules)


def render(story: "StoryShape", console: "Console") -> str:
    """Lay a story out: the verdict first, what it rests on, and then what happened."""
    said, now = story["diagnosis"], datetime.fromisoformat(story["told_at"])
    with console.capture() as captured:
        console.print(plain(said["sentence"]), style="bold red" if said["stuck"] else "bold")
        console.print(plain(said["sweep"]))
        console.print()
        console.print(_facts(story, now))
        console.print()
        console.print(_events(story, now, one_line=console.width >= _ONE_LINE_FROM))
        if story["truncated"]:
            console.print(f"There are more events; these are the newest {len(story['events'])}.")
        console.print(f"Times are UTC, by the clock of {story['source']}: it was {say_instant(now)}.", style="dim")
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _facts(story: "StoryShape", now: datetime) -> "Table":
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _named_facts(story["job"], story["diagnosis"], now):
        table.add_row(name, plain(value))
    return table


def _named_facts(job: "JobNowShape | None", said: "DiagnosisShape", now: datetime) -> "Iterator[tuple[str, str]]":
    if job is not None:
        known = {"kind": job["kind"], "queue": job["queue"], "attempt": job["attempt"], "progress": job["progress"]}
        rest = [f"{name} {value}" for name, value in known.items() if value is not None]
        yield "state", ", ".join([job["status"], *rest])
        if job["worker"] is not None:
            yield "worker", job["worker"]
        if job["payload"] is not None:
            yield "payload", json.dumps(job["payload"], ensure_ascii=False)
    if said["policy"] is not None:
        yield "policy", _policy(said["policy"])
    if said["snooze"] is not None:
        snooze = said["snooze"]
        until = datetime.fromisoformat(snooze["until"])
        yield "snoozed", f"until {say_instant(until)} ({_relative(until, now)}) by {snooze['by']}: {snooze['reason']}"
    for each in said["evidence"]:
        if each["at"] is not None:
            at = datetime.fromisoformat(each["at"])
            holding = "" if each["holding"] == "unknown" else f", {each['holding']}"
            yield "evidence", f"{each['witness']} {say_instant(at)} ({_relative(at, now)}){holding}"


def _policy(said: "GoverningShape") -> str:
    from datetime import timedelta

    which = "no rule"
    if said["rule"] is not None:
        matches = ", ".join(f"{name} {pattern}" for name, pattern in said["matches"].items()) or "every job"
        which = f"rule {said['rule']} ({matches})"
    queued, running = (
        say_duration(timedelta(seconds=seconds))
        for seconds in (said["queued_after_seconds"], said["running_after_seconds"])
    )
    ask = ", after asking a person" if said["ask"] else ""
    return f"{which}: {said['action']}{ask} after {queued} queued or {running} silent"


def _events(story: "StoryShape", now: datetime, *, one_line: bool) -> "Table":
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    columns = 3 if one_line else 1
    for place in range(columns):
        table.add_column(no_wrap=one_line and place < columns - 1, overflow="fold")
    for event in story["events"]:
        at = datetime.fromisoformat(event["at"])
        exact, ago, sentence = say_instant(at).removesuffix(" UTC"), _relative(at, now), plain(event["sentence"])
        if one_line:
            table.add_row(exact, ago, sentence)
        else:
            table.add_row(f"{exact}, {ago}")
            table.add_row(f"  {sentence}")
    return table


def _relative(at: datetime, now: datetime) -> str:
    if at > now:
        return f"in {say_duration(at - now)}"
    return f"{say_duration(now - at)} ago"
