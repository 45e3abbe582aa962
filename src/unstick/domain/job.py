"""A job as Unstick sees it, whatever table or broker it lives in."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

JobId = int | str
"""A job's key in its source; keys of other types (UUID) are their text."""


class JobState(StrEnum):
    """The states every source's own words are translated to."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SCHEDULED = "scheduled"
    CANCELLED = "cancelled"


class JobClass(NamedTuple):
    """What rules of a policy tell jobs apart by; None where the source doesn't record it."""

    kind: str | None
    queue: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One unit of work; what its source doesn't record is None. All instants are aware UTC."""

    id: JobId
    state: JobState
    status: str
    """The state in the source's own word, as stored."""
    kind: str | None = None
    queue: str | None = None
    enqueued_at: datetime | None = None
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    heartbeat_at: datetime | None = None
    completed_at: datetime | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    worker: str | None = None
    progress: str | None = None
    lease_beat_at: datetime | None = None
    """When the worker last said that it lives, by a lease that is over since."""
    lost: str | None = None
    """How its message was lost, in words: nothing is left that would bring it to a worker. None where that isn't so."""


def sign_of_life(job: Job) -> datetime | None:
    """Return what a job is judged by: when it could be claimed, or how long ago it was last known to run."""
    if job.state is JobState.RUNNING:
        return running_since(job.started_at, job.heartbeat_at)
    return queued_since(job.enqueued_at, job.scheduled_at, job.started_at)


def queued_since(
    enqueued_at: datetime | None, scheduled_at: datetime | None, started_at: datetime | None
) -> datetime | None:
    """Return since when a queued job could have been claimed, or None where nothing tells.

    The contract's rule (`started_at`, or the enqueue time where that is null), moved on by a later
    `scheduled_at`: a job that is not due yet does not wait.
    """
    waiting = started_at or enqueued_at
    if waiting is None or scheduled_at is None:
        return waiting or scheduled_at
    return max(waiting, scheduled_at)


def running_since(started_at: datetime | None, heartbeat_at: datetime | None) -> datetime | None:
    """Return a running job's last sign of life (start or later heartbeat), or None where there is none."""
    if started_at is None or heartbeat_at is None:
        return started_at or heartbeat_at
    return max(started_at, heartbeat_at)
