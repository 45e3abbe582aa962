"""From a suspect to a reason and one sentence a person understands at 3 a.m."""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import JobState
from unstick.domain.suspect import Look, Suspect
from unstick.domain.wording import say_duration, say_instant


class Reason(StrEnum):
    """Why a job will not finish by itself."""

    SILENT = "silent"
    """Running, no update, and nobody to ask."""
    NEVER_CLAIMED = "never_claimed"
    """Queued, and no worker has taken it."""
    POISON = "poison"
    """Recovered as often as the budget allows, and stuck again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A finding on one suspect: the reason, the sentence, and what it rests on."""

    reason: Reason
    sentence: str
    evidence: tuple[Evidence, ...]


def diagnose(suspect: Suspect, look: Look) -> Diagnosis:
    """Say why a suspect is stuck, where its row is the only witness."""
    reason = suspected_reason(suspect.job.state)
    return Diagnosis(reason=reason, sentence=_sentence(suspect, look, reason), evidence=_row_evidence(suspect))


def suspected_reason(state: JobState) -> Reason:
    """Return why a job in this state is stuck, where its row is the only witness."""
    return Reason.NEVER_CLAIMED if state is JobState.QUEUED else Reason.SILENT


def _sentence(suspect: Suspect, look: Look, reason: Reason) -> str:
    since = say_instant(suspect.since)
    threshold = say_duration(look.threshold(suspect.job.state))
    match reason:
        case Reason.NEVER_CLAIMED:
            return f"no worker has claimed it since {since}, and {threshold} is the limit for a queued job"
        case Reason.SILENT:
            return f"its last sign of life was at {since}, and {threshold} is the limit for a running job"
        case Reason.POISON:
            return f"it got stuck again, last seen at {since}"
    assert_never(reason)


def _row_evidence(suspect: Suspect) -> tuple[Evidence, ...]:
    job = suspect.job
    signs = (("enqueued_at", job.enqueued_at), ("scheduled_at", job.scheduled_at), ("started_at", job.started_at))
    seen = [Evidence(witness=f"row.{name}", holding=Holding.UNKNOWN, at=at) for name, at in signs if at is not None]
    if job.state is JobState.RUNNING and job.heartbeat_at is not None:
        seen.append(Evidence(witness="row.heartbeat_at", holding=Holding.UNKNOWN, at=job.heartbeat_at))
    return tuple(seen)
