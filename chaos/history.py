"""What happened, as the database itself saw it, and whether any of it breaks a promise."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WATCH = """
CREATE TABLE history (
    id bigserial PRIMARY KEY, job_id bigint NOT NULL, by_whom text NOT NULL, old_state text, new_state text NOT NULL,
    old_token int, new_token int NOT NULL, old_attempt int, new_attempt int NOT NULL, old_worker text, new_worker text,
    lease_left interval, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO history (job_id, by_whom, new_state, new_token, new_attempt)
        VALUES (NEW.id, session_user, NEW.status, NEW.token, NEW.attempt);
    ELSIF (OLD.status, OLD.token, OLD.attempt, OLD.worker) IS DISTINCT FROM
          (NEW.status, NEW.token, NEW.attempt, NEW.worker) THEN
        INSERT INTO history (job_id, by_whom, old_state, new_state, old_token, new_token, old_attempt, new_attempt,
            old_worker, new_worker, lease_left)
        VALUES (NEW.id, session_user, OLD.status, NEW.status, OLD.token, NEW.token, OLD.attempt, NEW.attempt,
            OLD.worker, NEW.worker,
            (SELECT expires_at - statement_timestamp() FROM unstick_leases WHERE id = OLD.worker));
    END IF;
    RETURN NULL; END $$;
CREATE TRIGGER watch AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION watch();
"""
"""A record of every change of a job, made in its own transaction by nobody's word but the database's."""

OVER = ("completed", "failed")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that the end of a run knows."""

    jobs: Sequence[Any]
    history: Sequence[Any]
    recoveries: Sequence[Any]
    late: Sequence[Any]
    acknowledged: Iterable[int]
    """Jobs whose enqueueing was acknowledged."""
    accepted: Sequence[tuple[int, str]]
    """Ends that workers were told had been written: job and worker."""


@dataclass(kw_only=True)
class Verdict:
    """What was counted, and every promise that was broken."""

    counts: dict[str, int]
    broken: list[str] = field(default_factory=list)


def judge(facts: Facts) -> Verdict:
    """Hold a run's facts against what must be true."""
    by_job: dict[int, list[Any]] = defaultdict(list)
    for change in facts.history:
        by_job[change.job_id].append(change)
    applied: dict[int, list[Any]] = defaultdict(list)
    for recovery in facts.recoveries:
        if recovery.outcome == "applied":
            applied[int(recovery.job_id)].append(recovery)
    known = {job.id: job for job in facts.jobs}
    ends = Counter(job_id for job_id, _ in facts.accepted)
    broken = [
        *(f"job {job_id} is lost: there is no such row" for job_id in facts.acknowledged if job_id not in known),
        *(
            f"job {job.id} is lost: it is {job.status} at the end, {job.worker}'s, since {job.started_at}"
            for job in facts.jobs
            if job.status not in OVER
        ),
        *(f"job {job_id} has {number} accepted ends" for job_id, number in ends.items() if number > 1),
        *(wrong for job_id, changes in by_job.items() for wrong in _of_one(job_id, changes, applied[job_id], known)),
        *_of_ends(facts, known),
    ]  # fmt: skip
    reasons = Counter(f"recovered, {recovery.reason}" for each in applied.values() for recovery in each)
    states = Counter(f"jobs {job.status}" for job in facts.jobs)
    lost = sum("is lost" in each for each in broken)
    double = sum("accepted ends" in each or "final" in each for each in broken)
    counts = {**states, **reasons, "late results refused": len(facts.late), "lost": lost, "double": double}
    return Verdict(counts=counts, broken=broken)


def _of_one(job_id: int, changes: Sequence[Any], applied: Sequence[Any], known: dict[int, Any]) -> Iterable[str]:
    """Walk one job's changes in the order they were committed."""
    state, owner = None, None
    for change in changes:
        if state is not None and change.old_state != state:
            yield f"job {job_id} changed from {change.old_state}, but was {state}"
        if change.old_state in OVER:
            yield f"job {job_id} was final ({change.old_state}) and changed to {change.new_state} by {change.by_whom}"
        if change.old_token is not None and (change.new_token, change.new_attempt) < (
            change.old_token,
            change.old_attempt,
        ):
            yield f"job {job_id} went back from token {change.old_token} to {change.new_token}"
        disowned = (change.old_state, change.new_worker, change.new_token) == ("running", None, change.old_token)
        if change.new_state == "running" and change.old_state != "queued" and not disowned:
            yield f"job {job_id} was claimed while {change.old_state}"
        if change.by_whom == "sweeper" and change.old_state == "running" and _is_positive(change.lease_left):
            yield f"job {job_id} was recovered while its worker's lease had {change.lease_left} left"
        if change.by_whom == "worker" and change.old_state == "running" and change.old_worker != owner:
            yield f"job {job_id} was changed by a worker though it was {change.old_worker}'s, not {owner}'s"
        state, owner = change.new_state, change.new_worker
    swept = [change for change in changes if change.by_whom == "sweeper"]
    if len(swept) != len(applied):
        yield f"job {job_id} was recovered {len(swept)} times, and {len(applied)} recoveries are on record"
    retried = [change for change in swept if change.old_state == "running" and change.new_state == "queued"]
    if job_id in known and known[job_id].attempt != len(retried):
        yield f"job {job_id} is at attempt {known[job_id].attempt} after {len(retried)} retries"


def _of_ends(facts: Facts, known: dict[int, Any]) -> Iterable[str]:
    """Hold what workers were told against what stands."""
    for job_id, worker in facts.accepted:
        job = known.get(job_id)
        if job is None or job.status != "completed" or job.worker != worker:
            stands = None if job is None else (job.status, job.worker)
            yield f"job {job_id} was said to be finished by {worker}, but its row says {stands}"


def _is_positive(left: Any) -> bool:  # noqa: ANN401 - an interval, or none
    return left is not None and left.total_seconds() > 0
