"""What a declared table must be to be worked with: guessed from a model, and held against the real one."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.jobs import AWARE, COLUMNS, STATES, declared, jobs_table, open_bench
from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.domain.recovery import Outcome
from unstick.domain.suspect import StuckCounts
from unstick.pipeline.report import report_stuck
from unstick.sql.mapping import JobTable

if TYPE_CHECKING:
    from tests.servers import Database


class Base(DeclarativeBase):
    pass


class JobWithoutEnqueueTime(Base):
    """The contract's table, where every job has its `started_at` from the moment it is queued."""

    __tablename__ = "started_when_queued"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(sa.String(20))
    started_at: Mapped[datetime] = mapped_column(AWARE)
    completed_at: Mapped[datetime | None] = mapped_column(AWARE)
    error_message: Mapped[str | None] = mapped_column(sa.Text)


class JobWithoutAnyTimeAtFirst(Base):
    __tablename__ = "started_when_claimed"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(sa.String(20))
    started_at: Mapped[datetime | None] = mapped_column(AWARE)


class TestModels:
    async def test_a_table_without_an_enqueue_time_is_judged_and_recovered_by_its_start(
        self, database: Database
    ) -> None:
        table = Base.metadata.tables["started_when_queued"]
        bench = await open_bench(database, table, JobTable.from_model(JobWithoutEnqueueTime))
        began = await bench.source.clock() - timedelta(hours=1)
        async with bench.engine.begin() as connection:
            await connection.execute(sa.insert(table).values(id=1, status="queued", started_at=bench.store(began)))

        report = await bench.sweep()
        await bench.close()

        assert report.tally.of(outcome=Outcome.APPLIED) == 1

    def test_a_start_that_may_be_missing_is_doubted_until_it_is_said_that_there_is_nothing_else(self) -> None:
        with pytest.raises(ConfigurationError, match="a queued job that never started can't be judged"):
            JobTable.from_model(JobWithoutAnyTimeAtFirst)
        jobs = JobTable.from_model(JobWithoutAnyTimeAtFirst, columns={"enqueued_at": None})
        assert jobs.columns == {"id": "id", "state": "status", "started_at": "started_at"}


class TestColumnsOfTwoMeanings:
    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            ({"error": "status"}, "names column 'status' for both 'state' and 'error'"),
            ({"worker": "id"}, "names column 'id' for both 'id' and 'worker'"),
            ({"enqueued_at": "started_at"}, "names column 'started_at' for both 'enqueued_at' and 'started_at'"),
            ({"progress": "attempt"}, "names column 'attempt' for both 'attempt' and 'progress'"),
        ],
    )
    async def test_one_that_is_written_is_refused(self, database: Database, columns: dict[str, str], said: str) -> None:
        """What a sweep writes for one meaning would ruin the other."""
        table = jobs_table()
        bench = await open_bench(database, table, declared(table, columns={**COLUMNS, **columns}))
        with pytest.raises(ConfigurationError, match=said):
            await bench.source.clock()
        await bench.close()

    async def test_one_that_is_only_read_is_not(self, database: Database) -> None:
        table = jobs_table()
        bench = await open_bench(database, table, declared(table, columns={**COLUMNS, "queue": "job_type"}))
        await bench.source.clock()
        await bench.close()


class TestPaddedWords:
    """A CHAR column is filled up with blanks, which PostgreSQL gives back."""

    @pytest.mark.parametrize("width", [0, 12])
    async def test_words_with_and_without_the_blanks_are_one(self, database: Database, width: int) -> None:
        if database.backend == "sqlite":  # which pads nothing
            return
        table = jobs_table()
        table.c.status.type = sa.CHAR(12)
        words = {state: tuple(word.ljust(width) for word in known) for state, known in STATES.items()}
        bench = await open_bench(database, table, declared(table, states=words))
        await bench.put({"status": "queued"}, {"status": "running"})

        report = await report_stuck(bench.watched())
        swept = await bench.sweep()
        rows = await bench.rows()
        await bench.close()

        assert report.counts == StuckCounts(queued=1, running=1)
        assert [found.job.status for found in (*report.queued, *report.running)] == ["queued", "running"]
        assert (swept.tally.of(outcome=Outcome.APPLIED), swept.failures) == (2, ())
        assert {row["status"].rstrip() for row in rows} == {"failed"}

    async def test_two_states_are_not_told_apart_by_blanks(self, database: Database) -> None:
        table = jobs_table()
        words = {**STATES, JobState.SUCCEEDED: ("failed ",)}
        bench = await open_bench(database, table, declared(table, states=words))
        with pytest.raises(ConfigurationError, match="two meanings"):
            await bench.source.clock()
        await bench.close()
