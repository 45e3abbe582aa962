"""The shipped conformance suite on the in-memory source and on every database."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.jobs import open_bench
from tests.servers import EACH_KIND
from unstick.domain.job import Job, JobId, JobState
from unstick.sql.source import RULED_FROM
from unstick.testing.conformance import JobSourceConformance
from unstick.testing.memory import MemoryJobs, MemoryLedger, MemorySource, StoredJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime, timedelta

    from tests.jobs import SqlBench
    from tests.servers import Database
    from unstick.domain.recovery import Outcome
    from unstick.domain.undo import Undoable
    from unstick.testing.conformance import Ages

DATABASES = (*EACH_KIND, "postgres18-asyncpg")  # whose parameters are of the types it thinks


@dataclass(kw_only=True)
class MemoryBench:
    system: MemoryJobs = field(default_factory=MemoryJobs)

    @property
    def source(self) -> MemorySource:
        return MemorySource(self.system)

    def another(self) -> MemorySource:
        return MemorySource(self.system)

    async def add(self, state: JobState, ages: Ages, *, attempt: int = 1) -> JobId:
        job_id = len(self.system.jobs) + 1
        await self.write(job_id, state, ages, attempt=attempt)
        return job_id

    async def write(self, job_id: JobId, state: JobState, ages: Ages, *, attempt: int = 1) -> None:
        now = self.system.now
        job = Job(
            id=job_id,
            state=state,
            status=state.value,
            attempt=attempt,
            enqueued_at=_before(now, ages.enqueued),
            scheduled_at=_before(now, ages.scheduled),
            started_at=_before(now, ages.started),
            heartbeat_at=_before(now, ages.heartbeat),
            completed_at=_before(now, ages.completed),
        )
        self.system.put(StoredJob(job=job))

    async def get(self, job_id: JobId) -> StoredJob:
        return self.system.jobs[job_id]

    async def outcomes(self, job_id: JobId) -> list[Outcome]:
        return [record.outcome for record in self.system.recoveries if record.job_id == job_id]

    async def undoable(self, job_id: JobId) -> Undoable:
        page = await MemoryLedger(self.system).undoable("memory", 1, job_id=job_id)
        return page.recoveries[-1]


def _before(now: datetime, age: timedelta | None) -> datetime | None:
    return None if age is None else now - age


class TestMemorySource(JobSourceConformance):
    @pytest.fixture
    def bench(self) -> MemoryBench:
        return MemoryBench()


class TestSqlSource(JobSourceConformance):
    """Few jobs alike: each is looked at, decided on and recorded by itself."""

    @pytest.fixture
    async def bench(self, database: Database) -> AsyncIterator[SqlBench]:
        bench = await open_bench(database, ruled_from=RULED_FROM)
        yield bench
        await bench.close()


class TestSqlSourceByRuling(JobSourceConformance):
    """Many jobs alike: the database rules on them by itself."""

    @pytest.fixture
    async def bench(self, database: Database) -> AsyncIterator[SqlBench]:
        bench = await open_bench(database, ruled_from=1)
        yield bench
        await bench.close()
