"""From a suspect to a reason and one sentence a person understands at 3 a.m."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobState
from unstick.domain.wording import say_instant


class Reason(StrEnum):
    """Why a job will not finish by itself."""

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


class Diagnosis(NamedTuple):
    """Why one suspect is stuck. A tuple, for a sweep makes hundreds of thousands of them."""

    reason: Reason
    sentence: str


def diagnose(
    state: JobState, since: datetime, *, lease_expired: bool = False, waiting: Reason = Reason.NEVER_CLAIMED
) -> Diagnosis:
    """Say why a suspect is stuck, where its row, its queue and its worker's lease are the only witnesses."""
    if lease_expired:
        return Diagnosis(Reason.LEASE_EXPIRED, f"its worker last beat at {say_instant(since)}, and its lease ran out")
    reason = suspected_reason(state, waiting)
    return Diagnosis(reason, _SENTENCES[reason].format(since=say_instant(since)))


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
