"""The decisions that need no database: thresholds, budgets, waits, messages, and what became of an intent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unstick.domain.access import Role
from unstick.domain.diagnosis import Reason, diagnose, evidence_of, is_undecided, stands_still_since
from unstick.domain.errors import InvalidRequestError, RecoveryStoppedError
from unstick.domain.evidence import PROGRESS, Evidence, Holding
from unstick.domain.filter import StuckFilter
from unstick.domain.job import Job, JobClass, JobState, queued_since, running_since, sign_of_life
from unstick.domain.plan import Plan, PlannedScope, PlanState, Terms, read_terms, sign_page, sign_plan, terms_text
from unstick.domain.policy import (
    MAX_THRESHOLD_MINUTES,
    SINCE,
    Policy,
    backoff,
    decide,
    requested_action,
    requested_threshold,
    rule,
)
from unstick.domain.queue import DRAINS_FROM, Flows, QueueFlow
from unstick.domain.recovery import (
    CHANGES,
    Action,
    BatchResult,
    Decision,
    Intent,
    Outcome,
    Recovery,
    Tally,
    Undo,
    deed,
    settled,
)
from unstick.domain.sighting import LONGEST_PROGRESS, Sighted
from unstick.domain.sighting import Stuck as FoundStuck
from unstick.domain.snooze import LONGEST_REASON, requested_reason
from unstick.domain.standing import Standing, why_not_stuck
from unstick.domain.story import JobRow, Lease, Waits
from unstick.domain.suspect import ACCUSED_STATES, Look, StuckCounts, Suspect, is_suspect
from unstick.domain.tenure import CLOCKS_APART, held_since
from unstick.domain.undo import Undoable, images
from unstick.domain.wording import say_duration, say_instant
from unstick.domain.work import BEAT_EVERY, LEASE, WorkerIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 23, 21, 24, 13, 500_000, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
LOOK = Look(taken_at=NOW, queued_after=timedelta(minutes=5), running_after=timedelta(minutes=30))
TIMES = st.none() | st.datetimes(datetime(2026, 11, 1), datetime(2026, 12, 1), timezones=st.just(UTC))  # noqa: DTZ001


def job(state: JobState, **times: Any) -> Job:  # noqa: ANN401
    return Job(id=1, state=state, status=state.value, **times)


# What age accuses.


@pytest.mark.parametrize(
    ("state", "threshold"),
    [(JobState.QUEUED, LOOK.queued_after), (JobState.RUNNING, LOOK.running_after)],
)
def test_a_job_as_old_as_its_threshold_is_not_stuck_and_one_a_moment_older_is(
    state: JobState, threshold: timedelta
) -> None:
    assert not is_suspect(job(state, started_at=NOW - threshold), LOOK)
    assert is_suspect(job(state, started_at=NOW - threshold - MOMENT), LOOK)


@pytest.mark.parametrize("state", JobState)
def test_only_a_queued_or_running_job_without_an_end_is_stuck(state: JobState) -> None:
    old = NOW - timedelta(days=1)

    assert is_suspect(job(state, started_at=old), LOOK) == (state in {JobState.QUEUED, JobState.RUNNING})
    assert not is_suspect(job(state, started_at=old, completed_at=old), LOOK)
    assert not is_suspect(job(state), LOOK)


@given(TIMES, TIMES)
def test_a_running_job_is_judged_by_the_later_of_start_and_beat(start: datetime | None, beat: datetime | None) -> None:
    known = [each for each in (start, beat) if each is not None]

    assert running_since(start, beat) == max(known, default=None)


@given(TIMES, TIMES, TIMES)
def test_a_queued_job_is_judged_by_its_start_or_else_its_enqueueing_but_never_before_it_is_due(
    enqueued: datetime | None, scheduled: datetime | None, start: datetime | None
) -> None:
    waiting = enqueued if start is None else start
    known = [each for each in (waiting, scheduled) if each is not None]

    assert queued_since(enqueued, scheduled, start) == max(known, default=None)


@given(TIMES, TIMES, TIMES, TIMES)
def test_each_state_has_its_own_sign_of_life(
    enqueued: datetime | None, scheduled: datetime | None, start: datetime | None, beat: datetime | None
) -> None:
    times = {"enqueued_at": enqueued, "scheduled_at": scheduled, "started_at": start, "heartbeat_at": beat}

    assert sign_of_life(job(JobState.RUNNING, **times)) == running_since(start, beat)
    assert sign_of_life(job(JobState.QUEUED, **times)) == queued_since(enqueued, scheduled, start)


def test_reports_list_queued_before_running_and_count_both() -> None:
    assert ACCUSED_STATES == (JobState.QUEUED, JobState.RUNNING)
    assert StuckCounts(queued=2, running=3).total == 5


ESSAY = Job(
    id=1, state=JobState.RUNNING, status="running", kind="essay", queue="slow",
    started_at=NOW - timedelta(hours=2), heartbeat_at=NOW - timedelta(hours=1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "stuck"),
    [
        ({"classes": frozenset({JobClass("essay", "slow")})}, True),
        ({"classes": frozenset({JobClass("essay", None), JobClass(None, "slow"), JobClass("slow", "essay")})}, False),
        ({"only": frozenset({1})}, True),
        ({"only": frozenset({2})}, False),
        ({"left_alone": frozenset({2})}, True),
        ({"left_alone": frozenset({1})}, False),
        ({"states": (JobState.RUNNING,)}, True),
        ({"states": (JobState.QUEUED,)}, False),
        ({"running_after": timedelta(minutes=90)}, False),
        ({"running_after": timedelta(minutes=90), "by_start": True}, True),
        ({"running_after": timedelta(minutes=120), "by_start": True}, False),
        ({"draining": {"slow": NOW - timedelta(days=1)}}, True),
    ],
)
def test_a_look_accuses_those_jobs_alone_that_it_is_about(limits: dict[str, Any], stuck: bool) -> None:
    look = replace(LOOK, **limits)

    assert is_suspect(ESSAY, look) is stuck
    assert LOOK.judges_all
    assert look.judges_all == (limits.keys() <= {"running_after"})


def test_a_queued_job_waits_for_its_turn_where_those_before_it_in_its_own_queue_are_being_claimed() -> None:
    reached = NOW - timedelta(hours=1)
    look = replace(LOOK, draining={"slow": reached})
    waiting = Job(id=1, state=JobState.QUEUED, status="queued", queue="slow", enqueued_at=reached)

    assert not is_suspect(waiting, look)
    assert is_suspect(replace(waiting, enqueued_at=reached - MOMENT), look)
    assert is_suspect(replace(waiting, queue="fast"), look)
    assert is_suspect(replace(waiting, queue=None), look)


QUEUES = ("drains", "stands", "nobody's", None)


@pytest.mark.parametrize(
    ("served", "waiting"),
    [
        (None, [Reason.OVERTAKEN, Reason.NEVER_CLAIMED, Reason.UNSERVED, Reason.NEVER_CLAIMED]),
        (True, [Reason.OVERTAKEN, Reason.NEVER_CLAIMED, Reason.UNSERVED, Reason.NEVER_CLAIMED]),
        (False, [Reason.OVERTAKEN, Reason.UNSERVED, Reason.UNSERVED, Reason.UNSERVED]),
    ],
)
def test_why_a_job_waits_is_told_by_its_own_queue(served: bool | None, waiting: list[Reason]) -> None:
    moving = QueueFlow(recent_claims=DRAINS_FROM, reached=NOW)
    stands: dict[str | None, QueueFlow] = {"stands": replace(moving, recent_claims=DRAINS_FROM - 1)}
    flows = Flows(by_queue=stands | {"drains": moving}, served=served, unserved=frozenset({"nobody's"}))

    assert [flows.waiting_reason(queue) for queue in QUEUES] == waiting
    assert flows.draining() == {"drains": NOW}
    assert not flows.alike
    assert not replace(flows, unserved=frozenset()).alike
    assert not replace(flows, by_queue=stands).alike
    assert replace(flows, by_queue=stands, unserved=frozenset()).alike


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (StuckFilter(), True),
        (StuckFilter(reason=Reason.SILENT), True),
        (StuckFilter(reason=Reason.HUNG), False),
        (StuckFilter(text="SLO"), True),
        (StuckFilter(text="1"), True),
        (StuckFilter(text="fast"), False),
        (StuckFilter(reason=Reason.HUNG, text="slow"), False),
    ],
)
def test_a_filter_takes_what_it_names_and_no_more(asked: StuckFilter, taken: bool) -> None:
    assert asked.takes(ESSAY, Reason.SILENT) is taken


def test_a_filter_by_reason_takes_the_states_that_can_have_it() -> None:
    def states(reason: Reason | None, waiting: Reason) -> list[JobState]:
        return [state for state in ACCUSED_STATES if StuckFilter(reason=reason).takes_state(state, waiting)]

    assert states(None, Reason.UNSERVED) == [JobState.QUEUED, JobState.RUNNING]
    assert states(Reason.UNSERVED, Reason.UNSERVED) == [JobState.QUEUED]
    assert states(Reason.OVERTAKEN, Reason.UNSERVED) == []
    assert states(Reason.SILENT, Reason.UNSERVED) == [JobState.RUNNING]


def test_a_filter_names_classes_where_it_names_a_kind_or_a_queue() -> None:
    named = (StuckFilter(queue="*"), StuckFilter(kind="*"), StuckFilter(reason=Reason.HUNG, text="x"), StuckFilter())

    assert [each.names_classes for each in named] == [True, True, False, False]


# Why.


@pytest.mark.parametrize(
    ("state", "lease_expired", "reason", "sentence"),
    [
        (JobState.QUEUED, False, Reason.NEVER_CLAIMED, "no worker has claimed it since 2026-11-23 21:24:13 UTC"),
        (JobState.RUNNING, False, Reason.SILENT, "its last sign of life was at 2026-11-23 21:24:13 UTC"),
        (
            JobState.RUNNING,
            True,
            Reason.LEASE_EXPIRED,
            "its worker last beat at 2026-11-23 21:24:13 UTC, and its lease ran out",
        ),
    ],
)
def test_a_diagnosis_tells_why_and_since_when(
    state: JobState, lease_expired: bool, reason: Reason, sentence: str
) -> None:
    assert diagnose(state, NOW, lease_expired=lease_expired) == (reason, sentence)


def test_without_word_of_a_lease_none_is_said_to_have_run_out() -> None:
    assert diagnose(JobState.RUNNING, NOW).reason is Reason.SILENT


UNSURE = Evidence(witness="registry", holding=Holding.UNKNOWN, at=None)


def test_a_job_is_left_where_age_accuses_it_and_who_was_asked_does_not_know() -> None:
    silent, gone = (
        diagnose(JobState.RUNNING, NOW, words=words)
        for words in ((), (UNSURE, replace(UNSURE, holding=Holding.RELEASED)))
    )

    assert is_undecided(silent, (UNSURE,))
    assert not is_undecided(silent, ())
    assert not is_undecided(gone, (UNSURE,))


def test_a_diagnosis_says_what_witnesses_said_or_that_none_knows_more() -> None:
    gone = replace(UNSURE, holding=Holding.RELEASED)
    said = [
        *(
            diagnose(JobState.RUNNING, NOW, words=(each,)).sentence
            for each in (UNSURE, gone, replace(gone, value="404"))
        ),
        diagnose(JobState.QUEUED, NOW, words=(UNSURE,)).sentence,
    ]

    assert said == [
        "its last sign of life was at 2026-11-23 21:24:13 UTC, and no witness knows more",
        "its worker is gone: registry; its last sign of life was at 2026-11-23 21:24:13 UTC",
        "its worker is gone: registry says 404; its last sign of life was at 2026-11-23 21:24:13 UTC",
        "no worker has claimed it since 2026-11-23 21:24:13 UTC",
    ]


def test_progress_stands_still_since_the_witness_on_progress_says_so() -> None:
    still = Evidence(witness=PROGRESS, holding=Holding.UNKNOWN, at=NOW)

    assert stands_still_since((replace(UNSURE, at=NOW - MOMENT), replace(still, at=None), still)) == NOW
    assert stands_still_since((replace(still, holding=Holding.HELD), UNSURE)) is None


def test_a_worker_that_began_after_a_job_by_more_than_clocks_differ_is_another() -> None:
    taken = job(JobState.RUNNING, started_at=NOW - MOMENT, heartbeat_at=NOW)
    began = (NOW - MOMENT, NOW, NOW + CLOCKS_APART, NOW + CLOCKS_APART + MOMENT)

    assert [held_since(each, taken) for each in began] == [
        *(Holding.HELD, Holding.UNKNOWN, Holding.UNKNOWN, Holding.RELEASED)
    ]


def test_evidence_is_each_time_of_the_row_and_the_lease_that_ran_out() -> None:
    times = {name: NOW - timedelta(hours=n) for n, name in enumerate(("enqueued_at", "scheduled_at", "started_at"))}
    beat = NOW - timedelta(hours=9)
    seen = replace(job(JobState.RUNNING, **times), lease_beat_at=beat)

    assert evidence_of(seen) == (
        *(Evidence(witness=f"row.{name}", holding=Holding.UNKNOWN, at=at) for name, at in times.items()),
        Evidence(witness="lease", holding=Holding.RELEASED, at=beat),
    )
    assert evidence_of(job(JobState.RUNNING, heartbeat_at=NOW)) == (
        Evidence(witness="row.heartbeat_at", holding=Holding.UNKNOWN, at=NOW),
    )
    assert evidence_of(job(JobState.RUNNING)) == ()


def minutes_ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


DRAINING = {"slow": minutes_ago(7), None: minutes_ago(7)}
REACHED = "drains in order and has come to 2026-11-23 21:17:13 UTC"
CHANGED = "changed while it was looked at; ask again"
PAUSED = Waits(reason="paused", value="its queue is paused")
STANDINGS: list[tuple[JobState, dict[str, Any], Standing, str]] = [
    (JobState.SUCCEEDED, {}, Standing.OVER, "succeeded"),
    (JobState.CANCELLED, {"completed_at": minutes_ago(2)}, Standing.OVER, "was cancelled 2 minutes ago"),
    (JobState.RUNNING, {"completed_at": NOW}, Standing.OVER, "says 'running', but it ended just now"),
    (JobState.SCHEDULED, {"scheduled_at": NOW}, Standing.SCHEDULED, "is scheduled"),
    (JobState.SCHEDULED, {"scheduled_at": minutes_ago(-1)}, Standing.SCHEDULED,
     "is scheduled and not due until 2026-11-23 21:25:13 UTC, in 1 minute"),
    (JobState.QUEUED, {}, Standing.UNKNOWN, "is queued, and no time tells since when it waits, so it can't be judged"),
    (JobState.QUEUED, {"enqueued_at": NOW}, Standing.WAITING,
     "is queued and has waited for 0 seconds, of the 5 minutes it may"),
    (JobState.QUEUED, {"enqueued_at": minutes_ago(5)}, Standing.WAITING,
     "is queued and has waited for 5 minutes, of the 5 minutes it may"),
    (JobState.QUEUED, {"enqueued_at": minutes_ago(-1), "scheduled_at": minutes_ago(-1)}, Standing.SCHEDULED,
     "is queued and not due until 2026-11-23 21:25:13 UTC, in 1 minute"),
    (JobState.QUEUED, {"enqueued_at": minutes_ago(6), "queue": "slow"}, Standing.BACKLOG,
     f"is queued and has waited for its turn for 6 minutes: its queue slow {REACHED}"),
    (JobState.QUEUED, {"enqueued_at": minutes_ago(6)}, Standing.BACKLOG,
     f"is queued and has waited for its turn for 6 minutes: its queue {REACHED}"),
    (JobState.QUEUED, {"enqueued_at": minutes_ago(6), "queue": "fast"}, Standing.UNKNOWN, CHANGED),
    (JobState.RUNNING, {}, Standing.UNKNOWN,
     "is running, and no time tells its last sign of life, so it can't be judged"),
    (JobState.RUNNING, {"started_at": minutes_ago(30)}, Standing.BEATING, "is running and was started 30 minutes ago"),
    (JobState.RUNNING, {"started_at": minutes_ago(30), "heartbeat_at": NOW - timedelta(seconds=1)}, Standing.BEATING,
     "is running and beat 1 second ago"),
    (JobState.RUNNING, {"started_at": minutes_ago(30) - MOMENT}, Standing.UNKNOWN, CHANGED),
]  # fmt: skip


@pytest.mark.parametrize(("state", "facts", "standing", "words"), STANDINGS)
def test_why_a_job_is_not_stuck_is_told_by_its_own_times(
    state: JobState, facts: dict[str, Any], standing: Standing, words: str
) -> None:
    row = JobRow(job_id=1, read_at=NOW, status=state.value, job=job(state, **facts))

    assert why_not_stuck(row, replace(LOOK, draining=DRAINING)) == (standing, words)


def test_a_job_that_its_system_or_its_worker_holds_is_told_to_be_held_by_that() -> None:
    old = minutes_ago(60)
    lease = Lease(worker="w", began_at=old, beat_at=NOW, expires_at=NOW + MOMENT)
    waiting = JobRow(job_id=1, read_at=NOW, status="queued", job=job(JobState.QUEUED, enqueued_at=old), waits=PAUSED)
    running = JobRow(job_id=1, read_at=NOW, status="running", job=job(JobState.RUNNING, started_at=old), lease=lease)

    assert why_not_stuck(waiting, LOOK) == (Standing.PAUSED, "is queued and can't be claimed: its queue is paused")
    assert why_not_stuck(running, LOOK) == (Standing.HELD, "is running, and its worker beat just now")
    over = replace(running, lease=replace(lease, expires_at=NOW))
    assert why_not_stuck(over, LOOK) == (Standing.UNKNOWN, CHANGED)


def test_a_lease_holds_until_it_expires() -> None:
    lease = Lease(worker="w", began_at=NOW, beat_at=NOW, expires_at=NOW + MOMENT)

    assert [lease.holds(NOW), lease.holds(NOW + MOMENT)] == [True, False]


# What is remembered.


def test_a_look_remembers_which_attempt_it_saw_and_how_far_that_was() -> None:
    seen = replace(ESSAY, attempt=1, worker="w", progress="x" * LONGEST_PROGRESS)
    others = ({"attempt": 2}, {"worker": "v"}, {"started_at": NOW})
    longer = [Sighted.of(replace(seen, progress="x" * LONGEST_PROGRESS + end)).progress for end in "ab"]

    assert Sighted.of(seen).progress == seen.progress
    assert Sighted.of(replace(seen, heartbeat_at=NOW)) == Sighted.of(seen)
    assert len({Sighted.of(replace(seen, **each)).attempt for each in ({}, *others)}) == 1 + len(others)
    assert longer[0] != longer[1]


def test_a_job_that_showed_any_life_is_stuck_anew() -> None:
    found = [
        FoundStuck.of(suspect, since).mark
        for suspect in (SUSPECT, SUSPECT._replace(state=JobState.QUEUED), SUSPECT._replace(attempt=2))
        for since in (NOW, NOW + MOMENT)
    ]

    assert len(set(found)) == len(found)
    assert FoundStuck.of(SUSPECT._replace(seen=(1,)), NOW).mark == found[0]


# What is done.

POLICY = Policy()
SUSPECT = Suspect(7, JobState.RUNNING, NOW - timedelta(hours=2))
DIAGNOSIS = diagnose(SUSPECT.state, SUSPECT.since)


def test_the_defaults_are_the_contracts() -> None:
    assert Policy() == Policy(
        queued_after=timedelta(minutes=5),
        running_after=timedelta(minutes=30),
        action=Action.MARK_FAILED,
        max_recoveries=3,
        recovery_window=timedelta(hours=72),
        retry_backoff=timedelta(seconds=30),
    )


@given(st.integers(0, 8), st.integers(0, 8))
def test_a_job_is_retried_as_often_as_its_budget_allows_and_then_failed_as_poison(spent: int, budget: int) -> None:
    decision = decide(SUSPECT, DIAGNOSIS, replace(POLICY, max_recoveries=budget), Action.RETRY, spent)

    if spent < budget:
        wait = backoff(SUSPECT.job_id, spent, POLICY.retry_backoff)
        assert decision == Decision(SUSPECT, Action.RETRY, DIAGNOSIS.reason, DIAGNOSIS.sentence, wait)
    else:
        times = "once" if spent == 1 else f"{spent} times"
        sentence = f"{DIAGNOSIS.sentence}; it was recovered {times} within 3 days and got stuck again"
        assert decision == Decision(SUSPECT, Action.MARK_FAILED, Reason.POISON, sentence, timedelta(0))


@pytest.mark.parametrize(
    ("state", "attempt", "begun"),
    [(JobState.RUNNING, None, 1), (JobState.RUNNING, 2, 3), (JobState.QUEUED, 2, 2), (JobState.QUEUED, None, 0)],
)
def test_a_job_is_retried_where_it_was_begun_less_often_than_its_policy_allows(
    state: JobState, attempt: int | None, begun: int
) -> None:
    suspect = SUSPECT._replace(state=state, attempt=attempt)
    done = [
        decide(suspect, DIAGNOSIS, replace(POLICY, max_attempts=most), Action.RETRY, 0) for most in (begun, begun + 1)
    ]

    assert [each.action for each in done] == [Action.MARK_FAILED, Action.RETRY]
    assert [each.reason for each in done] == [DIAGNOSIS.reason] * 2


def test_marking_failed_needs_no_budget() -> None:
    decision = decide(SUSPECT, DIAGNOSIS, POLICY, Action.MARK_FAILED, 99)

    assert decision == Decision(SUSPECT, Action.MARK_FAILED, DIAGNOSIS.reason, DIAGNOSIS.sentence, timedelta(0))


@given(st.integers() | st.text(), st.integers(0, 100), st.integers(1, 7200))
def test_a_wait_is_three_to_five_quarters_of_the_doubled_first_one_but_of_an_hour_at_most(
    job_id: int | str, spent: int, seconds: int
) -> None:
    wait = backoff(job_id, spent, timedelta(seconds=seconds))
    middle = timedelta(seconds=min(seconds * 2**spent, 3600))

    assert middle * 0.75 - MOMENT <= wait <= middle * 1.25 + MOMENT
    assert wait == backoff(job_id, spent, timedelta(seconds=seconds))


def test_a_wait_goes_on_doubling_up_to_an_hour_however_short_the_first() -> None:
    assert backoff(1, 16, timedelta(milliseconds=1)) > timedelta(seconds=49)
    assert backoff(1, 10**6, timedelta(seconds=1)) <= timedelta(minutes=75)


def test_waits_of_one_job_are_spread_anew_each_time() -> None:
    spreads = {backoff(1, spent, timedelta(hours=1)) for spent in range(50)}

    assert len(spreads) == 50


# One decision for many.


@pytest.mark.parametrize("state", ACCUSED_STATES)
def test_a_ruling_says_of_each_job_what_a_decision_on_it_would(state: JobState) -> None:
    ruling = rule(state, LOOK, POLICY, Action.MARK_FAILED)
    suspect = Suspect(1, state, LOOK.horizon(state) - timedelta(days=3, seconds=1))
    decision = decide(suspect, diagnose(state, suspect.since), POLICY, Action.MARK_FAILED, 0)
    since = say_instant(suspect.since).removesuffix(" UTC")

    assert ruling is not None
    assert (ruling.state, ruling.action, ruling.reason) == (state, decision.action, decision.reason)
    assert ruling.sentence.replace(SINCE, since) == decision.sentence
    assert ruling.message.replace(SINCE, since) == decision.error_message(LOOK)
    assert SINCE == "{since}"


@pytest.mark.parametrize("state", ACCUSED_STATES)
def test_no_ruling_decides_on_a_retry_for_each_job_has_a_budget(state: JobState) -> None:
    assert rule(state, LOOK, POLICY, Action.RETRY) is None


def test_a_ruling_says_why_the_jobs_of_all_queues_wait() -> None:
    ruling = rule(JobState.QUEUED, LOOK, POLICY, Action.MARK_FAILED, Reason.UNSERVED)

    assert ruling is not None
    assert ruling.reason is Reason.UNSERVED


# What is kept of a plan.

PLAN = Plan(
    id="a", source="main", made_by="ann", made_at=NOW, expires_at=NOW + MOMENT, terms="t", jobs=1, pages=2
)  # fmt: skip


def test_a_plans_signature_is_of_all_that_was_planned_and_of_nothing_that_became_of_it() -> None:
    changes: list[dict[str, Any]] = [
        *({"id": "b"}, {"source": "other"}, {"made_by": "bob"}, {"made_at": NOW + MOMENT}, {"expires_at": NOW}),
        *({"terms": "u"}, {"jobs": 2}, {"pages": 1}, {"id": "am", "source": "ain"}),
    ]
    signed = {sign_plan(b"key", replace(PLAN, **change)) for change in ({}, *changes)}

    assert len(signed) == 1 + len(changes)
    assert sign_plan(b"key", replace(PLAN, applied_by="eve", is_expired=True)) == sign_plan(b"key", PLAN)
    assert sign_plan(b"other", PLAN) not in signed


def test_a_pages_signature_is_good_for_its_place_in_its_plan_alone() -> None:
    pages = [("a", 1, "x"), ("b", 1, "x"), ("a", 2, "x"), ("a", 1, "y"), ("a1", 1, "x")]

    assert len({sign_page(b"key", *page) for page in pages}) == len(pages)


@pytest.mark.parametrize("hung_after", [None, timedelta(minutes=3, microseconds=7)])
@pytest.mark.parametrize("named", [None, frozenset({JobClass("essay", None), JobClass(None, "slow")})])
def test_a_plan_is_applied_on_the_terms_it_was_made_on(hung_after: Any, named: Any) -> None:  # noqa: ANN401
    look = replace(
        LOOK, queued_after=timedelta(seconds=9, microseconds=1), running_after=timedelta(days=3, microseconds=1),
        classes=named, draining={"q": NOW, None: NOW - MOMENT}, left_alone=frozenset({1, "a"}),
        only=None if named is None else frozenset({2, "b"}), states=(JobState.RUNNING,),
        by_start=hung_after is not None,
    )  # fmt: skip
    scope = PlannedScope(
        look=look, max_recoveries=2, recovery_window=timedelta(hours=5, microseconds=3), hung_after=hung_after
    )
    terms = Terms(look=LOOK, action=Action.RETRY, mapping="m", scopes=(scope,))

    assert read_terms(terms_text(terms)) == terms


def test_a_plan_is_open_until_it_is_applied_or_expires() -> None:
    over = replace(PLAN, is_expired=True)

    assert (PLAN.state, over.state) == (PlanState.OPEN, PlanState.EXPIRED)
    assert replace(over, operation_id=1).state is PlanState.APPLIED


# What a request may ask for.


@pytest.mark.parametrize("minutes", [1, 2, MAX_THRESHOLD_MINUTES])
def test_a_threshold_is_taken_from_a_minute_to_a_year(minutes: int) -> None:
    assert requested_threshold(minutes) == timedelta(minutes=minutes)
    assert timedelta(minutes=MAX_THRESHOLD_MINUTES) == timedelta(days=365)


@pytest.mark.parametrize("minutes", [0, -1, MAX_THRESHOLD_MINUTES + 1, True, 5.0, "5", None])
def test_any_other_threshold_is_refused_by_what_it_is(minutes: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        requested_threshold(minutes)

    assert str(refused.value) == f"A threshold is a whole number of minutes from 1 to 525600, not {minutes!r}."


def test_a_reason_is_one_line_that_the_audit_log_takes() -> None:
    longest = "x" * LONGEST_REASON

    assert requested_reason(longest) == longest
    assert requested_reason("  a\n b\0") == "a b\N{REPLACEMENT CHARACTER}"
    assert requested_reason("lone \ud800") == "lone ?"
    assert [requested_reason(said) for said in (None, "", " \n")] == [None] * 3
    with pytest.raises(InvalidRequestError, match="this one has 501"):
        requested_reason(longest + "x")


def test_an_action_is_asked_for_by_its_name() -> None:
    assert [requested_action(name) for name in ("mark_failed", "retry")] == [Action.MARK_FAILED, Action.RETRY]
    with pytest.raises(InvalidRequestError) as refused:
        requested_action("delete")

    assert str(refused.value) == "There is no action 'delete'; there are: mark_failed, retry."


# What a job is told.


def message(age: timedelta, length: int | None = None, state: JobState = JobState.RUNNING) -> str:
    decision = Decision(Suspect(1, state, NOW - age), Action.MARK_FAILED, Reason.SILENT, "nobody answers")
    return decision.error_message(LOOK, length)


def test_a_message_starts_and_ends_as_the_contract_says() -> None:
    assert message(timedelta(hours=9)) == (
        "Job stuck in running for more than 30 minutes: nobody answers. Automatically cleaned up."
    )
    assert message(timedelta(minutes=6), state=JobState.QUEUED) == (
        "Job stuck in queued for more than 5 minutes: nobody answers. Automatically cleaned up."
    )


def test_a_job_younger_than_its_threshold_is_told_its_own_age() -> None:
    """A lease that ran out convicts at once."""
    assert message(timedelta(minutes=30)).startswith("Job stuck in running for more than 30 minutes: ")
    assert message(timedelta(minutes=30) - MOMENT).startswith("Job stuck in running for 29 minutes: ")


def test_a_message_has_room_in_its_column_and_is_cut_before_its_end() -> None:
    whole = message(timedelta(hours=9))

    for length in range(len(whole) + 3):
        cut = message(timedelta(hours=9), length)
        ending = " Automatically cleaned up."
        assert len(cut) == min(length, len(whole))
        if length >= len(whole):
            assert cut == whole
        elif length > len(ending):
            assert cut == whole[: length - len(ending) - 1] + "…" + ending
        else:
            assert cut == ("…" + ending)[:length]


# What came of it.


def test_a_decision_in_neither_set_lost_its_race() -> None:
    result = BatchResult(applied=frozenset({1}), refused={2: "too long"})

    assert [result.outcome(job_id) for job_id in (1, 2, 3)] == [Outcome.APPLIED, Outcome.FAILED, Outcome.LOST_RACE]


def test_a_tally_counts_what_matches_every_word_given() -> None:
    keys = [
        (state, action, reason, outcome)
        for state in ACCUSED_STATES
        for action in CHANGES
        for reason in (Reason.SILENT, Reason.POISON)
        for outcome in (Outcome.APPLIED, Outcome.LOST_RACE)
    ]
    tally = Tally(counts={key: 2**n for n, key in enumerate(keys)})

    def of(matches: Callable[[tuple[JobState, Action, Reason, Outcome]], bool]) -> int:
        return sum(2**n for n, key in enumerate(keys) if matches(key))

    assert tally.of() == 2**16 - 1
    assert tally.of(state=JobState.QUEUED) == of(lambda key: key[0] is JobState.QUEUED)
    assert tally.of(action=Action.RETRY) == of(lambda key: key[1] is Action.RETRY)
    assert tally.of(reason=Reason.POISON) == of(lambda key: key[2] is Reason.POISON)
    assert tally.of(outcome=Outcome.LOST_RACE) == of(lambda key: key[3] is Outcome.LOST_RACE)
    assert tally.of(state=JobState.RUNNING, outcome=Outcome.APPLIED) == of(
        lambda key: key[0] is JobState.RUNNING and key[3] is Outcome.APPLIED
    )


INTENT = Intent(
    job_id=7,
    state=JobState.RUNNING,
    action=Action.RETRY,
    reason=Reason.SILENT,
    detail="nobody answers",
    pre_image='{"status": "running"}',
    post_image='{"status": "queued"}',
)
ENDED = "the process ended before this was carried out"
MOVED_ON = "the process ended meanwhile, and when looked at again the job had moved on"


def came_to(outcome: Outcome, detail: str, action: Action = Action.RETRY) -> Recovery:
    return Recovery(
        job_id=7,
        state=JobState.RUNNING,
        action=action,
        reason=Reason.SILENT,
        outcome=outcome,
        detail=detail,
        pre_image='{"status": "running"}',
        post_image='{"status": "queued"}' if outcome is Outcome.APPLIED else None,
    )


@pytest.mark.parametrize(
    ("image", "since", "action", "recovery"),
    [
        ('{"status":"queued"}', 0, Action.RETRY, came_to(Outcome.APPLIED, "nobody answers")),
        ('{"status":"running"}', 0, Action.RETRY, came_to(Outcome.FAILED, ENDED)),
        ('{"status":"completed"}', 0, Action.RETRY, came_to(Outcome.APPLIED, "nobody answers")),
        ('{"status":"completed"}', 1, Action.RETRY, came_to(Outcome.LOST_RACE, MOVED_ON)),
        (None, 0, Action.RETRY, came_to(Outcome.LOST_RACE, MOVED_ON)),
        ('{"status":"completed"}', 0, Action.MARK_FAILED, came_to(Outcome.LOST_RACE, MOVED_ON, Action.MARK_FAILED)),
    ],
)
def test_an_intent_is_settled_by_what_stands_in_the_row_and_says_so(
    image: str | None, since: int, action: Action, recovery: Recovery
) -> None:
    assert settled(replace(INTENT, action=action), image, since) == recovery


@pytest.mark.parametrize(
    ("was", "left", "told"),
    [
        ('{"status": "running"}', '{"status": "failed"}', ({"status": "running"}, {"status": "failed"})),
        ('{"status": "running"}', '{"status": "failed", "worker": null}', None),
        (None, '{"status": "failed"}', None),
        ('{"status": "running"}', None, None),
    ],
)
def test_a_recovery_is_undone_by_what_it_overwrote_where_its_record_tells_all_of_it(
    was: str | None, left: str | None, told: object
) -> None:
    undoable = Undoable(
        recovery_id=3, operation_id=1, job_id=7, state=JobState.RUNNING, action=Action.RETRY, reason=Reason.SILENT,
        pre_image=was, post_image=left,
    )  # fmt: skip

    assert images(undoable) == told
    assert [deed(word) for word in ("undo", "retry")] == [Undo.UNDO, Action.RETRY]
    assert undoable.came_to(Outcome.LOST_RACE, "gone").undoes == 3


def test_the_record_of_an_intent_says_what_was_known_last() -> None:
    """What was overwritten is what was read under the lock, where that is known."""
    as_intended = INTENT.came_to(Outcome.APPLIED)
    as_found = INTENT.came_to(Outcome.FAILED, "too long", '{"status": "running", "attempt": 2}')

    assert (as_intended.detail, as_intended.pre_image) == ("nobody answers", '{"status": "running"}')
    assert (as_found.detail, as_found.pre_image) == ("too long", '{"status": "running", "attempt": 2}')
    assert replace(INTENT, undoes=9).came_to(Outcome.APPLIED).undoes == 9


def test_a_stop_tells_how_many_jobs_stay_recovered() -> None:
    stopped = RecoveryStoppedError("the database went away", recovered=3)

    assert (str(stopped), stopped.recovered) == ("the database went away", 3)


# Who may.


def test_each_role_may_what_those_before_it_may_and_no_more() -> None:
    order = [Role.VIEWER, Role.OPERATOR, Role.ADMIN]

    allowed = {(role, needed) for role in Role for needed in Role if role.allows(needed)}

    assert allowed == {(role, needed) for place, role in enumerate(order) for needed in order[: place + 1]}


# Who works.


def test_a_worker_is_told_from_the_process_that_had_its_number_before() -> None:
    worker = WorkerIdentity(host="app-1", pid=42, boot_id="b0")

    assert worker.name == "app-1:42:b0"
    assert replace(worker, boot_id="b1").name != worker.name


def test_a_lease_outlives_several_lost_beats() -> None:
    """L5: where both are as long, one beat that is late is a death."""
    assert LEASE >= 5 * BEAT_EVERY > timedelta(0)


# How it is said.


@pytest.mark.parametrize(
    ("duration", "said"),
    [
        (timedelta(0), "0 seconds"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=59, microseconds=999_999), "59 seconds"),
        (timedelta(seconds=60), "1 minute"),
        (timedelta(seconds=61), "1 minute 1 second"),
        (timedelta(minutes=2, seconds=59), "2 minutes 59 seconds"),
        (timedelta(minutes=9, seconds=59), "9 minutes 59 seconds"),
        (timedelta(minutes=10, seconds=59), "10 minutes"),
        (timedelta(minutes=59, seconds=59), "59 minutes"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=1, minutes=1, seconds=59), "1 hour 1 minute"),
        (timedelta(hours=23, minutes=59, seconds=59), "23 hours 59 minutes"),
        (timedelta(days=1), "1 day"),
        (timedelta(days=1, minutes=59), "1 day"),
        (timedelta(days=3, hours=4, minutes=5), "3 days 4 hours"),
        (timedelta(days=400, hours=1), "400 days 1 hour"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(duration: timedelta, said: str) -> None:
    assert say_duration(duration) == said


def test_an_instant_is_said_to_the_second() -> None:
    assert say_instant(NOW) == "2026-11-23 21:24:13 UTC"
    assert say_instant(NOW.replace(microsecond=0)) == "2026-11-23 21:24:13 UTC"
