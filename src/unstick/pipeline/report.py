"""The one read service: what is stuck and why, and the platform's figures."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from unstick.domain.aftermath import LateCounts
from unstick.domain.diagnosis import Diagnosis, diagnose, evidence_of
from unstick.domain.errors import InvalidRequestError
from unstick.domain.evidence import Evidence
from unstick.domain.job import Job, JobState, sign_of_life
from unstick.domain.suspect import ACCUSED_STATES, Look, Position, StuckCounts
from unstick.pipeline.sweep import take_look
from unstick.pipeline.watched import Watched
from unstick.ports import OpenJobs, RecoveryCounts, Usage

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
RECOVERIES_WINDOW = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A stuck job and what is said of it."""

    job: Job
    since: datetime
    """The sign of life it is judged by."""
    age: timedelta
    diagnosis: Diagnosis
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckReport:
    """Exact counts, and a bounded list a state, oldest sign of life first."""

    look: Look
    counts: StuckCounts
    queued: tuple[Finding, ...]
    running: tuple[Finding, ...]
    next_cursor: str | None
    """Continues both lists; None where neither goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformStats:
    """The figures of `GET /stats`."""

    look: Look
    stuck: StuckCounts
    open_jobs: OpenJobs
    usage: Usage
    recoveries: RecoveryCounts
    late_finishes: LateCounts


async def report_stuck(
    watched: Watched,
    *,
    queued_after: timedelta | None = None,
    limit: int = DEFAULT_LIMIT,
    cursor: str | None = None,
) -> StuckReport:
    """Report what is stuck now.

    Raises:
        InvalidRequestError: the limit is out of range or the cursor isn't one of ours.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")
    positions = decode_cursor(cursor)
    look = await take_look(watched, queued_after)
    counts = await watched.source.count_suspects(look)
    lists: dict[JobState, tuple[Job, ...]] = {}
    for state in ACCUSED_STATES:
        wanted = cursor is None or state in positions
        lists[state] = (
            await watched.source.list_suspects(look, state, limit=limit + 1, after=positions.get(state))
            if wanted
            else ()
        )
    return StuckReport(
        look=look,
        counts=counts,
        queued=_findings(lists[JobState.QUEUED][:limit], look),
        running=_findings(lists[JobState.RUNNING][:limit], look),
        next_cursor=_next_cursor(lists, limit),
    )


async def report_stats(watched: Watched) -> PlatformStats:
    """Report the platform's figures; no part of it costs more as finished jobs pile up."""
    look = await take_look(watched)
    return PlatformStats(
        look=look,
        stuck=await watched.source.count_suspects(look),
        open_jobs=await watched.source.open_jobs(),
        usage=await watched.source.usage(),
        recoveries=await watched.ledger.recoveries(watched.source.name, RECOVERIES_WINDOW),
        late_finishes=await watched.ledger.late_counts(watched.source.name, RECOVERIES_WINDOW),
    )


def decode_cursor(cursor: str | None) -> dict[JobState, Position]:
    """Read a cursor back; raise `InvalidRequestError` where it isn't one of ours."""
    if cursor is None:
        return {}
    try:
        said = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return {ACCUSED_STATES[ACCUSED_STATES.index(state)]: _position(*where) for state, where in said.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequestError("cursor is not one this service gave out; leave it out to start anew.") from error


def _position(since: str, job_id: object) -> Position:
    instant = datetime.fromisoformat(since)
    if instant.tzinfo is None or isinstance(job_id, bool) or not isinstance(job_id, int | str):
        raise TypeError(since, job_id)
    if isinstance(job_id, int) and not -(2**63) <= job_id < 2**64:
        raise OverflowError(job_id)
    return Position(since=instant.astimezone(UTC), job_id=job_id)


def _next_cursor(lists: dict[JobState, tuple[Job, ...]], limit: int) -> str | None:
    ongoing = {state: found[limit - 1] for state, found in lists.items() if len(found) > limit}
    if not ongoing:
        return None
    positions = {state.value: [str(sign_of_life(last)), last.id] for state, last in ongoing.items()}
    return base64.urlsafe_b64encode(json.dumps(positions).encode()).decode()


def _findings(jobs: Sequence[Job], look: Look) -> tuple[Finding, ...]:
    return tuple(_finding(job, since, look) for job in jobs if (since := sign_of_life(job)) is not None)


def _finding(job: Job, since: datetime, look: Look) -> Finding:
    since = since if job.lease_beat_at is None else job.lease_beat_at
    return Finding(
        job=job,
        since=since,
        age=look.taken_at - since,
        diagnosis=diagnose(job.state, since, lease_expired=job.lease_beat_at is not None),
        evidence=evidence_of(job),
    )
