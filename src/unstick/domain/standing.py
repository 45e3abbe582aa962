"""How one job stands at a look: stuck, or in one sentence why it isn't."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.job import Job, JobState, sign_of_life
from unstick.domain.story import JobRow, Waits
from unstick.domain.suspect import Look, is_backlog
from unstick.domain.wording import Phrase


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
    words: Phrase


def why_not_stuck(row: JobRow, look: Look) -> Why:
    """Say why age doesn't accuse a job at a look; `look` is the one of the scope that it is in."""
    job = row.job
    if job is None:
        return Why(Standing.UNKNOWN, Phrase("can't be judged: %(problem)s", problem=row.problem or ""))
    if job.completed_at is not None or job.state in _ENDED:
        return Why(Standing.OVER, _over(job, look.taken_at))
    if job.state is JobState.SCHEDULED:
        return Why(Standing.SCHEDULED, _scheduled(job, look.taken_at))
    if job.state is JobState.QUEUED:
        return _queued(job, look) if row.waits is None else _waits(row.waits)
    return _running(row, job, look)


_ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


def _over(job: Job, now: datetime) -> Phrase:
    at = job.completed_at
    when = Phrase("at a time that isn't known") if at is None else say_ago(at, now)
    match job.state:
        case JobState.SUCCEEDED:
            return Phrase("succeeded %(when)s", when=when)
        case JobState.FAILED:
            return Phrase("failed %(when)s", when=when)
        case JobState.CANCELLED:
            return Phrase("was cancelled %(when)s", when=when)
        case _:
            return Phrase("says %(status)s, but it ended %(when)s", status=repr(job.status), when=when)


def _scheduled(job: Job, now: datetime) -> Phrase:
    if job.scheduled_at is None or job.scheduled_at <= now:
        return Phrase("is scheduled")
    until, time = job.scheduled_at, job.scheduled_at - now
    return Phrase("is scheduled and not due until %(at)s, in %(time)s", at=until, time=time)


def _waits(waits: Waits) -> Why:
    return Why(Standing(waits.reason), Phrase("is queued and can't be claimed: %(why)s", why=waits.value))


def _queued(job: Job, look: Look) -> Why:
    since = sign_of_life(job)
    if since is None:
        said = Phrase("is queued, and no time tells since when it waits, so it can't be judged")
        return Why(Standing.UNKNOWN, said)
    if since > look.taken_at:
        due = Phrase("is queued and not due until %(at)s, in %(time)s", at=since, time=since - look.taken_at)
        return Why(Standing.SCHEDULED, due)
    waits = look.taken_at - since
    if since >= look.horizon(JobState.QUEUED):
        said = Phrase("is queued and has waited for %(time)s, of the %(may)s it may", time=waits, may=look.queued_after)
        return Why(Standing.WAITING, said)
    if is_backlog(job, since, look):
        said = Phrase(
            "is queued and has waited for its turn for %(time)s: %(queue)s drains in order and has come to %(at)s",
            time=waits,
            queue=Phrase("its queue") if job.queue is None else Phrase("its queue %(queue)s", queue=job.queue),
            at=look.draining[job.queue],
        )
        return Why(Standing.BACKLOG, said)
    return Why(Standing.UNKNOWN, _CHANGED)


_CHANGED = Phrase("changed while it was looked at; ask again")


def _running(row: JobRow, job: Job, look: Look) -> Why:
    now = look.taken_at
    if row.lease is not None and row.lease.holds(now):
        beat = say_ago(row.lease.beat_at, now)
        return Why(Standing.HELD, Phrase("is running, and its worker beat %(when)s", when=beat))
    since = sign_of_life(job)
    if since is None:
        said = Phrase("is running, and no time tells its last sign of life, so it can't be judged")
        return Why(Standing.UNKNOWN, said)
    if since >= look.horizon(JobState.RUNNING):
        when = say_ago(since, now)
        started = since == job.started_at
        said = Phrase("is running and was started %(when)s", when=when)
        return Why(Standing.BEATING, said if started else Phrase("is running and beat %(when)s", when=when))
    return Why(Standing.UNKNOWN, _CHANGED)


def say_ago(at: datetime, now: datetime) -> Phrase:
    """Say how long ago something was, by the clock that saw it; a moment either way is now."""
    return Phrase("just now") if (now - at).total_seconds() < 1 else Phrase("%(duration)s ago", duration=now - at)
