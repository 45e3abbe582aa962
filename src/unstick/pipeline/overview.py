"""What is the case with a source now, at a bounded cost: counted anew where that is cheap, else as last observed."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from unstick.domain.brake import Brake
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import UnstickError
from unstick.domain.events import Observed
from unstick.domain.health import Check, Health, WatchRecord, checks_of
from unstick.domain.record import Span
from unstick.domain.schedule import Timetable
from unstick.pipeline.health import ANSWERS_WITHIN, Trouble, trouble_of
from unstick.pipeline.observing import observe
from unstick.pipeline.records import over_time
from unstick.pipeline.watched import OpenWatched, Watched

MOST_OBSERVED = 5_000
"""With more open jobs a source is not counted for everyone who looks: the runner's last observation is told."""
DAY, HOURS = timedelta(hours=24), 24
FRESH = timedelta(minutes=10)
"""An observation that is older tells little, and is made anew whatever it costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What is the case with a source."""

    observed: Observed
    just_now: bool
    """Otherwise it is the last observation that was made."""
    age: timedelta
    """How old it is, by the source's clock or the ledger's."""
    watch: WatchRecord | None
    checks: tuple[Check, ...]
    """How the watch over it goes; none where nobody is to watch it."""
    brake: Brake | None
    """What holds its unattended sweeps."""
    unmapped: tuple[str, ...]
    """Words of open jobs that its mapping gives no meaning."""
    spans: Sequence[Span]
    """What was done within a day, by the hour; none where no record can be read."""


async def overview(watched: Watched, timetable: Timetable | None) -> Overview:
    """Tell what is the case with a source."""
    name = watched.source.name
    watch = None if watched.watches is None else await watched.watches.find(name)
    observed, age = _kept(watch)
    if observed is None:
        observed, age = await observe(watched), timedelta(0)
    brake = None if watched.brakes is None else await watched.brakes.find(name)
    return Overview(
        observed=observed,
        just_now=not age,
        age=age,
        watch=watch,
        checks=() if timetable is None else checks_of(watch, timetable),
        brake=brake if brake is not None and brake.is_held else None,
        unmapped=await watched.unmapped_words(),
        spans=await over_time(watched, DAY, HOURS),
    )


def _kept(watch: WatchRecord | None) -> tuple[Observed | None, timedelta]:
    """Return the last observation and its age, where it is to be told in place of a new one."""
    if watch is None or watch.observed is None or watch.observed_at is None:
        return None, timedelta(0)
    age = max(watch.at - watch.observed_at, timedelta(microseconds=1))
    is_large = sum(watch.observed.open_jobs.values()) > MOST_OBSERVED
    return (watch.observed, age) if is_large and age < FRESH else (None, timedelta(0))


class Matter(StrEnum):
    """What can be the matter with a source, worst first."""

    AWAY = "away"
    """It doesn't answer."""
    UNWATCHED = "unwatched"
    """Nobody observes it, or sweeps it, though somebody is to."""
    BRAKE = "brake"
    """Its unattended sweeps are held."""
    STUCK = "stuck"
    LATE = "late"
    """Jobs that were recovered finished after all."""
    UNMAPPED = "unmapped"
    """Open jobs are in states that its mapping gives no meaning."""
    UNDECIDED = "undecided"
    """Age accuses running jobs, and no witness knows of them."""


_WORST_REASONS = (
    Reason.POISON,
    Reason.WORKER_GONE,
    Reason.LEASE_EXPIRED,
    Reason.UNSERVED,
    Reason.HUNG,
    Reason.SILENT,
    Reason.MESSAGE_LOST,
    Reason.OVERTAKEN,
    Reason.NEVER_CLAIMED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """One thing that is wrong with a source."""

    source: str
    matter: Matter
    jobs: int = 0
    reason: Reason | None = None
    queues: tuple[tuple[str, int], ...] = ()
    """The queues it is about, with how many of the jobs; the fullest first."""
    said: str | None = None
    """The likely cause of a brake, or the words that nobody mapped."""
    trouble: Trouble | None = None
    """Why it is away."""


def concerns_of(found: Overview) -> tuple[Concern, ...]:
    """Name what is wrong with a source, worst first; nothing where all is well."""
    seen, source = found.observed, found.observed.source
    concerns = []
    if any(check.health is not Health.PASS and check.name in ("observation", "sweep") for check in found.checks):
        concerns.append(Concern(source=source, matter=Matter.UNWATCHED))
    if found.brake is not None:
        concerns.append(Concern(source=source, matter=Matter.BRAKE, jobs=found.brake.suspects, said=found.brake.cause))
    concerns += _stuck(seen)
    if seen.late_finishes:
        concerns.append(Concern(source=source, matter=Matter.LATE, jobs=seen.late_finishes))
    if found.unmapped:
        concerns.append(Concern(source=source, matter=Matter.UNMAPPED, said=", ".join(found.unmapped)))
    if seen.undecided:
        concerns.append(Concern(source=source, matter=Matter.UNDECIDED, jobs=seen.undecided))
    return tuple(concerns)


def _stuck(seen: Observed) -> list[Concern]:
    """Name what is stuck by reason, the worst first."""
    by_reason: dict[Reason, list[tuple[str, int]]] = {}
    for (queue, reason), jobs in seen.stuck.items():
        by_reason.setdefault(reason, []).append((queue or "", jobs))
    return [
        Concern(
            source=seen.source,
            matter=Matter.STUCK,
            reason=reason,
            jobs=sum(jobs for _, jobs in by_reason[reason]),
            queues=tuple(sorted(by_reason[reason], key=lambda each: (-each[1], each[0]))),
        )
        for reason in _WORST_REASONS
        if reason in by_reason
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOverview:
    """What is the case with a source, or why that can't be told."""

    source: str
    overview: Overview | None
    concerns: tuple[Concern, ...]


async def overviews(sources: Mapping[str, OpenWatched], timetable: Timetable | None) -> tuple[SourceOverview, ...]:
    """Tell what is the case with each source, all asked at once and none waited for long."""
    return tuple(await asyncio.gather(*(_of_source(name, opened, timetable) for name, opened in sources.items())))


async def _of_source(name: str, opened: OpenWatched, timetable: Timetable | None) -> SourceOverview:
    try:
        async with asyncio.timeout(ANSWERS_WITHIN.total_seconds()), opened() as watched:
            found = await overview(watched, timetable)
    except (UnstickError, TimeoutError) as error:
        away = Concern(source=name, matter=Matter.AWAY, trouble=trouble_of(error))
        return SourceOverview(source=name, overview=None, concerns=(away,))
    return SourceOverview(source=name, overview=found, concerns=concerns_of(found))
