"""Whether the watch over a source is kept, and what it sees: pass, warn or fail."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from unstick.domain.brake import say_grace
from unstick.domain.events import Observed
from unstick.domain.schedule import MISSED_AFTER, Timetable
from unstick.domain.wording import say_duration, say_instant


class Health(StrEnum):
    """The words of the draft for health checks over HTTP (draft-inadarei-api-health-check)."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


_WORST = (Health.FAIL, Health.WARN, Health.PASS)


def worst(of: Sequence[Health]) -> Health:
    """Return the worst of several; of none, all is well."""
    return next((each for each in _WORST if each in of), Health.PASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRecord:
    """What the replicas know together of the watch over a source."""

    at: datetime
    """The ledger's clock, as this was read."""
    began_at: datetime
    """Since when the source has been watched at all."""
    observed_at: datetime | None = None
    observed: Observed | None = None
    swept_at: datetime | None = None
    """When an unattended sweep last came to its end; one that a brake held did."""
    problem: str | None = None
    """Why the last observation or sweep came to none; None where it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was checked of a source."""

    name: str
    """What was measured: `stuck`, `observation`, `sweep`, `brake`."""
    health: Health
    value: float | None = None
    unit: str | None = None
    said: str | None = None
    """What is wrong, and what to do, in a sentence that may be told to anybody; None where nothing is."""


def checks_of(record: WatchRecord | None, timetable: Timetable) -> tuple[Check, ...]:
    """Judge the watch over a source by what is on record of it.

    Args:
        record: None where the source was never watched.
        timetable: how often it is to be observed and swept.
    """
    if record is None:
        return (Check(name="observation", health=Health.FAIL, said="it was never observed; is the runner running?"),)
    observation = _on_time(
        record, "observation", record.observed_at, MISSED_AFTER * timetable.observe.apart, "observed"
    )
    sweep = _on_time(record, "sweep", record.swept_at, MISSED_AFTER * timetable.clean.apart, "swept")
    seen = () if record.observed is None else (_stuck(record.observed), _brake(record.observed))
    return (*seen, observation, sweep)


def _on_time(record: WatchRecord, name: str, last: datetime | None, within: timedelta, done: str) -> Check:
    age = record.at - (record.began_at if last is None else last)
    if age > within:
        since = f"never {done}" if last is None else f"not {done} since {say_instant(last)}, {say_duration(age)} ago"
        why = "is the runner running?" if record.problem is None else "the last try failed, and the log says why"
        said = f"it was {since}; {why}"
        return Check(name=name, health=Health.FAIL, value=age.total_seconds(), unit="s", said=said)
    health = Health.PASS if record.problem is None else Health.WARN
    return Check(
        name=name,
        health=health,
        value=age.total_seconds(),
        unit="s",
        said=None if record.problem is None else "the last try failed, and the log says why",
    )


def _stuck(observed: Observed) -> Check:
    number = observed.stuck_jobs
    if not number:
        return Check(name="stuck", health=Health.PASS, value=0, unit="jobs")
    reasons: dict[str, int] = {}
    for (_, reason), jobs in observed.stuck.items():
        reasons[reason.value] = reasons.get(reason.value, 0) + jobs
    by_reason = ", ".join(f"{jobs} {reason}" for reason, jobs in sorted(reasons.items(), key=lambda each: -each[1]))
    least = "" if observed.exact else "at least "
    grace = "" if observed.grace_until is None else f"; unattended sweeps leave some {say_grace(observed.grace_until)}"
    lists = f"`unstick stuck --source {observed.source}` lists them"
    said = f"{least}{number} job(s) are stuck: {by_reason}; {lists}{grace}"
    return Check(name="stuck", health=Health.WARN, value=number, unit="jobs", said=said)


def _brake(observed: Observed) -> Check:
    held = observed.held
    if held is None:
        return Check(name="brake", health=Health.PASS, value=0)
    said = (
        f"a brake has held unattended sweeps since {say_instant(held.since)}: {held.suspects} jobs were stuck at once; "
        f"it looks like {held.cause}. Release it with `unstick brake --release --source {observed.source}`"
    )
    return Check(name="brake", health=Health.WARN, value=1, said=said)
