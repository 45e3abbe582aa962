"""What a jobs table and its ledger may look like after a step, told from how they looked before it.

It knows nothing of the product's statements: the rules it judges by are the README's and the contract's, written down
once more in plain Python.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from unstick.domain.diagnosis import Reason
from unstick.domain.recovery import Action, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unstick.domain.work import ClaimedJob, Enqueued

QUEUED_AFTER = timedelta(minutes=5)
RUNNING_AFTER = timedelta(minutes=30)
LEASE = timedelta(seconds=60)
DRAINS_FROM = 2
BUDGET = 2
WINDOW = timedelta(hours=72)
BACKOFF = timedelta(seconds=30)
SPREAD = 0.25
OVER = ("completed", "failed")
ROUNDING = timedelta(milliseconds=2)
"""SQLite's clock and its comparisons know no less than a millisecond."""

Row = Mapping[str, Any]
Change = tuple[int, dict[str, Any]]
"""A job, and what its row is expected to hold then."""


class Span(NamedTuple):
    """An instant that was the database's now at some moment of a step, or so much later."""

    first: datetime
    last: datetime

    def holds(self, instant: object) -> bool:
        return isinstance(instant, datetime) and self.first - ROUNDING <= instant <= self.last + ROUNDING

    def after(self, least: timedelta, most: timedelta | None = None) -> Span:
        return Span(self.first + least, self.last + (least if most is None else most))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that is stored, and when that was, by the database's clock."""

    now: datetime
    jobs: Mapping[int, Row]
    leases: Mapping[str, Row]
    records: tuple[Any, ...]
    """The ledger job by job, oldest first."""
    late: tuple[Any, ...]

    @property
    def open(self) -> list[int]:
        return [job_id for job_id, row in self.jobs.items() if row["status"] not in OVER]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A job somebody asked for, and the answer."""

    answer: Enqueued
    key: str | None = None
    wait: timedelta | None = None
    max_attempts: int | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """An end that a worker wrote, or would have."""

    job: ClaimedJob
    how: str
    accepted: bool
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A beat, and the jobs it was told it still holds."""

    worker: str
    jobs: tuple[ClaimedJob, ...]
    progress: int | None
    holds: frozenset[object]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was decided on a job when it was looked at."""

    action: Action
    reason: Reason
    row: Row


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep, or the part of one that fell into a step."""

    action: Action
    queued_after: timedelta = QUEUED_AFTER
    operation_id: int | None = None
    """None where whoever asked for it wasn't told."""
    applied: int | None = None
    """How many it says it recovered."""
    in_part: bool = False
    """It may leave some of those it finds."""
    looked: Mapping[int, Verdict] | None = None
    """What an earlier look decided, where only the writing falls into this step."""
    looked_at: datetime | None = None


@dataclass(kw_only=True)
class Step:
    """What everybody did between two scenes, and was told."""

    asked: list[Asked] = field(default_factory=list)
    claimed: list[ClaimedJob] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    swept: list[Swept] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    said_alive: list[int] = field(default_factory=list)
    """Jobs whose own row was given a new sign of life."""

    @property
    def crowded(self) -> bool:
        """Somebody else was at work beside the sweeps."""
        return bool(self.claimed or self.ends or self.heard)


def accused(scene: Scene, job_id: int, now: datetime, queued_after: timedelta = QUEUED_AFTER) -> Reason | None:
    """Say why a job is stuck, None where it isn't."""
    row = scene.jobs[job_id]
    if row["completed_at"] is not None:
        return None
    if row["status"] == "queued":
        since = _latest([row["started_at"] or row["created_at"], row["scheduled_at"]])
        return _why_waiting(scene, since, now, queued_after) if since < now - queued_after else None
    lease = scene.leases.get(row["worker"])
    if lease is not None:
        return Reason.LEASE_EXPIRED if lease["expires_at"] <= now else None
    return Reason.SILENT if _latest([row["started_at"], row["updated_at"]]) < now - RUNNING_AFTER else None


def _why_waiting(scene: Scene, since: datetime, now: datetime, queued_after: timedelta) -> Reason | None:
    """Say why a job has waited for too long; None where its queue drains and its turn hasn't come."""
    claimed = [each for each in scene.jobs.values() if each["status"] != "queued" and each["started_at"] is not None]
    recent = [each for each in claimed if each["started_at"] >= now - queued_after]
    if len(recent) >= DRAINS_FROM:
        return Reason.OVERTAKEN if since < max(each["created_at"] for each in claimed) else None
    lives = [each for each in scene.leases.values() if each["expires_at"] > now]
    return Reason.UNSERVED if scene.leases and not lives else Reason.NEVER_CLAIMED


def _latest(instants: Iterable[datetime | None]) -> datetime:
    return max(instant for instant in instants if instant is not None)


def is_current(scene: Scene, job: ClaimedJob) -> bool:
    """Tell whether a claim is still the one its job is run by."""
    row = scene.jobs[int(job.id)]
    claim = ("running", job.worker, job.row["token"], job.row["attempt"])
    return (row["status"], row["worker"], row["token"], row["attempt"]) == claim


def is_written(scene: Scene, end: End) -> bool:
    """Tell whether this very end of this very attempt stands already."""
    row, over = scene.jobs[int(end.job.id)], {"finish": "completed", "fail": "failed"}.get(end.how)
    same = (over, end.job.worker, end.job.row["token"], end.job.row["attempt"])
    said = end.how == "finish" or row["error_message"] == end.error
    return said and (row["status"], row["worker"], row["token"], row["attempt"]) == same


def is_due(row: Row, now: datetime) -> bool:
    return row["status"] == "queued" and (row["scheduled_at"] is None or row["scheduled_at"] < now)


def spent(scene: Scene, job_id: int, now: datetime) -> int:
    return sum(each.at >= now - WINDOW for each in applied(scene.records, Action.RETRY) if each.job_id == str(job_id))


def applied(records: Iterable[Any], action: Action | None = None) -> list[Any]:
    return [each for each in records if each.outcome == Outcome.APPLIED and action in (None, each.action)]


def verdicts(scene: Scene, now: datetime, action: Action) -> dict[int, Verdict]:
    """Decide on every job that is stuck at an instant."""
    found = {job_id: accused(scene, job_id, now) for job_id in scene.jobs}
    return {
        job_id: Verdict(action=does, reason=says, row=scene.jobs[job_id])
        for job_id, reason in found.items()
        if reason is not None
        for does, says in [_sentence(reason, action, spent(scene, job_id, now))]
    }


def _sentence(reason: Reason, action: Action, before: int) -> tuple[Action, Reason]:
    if action is Action.RETRY and before >= BUDGET:
        return Action.MARK_FAILED, Reason.POISON
    return action, reason


# What holds from the rows and the ledger alone.


def a_job_is_queued_or_running_or_over(before: Scene, after: Scene) -> None:
    assert before.jobs.keys() <= after.jobs.keys(), "a job is lost"
    for row in after.jobs.values():
        assert row["status"] in ("queued", "running", *OVER)
        assert (row["completed_at"] is not None) == (row["status"] in OVER)
        assert row["success"] == {"completed": True, "failed": False}.get(row["status"])


def a_job_has_one_owner_or_none(after: Scene) -> None:
    for row in after.jobs.values():
        if row["status"] == "queued":
            assert row["worker"] is None
        if row["status"] == "running":
            assert row["worker"] is not None
            assert row["token"] > 0


def what_is_over_never_changes(before: Scene, after: Scene) -> None:
    for job_id, row in before.jobs.items():
        if row["status"] in OVER:
            assert after.jobs[job_id] == row, "a job that was over was changed"


def attempts_and_tokens_never_go_down(before: Scene, after: Scene) -> None:
    for job_id, row in before.jobs.items():
        now = after.jobs[job_id]
        assert now["attempt"] >= row["attempt"]
        assert now["token"] >= row["token"]
        moved_on = (row["status"], row["worker"]) != (now["status"], now["worker"]) and now["status"] not in OVER
        assert now["token"] > row["token"] or not moved_on, "a job changed hands under the same token"


def no_budget_is_overdrawn(after: Scene) -> None:
    for job_id in after.jobs:
        assert spent(after, job_id, after.now) <= BUDGET


def a_key_names_one_job(after: Scene) -> None:
    keys = Counter(row["idempotency_key"] for row in after.jobs.values())
    del keys[None]
    assert set(keys.values()) <= {1}


def the_ledger_is_only_added_to(before: Scene, after: Scene) -> None:
    assert after.records[: len(before.records)] == before.records
    assert after.late[: len(before.late)] == before.late


ALWAYS = (
    a_job_is_queued_or_running_or_over,
    what_is_over_never_changes,
    attempts_and_tokens_never_go_down,
    the_ledger_is_only_added_to,
)
ALWAYS_AFTER = (a_job_has_one_owner_or_none, no_budget_is_overdrawn, a_key_names_one_job)


# What holds of a step.


def check(before: Scene, step: Step, after: Scene) -> None:
    """Hold two scenes against what happened between them: each row is what it was, but for what one hand did to it."""
    for holds in ALWAYS:
        holds(before, after)
    for holds_after in ALWAYS_AFTER:
        holds_after(after)
    during = Span(before.now, after.now)
    changes = [
        *_recovered(before, step, after, during),
        *_claimed(before, step, after, during),
        *_ended(before, step, during),
    ]
    touched = Counter(job_id for job_id, _ in changes)
    assert set(touched.values()) <= {1}, f"two hands changed one job: {touched}"
    expected = {job_id: dict(row) for job_id, row in before.jobs.items()}
    for job_id, values in [*_alive(before, step, during), *changes]:
        expected[job_id] |= values
    expected |= dict(_asked(before, step, after, during))
    assert expected.keys() == after.jobs.keys(), "a job came from nowhere"
    for job_id, values in expected.items():
        assert differing(after.jobs[job_id], values) == {}, f"job {job_id} is not as it was left"
    _answers_are_true(before, step, after, set(touched))
    _late_ends_are_on_record(before, step, after)
    _leases_are_as_their_workers_said(before, step, after, during)


def differing(row: Row, expected: Row) -> dict[str, tuple[object, object]]:
    return {
        name: (row[name], value)
        for name, value in expected.items()
        if not (value.holds(row[name]) if isinstance(value, Span) else row[name] == value)
    }


def _recovered(before: Scene, step: Step, after: Scene, during: Span) -> Iterator[Change]:
    """Yield what each record says was done to its job, if it may have been done."""
    new = after.records[len(before.records) :]
    for record in applied(new):
        job_id, swept = int(record.job_id), _sweep_of(step, record.operation_id)
        row, now = before.jobs[job_id], after.jobs[job_id]
        why = _why(before, swept, job_id, during, crowded=step.crowded)
        assert (record.action, record.reason) in why, f"job {job_id} was recovered as {record}, and it may be {why}"
        assert (record.source, record.state) == ("main", row["status"])
        _undoes(row, now, json.loads(record.pre_image))
        failed = record.action == Action.MARK_FAILED
        yield job_id, _failed(row, now, during) if failed else _retried(row, spent(before, job_id, before.now), during)
    for swept in step.swept:
        mine = [each for each in new if swept.operation_id in (None, each.operation_id)]
        done = {int(each.job_id) for each in applied(mine)}
        assert swept.applied in (None, len(done)), "a sweep told another number than its records"
        assert {each.outcome for each in new} <= {Outcome.APPLIED, Outcome.LOST_RACE}
        if swept.looked is not None:
            _spared_all_that_moved(before, swept, mine)
    if not step.crowded:
        done = {int(each.job_id) for each in applied(new)}
        for swept in (each for each in step.swept if not each.in_part and each.looked is None):
            stuck = {each for each in before.jobs if accused(before, each, before.now, swept.queued_after)}
            assert stuck <= done, "a sweep left a stuck job"


def _sweep_of(step: Step, operation_id: int) -> Swept:
    named = [each for each in step.swept if each.operation_id == operation_id]
    return (named or [each for each in step.swept if each.operation_id is None])[0]


def _why(before: Scene, swept: Swept, job_id: int, during: Span, *, crowded: bool) -> set[tuple[str, str]]:
    """Return what may have been done to a job, and for which reason."""
    if swept.looked is not None:
        verdict = swept.looked.get(job_id)
        return set() if verdict is None else {(verdict.action, verdict.reason)}
    reasons = {accused(before, job_id, during.last, swept.queued_after)} - {None}
    if (crowded or swept.in_part) and before.jobs[job_id]["status"] == "queued":
        # Claims beside it may have made the queue drain, or given it a worker, before the sweep looked; and a ruling
        # that was begun earlier says what held then.
        reasons |= {Reason.NEVER_CLAIMED, Reason.OVERTAKEN, Reason.UNSERVED}
    return {
        _sentence(reason, swept.action, spent(before, job_id, now)) for now in during for reason in reasons if reason
    }


def _undoes(row: Row, now: Row, image: Row) -> None:
    """A pre-image, put back, makes the row what it was."""
    restored = dict(now)
    for name, value in image.items():
        instant = isinstance(row[name], datetime) and isinstance(value, str)
        restored[name] = _instant(value) if instant else value
    assert differing(row, restored) == {}, "the pre-image isn't what was overwritten"


def _instant(text: str) -> datetime:
    read = datetime.fromisoformat(text)
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _failed(row: Row, now: Row, during: Span) -> dict[str, Any]:
    said = str(now["error_message"])
    assert said.startswith(f"Job stuck in {row['status']} for ")
    assert said.endswith(" Automatically cleaned up.")
    return {"status": "failed", "success": False, "completed_at": during, "error_message": said}


def _retried(row: Row, before: int, during: Span) -> dict[str, Any]:
    wait, running = BACKOFF * 2**before, row["status"] == "running"
    spare = row["max_attempts"] is None or row["attempt"] < row["max_attempts"]
    return {
        "status": "queued",
        "worker": None,
        "token": row["token"] + 1,
        "attempt": row["attempt"] + (running and spare),
        "started_at": None,
        "updated_at": None,
        "scheduled_at": during.after(wait * (1 - SPREAD), wait * (1 + SPREAD)),
    }


def _spared_all_that_moved(before: Scene, swept: Swept, mine: Iterable[Any]) -> None:
    """What changed since it was looked at, or was acquitted since, is left alone and recorded as a lost race."""
    assert swept.looked is not None
    assert swept.looked_at is not None
    still = {
        job_id: before.jobs[job_id] == verdict.row and accused(before, job_id, swept.looked_at) is not None
        for job_id, verdict in swept.looked.items()
    }
    outcomes = {job_id: Outcome.APPLIED if same else Outcome.LOST_RACE for job_id, same in still.items()}
    assert {int(each.job_id): each.outcome for each in mine} == outcomes


def _claimed(before: Scene, step: Step, after: Scene, during: Span) -> Iterator[Change]:
    for job in step.claimed:
        row = before.jobs[int(job.id)]
        assert is_due(row, during.last), "a job was claimed that wasn't due"
        given = {name: job.row[name] for name in ("id", "status", "worker", "token", "attempt", "idempotency_key")}
        assert differing(after.jobs[int(job.id)], given) == {}, "a worker was given another row than there is"
        yield (
            int(job.id),
            {
                "status": "running",
                "worker": job.worker,
                "token": row["token"] + 1,
                "started_at": during,
                "updated_at": during,
            },
        )


def _ended(before: Scene, step: Step, during: Span) -> Iterator[Change]:
    written: list[tuple[object, object, str]] = []
    for end in (each for each in step.ends if each.accepted):
        this = (end.job.id, end.job.fence, end.how)
        if this in written or is_written(before, end):
            continue  # the same end once more, as of a worker that missed the acknowledgement
        written.append(this)
        assert is_current(before, end.job), "the end of an attempt landed on another"
        row, over = before.jobs[int(end.job.id)], {"success": end.how == "finish", "completed_at": during}
        match end.how:
            case "finish":
                yield int(end.job.id), over | {"status": "completed", "error_message": None, "progress": 100}
            case "fail":
                yield int(end.job.id), over | {"status": "failed", "error_message": end.error}
            case _:
                yield int(end.job.id), _queued_again(row, end, during)


def _queued_again(row: Row, end: End, during: Span) -> dict[str, Any]:
    counted = end.error is not None
    return {
        "status": "queued",
        "worker": None,
        "token": row["token"] + 1,
        "attempt": row["attempt"] + counted,
        "started_at": None,
        "updated_at": None,
        "scheduled_at": during,
        "error_message": end.error if counted else row["error_message"],
    }


def _alive(before: Scene, step: Step, during: Span) -> Iterator[Change]:
    for heard in step.heard:
        for job in heard.jobs:
            if heard.progress is not None and is_current(before, job):
                yield int(job.id), {"progress": heard.progress}
    for job_id in step.said_alive:
        yield job_id, {"updated_at": during}


def _asked(before: Scene, step: Step, after: Scene, during: Span) -> Iterator[Change]:
    """Yield the rows of new jobs; a key that is known gives the job it names."""
    known = {row["idempotency_key"]: job_id for job_id, row in before.jobs.items() if row["idempotency_key"]}
    created = Counter(each.key for each in step.asked if each.key and each.answer.created)
    for each in step.asked:
        job_id = int(each.answer.job_id)
        if each.key in known:
            assert (job_id, each.answer.created) == (known[each.key], False)
            continue
        assert each.key is None or created[each.key] == 1, "a key was queued twice"
        assert job_id not in before.jobs
        yield (
            job_id,
            dict(after.jobs[job_id])
            | {
                "status": "queued",
                "attempt": 0,
                "token": 0,
                "worker": None,
                "idempotency_key": each.key,
                "max_attempts": each.max_attempts,
                "created_at": during,
                "scheduled_at": None if each.wait is None else during.after(each.wait),
                "started_at": None,
            },
        )


def _answers_are_true(before: Scene, step: Step, after: Scene, touched: set[int]) -> None:
    """What workers were told is what happened."""
    for end in step.ends:
        if not end.accepted:
            taken = int(end.job.id) in touched
            assert taken or not is_current(before, end.job), "an end in time was refused"
    for heard in step.heard:
        holds = {job.id for job in heard.jobs if is_current(before, job)}
        sure = {job_id for job_id in holds if int(str(job_id)) not in touched}
        assert sure <= heard.holds <= holds, "a worker was told wrongly what it holds"
    if step.claimed and not step.swept and len({job.worker for job in step.claimed}) == 1:
        due = [{i for i, row in before.jobs.items() if is_due(row, now)} for now in (before.now, after.now)]
        if due[0] == due[1]:
            got = [int(job.id) for job in step.claimed]
            assert got == sorted(due[0])[: len(got)], "jobs were claimed out of turn"


def _late_ends_are_on_record(before: Scene, step: Step, after: Scene) -> None:
    """Every refused finish is in the ledger, and nothing else is."""
    told = {"finish": "succeeded", "fail": "failed"}
    refused = Counter(
        (str(end.job.id), end.job.worker, end.job.attempt, told[end.how], end.error)
        for end in step.ends
        if not end.accepted and end.how in told
    )
    new = after.late[len(before.late) :]
    assert Counter((each.job_id, each.worker, each.attempt, each.ended, each.detail) for each in new) == refused


def _leases_are_as_their_workers_said(before: Scene, step: Step, after: Scene, during: Span) -> None:
    beat = {each.worker for each in step.heard} | {job.worker for job in step.claimed}
    beaten = {each.worker for each in step.heard}  # a beat makes a lease anew that was struck
    old = {name for name, each in before.leases.items() if each["expires_at"] < before.now - timedelta(days=7)}
    forgotten = old - set(step.joined) - beaten if step.joined else set()  # whoever joins strikes them
    assert after.leases.keys() == (before.leases.keys() | set(step.joined) | beaten) - forgotten
    for name, lease in after.leases.items():
        if name in step.left:
            assert during.holds(lease["expires_at"])
            assert lease["beat_at"] == lease["expires_at"]
        elif name in beat or name in step.joined:
            assert during.holds(lease["beat_at"])
            assert lease["expires_at"] - lease["beat_at"] == LEASE
        else:
            assert lease == before.leases[name]
