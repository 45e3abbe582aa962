"""Delayed Job 4.2's table (delayed_job_active_record 4.1.11), with SQL in its workers' place."""

import os
import socket
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.systems.stand_in import StandIn, Time, now

TABLES = sa.MetaData()
JOBS = sa.Table(
    "delayed_jobs",
    TABLES,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("priority", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("attempts", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("handler", sa.Text, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Column("run_at", Time),
    sa.Column("locked_at", Time),
    sa.Column("failed_at", Time),
    sa.Column("locked_by", sa.String(255)),
    sa.Column("queue", sa.String(255)),
    sa.Column("created_at", Time),
    sa.Column("updated_at", Time),
    sa.Index("delayed_jobs_priority", "priority", "run_at"),
)
WORKER = f"delayed_job.0 host:{socket.gethostname()} pid:{os.getpid()}"


class DelayedJob(StandIn):
    version = "4.2.0"
    tables = TABLES

    async def enqueue(self, connection: AsyncConnection, token: str) -> int:
        row = {"handler": token, "queue": "held", "run_at": now(), "created_at": now(), "updated_at": now()}
        (key,) = (await connection.execute(sa.insert(JOBS).values(row))).inserted_primary_key or ()
        return int(key)

    async def claim(self, connection: AsyncConnection, token: str) -> int | None:
        free = sa.and_(JOBS.c.handler == token, JOBS.c.run_at <= now(), JOBS.c.locked_at.is_(None))
        taken = sa.update(JOBS).where(free, JOBS.c.failed_at.is_(None)).values(locked_at=now(), locked_by=WORKER)
        if (await connection.execute(taken)).rowcount == 0:
            return None
        return (await connection.execute(sa.select(JOBS.c.id).where(JOBS.c.locked_by == WORKER))).scalar_one()

    async def finish(self, connection: AsyncConnection, job_id: int | str) -> None:
        await connection.execute(sa.delete(JOBS).where(JOBS.c.id == job_id))

    async def tell(self, connection: AsyncConnection, job_id: str) -> Mapping[str, object]:
        job = (await connection.execute(sa.select(JOBS).where(JOBS.c.id == int(job_id)))).one_or_none()
        if job is None:
            return {"state": "done"}
        state = "failed" if job.failed_at else "locked" if job.locked_at else "waiting"
        return {"state": state, "attempts": job.attempts} | ({"error": job.last_error} if job.last_error else {})


print(DelayedJob().run())
