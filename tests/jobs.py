"""The first user's jobs table on every database, and the hands of the application that owns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from unstick.config import SourceSettings
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action, Outcome
from unstick.pipeline.sweep import SweepOrder, SweepReport, sweep
from unstick.pipeline.watched import Watched
from unstick.sql import schema
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.ledger import SqlLedger
from unstick.sql.mapping import JobTable
from unstick.sql.reading import plain_id
from unstick.sql.source import SqlSource
from unstick.sql.tables import audit, job_recoveries
from unstick.testing.memory import StoredJob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.domain.undo import Undoable
    from unstick.testing.conformance import Ages

AWARE = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
NAIVE = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
COLUMNS = {
    "id": "id",
    "state": "status",
    "kind": "job_type",
    "enqueued_at": "created_at",
    "scheduled_at": "scheduled_at",
    "started_at": "started_at",
    "heartbeat_at": "updated_at",
    "completed_at": "completed_at",
    "success": "success",
    "error": "error_message",
    "attempt": "attempt",
}
STATES = {
    JobState.QUEUED: ("queued", "pending"),
    JobState.RUNNING: ("running",),
    JobState.SUCCEEDED: ("completed",),
    JobState.FAILED: ("failed",),
    JobState.SCHEDULED: ("delayed",),
    JobState.CANCELLED: ("cancelled",),
}


def jobs_table(
    *extra: sa.schema.SchemaItem,
    time: Any = AWARE,  # noqa: ANN401
    key: Any = None,  # noqa: ANN401
    indexed: bool = True,
    name: str = "ai_generation_jobs",
) -> sa.Table:
    """The first user's table, with what a test wants different."""
    table = sa.Table(
        name,
        sa.MetaData(),
        key if key is not None else sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("job_type", sa.String(50), nullable=False, server_default="summary"),
        sa.Column("created_at", time),
        sa.Column("scheduled_at", time),
        sa.Column("started_at", time),
        sa.Column("updated_at", time),
        sa.Column("completed_at", time),
        sa.Column("success", sa.Boolean),
        sa.Column("error_message", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        *extra,
    )
    if indexed:
        unfinished = table.c.completed_at.is_(None)
        sa.Index(
            f"{name}_open", table.c.status, table.c.started_at, postgresql_where=unfinished, sqlite_where=unfinished
        )
    return table


def declared(
    table: sa.Table,
    *,
    columns: Mapping[str, str] = COLUMNS,
    states: Mapping[JobState, tuple[str, ...]] = STATES,
    timezone: str = "UTC",
) -> JobTable:
    """The table as a configuration file would declare it."""
    section = {"table": table.fullname, "columns": dict(columns), "states": dict(states), "timezone": timezone}
    return JobTable.from_settings(SourceSettings.model_validate(section))


@dataclass(kw_only=True)
class SqlBench:
    """A `Bench` over a real table, through connections of its own."""

    engine: AsyncEngine
    table: sa.Table
    jobs: JobTable
    source: SqlSource
    ruled_from: int = 1
    store: Callable[[datetime], object] = field(default=lambda instant: instant)
    """How the application writes an instant into its time columns."""
    other_engines: list[AsyncEngine] = field(default_factory=list)

    @property
    def ledger(self) -> SqlLedger:
        return SqlLedger(EngineConnections(self.engine))

    def watched(self, policy: Policy | None = None) -> Watched:
        return Watched(source=self.source, ledger=self.ledger, policy=policy or Policy())

    def another(self) -> SqlSource:
        engine = open_engine(self.engine.url.render_as_string(hide_password=False))
        self.other_engines.append(engine)
        return SqlSource("main", self.jobs, EngineConnections(engine), ruled_from=self.ruled_from)

    async def add(self, state: JobState, ages: Ages, *, attempt: int = 1) -> JobId:
        values = await self._values(state, ages, attempt)
        async with self.engine.begin() as connection:
            result = await connection.execute(sa.insert(self.table).values(values))
            assert result.inserted_primary_key is not None
            return plain_id(result.inserted_primary_key[0])

    async def write(self, job_id: JobId, state: JobState, ages: Ages, *, attempt: int = 1) -> None:
        values = await self._values(state, ages, attempt)
        async with self.engine.begin() as connection:
            await connection.execute(sa.update(self.table).where(self.table.c.id == job_id).values(values))

    async def put(self, *rows: Mapping[str, object], started: timedelta = timedelta(hours=2)) -> None:
        """Insert rows by column name; what a row doesn't say is that of a job that runs and has been silent."""
        began = self.store(await self.source.clock() - started)
        async with self.engine.begin() as connection:
            for row in rows:
                values = {"status": "running", "created_at": began, "started_at": began, **row}
                await connection.execute(sa.insert(self.table).values(values))

    async def sweep(self, action: Action | None = None, *, policy: Policy | None = None) -> SweepReport:
        return await sweep(self.watched(policy), SweepOrder(actor="test", action=action))

    def batches_of(self, size: int) -> None:
        """Make this bench's own source work in pages and batches of this size."""
        vars(self.source._connections.dialect)["batch_size"] = size

    async def get(self, job_id: JobId) -> StoredJob:
        row = await self.row(job_id)
        states = {word: state for state, words in STATES.items() for word in words}
        return StoredJob(
            job=Job(
                id=plain_id(row["id"]),
                state=states[row["status"]],
                status=row["status"],
                attempt=row["attempt"],
                enqueued_at=row["created_at"],
                scheduled_at=row["scheduled_at"],
                started_at=row["started_at"],
                heartbeat_at=row["updated_at"],
                completed_at=self._aware(row["completed_at"]),
            ),
            success=row["success"],
            error=row["error_message"],
        )

    async def row(self, job_id: JobId) -> sa.RowMapping:
        async with self.engine.connect() as connection:
            result = await connection.execute(sa.select(self.table).where(self.table.c.id == job_id))
            return result.mappings().one()

    async def rows(self) -> list[sa.RowMapping]:
        async with self.engine.connect() as connection:
            result = await connection.execute(sa.select(self.table).order_by(self.table.c.id))
            return list(result.mappings())

    async def outcomes(self, job_id: JobId) -> list[Outcome]:
        return [Outcome(record.outcome) for record in await self.recoveries(job_id)]

    async def undoable(self, job_id: JobId) -> Undoable:
        page = await self.ledger.undoable("main", 1, job_id=job_id)
        return page.recoveries[-1]

    async def recoveries(self, job_id: JobId | None = None) -> list[sa.Row[Any]]:
        """Return what was recorded of each job, one row a job and decision."""
        statement = sa.select(job_recoveries).order_by(job_recoveries.c.recovery_id)
        if job_id is not None:
            statement = statement.where(job_recoveries.c.job_id == str(job_id))
        async with self.engine.connect() as connection:
            return list(await connection.execute(statement))

    async def audit(self) -> list[sa.Row[Any]]:
        async with self.engine.connect() as connection:
            return list(await connection.execute(sa.select(audit).order_by(audit.c.id)))

    async def execute(self, *statements: str) -> None:
        """Run DDL or DML as the table's owner."""
        async with self.engine.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)

    async def close(self) -> None:
        for engine in (self.engine, *self.other_engines):
            await engine.dispose()

    def _aware(self, instant: datetime | None) -> datetime | None:
        if instant is None or instant.tzinfo is not None:
            return instant
        return instant.replace(tzinfo=UTC)

    async def _values(self, state: JobState, ages: Ages, attempt: int) -> dict[str, object]:
        now = await self.source.clock()
        times = {
            "created_at": ages.enqueued,
            "scheduled_at": ages.scheduled,
            "started_at": ages.started,
            "updated_at": ages.heartbeat,
            "completed_at": ages.completed,
        }
        stored = {name: None if age is None else self.store(now - age) for name, age in times.items()}
        return {"status": STATES[state][0], "attempt": attempt, **stored}


async def make_tables(engine: AsyncEngine, *, own_jobs: bool = False) -> None:
    """Make Unstick's tables, unless they are there, by the statements that `unstick db upgrade --sql` prints.

    That they make the same tables as a migration is what `tests/test_schema.py` sees.
    """
    async with engine.begin() as connection:
        if await connection.run_sync(lambda there: sa.inspect(there).has_table(schema.VERSION_TABLE)):
            return
        for statement in _made_by(engine.dialect.name, schema.branches(own_jobs=own_jobs)):
            await connection.exec_driver_sql(statement)


@cache
def _made_by(dialect: str, branches: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(statements(schema.upgrade_script(dialect, branches)))


def statements(script: str) -> list[str]:
    """Split what `unstick db upgrade --sql` prints; a transaction is whoever runs it's own."""
    lines = [line for line in script.splitlines() if not line.startswith("--")]
    found = [each.strip() for each in "\n".join(lines).split(";")]
    return [each for each in found if each and each not in {"BEGIN", "COMMIT"}]


async def open_bench(
    database: Database,
    table: sa.Table | None = None,
    jobs: JobTable | None = None,
    store: Callable[[datetime], object] | None = None,
    *,
    ruled_from: int = 1,
) -> SqlBench:
    """Make the table and the ledger in an empty database; rulings are given for however few jobs, unless told."""
    table = table if table is not None else jobs_table()
    engine = open_engine(database.url, create=True)
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
    await make_tables(engine)
    jobs = jobs or declared(table)
    source = SqlSource("main", jobs, EngineConnections(engine), ruled_from=ruled_from)
    return SqlBench(
        engine=engine, table=table, jobs=jobs, source=source, store=store or (lambda instant: instant),
        ruled_from=ruled_from,
    )  # fmt: skip
