"""GoodJob 4.19.2's tables, with SQL in its workers' place: its default strategy, an advisory lock for each job."""

import uuid
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, INTERVAL, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.systems.stand_in import StandIn, Time, now

TABLES = sa.MetaData()


def _table(name: str, *columns: sa.Column[object]) -> sa.Table:
    key = sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.func.gen_random_uuid())
    times = [sa.Column(each, Time, nullable=False, default=now) for each in ("created_at", "updated_at")]
    return sa.Table(name, TABLES, key, *times, *columns)


def _columns(type_: type[sa.types.TypeEngine[object]], *names: str) -> list[sa.Column[object]]:
    return [sa.Column(name, type_) for name in names]


JOBS = _table(
    "good_jobs",
    *_columns(sa.Text, "queue_name", "error", "concurrency_key", "cron_key", "job_class"),
    *_columns(sa.Integer, "priority", "executions_count"),
    *_columns(sa.SmallInteger, "error_event", "lock_type"),
    *_columns(sa.DateTime, "scheduled_at", "performed_at", "finished_at", "cron_at", "locked_at"),
    *_columns(sa.Uuid, "active_job_id", "retried_good_job_id", "batch_id", "batch_callback_id", "locked_by_id"),
    *_columns(JSONB, "serialized_params"),
    *_columns(sa.Boolean, "is_discrete"),
    sa.Column("labels", ARRAY(sa.Text)),
)
sa.Index("scheduled_and_unfinished", JOBS.c.scheduled_at, postgresql_where=JOBS.c.finished_at.is_(None))
sa.Index("cron_once", JOBS.c.cron_key, JOBS.c.cron_at, unique=True, postgresql_where=JOBS.c.cron_key.is_not(None))

EXECUTIONS = _table(
    "good_job_executions",
    sa.Column("active_job_id", sa.Uuid, nullable=False),
    *_columns(sa.Text, "job_class", "queue_name", "error"),
    *_columns(sa.DateTime, "scheduled_at", "finished_at"),
    *_columns(sa.SmallInteger, "error_event"),
    *_columns(sa.Uuid, "process_id"),
    *_columns(JSONB, "serialized_params"),
    *_columns(INTERVAL, "duration"),
    sa.Column("error_backtrace", ARRAY(sa.Text)),
)
PROCESSES = _table("good_job_processes", *_columns(JSONB, "state"), *_columns(sa.SmallInteger, "lock_type"))
SETTINGS = _table("good_job_settings", sa.Column("key", sa.Text, unique=True), *_columns(JSONB, "value"))

WORKER = uuid.uuid4()
LOCK = "('x' || substr(md5('good_jobs-' || good_jobs.id::text), 1, 16))::bit(64)::bigint"


class GoodJob(StandIn):
    version = "4.19.2"
    tables = TABLES

    async def register(self, connection: AsyncConnection) -> None:
        await connection.execute(sa.insert(PROCESSES).values(id=WORKER, state={}))

    async def beat(self, connection: AsyncConnection) -> None:
        await connection.execute(sa.update(PROCESSES).where(PROCESSES.c.id == WORKER).values(updated_at=now()))

    async def enqueue(self, connection: AsyncConnection, token: str) -> str:
        key = uuid.uuid4()
        said = {"queue_name": "held", "job_class": "Hold", "scheduled_at": now(), "serialized_params": {"token": token}}
        await connection.execute(sa.insert(JOBS).values(id=key, active_job_id=key, priority=0, **said))
        return str(key)

    async def claim(self, connection: AsyncConnection, token: str) -> str | None:
        due = sa.and_(JOBS.c.finished_at.is_(None), JOBS.c.scheduled_at <= now())
        job = sa.select(JOBS).where(due, JOBS.c.serialized_params["token"].astext == token)
        taken = (await connection.execute(job.where(sa.text(f"pg_try_advisory_lock({LOCK})")))).one_or_none()
        if taken is None:
            return None
        begun = {"performed_at": now(), "executions_count": (taken.executions_count or 0) + 1}
        held = {"locked_by_id": WORKER, "locked_at": now(), "lock_type": 0}
        await connection.execute(sa.update(JOBS).where(JOBS.c.id == taken.id).values(**begun, **held))
        execution = {"active_job_id": taken.id, "process_id": WORKER, "scheduled_at": taken.scheduled_at}
        await connection.execute(sa.insert(EXECUTIONS).values(execution))
        return str(taken.id)

    async def finish(self, connection: AsyncConnection, job_id: int | str) -> None:
        key, at = uuid.UUID(str(job_id)), now()
        free = {"locked_by_id": None, "locked_at": None, "lock_type": None}
        done = {"finished_at": at, "error": None, "error_event": None}
        await connection.execute(sa.update(JOBS).where(JOBS.c.id == key).values(**done, **free))
        mine = sa.and_(EXECUTIONS.c.active_job_id == key, EXECUTIONS.c.process_id == WORKER)
        await connection.execute(sa.update(EXECUTIONS).where(mine).values(finished_at=at))
        await connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))

    async def tell(self, connection: AsyncConnection, job_id: str) -> Mapping[str, object]:
        key = uuid.UUID(job_id)
        job = (await connection.execute(sa.select(JOBS).where(JOBS.c.id == key))).one()
        over = sa.select(EXECUTIONS).where(EXECUTIONS.c.active_job_id == key).order_by(EXECUTIONS.c.created_at)
        executions = [_of_execution(each, job) for each in await connection.execute(over)]
        state = "running" if job.performed_at else "queued"
        if job.finished_at:
            state = "discarded" if job.error else "succeeded"
        return {"state": state, "executions": executions} | ({"error": job.error} if job.error else {})


def _of_execution(execution: sa.Row[tuple[object, ...]], job: sa.Row[tuple[object, ...]]) -> str:
    if not execution.finished_at:
        return "running"
    if not execution.error:
        return "succeeded"
    return "discarded" if job.finished_at and job.error else "retried"


print(GoodJob().run())
