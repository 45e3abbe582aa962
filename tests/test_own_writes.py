"""What a preset has done besides one write: other tables, a function of the system's, a word to its workers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import sqlalchemy as sa

from tests.jobs import COLUMNS, NAIVE, STATES, SqlBench, jobs_table, open_bench
from tests.servers import EACH_KIND
from unstick.domain.errors import SourceUnavailableError
from unstick.domain.job import JobState
from unstick.domain.recovery import Action, Outcome
from unstick.domain.standing import Standing
from unstick.domain.undo import IRREVERSIBLE
from unstick.pipeline.verdict import judge
from unstick.presets.preset import Preset
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.mapping import JobTable
from unstick.sql.source import SqlSource
from unstick.testing.conformance import MINUTE, RAN, Ages, batch_of, look_at, recover_all, suspects_of, undo_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from tests.servers import Database
    from unstick.domain.job import JobId

DATABASES = EACH_KIND
FAILED = {"status": "'failed'", "error_message": "{detail}", "completed_at": "{now}"}
LOGGED = "INSERT INTO notes (job_id, told) SELECT {id}, {reason} FROM {stuck}"


def preset(**said: Any) -> Preset:  # noqa: ANN401
    """The first user's table, as if it were a job system's."""
    states = {state.value: words for state, words in STATES.items()}
    every = {"system": "ours", "databases": ("sqlite", "postgresql", "mysql"), "table": "ai_generation_jobs"}
    return Preset.model_validate({**every, "columns": COLUMNS, "states": states, **said})


@dataclass
class Opener:
    """Opens a bench whose table is declared by a preset."""

    database: Database
    benches: list[SqlBench] = field(default_factory=list)

    async def __call__(self, **said: Any) -> SqlBench:  # noqa: ANN401
        bench = await open_bench(self.database, jobs=JobTable.from_preset(preset(**said)))
        self.benches.append(bench)
        await bench.execute("CREATE TABLE notes (job_id BIGINT, told VARCHAR(200))")
        return bench

    async def close(self) -> None:
        for bench in self.benches:
            await bench.close()


@pytest.fixture
async def opened(database: Database) -> AsyncIterator[Opener]:
    opener = Opener(database)
    yield opener
    await opener.close()


async def notes(bench: SqlBench) -> list[tuple[int, str]]:
    async with bench.engine.connect() as connection:
        rows = await connection.execute(sa.text("SELECT job_id, told FROM notes ORDER BY job_id"))
        return [(row[0], row[1]) for row in rows]


async def add(bench: SqlBench, number: int) -> list[JobId]:
    return [await bench.add(JobState.RUNNING, RAN) for _ in range(number)]


async def states(bench: SqlBench) -> list[JobState]:
    return [(await bench.get(row["id"])).job.state for row in await bench.rows()]


async def test_other_tables_are_written_with_the_job_or_not_at_all(opened: Opener) -> None:
    """A job that changed since it was looked at leaves no trace elsewhere either."""
    bench = await opened(fail=[{"set": FAILED, "each": [LOGGED]}])
    stays, moves = await add(bench, 2)
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)
    await bench.write(moves, JobState.RUNNING, Ages(started=50 * MINUTE))

    result = await bench.source.recover(batch)

    assert (set(result.applied), result.outcome(moves)) == ({stays}, Outcome.LOST_RACE)
    assert await notes(bench) == [(stays, "silent")]


async def test_where_a_job_lacks_its_row_elsewhere_it_is_left_and_the_others_go_on(opened: Opener) -> None:
    told = "UPDATE notes SET told = 'failed' WHERE job_id IN (SELECT {id} FROM {stuck})"
    bench = await opened(fail=[{"set": FAILED, "each": [told]}])
    first, lacks, last = await add(bench, 3)
    await bench.execute(f"INSERT INTO notes VALUES ({first}, 'runs')", f"INSERT INTO notes VALUES ({last}, 'runs')")

    result = await recover_all(bench)

    assert (set(result.applied), set(result.refused)) == ({first, last}, {lacks})
    assert await states(bench) == [JobState.FAILED, JobState.RUNNING, JobState.FAILED]
    assert await notes(bench) == [(first, "failed"), (last, "failed")]
    assert await bench.outcomes(lacks) == [Outcome.FAILED]


async def test_what_may_be_there_or_not_stops_nobody(opened: Opener) -> None:
    gone = "DELETE FROM notes WHERE job_id IN (SELECT {id} FROM {stuck})"
    bench = await opened(fail=[{"set": FAILED, "also": [gone], "wake": [LOGGED]}])
    first, second = await add(bench, 2)
    await bench.execute(f"INSERT INTO notes VALUES ({first}, 'runs')")

    assert (await recover_all(bench)).applied == {first, second}
    assert await notes(bench) == [(first, "silent"), (second, "silent")]


async def test_workers_are_told_of_those_alone_that_were_changed(opened: Opener) -> None:
    """And what only tells them can be undone: it changed nothing."""
    bench = await opened(fail=[{"set": FAILED, "wake": [LOGGED]}])
    stays, moves = await add(bench, 2)
    before = await bench.get(stays)
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)
    await bench.write(moves, JobState.SUCCEEDED, Ages(started=60 * MINUTE, completed=MINUTE))

    await bench.source.recover(batch)

    assert await notes(bench) == [(stays, "silent")]
    assert (await bench.source.undo(undo_of(await bench.undoable(stays)))).applied == {str(stays)}
    assert await bench.get(stays) == before


async def test_each_state_has_its_own_way(opened: Opener) -> None:
    """And where several words mean queued, the way chooses which."""
    retry = [
        {"of": "running", "set": {"status": "'pending'", "scheduled_at": "{due}", "attempt": "{jobs}.attempt + 1"}},
        {"of": "queued", "set": {"scheduled_at": "{due}", "error_message": "{reason}"}},
    ]
    bench = await opened(retry=retry)
    (runs,), waits = await add(bench, 1), await bench.add(JobState.QUEUED, Ages(enqueued=60 * MINUTE))

    assert (await recover_all(bench, Action.RETRY)).applied == {runs, waits}

    ran, waited = await bench.get(runs), await bench.get(waits)
    assert ran.job.status == "pending"
    assert (ran.job.state, ran.job.attempt, ran.error) == (JobState.QUEUED, 2, None)
    assert (waited.job.state, waited.job.attempt, waited.error) == (JobState.QUEUED, 1, "never_claimed")
    assert await suspects_of(bench, await look_at(bench)) == []


async def test_what_wrote_more_than_the_row_is_not_undone_by_half(opened: Opener) -> None:
    bench = await opened(fail=[{"set": FAILED, "each": [LOGGED]}])
    (job_id,) = await add(bench, 1)
    await recover_all(bench)
    after = await bench.get(job_id)

    result = await bench.source.undo(undo_of(await bench.undoable(job_id)))

    assert (result.applied, result.lost) == (frozenset(), {str(job_id): IRREVERSIBLE})
    assert await bench.get(job_id) == after
    assert await notes(bench) == [(job_id, "silent")]


async def test_a_version_that_becomes_unknown_between_look_and_write_stops_the_write(opened: Opener) -> None:
    version = {"sql": "SELECT count(*) FROM notes", "known": ["0"]}
    bench = await opened(fail=[{"set": FAILED}], version=version)
    (job_id,) = await add(bench, 1)
    look = await look_at(bench)
    batch = batch_of(await suspects_of(bench, look), look)
    await bench.execute("INSERT INTO notes VALUES (0, 'migrated')")

    with pytest.raises(SourceUnavailableError, match="its tables of ours are of version 1"):
        await bench.source.recover(batch)

    assert (await bench.get(job_id)).job.state is JobState.RUNNING


async def test_a_job_that_is_kept_waiting_is_not_stuck_and_it_is_said_by_what(opened: Opener) -> None:
    """Whoever keeps others waiting says so, too."""
    waiting = [
        {"reason": "paused", "sql": "SELECT max(told) FROM notes WHERE job_id = 0 AND {jobs}.job_type = 'mail'"},
        {"reason": "blocked", "sql": "CASE WHEN {jobs}.job_type = 'sum' THEN 'a lock' END"},
    ]
    blocks = "CASE WHEN {jobs}.job_type = 'sum' THEN '7, 8' END"
    bench = await opened(waiting=waiting, blocks=blocks)
    await bench.execute("INSERT INTO notes VALUES (0, 'its queue is paused')")
    aged = await bench.source.clock() - 60 * MINUTE
    kinds = {"mail": "queued", "sum": "queued", "other": "queued"}
    rows = [{"id": n, "job_type": kind, "status": "queued", "started_at": None} for n, kind in enumerate(kinds, 1)]
    await bench.put(*rows, {"id": 4, "job_type": "sum", "status": "running", "started_at": aged})

    watched = bench.watched()
    told = {number: await judge(watched, number) for number in range(1, 5)}
    assert [found.standing for found in told.values() if found is not None] == [
        Standing.PAUSED, Standing.BLOCKED, Standing.STUCK, Standing.STUCK
    ]  # fmt: skip
    sentences = [found.sentence for found in told.values() if found is not None]
    assert "Job 1 is queued and can't be claimed: its queue is paused; it isn't stuck." in sentences
    assert sentences[3].endswith("; jobs that can't be claimed before it is over: 7, 8.")
    assert [suspect.job_id for suspect in await suspects_of(bench, await look_at(bench))] == [3, 4]
    assert (await bench.source.count_suspects(await look_at(bench))).queued == 1

    await bench.execute("DELETE FROM notes")
    assert [suspect.job_id for suspect in await suspects_of(bench, await look_at(bench))] == [1, 3, 4]


class TestOnPostgres:
    """Functions, and what other tables say while a row is waited for."""

    @pytest.fixture
    async def opened(self, postgres_database: Database) -> AsyncIterator[Opener]:
        opener = Opener(postgres_database)
        yield opener
        await opener.close()

    FUNCTION = """
        CREATE FUNCTION fail_job(job bigint, told text) RETURNS void LANGUAGE sql AS $$
            UPDATE ai_generation_jobs SET status = CASE WHEN attempt < 5 THEN 'failed' ELSE 'cancelled' END,
            error_message = told, completed_at = now() WHERE id = job
        $$
    """
    CALLED: ClassVar = {
        "call": "SELECT fail_job({id}, {detail}) FROM {stuck}",
        "set": FAILED | {"completed_at": "now()"},
    }

    async def test_the_systems_own_function_writes_and_is_recorded(self, opened: Opener) -> None:
        bench = await opened(fail=[self.CALLED])
        await bench.execute(self.FUNCTION)
        (job_id,) = await add(bench, 1)

        assert (await recover_all(bench)).applied == {job_id}

        stored = await bench.get(job_id)
        assert stored.job.state is JobState.FAILED
        assert (stored.error or "").startswith("Job stuck in running")
        assert (await bench.source.undo(undo_of(await bench.undoable(job_id)))).lost == {str(job_id): IRREVERSIBLE}

    async def test_where_the_record_is_elsewhere_what_a_function_will_leave_is_told_before(
        self, opened: Opener
    ) -> None:
        """So that whoever finds the intent after a crash can tell whether it was carried out."""
        bench = await opened(fail=[self.CALLED | {"set": {"status": "'failed'", "error_message": "{detail}"}}])
        await bench.execute(self.FUNCTION)
        (job_id,) = await add(bench, 1)
        source = SqlSource("main", bench.jobs, EngineConnections(bench.engine), records=False)
        look = await look_at(bench)
        batch = batch_of(await suspects_of(bench, look), look)

        (intent,) = await source.intend(batch)
        result = await source.recover(batch)

        assert result.applied == {job_id}
        assert json.loads(result.pre_images[job_id]) == {"status": "running", "error_message": None}
        assert json.loads((await source.images([intent]))[job_id]) == json.loads(intent.post_image)

    async def test_a_function_that_does_something_else_is_taken_back(self, opened: Opener) -> None:
        """It cancels what was attempted often: then nothing of it stands, and the others go on."""
        bench = await opened(fail=[self.CALLED])
        await bench.execute(self.FUNCTION)
        job_id = (await add(bench, 1))[0]
        often = await bench.add(JobState.RUNNING, RAN, attempt=5)

        result = await recover_all(bench)

        assert (set(result.applied), set(result.refused)) == ({job_id}, {often})
        assert await states(bench) == [JobState.FAILED, JobState.RUNNING]
        assert await bench.outcomes(often) == [Outcome.FAILED]

    async def test_a_write_may_take_away_what_the_job_was_found_by(self, opened: Opener) -> None:
        """As where a job runs for as long as another table has a row for it."""
        running = (
            "CASE WHEN EXISTS (SELECT 1 FROM notes WHERE job_id = {jobs}.id) THEN 'running' ELSE {jobs}.status END"
        )
        let_go = "DELETE FROM notes WHERE job_id IN (SELECT {id} FROM {stuck})"
        columns = {**COLUMNS, "state": {"sql": running}}
        bench = await opened(columns=columns, fail=[{"set": FAILED, "each": [let_go]}])
        job_id = await bench.add(JobState.QUEUED, RAN)
        await bench.execute(f"INSERT INTO notes VALUES ({job_id}, 'claimed')")

        assert (await recover_all(bench)).applied == {job_id}
        assert await states(bench) == [JobState.FAILED]
        assert await notes(bench) == []

    async def test_arrays_and_json_are_put_back(self, opened: Opener) -> None:
        """A system's errors may be elements of an array, or JSON that PostgreSQL can't compare as it is."""
        told = {
            "errors": "array_append({jobs}.errors, jsonb_build_object('error', {detail}))",
            "tags": "array_append({jobs}.tags, 'stuck, \"it\" is')",
            "said": "json_build_object('error', {detail})",
        }
        bench = await opened(fail=[{"set": FAILED | told}])
        await bench.execute(
            "ALTER TABLE ai_generation_jobs ADD errors jsonb[], ADD tags text[] DEFAULT '{a,NULL}', ADD said json"
        )
        new, failed_before = await add(bench, 2)
        before = """UPDATE ai_generation_jobs SET errors = ARRAY['{"error": "old"}'::jsonb], said = '{"a":  1}'"""
        await bench.execute(f"{before} WHERE id = {failed_before}")
        rows = await _read(bench)

        assert (await recover_all(bench)).applied == {new, failed_before}
        assert [each["error"][:9] for each in (await _read(bench))[1].errors] == ["old", "Job stuck"]
        undone = await bench.source.undo(undo_of(*[await bench.undoable(job_id) for job_id in (new, failed_before)]))

        assert len(undone.applied) == 2
        assert await _read(bench) == rows

    async def test_a_duration_between_times_of_two_forms_is_not_off_by_a_zone(self, opened: Opener) -> None:
        columns = {**COLUMNS, "completed_at": {"sql": "timezone('UTC', {jobs}.completed_at)"}}
        table = jobs_table(time=NAIVE)
        jobs = JobTable.from_preset(preset(columns=columns))
        bench = await open_bench(opened.database, table, jobs, store=lambda instant: instant.replace(tzinfo=None))
        opened.benches.append(bench)
        await bench.execute(f"ALTER DATABASE {bench.engine.url.database} SET timezone = 'America/New_York'")
        await bench.add(JobState.SUCCEEDED, Ages(started=60 * MINUTE, completed=50 * MINUTE))

        assert (await bench.another().usage()).average_duration == 10 * MINUTE

    async def test_a_beat_in_another_table_while_the_row_is_being_locked_saves_the_job(self, opened: Opener) -> None:
        """The statement that locks sees other tables as they were when it began: they are read again after."""
        columns = {key: name for key, name in COLUMNS.items() if key != "heartbeat_at"}
        beat = """
            SELECT max(told::timestamptz) FROM notes
            WHERE job_id = {jobs}.id AND pg_advisory_xact_lock_shared(7) IS NOT NULL
        """
        bench = await opened(columns={**columns, "heartbeat_at": {"sql": beat}})
        (job_id,) = await add(bench, 1)
        await bench.execute(f"INSERT INTO notes VALUES ({job_id}, now() - interval '1 hour')")
        look = await look_at(bench)
        batch = batch_of(await suspects_of(bench, look), look)

        async with bench.engine.begin() as worker:
            await worker.execute(sa.text("SELECT pg_advisory_xact_lock(7)"))
            writing = asyncio.ensure_future(bench.another().recover(batch))
            await _until_somebody_waits(bench)
            async with open_connection(bench) as beating:
                await beating.execute(sa.text("UPDATE notes SET told = now()"))
        result = await writing

        assert result.outcome(job_id) is Outcome.LOST_RACE
        assert (await bench.get(job_id)).job.state is JobState.RUNNING


async def _read(bench: SqlBench) -> list[sa.Row[Any]]:
    """Read the columns that only this test's table has."""
    async with bench.engine.connect() as connection:
        columns = sa.text("SELECT status, errors, tags, CAST(said AS jsonb) FROM ai_generation_jobs ORDER BY id")
        return list(await connection.execute(columns))


def open_connection(bench: SqlBench) -> AbstractAsyncContextManager[Any]:
    engine = open_engine(bench.engine.url.render_as_string(hide_password=False))
    bench.other_engines.append(engine)
    return engine.begin()


async def _until_somebody_waits(bench: SqlBench) -> None:
    waits = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    async with asyncio.timeout(10), open_connection(bench) as connection:
        while not (await connection.execute(waits)).scalar():
            pass
