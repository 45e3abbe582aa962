"""What the database says and does by a ruling is what Python would have said and done, job by job."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests.jobs import COLUMNS, NAIVE, STATES, SqlBench, declared, jobs_table, open_bench
from unstick.domain.diagnosis import diagnose
from unstick.domain.errors import InvalidRequestError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, decide, rule
from unstick.domain.recovery import Action, Outcome, Ruled
from unstick.pipeline.looking import take_look
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql import source as source_module
from unstick.sql.rulings import LONGEST_HELD
from unstick.sql.tables import recoveries
from unstick.testing.conformance import MINUTE, Ages, suspects_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers import Database
    from unstick.domain.suspect import Look, Suspect

ALL = Policy(queued_after=timedelta(seconds=1), running_after=timedelta(seconds=1))
AGES = [
    *(timedelta(seconds=seconds) for seconds in (3, 59, 61, 119, 121, 599, 601, 3599, 3601, 7199, 7261, 86399)),
    *(timedelta(days=1), timedelta(days=1, seconds=3600), timedelta(days=2, seconds=3599), timedelta(days=400)),
]


def message(suspect: Suspect, look: Look) -> str:
    diagnosis = diagnose(suspect.state, suspect.since)
    return decide(suspect, diagnosis, ALL, Action.MARK_FAILED, 0).error_message(look)


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database)
    yield bench
    await bench.close()


async def test_the_message_is_the_one_python_would_have_written(bench: SqlBench) -> None:
    """Durations in all their units, and the sign of life to the second."""
    for age in AGES:
        await bench.add(JobState.QUEUED, Ages(enqueued=age))
        await bench.add(JobState.RUNNING, Ages(started=timedelta(days=500), heartbeat=age))
    watched = bench.watched(ALL)
    look = await take_look(watched)
    expected = {
        each.job_id: decide(each, diagnose(each.state, each.since), ALL, Action.MARK_FAILED, 0).error_message(look)
        for each in await suspects_of(bench, look)
    }
    sentences = {str(each.job_id): diagnose(each.state, each.since).sentence for each in await suspects_of(bench, look)}
    for state in (JobState.QUEUED, JobState.RUNNING):
        ruling = rule(state, look, ALL, Action.MARK_FAILED)
        assert ruling is not None
        done = [ruled async for ruled in bench.source.recover_by_rule(ruling, look, 1)]
        assert done == [Ruled(recovered=len(AGES), left=False)]

    written = {row["id"]: row["error_message"] for row in await bench.rows()}

    assert written == expected
    assert {record.job_id: record.detail for record in await bench.recoveries()} == sentences


async def test_jobs_share_a_record_only_if_they_held_the_same_and_each_pre_image_is_exact(bench: SqlBench) -> None:
    """What undo will need: state, success and error as they were, to the letter, whatever a column's collation."""
    held: list[dict[str, Any]] = [
        {"status": "running"},
        {"status": "running"},
        {"status": "running", "success": False},
        {"status": "running", "error_message": "Timeout"},
        {"status": "running", "error_message": "timeout"},
        {"status": "running", "error_message": "Timeout", "success": False},
        {"status": "running", "error_message": ""},
        {"status": "queued"},
        {"status": "pending"},
        {"status": "pending"},
    ]
    await bench.put(*held)

    report = await bench.sweep()

    blank = {"success": None, "error_message": None, "completed_at": None}
    images = {int(record.job_id): json.loads(record.pre_image) for record in await bench.recoveries()}
    assert images == {place: blank | each for place, each in enumerate(held, start=1)}
    assert report.tally.of(outcome=Outcome.APPLIED) == len(held)
    async with bench.engine.connect() as connection:
        counts = list(await connection.scalars(sa.select(recoveries.c.job_count)))
    assert sorted(counts) == [1, 1, 1, 1, 1, 1, 2, 2]


async def test_few_jobs_alike_are_looked_at_and_recorded_one_by_one(database: Database) -> None:
    """A record a job is what people read; only where there are many does a batch share one."""
    bench = await open_bench(database, ruled_from=3)
    await bench.put({}, {}, {}, {"error_message": "a"}, {"error_message": "a"})

    await bench.sweep()

    async with bench.engine.connect() as connection:
        rows = (await connection.execute(sa.select(recoveries.c.job_count, recoveries.c.job_id))).all()
    await bench.close()
    assert sorted((row.job_count, row.job_id is None) for row in rows) == [(1, False), (1, False), (3, True)]


async def test_a_ruling_is_carried_out_on_its_own_batch_and_no_more(bench: SqlBench) -> None:
    """X4: jobs alike in other batches fulfil the rule, too; each transaction changes what it was given."""
    bench.batches_of(2)
    await bench.put(*({} for _ in range(6)))

    report = await bench.sweep()

    assert report.tally.of(outcome=Outcome.APPLIED) == 6
    async with bench.engine.connect() as connection:
        counts = (await connection.execute(sa.select(recoveries.c.job_count))).scalars().all()
    assert counts == [2, 2, 2]


async def test_more_jobs_than_a_stride_are_all_ruled_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next stride is read when the first is done, and what was left does not come up for ever."""
    monkeypatch.setattr(source_module, "STRIDE", 4)
    bench = await open_bench(database)
    await bench.put(*({} for _ in range(11)))
    bench.batches_of(2)
    await bench.execute(*REFUSING[database.backend])

    report = await bench.sweep()

    await bench.close()
    assert (report.tally.of(outcome=Outcome.APPLIED), report.tally.of(outcome=Outcome.FAILED)) == (10, 1)
    assert [failure.job_id for failure in report.failures] == [2]
    assert "legal hold" in report.failures[0].detail


async def ruled(bench: SqlBench, state: JobState = JobState.RUNNING) -> list[Ruled]:
    """Rule on all suspects of a state, and return what was told of each batch."""
    look = await take_look(bench.watched())
    ruling = rule(state, look, Policy(), Action.MARK_FAILED)
    assert ruling is not None
    return [each async for each in bench.source.recover_by_rule(ruling, look, 1)]


async def shared(bench: SqlBench) -> list[int]:
    """Return how many jobs each record is of."""
    async with bench.engine.connect() as connection:
        return sorted((await connection.execute(sa.select(recoveries.c.job_count))).scalars())


async def test_each_stride_begins_after_the_last_job_of_the_one_before(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1, P3: what a stride left isn't ruled on again, nor anybody passed over, whatever way the suspects are found."""
    monkeypatch.setattr(source_module, "STRIDE", 3)
    bench = await open_bench(database)
    if database.backend == "postgresql":
        settings = ("enable_seqscan", "enable_bitmapscan")
        await bench.execute(*(f"ALTER DATABASE {bench.engine.url.database} SET {name} = off" for name in settings))
        await bench.engine.dispose()
    now = await bench.source.clock()
    # The last of the first stride is unlike the others; and who began first comes last.
    began = [{"started_at": bench.store(now - timedelta(hours=2, minutes=number))} for number in range(10)]
    await bench.put(*(row | ({"error_message": "x" * 256} if place == 2 else {}) for place, row in enumerate(began)))
    bench.batches_of(2)

    told = await ruled(bench)

    assert told == [
        *(Ruled(recovered=2, left=False), Ruled(recovered=0, left=True)),
        *(Ruled(recovered=2, left=False), Ruled(recovered=1, left=False)),
        *(Ruled(recovered=2, left=False), Ruled(recovered=1, left=False)),
        Ruled(recovered=1, left=False),
    ]
    assert await shared(bench) == [1, 1, 1, 2, 2, 2]
    assert [row["id"] for row in await bench.rows() if row["status"] == "running"] == [3]
    await bench.close()


@pytest.mark.parametrize("database", ["sqlite", "postgres18"], indirect=True)
async def test_jobs_of_a_table_that_keeps_no_error_share_a_record(database: Database) -> None:
    """Nothing that they hold is too long to be held against another's."""
    table = jobs_table()
    columns = {key: name for key, name in COLUMNS.items() if key != "error"}
    bench = await open_bench(database, table, declared(table, columns=columns))
    await bench.put({}, {})

    await bench.sweep()

    records = await shared(bench)
    await bench.close()
    assert records == [2]


@pytest.mark.parametrize(("length", "records"), [(LONGEST_HELD, [2]), (LONGEST_HELD + 1, [1, 1])])
async def test_jobs_with_a_long_error_are_looked_at_one_by_one(
    bench: SqlBench, length: int, records: list[int]
) -> None:
    """P4: or a stride of them would hold all those texts in memory, however many are alike."""
    await bench.put({"error_message": "x" * length}, {"error_message": "x" * length})

    report = await bench.sweep()

    assert report.tally.of(outcome=Outcome.APPLIED) == 2
    assert await shared(bench) == records


REFUSING = {
    "sqlite": [
        (
            "CREATE TRIGGER kept BEFORE UPDATE ON ai_generation_jobs WHEN NEW.id = 2 "
            "BEGIN SELECT RAISE(ABORT, 'legal hold'); END"
        )
    ],
    "postgresql": [
        (
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF NEW.id = 2 THEN RAISE 'legal hold'; END IF; RETURN NEW; END $$"
        ),
        "CREATE TRIGGER kept BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION keep()",
    ],
    "mysql": [
        (
            "CREATE TRIGGER kept BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW BEGIN "
            "IF NEW.id = 2 THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'legal hold'; END IF; END"
        )
    ],
}


async def test_a_ruling_leaves_what_is_no_suspect_when_its_row_is_locked(bench: SqlBench) -> None:
    """R1: the rule is applied to the row as it stands, not as it was when its id was read; its batch goes on."""
    stays, _, beats, last = [await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE)) for _ in range(4)]
    watched = bench.watched()
    look = await take_look(watched)
    ruling = rule(JobState.RUNNING, look, Policy(), Action.MARK_FAILED)
    assert ruling is not None
    bench.batches_of(2)
    recovering = bench.source.recover_by_rule(ruling, look, 1)

    assert await anext(recovering) == Ruled(recovered=2, left=False)
    await bench.write(beats, JobState.RUNNING, Ages(started=60 * MINUTE, heartbeat=timedelta(0)))
    assert [ruled async for ruled in recovering] == [Ruled(recovered=1, left=True)]

    assert [(await bench.get(each)).job.state for each in (stays, last)] == [JobState.FAILED, JobState.FAILED]
    assert (await bench.get(beats)).job.state is JobState.RUNNING
    assert await bench.outcomes(beats) == []


@pytest.mark.parametrize("odd", ["source", "action", "reason", "operation_id", "detail", "pre_image", "state", "seen"])
async def test_a_hosts_column_named_like_one_of_ours_is_not_written(database: Database, odd: str) -> None:
    """A bound value of ours must never be taken for a value of the host's column of that name."""
    table = jobs_table(sa.Column(odd, sa.String(50), server_default="theirs"))
    bench = await open_bench(database, table)
    one = await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE))
    await sweep(bench.watched(), SweepOrder(actor="test"))
    other = await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE))
    await sweep(bench.watched(), SweepOrder(actor="test", action=Action.RETRY))

    assert [(await bench.row(job))[odd] for job in (one, other)] == ["theirs", "theirs"]
    assert (await bench.get(one)).job.state is JobState.FAILED
    assert (await bench.get(other)).job.state is JobState.QUEUED
    await bench.close()


@pytest.mark.parametrize(("lacking", "action"), [(JobState.FAILED, None), (JobState.QUEUED, Action.RETRY)])
async def test_what_a_mapping_has_no_word_for_is_refused_before_anything_is_begun(
    sqlite_database: Database, lacking: JobState, action: Action | None
) -> None:
    """Nothing is changed, and no operation stands in the audit log."""
    table = jobs_table()
    words = {state: each for state, each in STATES.items() if state is not lacking}
    bench = await open_bench(sqlite_database, table, declared(table, states=words))
    await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE))

    with pytest.raises(InvalidRequestError, match=lacking.value):
        await sweep(bench.watched(), SweepOrder(actor="test", action=action))

    assert [row["status"] for row in await bench.rows()] == ["running"]
    assert await bench.audit() == []
    await bench.close()


async def test_many_jobs_share_a_record_whatever_length_a_server_cuts_arrays_to(mariadb_database: Database) -> None:
    """MariaDB cuts a JSON array at `group_concat_max_len`; such a record is refused, or kept cut where nothing is."""
    server = create_async_engine(mariadb_database.url, isolation_level="AUTOCOMMIT")
    async with server.connect() as administrator:
        before = (await administrator.execute(sa.text("SELECT @@GLOBAL.group_concat_max_len"))).scalar_one()
        await administrator.execute(sa.text("SET GLOBAL group_concat_max_len = 1024"))
        try:
            bench = await open_bench(mariadb_database)
            await bench.put(*({} for _ in range(100)))
            report = await bench.sweep()
        finally:
            await administrator.execute(sa.text(f"SET GLOBAL group_concat_max_len = {before}"))
    await server.dispose()

    assert report.tally.of(outcome=Outcome.APPLIED) == 100
    async with bench.engine.connect() as connection:
        counts = (await connection.execute(sa.select(recoveries.c.job_count))).scalars().all()
    assert counts == [100]
    assert len(await bench.recoveries()) == 100
    await bench.close()


async def test_where_the_database_cannot_say_it_each_job_is_looked_at(database: Database) -> None:
    """Naive times of another zone, which not every database can convert, Python says instead."""
    table = jobs_table(time=NAIVE)
    jobs = declared(table, timezone="Asia/Tokyo")
    tokyo = timedelta(hours=9)
    bench = await open_bench(database, table, jobs, lambda instant: (instant + tokyo).replace(tzinfo=None))
    job_id = await bench.add(JobState.RUNNING, Ages(started=60 * MINUTE))

    report = await sweep(bench.watched(), SweepOrder(actor="test"))

    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    row = await bench.row(job_id)
    since = f"{row['started_at'] - tokyo:%F %T} UTC"
    assert row["error_message"] == (
        f"Job stuck in running for more than 30 minutes: its last sign of life was at {since}."
        " Automatically cleaned up."
    )
    await bench.close()
