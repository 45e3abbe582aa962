"""Health: whether every source and ledger answers, and whether the watch over each is kept."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from unstick.domain.errors import ConfigurationError, LedgerMissingError, SourceUnavailableError, UnstickError
from unstick.domain.health import Check, Health, checks_of, worst
from unstick.domain.schedule import Timetable
from unstick.pipeline.ending import in_time
from unstick.pipeline.watched import OpenWatched, Watched

ANSWERS_WITHIN = timedelta(seconds=5)
"""How long a source may take to answer before it counts as away."""

_log = logging.getLogger("unstick")


class Trouble(StrEnum):
    """Why a source can't be read, as anybody may be told: no address of a database, which the log has."""

    TABLES = "tables"
    """Unstick's own are missing or behind."""
    CONFIGURATION = "configuration"
    NO_ANSWER = "no_answer"
    FAILURE = "failure"
    """Anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHealth:
    """What was found of one source."""

    source: str
    checks: tuple[Check, ...]

    @property
    def health(self) -> Health:
        """The worst of its checks."""
        return worst([check.health for check in self.checks])


async def check_ready(sources: Mapping[str, OpenWatched]) -> tuple[SourceHealth, ...]:
    """Tell whether each source, its ledger and their tables are there, all asked at once and none waited for long."""
    return tuple(await asyncio.gather(*(_ready(name, opened) for name, opened in sources.items())))


async def check_jobs(sources: Mapping[str, OpenWatched], timetable: Timetable) -> tuple[SourceHealth, ...]:
    """Tell what the watch over each source last saw, and whether it is kept; from the record, at one row a source."""
    return tuple(await asyncio.gather(*(_watched(name, opened, timetable) for name, opened in sources.items())))


async def _ready(name: str, opened: OpenWatched) -> SourceHealth:
    async def look(watched: Watched) -> tuple[Check, ...]:
        await watched.source.clock()
        if watched.watches is not None:
            await watched.watches.find(name)
        return (Check(name="answer", health=Health.PASS),)

    return await _checked(name, opened, look)


async def _watched(name: str, opened: OpenWatched, timetable: Timetable) -> SourceHealth:
    async def look(watched: Watched) -> tuple[Check, ...]:
        return checks_of(None if watched.watches is None else await watched.watches.find(name), timetable)

    return await _checked(name, opened, look)


async def _checked(
    name: str, opened: OpenWatched, look: Callable[[Watched], Awaitable[tuple[Check, ...]]]
) -> SourceHealth:
    async def checks() -> tuple[Check, ...]:
        async with opened() as watched:
            return await look(watched)

    try:
        return SourceHealth(source=name, checks=await in_time(checks(), ANSWERS_WITHIN.total_seconds()))
    except Exception as error:  # noqa: BLE001 - whatever it is, the source is not healthy
        level = logging.DEBUG if isinstance(error, UnstickError | TimeoutError) else logging.ERROR
        _log.log(level, "Source %r is not healthy", name, exc_info=True)
        said = _SENTENCES[trouble_of(error)].format(source=name)
        return SourceHealth(source=name, checks=(Check(name="answer", health=Health.FAIL, said=said),))


def trouble_of(error: Exception) -> Trouble:
    """Name what is wrong with a source, by what opening or reading it raised."""
    match error:
        case LedgerMissingError():
            return Trouble.TABLES
        case ConfigurationError():
            return Trouble.CONFIGURATION
        case SourceUnavailableError() | TimeoutError():
            return Trouble.NO_ANSWER
        case _:
            return Trouble.FAILURE


_SENTENCES = {
    Trouble.TABLES: "Unstick's own tables are missing or behind: run `unstick db upgrade --source {source}`",
    Trouble.CONFIGURATION: "its configuration doesn't fit; `unstick stuck --source {source}` says what is wrong",
    Trouble.NO_ANSWER: "its database, or the ledger's, doesn't answer",
    Trouble.FAILURE: "it fails, and the log says how; are Unstick's own tables there? "
    "`unstick db current --source {source}` tells",
}
