"""The one read service: what is stuck and why, and the platform's figures."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from unstick.domain.aftermath import LateCounts
from unstick.domain.diagnosis import Diagnosis, Reason, diagnose, evidence_of
from unstick.domain.errors import InvalidRequestError
from unstick.domain.evidence import Evidence
from unstick.domain.job import Job, JobId, JobState, sign_of_life
from unstick.domain.policy import Policy, decide
from unstick.domain.recovery import Action
from unstick.domain.suspect import ACCUSED_STATES, NOT_OUR_CURSOR, Look, Position, StuckCounts, Suspect
from unstick.pipeline.judging import Convicted, asks_witnesses, convicted_running, count_stuck
from unstick.pipeline.looking import Scope, take_look, take_scopes
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
    outlook: str | None = None
    """Why a sweep wouldn't queue it again, though its policy says so; None where it would, or where it says no such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnservedQueue:
    """Queues that no living worker serves."""

    queues: tuple[str, ...] | None
    """Their names; None where it is all of the source's."""
    jobs: int
    """How many jobs wait there for longer than they may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckReport:
    """Exact counts, and a bounded list a state, oldest sign of life first."""

    look: Look
    counts: StuckCounts
    queued: tuple[Finding, ...]
    running: tuple[Finding, ...]
    next_cursor: str | None
    """Continues both lists; None where neither goes on."""
    undecided: int = 0
    """Running jobs that age accuses and no witness knows of; they are in neither counts nor lists, and left alone."""
    exact: bool = True
    """Otherwise witnesses were asked of the first `MOST_ASKED` running jobs only, and the counts are a least."""
    unserved: tuple[UnservedQueue, ...] = ()
    """Queues that no living worker serves; their jobs are in the counts and lists all the same."""
    snoozed: int = 0
    """Jobs that would be in them, but that a person wants to be left alone."""


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
    check_limit(limit)
    positions = decode_cursor(cursor)
    look = await take_look(watched, queued_after)
    scopes = await take_scopes(watched, look)
    count = await count_stuck(watched, scopes)
    lists: dict[JobState, list[Finding]] = {}
    for state in ACCUSED_STATES:
        wanted = cursor is None or state in positions
        told = await found_by_age(watched, scopes, state, limit + 1, positions.get(state)) if wanted else []
        lists[state] = await with_outlook(watched, look, told)
    return StuckReport(
        look=look,
        counts=count.stuck,
        undecided=count.undecided,
        exact=count.exact,
        queued=tuple(lists[JobState.QUEUED][:limit]),
        running=tuple(lists[JobState.RUNNING][:limit]),
        unserved=await _unserved(watched, scopes),
        snoozed=await _count_snoozed(watched, scopes),
        next_cursor=_next_cursor(lists, limit),
    )


async def _count_snoozed(watched: Watched, scopes: Sequence[Scope]) -> int:
    """Count the suspects among the jobs that are left alone."""
    looks = [replace(each.look, left_alone=frozenset(), only=each.look.left_alone) for each in scopes]
    return sum([(await watched.source.count_suspects(look)).total for look in looks if look.only])


def check_limit(limit: int) -> None:
    """Raise `InvalidRequestError` where a list can't be so long."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError(f"limit must be from 1 to {MAX_LIMIT}, not {limit}.")


class Found(NamedTuple):
    """A stuck job, and the policy that governs it."""

    finding: Finding
    policy: Policy


async def found_by_age(
    watched: Watched,
    scopes: Sequence[Scope],
    state: JobState,
    limit: int,
    after: Position | None,
) -> list[Found]:
    """Return a state's findings of all scopes, oldest sign of life first."""
    found: list[Found] = []
    for scope in scopes:
        if state is JobState.RUNNING and asks_witnesses(watched, scope):
            running = await convicted_running(watched, scope)
            told = [
                finding
                for each in running.convicted
                if (finding := told_finding(each, scope)) is not None and _is_after(finding, after)
            ]
        elif state in scope.look.states:
            jobs = await watched.source.list_suspects(scope.look, state, limit=limit, after=after)
            told = findings_of(jobs, scope)
        else:
            continue
        found += [Found(finding, scope.policy) for finding in told]
    if len(scopes) > 1 or watched.witnesses:
        found.sort(key=lambda each: order_of(position_of(each.finding.job)))
    return found[:limit]


async def with_outlook(watched: Watched, look: Look, found: Sequence[Found]) -> list[Finding]:
    """Say of those whose policy would queue them again which are given up instead: one statement a recovery window."""
    spent: dict[JobId, int] = {}
    retried = [each for each in found if each.policy.action is Action.RETRY]
    for window in {each.policy.recovery_window for each in retried}:
        job_ids = [each.finding.job.id for each in retried if each.policy.recovery_window == window]
        spent |= await watched.ledger.spent(watched.source.name, job_ids, look.taken_at - window)
    return [
        replace(finding, outlook=_outlook(finding, policy, spent.get(finding.job.id, 0)))
        if policy.action is Action.RETRY
        else finding
        for finding, policy in found
    ]


def _outlook(finding: Finding, policy: Policy, spent: int) -> str | None:
    job = finding.job
    suspect = Suspect(job.id, job.state, finding.since, attempt=job.attempt)
    decision = decide(suspect, finding.diagnosis, policy, policy.action, spent)
    if decision.reason is Reason.POISON:
        return "its recovery budget is spent: a sweep would mark it failed as poison"
    if decision.action is not Action.RETRY:
        return "it was begun as often as its policy allows: a sweep would mark it failed"
    return None


def _is_after(finding: Finding, after: Position | None) -> bool:
    return after is None or order_of(position_of(finding.job)) > order_of(after)


def told_finding(convicted: Convicted, scope: Scope) -> Finding | None:
    """Return the finding of a job that witnesses convict, None where it isn't known any more."""
    job = convicted.job
    if job is None:
        return None
    since = convicted.since
    evidence = (*evidence_of(job), *convicted.words)
    age = scope.look.taken_at - since
    return Finding(job=job, since=since, age=age, diagnosis=convicted.diagnosis, evidence=evidence)


def position_of(job: Job) -> Position:
    """Return where a job stands in a list by its sign of life."""
    return Position(since=sign_of_life(job) or datetime.min.replace(tzinfo=UTC), job_id=job.id)


def order_of(position: Position) -> tuple[datetime, tuple[int, str]]:
    """Return what a list by signs of life is sorted by."""
    return (position.since, _by_id(position.job_id))


def _by_id(job_id: JobId) -> tuple[int, str]:
    return (job_id, "") if isinstance(job_id, int) else (0, job_id)


async def _unserved(watched: Watched, scopes: Sequence[Scope]) -> tuple[UnservedQueue, ...]:
    """Say of queues, once each and not job by job, that nobody serves them."""
    found = []
    for scope in scopes:
        if scope.waiting is not Reason.UNSERVED:
            continue
        counts = await watched.source.count_suspects(replace(scope.look, states=(JobState.QUEUED,)))
        if counts.queued:
            queues = None if scope.look.classes is None else sorted({jobs.queue or "" for jobs in scope.look.classes})
            found.append(UnservedQueue(queues=None if queues is None else tuple(queues), jobs=counts.queued))
    return tuple(found)


async def report_stats(watched: Watched) -> PlatformStats:
    """Report the platform's figures; no part of it costs more as finished jobs pile up."""
    look = await take_look(watched)
    return PlatformStats(
        look=look,
        stuck=(await count_stuck(watched, await take_scopes(watched, look))).stuck,
        open_jobs=await watched.source.open_jobs(),
        usage=await watched.source.usage(),
        recoveries=await watched.ledger.recoveries(watched.source.name, RECOVERIES_WINDOW),
        late_finishes=await watched.ledger.late_counts(watched.source.name, RECOVERIES_WINDOW),
    )


def decode_cursor(cursor: str | None) -> dict[JobState, Position | None]:
    """Read a cursor back; raise `InvalidRequestError` where it isn't one of ours."""
    if cursor is None:
        return {}
    try:
        said = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return {
            ACCUSED_STATES[ACCUSED_STATES.index(state)]: None if where is None else read_position(*where)
            for state, where in said.items()
        }
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(NOT_OUR_CURSOR) from error


def read_position(since: str, job_id: object) -> Position:
    """Read a position of a cursor; raise TypeError, ValueError or OverflowError where it can't be one."""
    instant = datetime.fromisoformat(since)
    if instant.tzinfo is None or isinstance(job_id, bool) or not isinstance(job_id, int | str):
        raise TypeError(since, job_id)
    if isinstance(job_id, int) and not -(2**63) <= job_id < 2**64:
        raise OverflowError(job_id)
    return Position(since=instant.astimezone(UTC), job_id=job_id)


def _next_cursor(lists: Mapping[JobState, Sequence[Finding]], limit: int) -> str | None:
    ongoing = {state: position_of(found[limit - 1].job) for state, found in lists.items() if len(found) > limit}
    return encode_positions(ongoing) if ongoing else None


def encode_positions(positions: Mapping[JobState, Position | None]) -> str:
    """Write where lists go on, None for the beginning, as `decode_cursor` reads it."""
    said = {state.value: None if each is None else [str(each.since), each.job_id] for state, each in positions.items()}
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode()


def findings_of(jobs: Sequence[Job], scope: Scope) -> list[Finding]:
    """Return what is said of jobs that their rows accuse in a scope."""
    return [_finding(job, since, scope) for job in jobs if (since := sign_of_life(job)) is not None]


def _finding(job: Job, since: datetime, scope: Scope) -> Finding:
    since = since if job.lease_beat_at is None else job.lease_beat_at
    return Finding(
        job=job,
        since=since,
        age=scope.look.taken_at - since,
        diagnosis=diagnose(
            job.state, since, lease_expired=job.lease_beat_at is not None, lost=job.lost, waiting=scope.waiting
        ),
        evidence=evidence_of(job),
    )
