"""From a suspect to a reason and one sentence a person understands at 3 a.m."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.evidence import PROGRESS, Evidence, Holding, weigh
from unstick.domain.job import Job, JobState
from unstick.domain.wording import Phrase, say_instant


class Reason(StrEnum):
    """Why a job will not finish by itself, or why it still may: see `STUCK`."""

    WORKER_GONE = "worker_gone"
    """Running, and a witness says that its worker is there no more."""
    HUNG = "hung"
    """Running and beating, and its progress stands still."""
    MESSAGE_LOST = "message_lost"
    """Queued in its row, and the broker has no message for it."""

    SILENT = "silent"
    """Running, no update, and nobody to ask."""
    NEVER_CLAIMED = "never_claimed"
    """Queued, and no worker has taken it."""
    OVERTAKEN = "overtaken"
    """Queued, and passed over: jobs of its queue that came later were claimed."""
    UNSERVED = "unserved"
    """Queued, and no worker lives that could take it: the queue's trouble, not the job's."""
    LEASE_EXPIRED = "lease_expired"
    """Running, and its worker's lease ran out."""
    POISON = "poison"
    """Recovered as often as the budget allows, and stuck again."""
    HELD = "held"
    """A witness says that its worker still has it."""
    BEATING = "beating"
    """It shows signs of life."""
    BACKLOG = "backlog"
    """Its queue drains in order, and its turn hasn't come."""
    PAUSED = "paused"
    """Its queue is paused."""
    BLOCKED = "blocked"
    """Another job has what it waits for: a lock, a semaphore, a place among those that may run at once."""
    SCHEDULED = "scheduled"
    """It isn't due yet."""


STUCK = frozenset(
    {
        Reason.WORKER_GONE,
        Reason.LEASE_EXPIRED,
        Reason.SILENT,
        Reason.HUNG,
        Reason.NEVER_CLAIMED,
        Reason.OVERTAKEN,
        Reason.UNSERVED,
        Reason.MESSAGE_LOST,
        Reason.POISON,
    }
)
"""The reasons of jobs that will not finish by themselves."""


class Diagnosis(NamedTuple):
    """Why one suspect is stuck. A tuple, for a sweep makes hundreds of thousands of them."""

    reason: Reason
    sentence: str


def diagnose(
    state: JobState,
    since: datetime,
    *,
    lease_expired: bool = False,
    lost: str | None = None,
    waiting: Reason = Reason.NEVER_CLAIMED,
    words: Sequence[Evidence] = (),
) -> Diagnosis:
    """Say why a suspect is stuck, or that it isn't.

    Args:
        state: queued or running.
        since: its last sign of life.
        lease_expired: its worker let its lease run out.
        lost: how its message was lost, where it was.
        waiting: why a queued job of its queue hasn't been claimed.
        words: what witnesses say of a running job; without any, age alone decides.
    """
    if lost is not None:
        return Diagnosis(Reason.MESSAGE_LOST, Phrase("its message is lost: %(how)s", how=lost))
    word = weigh(words) if state is JobState.RUNNING else None
    if word is not None and word.holding is Holding.HELD:
        return Diagnosis(Reason.HELD, Phrase("its worker still has it: %(said)s", said=_quoted(word)))
    if lease_expired:
        return Diagnosis(Reason.LEASE_EXPIRED, f"its worker last beat at {say_instant(since)}, and its lease ran out")
    if word is not None:
        said = Phrase("its worker is gone: %(said)s; its last sign of life was at %(at)s", said=_quoted(word), at=since)
        return Diagnosis(Reason.WORKER_GONE, said)
    reason = suspected_reason(state, waiting)
    if words and state is JobState.RUNNING:
        return Diagnosis(reason, Phrase("its last sign of life was at %(at)s, and no witness knows more", at=since))
    return Diagnosis(reason, _SENTENCES[reason].format(since=say_instant(since)))


def is_undecided(diagnosis: Diagnosis, words: Sequence[Evidence]) -> bool:
    """Tell whether age accuses a job and no witness that was asked knows: then it is left alone."""
    return bool(words) and diagnosis.reason is Reason.SILENT


def diagnose_hung(words: Sequence[Evidence], look_at: datetime, hung_after: timedelta) -> Diagnosis | None:
    """Say that a job is hung: it may beat, but its progress has stood still for so long; None where it hasn't."""
    word = _of_progress(words)
    if word is None or word.at is None or look_at - word.at < hung_after:
        return None
    return Diagnosis(Reason.HUNG, Phrase("it shows signs of life, but no progress: %(said)s", said=_quoted(word)))


def stands_still_since(words: Sequence[Evidence]) -> datetime | None:
    """Return since when a job's progress has stood still, None where no witness says so."""
    word = _of_progress(words)
    return None if word is None else word.at


def _of_progress(words: Sequence[Evidence]) -> Evidence | None:
    """Return the word on progress that stands still."""
    still = (word for word in words if word.witness == PROGRESS and word.holding is Holding.UNKNOWN)
    return next((word for word in still if word.at is not None), None)


def _quoted(word: Evidence) -> str:
    if word.value is None:
        return word.witness
    return Phrase("%(witness)s says %(said)s", witness=word.witness, said=word.value)


_SENTENCES = {
    Reason.NEVER_CLAIMED: "no worker has claimed it since {since}",
    Reason.OVERTAKEN: "it could have been claimed since {since}, and jobs that came later were",
    Reason.UNSERVED: "no worker has claimed it since {since}, and none lives that could",
    Reason.SILENT: "its last sign of life was at {since}",
}


def suspected_reason(state: JobState, waiting: Reason = Reason.NEVER_CLAIMED) -> Reason:
    """Return why a job in this state is stuck, where its row and its queue are the only witnesses."""
    return waiting if state is JobState.QUEUED else Reason.SILENT


def evidence_of(job: Job) -> tuple[Evidence, ...]:
    """Return what a job's own row says, each time that it records, and what its worker's lease says."""
    times = {
        "row.enqueued_at": job.enqueued_at,
        "row.scheduled_at": job.scheduled_at,
        "row.started_at": job.started_at,
        "row.heartbeat_at": job.heartbeat_at,
    }
    said = [Evidence(witness=name, holding=Holding.UNKNOWN, at=at) for name, at in times.items() if at is not None]
    if job.lease_beat_at is not None:
        said.append(Evidence(witness="lease", holding=Holding.RELEASED, at=job.lease_beat_at))
    return tuple(said)
