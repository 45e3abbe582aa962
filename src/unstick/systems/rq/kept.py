"""A job as RQ keeps it, and what that means."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum

from unstick.domain.job import Job, JobState
from unstick.domain.wording import Phrase

FIELDS = (
    "status", "origin", "description", "created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat",
    "worker_name", "number_of_retries", "failure_ttl", "ttl", "dependency_ids",
)  # fmt: skip
"""What is read of a job. Neither its function with its arguments nor its result is: both would have to be unpickled."""
WRITTEN = ("status", "enqueued_at", "started_at", "ended_at", "last_heartbeat", "worker_name", "number_of_retries")
"""What a recovery may write, and what must be as it was seen when it does."""
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_CALL = re.compile(r"([A-Za-z_][\w.]*)\(")


class Place(StrEnum):
    """Where RQ keeps a job."""

    QUEUE = "queue"
    INTERMEDIATE = "intermediate"
    """A worker took it from the queue and hasn't begun it."""
    STARTED = "started"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    """It waits for other jobs."""
    FAILED = "failed"
    ELSEWHERE = "elsewhere"


class Status(StrEnum):
    """RQ's own words for the state of a job, those that are told apart here."""

    QUEUED = "queued"
    STARTED = "started"
    SCHEDULED = "scheduled"
    DEFERRED = "deferred"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    CANCELED = "canceled"


OPEN = {
    Place.QUEUE: Status.QUEUED,
    Place.INTERMEDIATE: Status.QUEUED,
    Place.STARTED: Status.STARTED,
    Place.SCHEDULED: Status.SCHEDULED,
    Place.DEFERRED: Status.DEFERRED,
}
"""The word a job bears that is where it belongs."""
_OVER = {
    Status.FINISHED: JobState.SUCCEEDED,
    Status.FAILED: JobState.FAILED,
    Status.STOPPED: JobState.FAILED,
    Status.CANCELED: JobState.CANCELLED,
}


class Lost(Enum):
    """How a job's message is lost."""

    TAKEN = Phrase("a worker took it from its queue and was gone before it began")
    OVERDUE = Phrase("it is due, and no scheduler has put it into its queue")
    ORPHANED = Phrase("the jobs that it waits for are not there any more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A job as it stands in RQ's own form."""

    id: str
    fields: Mapping[str, str]
    """Those of `FIELDS` that say anything."""
    place: Place
    executions: Mapping[str, str] = field(default_factory=dict)
    """Its executions in the set of the started ones, each with when its lease runs out, as RQ writes it."""
    due: str | None = None
    """When a scheduled job is due, likewise."""

    @property
    def queue(self) -> str:
        """The queue it belongs to."""
        return self.fields.get("origin", "")

    @property
    def status(self) -> str:
        """RQ's word for its state."""
        return self.fields.get("status", "")

    @property
    def fence(self) -> tuple[object, ...]:
        """What a write must still find, in a form that JSON keeps."""
        return (self.place.value, self.written, sorted([*each] for each in self.executions.items()), self.due)

    @property
    def written(self) -> list[str]:
        """What it says in each of `WRITTEN`; nothing is empty."""
        return [self.fields.get(name, "") for name in WRITTEN]


def seen_as(kept: Kept, seen: Sequence[object]) -> bool:
    """Tell whether a job is still as it was seen, also where that was kept as JSON since."""
    return list(kept.fence) == list(seen)


def to_job(kept: Kept, now: datetime, lost: str | None = None) -> Job:
    """Translate a job.

    Raises:
        ValueError: a time or a number in it can't be read.
    """
    said = kept.fields
    state = _state(kept, now, lost)
    enqueued_at, started_at = _time(said, "enqueued_at") or _time(said, "created_at"), _time(said, "started_at")
    return Job(
        id=kept.id,
        state=state,
        status=kept.status,
        kind=_kind(said.get("description", "")),
        queue=kept.queue or None,
        enqueued_at=enqueued_at,
        scheduled_at=None if kept.due is None else instant(kept.due),
        started_at=started_at if state is not JobState.QUEUED or _is_later(started_at, enqueued_at) else None,
        heartbeat_at=_time(said, "last_heartbeat") if state is JobState.RUNNING else None,
        completed_at=_completed_at(said, state, enqueued_at, started_at),
        attempt=attempt(said),
        worker=said.get("worker_name") if state is not JobState.QUEUED else None,
        lost=lost,
    )


def _state(kept: Kept, now: datetime, lost: str | None) -> JobState:
    """Return the state; what waits for a time or for other jobs is scheduled, and queued once that is over."""
    match kept.status:
        case Status.STARTED:
            return JobState.RUNNING
        case Status.QUEUED:
            return JobState.QUEUED
        case Status.SCHEDULED if kept.due is not None and instant(kept.due) <= now:
            return JobState.QUEUED
        case Status.DEFERRED if lost is not None:
            return JobState.QUEUED
        case Status.FINISHED | Status.FAILED | Status.STOPPED | Status.CANCELED as over:
            return _OVER[Status(over)]
        case _:
            return JobState.SCHEDULED


def _completed_at(
    said: Mapping[str, str], state: JobState, enqueued_at: datetime | None, started_at: datetime | None
) -> datetime | None:
    """Return when it ended; RQ leaves the end of an earlier attempt where it was."""
    ended_at = _time(said, "ended_at")
    if state in _OVER.values():
        return ended_at
    began_at = started_at if state is JobState.RUNNING else enqueued_at
    return ended_at if _is_later(ended_at, began_at) else None


def _is_later(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one > other)


def _kind(description: str) -> str | None:
    """Return the function's name; a description that the application chose doesn't tell it."""
    called = _CALL.match(description)
    return None if called is None else called[1]


def parents(kept: Kept) -> tuple[str, ...]:
    """Return the jobs that a job waits for; none where that can't be read."""
    try:
        said = json.loads(kept.fields.get("dependency_ids") or "[]")
    except ValueError:
        return ()
    return tuple(str(each) for each in said) if isinstance(said, list) else ()


def seconds(kept: Kept, name: str) -> int | None:
    """Return for how long a job is kept, by one of its fields; None where that doesn't say."""
    said = kept.fields.get(name, "")
    return int(said) if re.fullmatch(r"-?[0-9]{1,12}", said) else None


def attempt(said: Mapping[str, str]) -> int:
    """Return how often it was retried, by RQ's count."""
    return int(said.get("number_of_retries") or 0)


def _time(said: Mapping[str, str], name: str) -> datetime | None:
    raw = said.get(name)
    return None if not raw else read_time(raw)


def read_time(raw: str) -> datetime:
    """Read an instant as RQ writes it; anything else is a ValueError."""
    return datetime.fromisoformat(raw.removesuffix("Z")).replace(tzinfo=UTC)


def say_time(at: datetime) -> str:
    """Write an instant as RQ does."""
    return at.strftime(_TIME)


def instant(score: str) -> datetime:
    """Read when something in a sorted set is due or over; never is far away."""
    seconds = float(score)
    return datetime.fromtimestamp(min(max(seconds, 0), _NEVER), UTC)


_NEVER = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
