"""Solid Queue 1.5.0's tables, with SQL in the place of its workers and its dispatcher."""

import json
import os
import socket
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.systems.stand_in import StandIn, Time, now

TABLES = sa.MetaData()


def _table(name: str, *columns: sa.Column[object]) -> sa.Table:
    key = sa.Column("id", sa.BigInteger, primary_key=True)
    created = sa.Column("created_at", Time, nullable=False, default=now)
    return sa.Table(f"solid_queue_{name}", TABLES, key, *columns, created)


def _execution(name: str, *columns: sa.Column[object]) -> sa.Table:
    job = sa.ForeignKey("solid_queue_jobs.id", ondelete="CASCADE")
    return _table(name, sa.Column("job_id", sa.BigInteger, job, nullable=False, unique=True), *columns)


def _text(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.String, nullable=nullable)


def _priority() -> sa.Column[object]:
    return sa.Column("priority", sa.Integer, nullable=False, default=0, server_default="0")


JOBS = _table(
    "jobs",
    *(_text("queue_name"), _text("class_name"), _priority(), sa.Column("arguments", sa.Text)),
    *(_text("active_job_id", nullable=True), _text("concurrency_key", nullable=True)),
    *(sa.Column("scheduled_at", Time), sa.Column("finished_at", Time, index=True)),
    sa.Column("updated_at", Time, nullable=False, default=now),
)
READY = _execution("ready_executions", _text("queue_name"), _priority())
CLAIMED = _execution("claimed_executions", sa.Column("process_id", sa.BigInteger))
FAILED = _execution("failed_executions", sa.Column("error", sa.Text))
SCHEDULED = _execution(
    "scheduled_executions", _text("queue_name"), _priority(), sa.Column("scheduled_at", Time, nullable=False)
)
BLOCKED = _execution(
    "blocked_executions",
    *(_text("queue_name"), _priority(), _text("concurrency_key")),
    sa.Column("expires_at", Time, nullable=False),
)
PAUSES = _table("pauses", sa.Column("queue_name", sa.String, nullable=False, unique=True))
PROCESSES = _table(
    "processes",
    *(_text("kind"), _text("name"), _text("hostname", nullable=True), sa.Column("pid", sa.Integer, nullable=False)),
    *(sa.Column("last_heartbeat_at", Time, nullable=False), sa.Column("supervisor_id", sa.BigInteger)),
    *(sa.Column("metadata", sa.Text), sa.UniqueConstraint("name", "supervisor_id")),
)

ME = sa.select(PROCESSES.c.id).where(PROCESSES.c.name == f"worker-{os.getpid()}")
EXECUTIONS = (READY, CLAIMED, FAILED, SCHEDULED, BLOCKED)


async def _is_in(connection: AsyncConnection, table: sa.Table, key: int) -> bool:
    return (await connection.execute(sa.select(table.c.id).where(table.c.job_id == key))).first() is not None


class SolidQueue(StandIn):
    version = "1.5.0"
    tables = TABLES

    async def register(self, connection: AsyncConnection) -> None:
        me = {"kind": "Worker", "name": f"worker-{os.getpid()}", "pid": os.getpid(), "hostname": socket.gethostname()}
        await connection.execute(sa.insert(PROCESSES).values(**me, last_heartbeat_at=now()))

    async def beat(self, connection: AsyncConnection) -> None:
        beaten = sa.update(PROCESSES).where(PROCESSES.c.id.in_(ME)).values(last_heartbeat_at=now())
        await connection.execute(beaten)

    async def enqueue(self, connection: AsyncConnection, token: str) -> int:
        job = {"queue_name": "held", "class_name": "Hold", "arguments": json.dumps([token]), "scheduled_at": now()}
        (key,) = (await connection.execute(sa.insert(JOBS).values(job))).inserted_primary_key or ()
        await connection.execute(sa.insert(READY).values(job_id=key, queue_name="held"))
        return int(key)

    async def claim(self, connection: AsyncConnection, token: str) -> int | None:
        """Dispatch the job where it is due, and claim it where it is ready."""
        its = sa.select(JOBS.c.id).where(JOBS.c.arguments == json.dumps([token]))
        due = sa.and_(SCHEDULED.c.job_id.in_(its), SCHEDULED.c.scheduled_at <= now())
        for job_id in await connection.scalars(sa.delete(SCHEDULED).where(due).returning(SCHEDULED.c.job_id)):
            await connection.execute(sa.insert(READY).values(job_id=job_id, queue_name="held"))
        taken = sa.delete(READY).where(READY.c.job_id.in_(its)).returning(READY.c.job_id)
        job_id = (await connection.execute(taken)).scalar_one_or_none()
        if job_id is not None:
            await connection.execute(sa.insert(CLAIMED).values(job_id=job_id, process_id=ME.scalar_subquery()))
        return job_id

    async def finish(self, connection: AsyncConnection, job_id: int | str) -> None:
        mine = sa.and_(CLAIMED.c.job_id == job_id, CLAIMED.c.process_id.in_(ME))
        if (await connection.execute(sa.select(CLAIMED).where(mine).with_for_update())).first() is not None:
            await connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(finished_at=now()))
            await connection.execute(sa.delete(CLAIMED).where(mine))

    async def tell(self, connection: AsyncConnection, job_id: str) -> Mapping[str, object]:
        """Say a job's status: finished, or the table that it has an execution in."""
        key = int(job_id)
        finished_at = (await connection.execute(sa.select(JOBS.c.finished_at).where(JOBS.c.id == key))).scalar_one()
        there = [table.name for table in EXECUTIONS if await _is_in(connection, table, key)]
        states = ["finished"] if finished_at else []
        states += [name.removeprefix("solid_queue_").removesuffix("_executions") for name in there]
        error = (await connection.execute(sa.select(FAILED.c.error).where(FAILED.c.job_id == key))).scalar()
        return {"state": " and ".join(states)} | ({"error": json.loads(error)["message"]} if error else {})


print(SolidQueue().run())
