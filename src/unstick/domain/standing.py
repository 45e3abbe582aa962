"""How one job stands at a look: stuck, or in one sentence why it isn't."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.job import Job, JobState, sign_of_life
from unstick.domain.story import JobRow, Waits
from unstick.domain.suspect import Look, is_backlog
from unstick.domain.wording import say_duration, say_instant


class Standing(StrEnum):
    """What a job is at a look."""

    STUCK = "stuck"
    BEATING = "beating"
    """Running, with a sign of life that is younger than the threshold."""
    HELD = "held"
    """Running, and its worker's lease holds, or a witness says that its worker has it."""
    UNDECIDED = "undecided"
    """Running, age accuses it, and no witness knows."""
    WAITING = "waiting"
    """Queued, and for no longer than it may be."""
    BACKLOG = "backlog"
    """Queued, and it waits for its turn in a queue that drains in order."""
    PAUSED = "paused"
    """Queued, and its queue is paused."""
    BLOCKED = "blocked"
    """Queued, and another job has what it waits for."""
    SCHEDULED = "scheduled"
    """Not due yet."""
    OVER = "over"
    UNKNOWN = "unknown"
    """Its row doesn't tell."""
    GONE = "gone"
    """Its source has no such job any more."""


class Why(NamedTuple):
    """How a job stands, and why, to follow `Job 7 `."""

    standing: Standing
    words: str


def why_not_stuck(row: JobRow, look: Look) -> Why:
    """Say why age doesn't accuse a job at a look; `look` is the one of the scope that it is in."""
    job = row.job
    if job is None:
        return Why(Standing.UNKNOWN, f"can't be judged: {row.problem}")
    if job.completed_at is not None or job.state in _ENDED:
        return Why(Standing.OVER, _over(job, look.taken_at))
    if job.state is JobState.SCHEDULED:
        return Why(Standing.SCHEDULED, f"is scheduled{_due(job, look.taken_at)}")
    if job.state is JobState.QUEUED:
        return _queued(job, look) if row.waits is None else _waits(row.waits)
    return _running(row, job, look)


_ENDED = {JobState.SUCCEEDED: "succeeded", JobState.FAILED: "failed", JobState.CANCELLED: "was cancelled"}


def _over(job: Job, now: datetime) -> str:
    said = _ENDED.get(job.state, f"says {job.status!r}, but it ended")
    return said if job.completed_at is None else f"{said} {say_ago(job.completed_at, now)}"


def _due(job: Job, now: datetime) -> str:
    if job.scheduled_at is None or job.scheduled_at <= now:
        return ""
    return f" and not due until {say_instant(job.scheduled_at)}, in {say_duration(job.scheduled_at - now)}"


def _waits(waits: Waits) -> Why:
    return Why(Standing(waits.reason), f"is queued and can't be claimed: {waits.value}")


def _queued(job: Job, look: Look) -> Why:
    since = sign_of_life(job)
    if since is None:
        return Why(Standing.UNKNOWN, "is queued, and no time tells since when it waits, so it can't be judged")
    if since > look.taken_at:
        return Why(Standing.SCHEDULED, f"is queued{_due(job, look.taken_at)}")
    waits = say_duration(look.taken_at - since)
    if since >= look.horizon(JobState.QUEUED):
        return Why(
            Standing.WAITING, f"is queued and has waited for {waits}, of the {say_duration(look.queued_after)} it may"
        )
    if is_backlog(job, since, look):
        reached = say_instant(look.draining[job.queue])
        queue = "its queue" if job.queue is None else f"its queue {job.queue}"
        said = f"is queued and has waited for its turn for {waits}: {queue} drains in order and has come to {reached}"
        return Why(Standing.BACKLOG, said)
    return Why(Standing.UNKNOWN, "changed while it was looked at; ask again")


def _running(row: JobRow, job: Job, look: Look) -> Why:
    now = look.taken_at
    if row.lease is not None and row.lease.holds(now):
        return Why(Standing.HELD, f"is running, and its worker beat {say_ago(row.lease.beat_at, now)}")
    since = sign_of_life(job)
    if since is None:
        return Why(Standing.UNKNOWN, "is running, and no time tells its last sign of life, so it can't be judged")
    if since >= look.horizon(JobState.RUNNING):
        sign = "was started" if since == job.started_at else "beat"
        return Why(Standing.BEATING, f"is running and {sign} {say_ago(since, now)}")
    return Why(Standing.UNKNOWN, "changed while it was looked at; ask again")


def say_ago(at: datetime, now: datetime) -> str:
    """Say how long ago something was, by the clock that saw it; a moment either way is now."""
    return "just now" if (now - at).total_seconds() < 1 else f"{say_duration(now - at)} ago"
