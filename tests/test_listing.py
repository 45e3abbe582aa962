"""Stuck jobs by a filter, plans of a filter, and the record read back, on a database of each kind."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import InvalidRequestError
from unstick.domain.evidence import Holding
from unstick.domain.filter import StuckFilter
from unstick.domain.policy import Policy, Rule
from unstick.domain.record import EntryFilter
from unstick.domain.recovery import Action
from unstick.pipeline import listing
from unstick.pipeline.applying import ApplyOrder, apply_plan
from unstick.pipeline.listing import list_stuck
from unstick.pipeline.records import export_entries, over_time, read_entries, tell_operation
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Planning, Watched
from unstick.sql import records
from unstick.sql.connections import EngineConnections
from unstick.sql.plans import SqlPlans
from unstick.sql.records import SqlRecords
from unstick.testing.witnesses import FakeWitness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database

DATABASES = EACH_KIND
ALL = StuckFilter()
HELD: dict[int | str, Holding] = {2: Holding.HELD, 9: Holding.HELD, **dict.fromkeys((5, 6, 8), Holding.RELEASED)}
RULES = Policy(rules=(Rule(kind="thesis.*", action=Action.RETRY),))


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    table = jobs_table(sa.Column("queue", sa.String(50)), sa.Column("worker", sa.String(50)))
    jobs = declared(table, columns=COLUMNS | {"queue": "queue", "worker": "worker"})
    bench = await open_bench(database, table, jobs)
    yield bench
    await bench.close()


def kept(bench: SqlBench, policy: Policy | None = None) -> Watched:
    connections = EngineConnections(bench.engine)
    planning = Planning(plans=SqlPlans(connections), key=lambda: b"k" * 32)
    return replace(bench.watched(policy), records=SqlRecords(connections), planning=planning)


async def fill(bench: SqlBench) -> None:
    """Ten jobs, 60 to 69 minutes silent, running and queued by turns; odd ones are of a thesis."""
    now = await bench.source.clock()
    for number in range(10):
        at = bench.store(now - timedelta(minutes=60 + number))
        begun = {"status": "running", "started_at": at, "worker": f"w-{number}"} if number % 3 else {"status": "queued"}
        values = {"created_at": at, "job_type": "thesis.plan" if number % 2 else "essay", "queue": f"q{number % 2}"}
        await bench.put({"started_at": None, **values, **begun})


async def listed(
    watched: Watched, wanted: StuckFilter, *, limit: int = 50, newest_first: bool = False
) -> list[int | str]:
    """Return the ids of all pages."""
    found: list[int | str] = []
    cursor: str | None = None
    while True:
        page = await list_stuck(watched, wanted, limit=limit, cursor=cursor, newest_first=newest_first)
        found += [each.finding.job.id for each in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_pages_of_any_size_list_every_stuck_job_once_in_either_order(bench: SqlBench) -> None:
    await fill(bench)
    for policy in (Policy(), RULES):
        for limit in (1, 3, 10):
            assert await listed(kept(bench, policy), ALL, limit=limit) == list(range(10, 0, -1))
            assert await listed(kept(bench, policy), ALL, limit=limit, newest_first=True) == list(range(1, 11))


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (StuckFilter(kind="thesis.*"), [10, 8, 6, 4, 2]),
        (StuckFilter(queue="q0"), [9, 7, 5, 3, 1]),
        (StuckFilter(reason=Reason.NEVER_CLAIMED), [10, 7, 4, 1]),
        (StuckFilter(reason=Reason.SILENT, kind="essay"), [9, 5, 3]),
        (StuckFilter(reason=Reason.HUNG), []),
        (StuckFilter(older_than=timedelta(minutes=66, seconds=30)), [10, 9, 8]),
        (StuckFilter(text="W-7"), [8]),
        (StuckFilter(text="nobody"), []),
        (StuckFilter(kind="none"), []),
    ],
)
async def test_a_filter_finds_what_it_says_and_a_plan_of_it_is_about_the_same_jobs(
    bench: SqlBench, wanted: StuckFilter, ids: list[int]
) -> None:
    await fill(bench)
    watched = kept(bench)
    assert await listed(watched, wanted, limit=2) == ids
    if wanted.text is not None:
        return
    order = SweepOrder(actor="ada", dry_run=True, plan=True, only=wanted)
    plan = (await sweep(watched, order)).plan
    assert plan is not None
    assert plan.jobs == len(ids)
    await apply_plan(watched, ApplyOrder(plan_id=plan.id, actor="ada"))
    assert [row["id"] for row in await bench.rows() if row["status"] == "failed"] == sorted(ids)


async def test_only_a_plan_can_be_of_some_jobs_and_of_no_text(bench: SqlBench) -> None:
    await fill(bench)
    for order in (
        SweepOrder(actor="ada", only=StuckFilter(kind="essay")),
        SweepOrder(actor="ada", dry_run=True, plan=True, only=StuckFilter(text="w-1")),
    ):
        with pytest.raises(InvalidRequestError, match="Only a plan"):
            await sweep(kept(bench), order)
    assert {row["status"] for row in await bench.rows()} == {"running", "queued"}


async def test_each_listed_job_is_judged_by_its_own_rule(bench: SqlBench) -> None:
    """Odd ids are essays, silent for an even number of minutes from 60 on, and every third one waits."""
    await fill(bench)
    longer = Rule(kind="thesis.*", running_after=timedelta(hours=2), queued_after=timedelta(hours=2))
    shorter = replace(longer, running_after=timedelta(minutes=62, seconds=30), queued_after=timedelta(minutes=1))
    assert await listed(kept(bench, Policy(rules=(longer,))), ALL) == [9, 7, 5, 3, 1]
    patient = Policy(queued_after=timedelta(hours=2), running_after=timedelta(hours=2), rules=(shorter,))
    assert await listed(kept(bench, patient), ALL) == [10, 8, 6, 4]
    assert await listed(kept(bench, patient), StuckFilter(older_than=timedelta(minutes=66, seconds=30))) == [10, 8]


async def test_whom_a_witness_acquits_is_not_listed_and_whom_it_convicts_is_in_every_page(bench: SqlBench) -> None:
    """Running are 2, 3, 5, 6, 8 and 9, by turns of two queues; two of them are held, one it knows nothing of."""
    await fill(bench)
    watched = replace(kept(bench), witnesses=(FakeWitness(words=HELD),))
    assert await listed(watched, ALL, limit=2) == [10, 8, 7, 6, 5, 4, 1]
    assert await listed(watched, StuckFilter(kind="thesis.*", reason=Reason.WORKER_GONE), limit=1) == [8, 6]


async def test_more_jobs_than_are_looked_through_at_once_are_told_as_a_least_and_all_come_up_in_time(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(bench)
    exact = await list_stuck(kept(bench), ALL, limit=2)
    assert (exact.number, exact.exact, exact.looked_through) == (10, True, 10)
    monkeypatch.setattr(listing, "MOST_SEARCHED", 3)
    bounded = await list_stuck(kept(bench), ALL, limit=2)
    assert (bounded.number, bounded.exact, bounded.looked_through) == (6, False, 6)
    for newest_first in (False, True):
        for policy in (Policy(), RULES):
            for limit in (1, 2, 7):
                found = await listed(kept(bench, policy), ALL, limit=limit, newest_first=newest_first)
                assert sorted(found) == list(range(1, 11))


async def test_a_search_that_was_cut_short_says_so_and_goes_on(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(bench)
    monkeypatch.setattr(listing, "MOST_SEARCHED", 2)
    for wanted in (StuckFilter(text="w-1"), StuckFilter(kind="thesis.*", older_than=timedelta(minutes=60))):
        first = await list_stuck(kept(bench), wanted, limit=5)
        assert (first.exact, first.next_cursor is None) == (False, False)
    assert (await list_stuck(kept(bench), StuckFilter(text="w-1"), limit=5)).jobs == ()
    assert await listed(kept(bench), StuckFilter(text="w-1"), limit=5) == [2]


@pytest.mark.parametrize(
    "said", ["nonsense", {"running": 1}, {"running": [["x", True], None, 0]}, {"done": [None, None, 0]}]
)
async def test_a_cursor_of_somebody_elses_is_refused(bench: SqlBench, said: object) -> None:
    cursor = said if isinstance(said, str) else base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
    await fill(bench)
    with pytest.raises(InvalidRequestError, match="cursor"):
        await list_stuck(kept(bench), ALL, limit=5, cursor=cursor)


async def entry(watched: Watched, actor: str, call: str, *, reads: bool = False) -> None:
    made = AuditEntry(actor=actor, call=call, outcome=AuditOutcome.DONE)
    await (watched.ledger.count_read(made) if reads else watched.ledger.append(made))


async def test_the_audit_log_is_read_back_in_bounded_pages(bench: SqlBench, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = kept(bench)
    for number in range(12):
        await entry(watched, f"user-{number % 2}", "brake.release")
        await entry(watched, "eve", f"jobs.stuck.{number}", reads=True)
    page = await read_entries(watched, EntryFilter(changes=True), limit=5)
    assert [each.id for each in page.entries] == [23, 21, 19, 17, 15]
    older = await read_entries(watched, EntryFilter(changes=True), limit=50, before=page.next_before)
    assert ([each.id for each in older.entries], older.next_before) == ([13, 11, 9, 7, 5, 3, 1], None)
    monkeypatch.setattr(records, "LOOKED_THROUGH", 6)
    sparse = await read_entries(watched, EntryFilter(actor="user-0"), limit=50)
    assert ([each.id for each in sparse.entries], sparse.next_before) == ([21], 19)
    exported = [each.id async for each in export_entries(watched, EntryFilter(actor="user-0"))]
    assert exported == [21, 17, 13, 9, 5, 1]


async def test_an_operation_and_the_last_day_are_told_as_they_were(bench: SqlBench) -> None:
    await fill(bench)
    watched = kept(bench, RULES)
    report = await sweep(watched, SweepOrder(actor="ada"))
    assert report.operation_id is not None
    told = await tell_operation(watched, report.operation_id, limit=3)
    assert told.ended is not None
    assert (told.begun.actor, told.ended.result["applied"], len(told.jobs), told.more) == ("ada", 10, 3, True)
    spans = await over_time(watched, timedelta(hours=24), 24)
    assert [dict(each.recovered) for each in spans[:-1]] == [{}] * 23
    assert spans[-1].recovered == {Action.MARK_FAILED: 5, Action.RETRY: 5}
    assert json.dumps(told.begun.parameters["source"]) == '"main"'
