"""Alerts: what events open, repeat and resolve, as it is kept in the ledger for however many replicas and restarts."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import time_machine
from sqlalchemy.util import await_only

from tests.jobs import make_tables
from tests.servers import EACH_KIND
from unstick.domain.alert import (
    DIGEST_FROM,
    Alert,
    AlertRules,
    Change,
    Finding,
    Happened,
    Heard,
    Pending,
    Subject,
    Trouble,
    choose,
    judge,
    retry_after,
)
from unstick.domain.diagnosis import STUCK, Reason
from unstick.domain.events import (
    OTHERS,
    AlertChanged,
    BrakeReleased,
    Held,
    ObservationFailed,
    Observed,
    PipelineEvent,
    QueueReason,
    SweepFailed,
    Swept,
    Trigger,
)
from unstick.domain.hearing import heard
from unstick.domain.recovery import Action, Tally
from unstick.domain.retention import Retention
from unstick.sql.alerts import SqlAlerts
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.retention import SqlPruner
from unstick.sql.tables import alerts, audit, couriers, notifications
from unstick.telemetry.alerts import AlertListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.ports import Claim

DATABASES = EACH_KIND

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
RULES = AlertRules(cool_down=4 * HOUR)
MAIL = Subject("main", "mail", Reason.NEVER_CLAIMED)
FOUND, OPENED, AGAIN, REOPENED, RESOLVED = Happened


def finding(jobs: int = 3) -> dict[Subject, Finding]:
    return {MAIL: Finding(jobs, f"{jobs} jobs")}


def saw(found: Mapping[Subject, Finding] | None = None, *, observation: bool = True) -> Heard:
    return Heard(source="main", found=found or {}, speaks_of=STUCK, observation=observation)


def open_alert(jobs: int = 3, **more: Any) -> Alert:  # noqa: ANN401
    facts: dict[str, Any] = {
        "id": "a" * 32, "subject": MAIL, "opened_at": NOON, "seen_at": NOON, "jobs": jobs, "sentence": "3 jobs",
        "notified_at": NOON, "notified_jobs": jobs,
    }  # fmt: skip
    return Alert(**facts | more)


# What an event makes of the alerts


@pytest.mark.parametrize(
    ("last", "found", "after", "first", "happened", "told"),
    [
        (None, 3, 0, False, OPENED, True),
        (None, 3, 0, True, FOUND, False),
        (open_alert(notified_at=None, notified_jobs=0), 3, 1, False, OPENED, True),
        (open_alert(notified_at=None, notified_jobs=0), None, 1, False, RESOLVED, False),
        (open_alert(), 3, 1, False, None, False),
        (open_alert(), 3, 239, False, None, False),
        (open_alert(), 3, 240, False, AGAIN, True),
        (open_alert(), None, 1, False, RESOLVED, True),
        (open_alert(10), 19, 1, False, None, False),
        (open_alert(10), 20, 1, False, AGAIN, True),
        (open_alert(100), 115, 1, False, None, False),
        (open_alert(1), 10, 1, False, None, False),
        (open_alert(1), 11, 1, False, AGAIN, True),
        (open_alert(resolved_at=NOON + MINUTE), 3, 239, False, REOPENED, False),
        (open_alert(resolved_at=NOON + MINUTE), 3, 240, False, AGAIN, True),
        (open_alert(resolved_at=NOON + MINUTE), 3, 241, False, OPENED, True),
        (open_alert(resolved_at=NOON + MINUTE), 30, 2, False, AGAIN, True),
        (open_alert(resolved_at=NOON + MINUTE, notified_at=None), 3, 2, False, OPENED, True),
        (open_alert(resolved_at=NOON + MINUTE), None, 2, False, None, False),
    ],
    ids=[
        "new", "new at the first look", "still there at the second", "gone before it was told", "still there",
        "just within the cool-down", "after the cool-down", "gone", "nearly doubled", "doubled",
        "many more, but of many", "ten times, but few",
        "by ten more", "flapping", "flapping after the cool-down", "back after it was over for long", "back, and grown",
        "back, and never told", "long gone",
    ],
)  # fmt: skip
def test_an_alert_is_told_when_it_begins_when_it_lasts_or_grows_and_when_it_is_over(
    last: Alert | None, found: int | None, after: int, first: bool, happened: Happened | None, told: bool
) -> None:
    known = [] if last is None else [last]
    said = saw(None if found is None else finding(found))
    judged = judge(known, said, NOON + after * MINUTE, RULES, first=first)

    assert [change.what for change in judged.changes] == ([] if happened is None else [happened])
    assert [change.is_told for change in judged.changes] == ([] if happened is None else [told])


def test_a_brake_that_holds_again_is_told_however_soon_that_is() -> None:
    """A person released it, and thinks that all is well."""
    subject = Subject("main", None, Trouble.BRAKE)
    held = Heard(source="main", found={subject: Finding(90, "held")}, speaks_of={Trouble.BRAKE})
    released = heard(BrakeReleased(source="main", actor="ann", suspects=90))
    assert released is not None
    [first] = judge([], held, NOON, RULES, first=False).alerts
    [over] = judge([first], released, NOON + MINUTE, RULES, first=False).changes
    again = judge([over.alert], held, NOON + 2 * MINUTE, RULES, first=False)

    assert (over.what, over.is_told) == (RESOLVED, True)
    assert [(change.what, change.is_told) for change in again.changes] == [(OPENED, True)]
    assert again.alerts[0].id != first.id


def test_one_that_comes_back_within_the_cool_down_is_the_same_alert_and_another_one_after() -> None:
    over = open_alert(resolved_at=NOON)
    [same] = judge([over], saw(finding()), NOON + 3 * HOUR, RULES, first=False).alerts
    [another] = judge([over], saw(finding()), NOON + 5 * HOUR, RULES, first=False).alerts

    assert (same.id, same.opened_at, same.seen_at, same.resolved_at) == (over.id, NOON, NOON + 3 * HOUR, None)
    assert another.id != over.id
    assert another.opened_at == NOON + 5 * HOUR


def test_what_an_event_says_nothing_of_stays_as_it_is() -> None:
    """A failed sweep knows nothing of stuck jobs, and an observation nothing of sweeps."""
    failed = SweepFailed(source="main", took=MINUTE, trigger=Trigger.UNATTENDED, actor="runner", problem="boom")
    said = heard(failed)
    assert said is not None
    judged = judge([open_alert()], said, NOON, RULES, first=False)

    assert [change.alert.subject.what for change in judged.changes] == [Trouble.SWEEP_FAILED]
    [failing] = judged.alerts
    said = heard(observed())
    assert said is not None
    assert judge([failing], said, NOON, RULES, first=False).changes == ()


def observed(
    queues: Mapping[str, int] | None = None,
    *,
    late: int = 0,
    held: Held | None = None,
    exact: bool = True,
    **stuck: int,
) -> Observed:
    """An observation that found so many jobs of each queue unclaimed."""
    return Observed(
        source="main", at=NOON, took=MINUTE, open_jobs={}, late_finishes=late, held=held, exact=exact,
        stuck={QueueReason(queue, Reason.NEVER_CLAIMED): jobs for queue, jobs in {**(queues or {}), **stuck}.items()},
    )  # fmt: skip


def swept(held: Held | None = None, trigger: Trigger = Trigger.UNATTENDED) -> Swept:
    return Swept(
        source="main", at=NOON, took=MINUTE, trigger=trigger, actor="runner", action=Action.MARK_FAILED,
        tally=Tally(counts={}), operation_id=None, held=held,
    )  # fmt: skip


HELD = Held(since=NOON, suspects=120, cause="an outage")
FAILED = SweepFailed(source="main", took=MINUTE, trigger=Trigger.UNATTENDED, actor="runner", problem="boom")


@pytest.mark.parametrize(
    ("event", "found", "over"),
    [
        (observed(mail=3, web=1), {("mail", "never_claimed"), ("web", "never_claimed")}, {"unobserved", "brake"}),
        (observed(), set(), {"silent", "hung", "unobserved", "late_finishes", "brake"}),
        (observed(late=2), {(None, "late_finishes")}, {"brake"}),
        (observed(held=HELD), {(None, "brake")}, {"late_finishes"}),
        (swept(), set(), {"sweep_failed", "brake"}),
        (swept(HELD), {(None, "brake")}, {"sweep_failed"}),
        (FAILED, {(None, "sweep_failed")}, set()),
        (ObservationFailed(source="main", problem="away"), {(None, "unobserved")}, set()),
    ],
)
def test_each_event_tells_of_what_it_knows(
    event: PipelineEvent, found: set[tuple[str | None, str]], over: set[str]
) -> None:
    said = heard(event)
    assert said is not None
    assert {(subject.queue, subject.what.value) for subject in said.found} == found
    assert over <= {what.value for what in said.speaks_of}
    assert all(sentence for _, sentence in said.found.values())


@pytest.mark.parametrize("event", [swept(HELD, Trigger.REQUESTED), replace(FAILED, trigger=Trigger.REQUESTED)])
def test_what_a_person_asked_for_raises_no_alert_for_that_person_was_told(event: PipelineEvent) -> None:
    assert heard(event) is None


def test_where_not_every_witness_could_be_asked_nothing_is_taken_for_over() -> None:
    said = heard(observed(exact=False, web=1))
    assert said is not None
    judged = judge([open_alert()], said, NOON, RULES, first=False)

    assert [(change.what, change.alert.subject.queue) for change in judged.changes] == [(OPENED, "web")]
    assert judged.alerts[0].sentence.startswith("at least 1 job of queue 'web'")


def test_where_not_every_queue_is_told_apart_one_that_is_not_named_is_not_taken_for_over() -> None:
    said = heard(observed({OTHERS: 5}, web=1))
    assert said is not None
    silent = open_alert(subject=Subject("main", "mail", Reason.SILENT))
    judged = judge([open_alert(), silent], said, NOON, RULES, first=False)

    assert [change.alert.subject for change in judged.changes if change.what is RESOLVED] == [silent.subject]


def test_one_observation_that_fails_is_a_hiccup_and_two_in_a_row_are_told() -> None:
    said = heard(ObservationFailed(source="main", problem="away"))
    assert said is not None
    [first] = judge([], said, NOON, RULES, first=False).changes
    [second] = judge([first.alert], said, NOON, RULES, first=False).changes

    assert (first.what, first.is_told) == (FOUND, False)
    assert (second.what, second.is_told) == (OPENED, True)


# What of it is told, when its turn comes


def pending(number: int, what: Happened, delivery: str | None = None, alert: str = "a") -> Pending:
    return Pending(number, Change(what, open_alert(id=alert)), delivery)


@pytest.mark.parametrize(
    ("due", "still_open", "told", "chosen", "stale"),
    [
        ([(1, OPENED)], True, [], [1], []),
        ([(1, OPENED)], False, [], [], [1]),
        ([(1, OPENED), (2, RESOLVED)], False, [], [], [1, 2]),
        ([(2, RESOLVED)], False, [(1, OPENED)], [2], []),
        ([(2, RESOLVED)], False, [(1, OPENED), (2, RESOLVED)], [2], []),
        ([(3, RESOLVED)], False, [(1, OPENED), (2, RESOLVED)], [], [3]),
        ([(2, RESOLVED)], True, [(1, OPENED)], [], [2]),
        ([(3, AGAIN), (4, RESOLVED)], False, [(1, OPENED)], [4], [3]),
        ([(1, OPENED), (2, AGAIN)], True, [], [1], [2]),
    ],
    ids=[
        "it began", "it is over before it was told", "all of it is", "it is over", "its end is tried again",
        "its end was told", "it is back before its end was told", "it lasted, and is over", "it began, and lasts",
    ],
)  # fmt: skip
def test_what_is_told_is_what_is_so_now(
    due: Sequence[tuple[int, Happened]],
    still_open: bool,
    told: list[tuple[int, Happened]],
    chosen: list[int],
    stale: list[int],
) -> None:
    choice = choose([pending(*each) for each in due], {"a"} if still_open else set(), {"a": told})
    assert [each.id for each in choice.chosen] == chosen
    assert [each.id for each in choice.stale] == stale


@pytest.mark.parametrize(("due", "at_once"), [(1, 1), (DIGEST_FROM - 1, 1), (DIGEST_FROM, DIGEST_FROM), (100, 100)])
def test_few_changes_are_told_one_by_one_and_many_together(due: int, at_once: int) -> None:
    changes = [pending(number, OPENED, alert=str(number)) for number in range(due)]
    assert len(choose(changes, {str(number) for number in range(due)}, {}).chosen) == at_once


def test_what_was_tried_in_one_message_is_tried_again_in_that_one() -> None:
    changes = [pending(number, OPENED, "m" if number < 3 else None, str(number)) for number in range(20)]
    chosen = choose(changes, {str(number) for number in range(20)}, {}).chosen
    assert [each.id for each in chosen] == [0, 1, 2]


def test_waits_grow_to_half_an_hour_and_a_receiver_may_ask_for_longer_but_not_for_ever() -> None:
    waits = [retry_after(attempts, None, 0).total_seconds() for attempts in (1, 2, 3, 10, 10_000)]
    assert waits == [10, 20, 40, 1800, 1800]
    assert retry_after(1, None, 1) == timedelta(seconds=12.5)
    assert retry_after(1, 5 * MINUTE, 0) == 5 * MINUTE
    assert retry_after(3, timedelta(seconds=1), 0) == timedelta(seconds=40)
    assert retry_after(1, timedelta(days=9), 0) == 2 * HOUR


# In the ledger


@dataclass
class Desk:
    """A replica's view of the alerts in a database, through connections of its own."""

    engine: AsyncEngine
    events: list[AlertChanged] = field(default_factory=list)
    woken: int = 0

    @property
    def alerts(self) -> SqlAlerts:
        return SqlAlerts(EngineConnections(self.engine))

    def listener(self, *channels: str, rules: AlertRules = RULES) -> AlertListener:
        """A process that just started: it remembers nothing."""

        async def tell(event: PipelineEvent) -> None:
            assert isinstance(event, AlertChanged)
            self.events.append(event)

        def wake() -> None:
            self.woken += 1

        return AlertListener(self.alerts, rules, channels or ("ops",), tell=tell, wake=wake)

    async def hear(self, *events: PipelineEvent) -> list[str]:
        """Hear events, each in a process that just started, and return what happened to alerts."""
        before = len(self.events)
        for event in events:
            await self.listener().hear(event)
        return [event.what.value for event in self.events[before:]]

    async def deliver_all(self, channel: str = "ops") -> list[list[tuple[str, str | None]]]:
        """Take and deliver all that is due, and return what each message told."""
        told = []
        while (claim := await self.claim(channel)) is not None:
            await self.alerts.delivered(claim)
            told.append([(change.what.value, change.alert.subject.queue) for change in claim.delivery.changes])
        return told

    async def claim(self, channel: str = "ops", holder: str = "me") -> Claim | None:
        return await self.alerts.claim(channel, ["main"], holder, MINUTE)

    async def claimed(self, channel: str = "ops", holder: str = "me") -> Claim:
        claim = await self.claim(channel, holder)
        assert claim is not None
        return claim

    async def back_then(self, table: sa.Table, ago: timedelta, *columns: str) -> None:
        """Have times lie further back, as if so much had passed since by the database's clock."""
        async with self.engine.begin() as connection:
            for row in (await connection.execute(sa.select(table))).mappings().all():
                moved = {name: row[name] - ago for name in columns if row[name] is not None}
                key = next(iter(table.primary_key))
                if moved:
                    await connection.execute(sa.update(table).where(key == row[key.name]).values(moved))

    async def outbox(self) -> list[sa.Row[Any]]:
        async with self.engine.connect() as connection:
            return list(await connection.execute(sa.select(notifications).order_by(notifications.c.id)))


@asynccontextmanager
async def open_desk(database: Database) -> AsyncIterator[Desk]:
    engine = open_engine(database.url, create=True)
    await make_tables(engine)
    try:
        yield Desk(engine)
    finally:
        await engine.dispose()


@asynccontextmanager
async def watched_for_a_while(database: Database) -> AsyncIterator[Desk]:
    """A source whose first observation is over, and found nothing."""
    async with open_desk(database) as desk:
        await desk.hear(observed())
        yield desk


async def test_one_episode_is_told_twice_however_many_observations_restarts_and_replicas_lie_between(
    database: Database,
) -> None:
    async with watched_for_a_while(database) as desk, open_desk(database) as other:
        for _ in range(3):
            await desk.hear(observed(mail=3))
            await other.hear(observed(mail=4))
        told = await desk.deliver_all() + await other.deliver_all()
        await other.hear(observed(mail=3))
        for _ in range(3):
            await other.hear(observed())
            await desk.hear(observed())
        told += await other.deliver_all() + await desk.deliver_all()

    assert [event.what for event in desk.events + other.events] == [OPENED, RESOLVED]
    assert told == [[("opened", "mail")], [("resolved", "mail")]]
    assert desk.woken + other.woken == 2


async def test_what_is_over_before_anybody_was_told_is_not_told_at_all(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3), observed())
        assert await desk.deliver_all() == []
        assert await desk.outbox() == []


async def test_two_replicas_that_find_the_same_at_once_open_one_alert(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        listeners = [desk.listener() for _ in range(4)]
        await asyncio.gather(*(each.hear(observed(mail=3)) for each in listeners))
        rows = await desk.outbox()

    assert [event.what for event in desk.events] == [OPENED]
    assert len(rows) == 1


async def test_replicas_that_find_what_is_new_of_two_sources_at_once_do_not_wait_for_each_other(
    mariadb_database: Database,
) -> None:
    """MariaDB and MySQL would lock the gap where both insert, and one of the two would be rolled back."""
    both_have_read = asyncio.Barrier(2)

    def read(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM unstick_alerts" in statement:
            await_only(both_have_read.wait())

    async with watched_for_a_while(mariadb_database) as desk:
        said = [replace(saw(finding()), source=source) for source in ("one", "two")]
        said = [
            replace(each, found={subject._replace(source=each.source): was for subject, was in each.found.items()})
            for each in said
        ]
        sa.event.listen(desk.engine.sync_engine, "after_cursor_execute", read)
        changes = await asyncio.gather(*(desk.alerts.take_in(each, RULES, ["ops"]) for each in said))
        sa.event.remove(desk.engine.sync_engine, "after_cursor_execute", read)
    assert [[change.what for change in each] for each in changes] == [[FOUND], [FOUND]]


async def test_the_first_observation_of_a_source_is_quiet_and_the_second_tells_what_is_still_there(
    database: Database,
) -> None:
    async with open_desk(database) as desk:
        assert await desk.hear(observed(mail=3, web=1)) == ["found", "found"]
        assert await desk.deliver_all() == []
        assert sorted(await desk.hear(observed(mail=3))) == ["opened", "resolved"]
        assert await desk.deliver_all() == [[("opened", "mail")]]


async def test_after_a_restart_of_the_watch_the_first_observation_is_not_quiet_again(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        pass
    async with open_desk(database) as desk:
        assert await desk.hear(observed(mail=3)) == ["opened"]


async def test_the_cool_down_goes_by_the_databases_clock_and_not_by_ours(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        with time_machine.travel(datetime.now(UTC) + timedelta(days=2), tick=True):
            assert await desk.hear(observed(mail=3)) == []
        await desk.back_then(alerts, 4 * HOUR, "notified_at")
        assert await desk.hear(observed(mail=3)) == ["again"]
        assert await desk.hear(observed(mail=3)) == []


async def test_one_that_flaps_is_told_once_and_its_end_once(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        told = await desk.deliver_all()
        for _ in range(5):
            await desk.hear(observed())
            told += await desk.deliver_all()
            await desk.hear(observed(mail=3))
            told += await desk.deliver_all()
        await desk.hear(observed())
        told += await desk.deliver_all()

    assert told == [[("opened", "mail")], [("resolved", "mail")]]


async def test_one_that_is_back_before_its_end_was_told_is_not_told_to_be_over(database: Database) -> None:
    """And when it is over at last, that is told."""
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        await desk.deliver_all()
        await desk.hear(observed(), observed(mail=3))
        assert await desk.deliver_all() == []
        await desk.hear(observed())
        assert await desk.deliver_all() == [[("resolved", "mail")]]


async def test_a_hundred_queues_at_once_are_one_message(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed({f"q{number}": 1 for number in range(100)}))
        [message] = await desk.deliver_all()
    assert len(message) == 100


async def test_each_channel_is_told_whatever_became_of_the_others(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.listener("ops", "mail").hear(observed(mail=3))
        assert await desk.deliver_all("ops") == [[("opened", "mail")]]
        await desk.listener("ops", "mail").hear(observed())
        assert await desk.deliver_all("ops") == [[("resolved", "mail")]]
        assert await desk.deliver_all("mail") == []


async def test_a_message_is_claimed_by_one_and_by_another_only_when_the_claim_has_run_out(database: Database) -> None:
    """Who crashed after it was sent, and before that could be recorded, has it sent again under the same id."""
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        first = await desk.claimed(holder="crashes")
        assert await desk.claim(holder="other") is None
        assert await desk.claim(holder="crashes") is None
        await desk.back_then(couriers, HOUR, "expires_at")
        again = await desk.claimed(holder="other")

    assert (again.delivery.id, again.delivery.changes) == (first.delivery.id, first.delivery.changes)
    assert (first.attempts, again.attempts) == (1, 2)


async def test_of_several_couriers_at_once_one_gets_the_message(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        claims = await asyncio.gather(*(desk.claim(holder=f"courier {number}") for number in range(4)))
    assert len([claim for claim in claims if claim is not None]) == 1


async def test_whoever_lost_a_message_to_another_records_no_failure_of_it(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        slow = await desk.claimed(holder="slow")
        await desk.back_then(couriers, HOUR, "expires_at")
        other = await desk.claimed(holder="other")
        await desk.alerts.failed(slow, HOUR, "late", may_have_arrived=False, others_wait=True)
        assert await desk.claim(holder="third") is None  # the other's claim still holds
        [row] = await desk.outbox()
        assert row.told_at is not None
        assert row.next_try_at < row.at + MINUTE
        await desk.alerts.delivered(other)
        assert [row.outcome for row in await desk.outbox()] == ["delivered"]


@pytest.mark.parametrize("may_have_arrived", [False, True])
async def test_the_end_of_an_alert_is_told_where_its_beginning_may_have_arrived(
    database: Database, may_have_arrived: bool
) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        claim = await desk.claimed()
        await desk.alerts.failed(claim, timedelta(0), "no answer", may_have_arrived=may_have_arrived, others_wait=False)
        await desk.hear(observed())
        told = await desk.deliver_all()
    assert told == ([[("resolved", "mail")]] if may_have_arrived else [])


async def test_a_failure_has_the_channels_other_messages_wait_where_they_would_fail_too(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3, web=3, pdf=3))
        await desk.alerts.failed(await desk.claimed(), HOUR, "400", may_have_arrived=False, others_wait=False)
        await desk.alerts.failed(await desk.claimed(), HOUR, "503", may_have_arrived=False, others_wait=True)
        assert await desk.claim() is None
        await desk.back_then(notifications, HOUR, "next_try_at")
        assert len(await desk.deliver_all()) == 3


async def test_the_end_of_what_may_have_arrived_is_told_even_when_its_turn_comes_later(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        claim = await desk.claimed()
        await desk.alerts.failed(claim, timedelta(0), "no answer", may_have_arrived=True, others_wait=False)
        await desk.hear(observed())
        later = (await desk.outbox())[-1].next_try_at + HOUR
        async with desk.engine.begin() as connection:
            ended = notifications.c.change == "resolved"
            await connection.execute(sa.update(notifications).where(ended).values(next_try_at=later))
        assert await desk.deliver_all() == []
        await desk.back_then(notifications, HOUR, "next_try_at")
        assert await desk.deliver_all() == [[("resolved", "mail")]]


async def test_what_could_not_be_told_for_a_day_is_given_up_and_that_is_in_the_audit_log(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        claim = await desk.claimed()
        assert not await desk.alerts.failed(claim, timedelta(0), "503", may_have_arrived=False, others_wait=True)
        await desk.back_then(notifications, timedelta(days=1), "at", "next_try_at")
        claim = await desk.claimed()
        assert await desk.alerts.failed(claim, timedelta(0), "503", may_have_arrived=False, others_wait=True)
        assert await desk.claim() is None
        [entry] = await audited(desk)

    assert (entry.call, entry.outcome, entry.actor) == ("alerts.notify", "failed", "courier")
    assert entry.parameters == {"channel": "ops", "delivery": claim.delivery.id}
    assert entry.result == {"changes": 1, "attempts": 2, "problem": "503"}


async def test_what_is_told_in_one_message_with_older_news_is_not_given_up_with_it(database: Database) -> None:
    """Each change has a day of its own."""
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed({f"q{number}": 1 for number in range(DIGEST_FROM)}))
        async with desk.engine.begin() as connection:
            oldest = sa.select(sa.func.min(notifications.c.id)).scalar_subquery()
            row = (await connection.execute(sa.select(notifications).where(notifications.c.id == oldest))).one()
            older = sa.update(notifications).where(notifications.c.id == row.id)
            await connection.execute(older.values(at=row.at - timedelta(days=1)))
        claim = await desk.claimed()
        assert len(claim.delivery.changes) == DIGEST_FROM
        assert await desk.alerts.failed(claim, timedelta(0), "503", may_have_arrived=False, others_wait=True)
        [message] = await desk.deliver_all()
        [entry] = await audited(desk)

    assert len(message) == DIGEST_FROM - 1
    assert entry.result["changes"] == 1


async def audited(desk: Desk) -> list[sa.Row[Any]]:
    async with desk.engine.connect() as connection:
        return list(await connection.execute(sa.select(audit)))


async def test_what_no_courier_takes_for_two_days_is_given_up_and_what_is_long_done_forgotten(
    database: Database,
) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3))
        await desk.back_then(notifications, timedelta(days=2), "at")
        await desk.alerts.tidy(["other"])
        assert [row.outcome for row in await desk.outbox()] == [None]
        await desk.alerts.tidy(["main"])
        assert [row.outcome for row in await desk.outbox()] == ["gave_up"]
        assert len(await audited(desk)) == 1

        await desk.back_then(notifications, timedelta(days=31), "done_at")
        await desk.alerts.tidy(["main"])
        assert len(await desk.outbox()) == 1  # its alert is open, and its end will ask what was told
        await desk.hear(observed())
        await desk.alerts.tidy(["main"])
        assert [row.change for row in await desk.outbox()] == ["resolved"]


async def test_alerts_that_are_long_over_are_forgotten_and_open_ones_never(database: Database) -> None:
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3), observed())
        await desk.hear(observed(web=1))
        await desk.back_then(alerts, timedelta(days=8), "opened_at", "seen_at", "notified_at", "resolved_at")
        async for _ in SqlPruner(EngineConnections(desk.engine)).prune(Retention()):
            pass
        async with desk.engine.connect() as connection:
            assert list(await connection.scalars(sa.select(alerts.c.queue))) == ["web"]


async def test_open_alerts_are_listed_the_oldest_first_and_as_they_were_last_seen(database: Database) -> None:
    name = "a queue with a very long name, and a \N{SNOWMAN} " * 50
    async with watched_for_a_while(database) as desk:
        await desk.hear(observed(mail=3), observed({name: 1}, mail=5), observed({name: 1}, mail=6))
        standing = await desk.alerts.standing("main")

    assert [(alert.subject.queue, alert.jobs, alert.notified_jobs) for alert in standing] == [
        ("mail", 6, 3),
        (name, 1, 1),
    ]
    assert (
        standing[0].sentence
        == "6 jobs of queue 'mail' of source 'main' are stuck (never_claimed: no worker has claimed it)."
    )


async def test_a_ledger_that_is_away_is_said_in_the_log_and_the_next_observation_makes_up_for_it(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine("postgresql://nobody@127.0.0.1:1/nowhere")
    await Desk(engine).hear(observed(mail=3))
    await engine.dispose()
    assert "No alert of source 'main' could be kept" in caplog.text

    async with watched_for_a_while(sqlite_database) as desk:
        assert await desk.hear(observed(mail=3)) == ["opened"]
