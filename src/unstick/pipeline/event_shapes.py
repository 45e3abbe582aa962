"""Events as every face shows them: what the stream sends, and what is kept of them."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from enum import StrEnum

from unstick.domain.events import (
    AlertChanged,
    BrakeReleased,
    Held,
    JobRecovered,
    LeadershipChanged,
    Notified,
    ObservationFailed,
    Observed,
    PipelineEvent,
    SweepFailed,
    Swept,
    Undone,
)
from unstick.domain.recovery import Outcome

Told = Mapping[str, object]


_KINDS: Mapping[type[PipelineEvent], str] = {
    Observed: "observed",
    ObservationFailed: "observation_failed",
    Swept: "swept",
    SweepFailed: "sweep_failed",
    JobRecovered: "job_recovered",
    Undone: "undone",
    BrakeReleased: "brake_released",
    LeadershipChanged: "leadership_changed",
    AlertChanged: "alert_changed",
    Notified: "notified",
}


def event_shape(event: PipelineEvent) -> tuple[str, Told]:
    """Return an event's kind and what is told of it, besides its source, as JSON knows it."""
    return _KINDS[type(event)], _told(event)


def _told(event: PipelineEvent) -> Told:
    if isinstance(event, Observed):
        return _observed(event)
    if isinstance(event, Swept):
        return _swept(event)
    if isinstance(event, AlertChanged):
        _, queue, what = event.subject
        return {"queue": queue, "what": what.value, "change": event.what.value, "jobs": event.jobs}
    return {field.name: _plain(getattr(event, field.name)) for field in fields(event) if field.name != "source"}


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case StrEnum():
            return value.value
        case Mapping():
            return {str(_plain(key)): _plain(each) for key, each in value.items()}
        case _:
            return value


def _observed(event: Observed) -> Told:
    return {
        "at": event.at.isoformat(),
        "stuck_jobs": event.stuck_jobs,
        "stuck": [{"queue": queue, "reason": reason.value, "jobs": n} for (queue, reason), n in event.stuck.items()],
        "open_jobs": [
            {"queue": queue, "state": state.value, "jobs": n} for (queue, state), n in event.open_jobs.items()
        ],
        "undecided_jobs": event.undecided,
        "exact": event.exact,
        "oldest_queued_seconds": None if event.oldest_queued is None else event.oldest_queued.total_seconds(),
        "oldest_running_seconds": None if event.oldest_running is None else event.oldest_running.total_seconds(),
        "brake": _brake(event.held),
        "grace_until": _plain(event.grace_until),
        "late_finishes": event.late_finishes,
    }


def _swept(event: Swept) -> Told:
    outcomes = ((outcome.value, event.tally.of(outcome=outcome)) for outcome in Outcome)
    return {
        "at": event.at.isoformat(),
        "took_seconds": round(event.took.total_seconds(), 3),
        "trigger": event.trigger.value,
        "actor": event.actor,
        "action": event.action.value,
        "operation_id": event.operation_id,
        "outcomes": {outcome: number for outcome, number in outcomes if number},
        "brake": _brake(event.held),
        "late_finishes": event.late_finishes,
    }


def _brake(held: Held | None) -> Told | None:
    if held is None:
        return None
    return {"since": held.since.isoformat(), "suspects": held.suspects, "cause": held.cause}
