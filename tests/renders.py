"""The renders of `docs/how-to/presets.md`, which shows this file."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from unstick.config import Settings
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.recovery import Outcome
from unstick.domain.undo import Undoable
from unstick.pipeline.watched import Watched
from unstick.ports import JobSource
from unstick.testing.conformance import Ages, JobSourceConformance
from unstick.testing.memory import StoredJob
from unstick.wiring import open_watched, upgrade_database

RENDERS = """
CREATE TABLE renders (
    id INTEGER PRIMARY KEY, template VARCHAR(50), state CHAR(1), tries INTEGER, problem VARCHAR(500),
    queued_ms BIGINT, due_ms BIGINT, started_ms BIGINT, beat_ms BIGINT, finished_ms BIGINT
)
"""
STATES = {"queued": "Q", "running": "R", "succeeded": "D", "failed": "F", "scheduled": "S", "cancelled": "X"}
TIMES = ("queued_ms", "due_ms", "started_ms", "beat_ms", "finished_ms")


@dataclass
class Renders:
    """The renders, and the hands of the application that owns them."""

    engine: AsyncEngine
    watched: Watched
    other: Watched
    last: int = 0

    @property
    def source(self) -> JobSource:
        return self.watched.source

    def another(self) -> JobSource:
        return self.other.source

    async def add(self, state: JobState, ages: Ages, *, attempt: int = 1) -> JobId:
        self.last += 1
        await self._put("INSERT INTO renders (id, {}) VALUES (:id, {})", self.last, state, ages, attempt)
        return self.last

    async def write(self, job_id: JobId, state: JobState, ages: Ages, *, attempt: int = 1) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(sa.text("DELETE FROM renders WHERE id = :id"), {"id": job_id})
        await self._put("INSERT INTO renders (id, {}) VALUES (:id, {})", job_id, state, ages, attempt)

    async def get(self, job_id: JobId) -> StoredJob:
        async with self.engine.connect() as connection:
            row = (await connection.execute(sa.text("SELECT * FROM renders WHERE id = :id"), {"id": job_id})).one()
        queued, due, started, beat, finished = (_instant(getattr(row, name)) for name in TIMES)
        state = next(JobState(state) for state, word in STATES.items() if word == row.state)
        job = Job(
            id=row.id,
            state=state,
            status=row.state,
            attempt=row.tries,
            enqueued_at=queued,
            scheduled_at=due,
            started_at=started,
            heartbeat_at=beat,
            completed_at=finished,
        )
        return StoredJob(job=job, success=state is not JobState.FAILED, error=row.problem)

    async def outcomes(self, job_id: JobId) -> list[Outcome]:
        recorded = "SELECT outcome FROM unstick_job_recoveries WHERE job_id = :id ORDER BY recovery_id"
        async with self.engine.connect() as connection:
            words = (await connection.execute(sa.text(recorded), {"id": str(job_id)})).scalars()
            return [Outcome(word) for word in words]

    async def undoable(self, job_id: JobId) -> Undoable:
        return (await self.watched.ledger.undoable("main", 1, job_id=job_id)).recoveries[-1]

    async def _put(self, statement: str, job_id: JobId, state: JobState, ages: Ages, attempt: int) -> None:
        now = await self.source.clock()
        times = (ages.enqueued, ages.scheduled, ages.started, ages.heartbeat, ages.completed)
        row: dict[str, object] = {name: _milliseconds(now, age) for name, age in zip(TIMES, times, strict=True)}
        row |= {"state": STATES[state.value], "tries": attempt}
        written = statement.format(", ".join(row), ", ".join(f":{name}" for name in row))
        async with self.engine.begin() as connection:
            await connection.execute(sa.text(written), {**row, "id": job_id})


def _milliseconds(now: datetime, age: timedelta | None) -> int | None:
    return None if age is None else round((now - age).timestamp() * 1000)


def _instant(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


class TestRenders(JobSourceConformance):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite+aiosqlite:///{tmp_path / 'renders.db'}"

    @pytest.fixture
    def preset(self) -> str:
        return "./renders.toml"

    @pytest.fixture
    async def bench(self, url: str, preset: str) -> AsyncIterator[Renders]:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.execute(sa.text(RENDERS))
            if engine.dialect.name == "sqlite":
                await connection.execute(sa.text("PRAGMA user_version = 7"))
        settings = Settings.model_validate({"sources": {"main": {"url": url, "preset": preset}}})
        await upgrade_database(settings)
        async with open_watched(settings) as watched, open_watched(settings) as other:
            yield Renders(engine, watched, other)
        await engine.dispose()
