"""`AdminService` on a host app's own sessions: the contract, to the letter, on every database."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.jobs import AWARE, make_tables
from unstick import AdminService, JobTable, Policy
from unstick.domain.errors import InvalidRequestError, LedgerMissingError, PendingChangesError
from unstick.sql.tables import audit, recoveries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database


class Base(DeclarativeBase):
    pass


class AIGenerationJob(Base):
    __tablename__ = "ai_generation_jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(sa.String(20))
    job_type: Mapped[str] = mapped_column(sa.String(50), default="summary")
    created_at: Mapped[datetime | None] = mapped_column(AWARE)
    started_at: Mapped[datetime | None] = mapped_column(AWARE)
    completed_at: Mapped[datetime | None] = mapped_column(AWARE)
    success: Mapped[bool | None]
    error_message: Mapped[str | None] = mapped_column(sa.Text)


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))


class Host:
    """A host app: its engine in the driver's default mode, its sessions, its jobs."""

    def __init__(self, engine: AsyncEngine, *, expire_on_commit: bool = True) -> None:
        self.engine = engine
        self.sessions = async_sessionmaker(engine, expire_on_commit=expire_on_commit)
        self.jobs = JobTable.from_model(AIGenerationJob)

    async def add(self, status: str, *, age: timedelta, enqueued: bool = False) -> int:
        moment = await self.now() - age
        job = AIGenerationJob(status=status, **{"created_at" if enqueued else "started_at": moment})
        async with self.sessions(expire_on_commit=False) as session, session.begin():
            session.add(job)
        return job.id

    async def now(self) -> datetime:
        async with self.engine.connect() as connection:
            name = connection.dialect.name
            clock = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')", "postgresql": "now()"}
            read = await connection.scalar(sa.text(f"SELECT {clock.get(name, 'UTC_TIMESTAMP(6)')}"))
        return datetime.fromisoformat(read) if isinstance(read, str) else read

    async def job(self, job_id: int) -> AIGenerationJob:
        async with self.sessions(expire_on_commit=False) as session:
            return await session.get_one(AIGenerationJob, job_id)

    async def count(self, table: sa.Table) -> int:
        async with self.engine.connect() as connection:
            return await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    def service(self, session: AsyncSession, *, policy: Policy | None = None, actor: str = "test") -> AdminService:
        return AdminService(session, jobs=self.jobs, policy=policy, actor=actor)


@pytest.fixture
async def host(database: Database) -> AsyncIterator[Host]:
    engine = create_async_engine(database.url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await make_tables(engine)
    yield Host(engine)
    await engine.dispose()


HOUR = timedelta(hours=1)
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""What is refused before any database is asked is tried on one."""


async def test_monitor_answers_with_shape_1(host: Host) -> None:
    queued = await host.add("queued", age=HOUR)
    running = await host.add("running", age=HOUR)
    await host.add("running", age=timedelta(minutes=29))

    async with host.sessions() as db:
        shape = await host.service(db).monitor_stuck_jobs()

    assert shape["stuck_jobs"] == {"total": 2, "queued_stuck": 1, "running_stuck": 1}
    assert [job["id"] for job in shape["queued_jobs"]] == [queued]
    assert [job["id"] for job in shape["running_jobs"]] == [running]
    assert shape["threshold_minutes"] == 5
    assert datetime.fromisoformat(shape["monitored_at"]).utcoffset() == timedelta(0)
    assert shape["recommendations"] == {
        "cleanup_needed": True,
        "message": "Found 2 stuck job(s). Consider running cleanup.",
    }


async def test_cleanup_answers_with_shape_2_and_ends_the_jobs(host: Host) -> None:
    job_id = await host.add("queued", age=HOUR, enqueued=True)

    async with host.sessions() as db:
        shape = await host.service(db).cleanup_stuck_jobs()

    job = await host.job(job_id)
    assert (shape["action"], shape["threshold_minutes"]) == ("mark_failed", 5)
    assert shape["cleaned_jobs"] == {"queued": 1, "running": 0, "total": 1}
    assert shape["message"] == "Successfully cleaned up 1 stuck job(s)."
    assert datetime.fromisoformat(shape["cleaned_at"]).utcoffset() == timedelta(0)
    assert (job.status, job.success) == ("failed", False)
    assert job.completed_at is not None
    assert (job.error_message or "").startswith("Job stuck in queued for more than 5 minutes: ")
    assert (job.error_message or "").endswith("Automatically cleaned up.")


async def test_stats_hold_the_fixed_part_of_shape_3(host: Host) -> None:
    await host.add("queued", age=HOUR)
    await host.add("completed", age=HOUR)

    async with host.sessions() as db:
        shape = await host.service(db).get_platform_stats()

    assert shape["ai_usage"]["stuck_jobs"] == {"queued": 1, "running": 0, "total": 1}
    assert shape["ai_usage"]["jobs_by_state"] == {"queued": 1, "succeeded": 1}
    assert shape["ai_usage"]["window"]["jobs"] == 2
    assert shape["jobs"]["open_by_state"] == {"queued": 1}


async def test_the_threshold_moves_queued_jobs_only(host: Host) -> None:
    await host.add("queued", age=timedelta(minutes=20))
    await host.add("running", age=HOUR)

    async with host.sessions() as db:
        shape = await host.service(db).monitor_stuck_jobs(stuck_threshold_minutes=30)

    assert shape["stuck_jobs"] == {"total": 1, "queued_stuck": 0, "running_stuck": 1}
    assert (shape["threshold_minutes"], shape["running_threshold_minutes"]) == (30, 30)


@pytest.mark.parametrize("minutes", [0, -1, 525_601, 5.0, True, "5", None])
@ON_SQLITE
async def test_a_threshold_that_means_nothing_changes_nothing(
    host: Host,
    minutes: Any,  # noqa: ANN401 - what a caller without types may pass
) -> None:
    job_id = await host.add("queued", age=HOUR)

    async with host.sessions() as db:
        with pytest.raises(InvalidRequestError, match="whole number of minutes from 1 to 525600"):
            await host.service(db).cleanup_stuck_jobs(stuck_threshold_minutes=minutes)

    assert (await host.job(job_id)).status == "queued"


@ON_SQLITE
async def test_an_unknown_action_changes_nothing(host: Host) -> None:
    job_id = await host.add("queued", age=HOUR)

    async with host.sessions() as db:
        with pytest.raises(InvalidRequestError, match="mark_failed, retry"):
            await host.service(db).cleanup_stuck_jobs(action="delete")

    assert (await host.job(job_id)).status == "queued"


async def test_a_dry_run_tells_what_would_be_done_and_changes_nothing(host: Host) -> None:
    job_id = await host.add("queued", age=HOUR)

    async with host.sessions() as db:
        shape = await host.service(db).cleanup_stuck_jobs(dry_run=True)

    assert shape["would_clean"] == {"queued": 1, "running": 0, "total": 1}
    assert shape["cleaned_jobs"] == {"queued": 0, "running": 0, "total": 0}
    assert (await host.job(job_id)).status == "queued"
    assert (await host.count(audit), await host.count(recoveries)) == (0, 0)


async def test_a_retried_job_is_queued_anew_until_its_budget_is_spent_and_then_failed_as_poison(host: Host) -> None:
    job_id = await host.add("running", age=HOUR)
    policy = Policy(max_recoveries=2)

    for _ in range(2):
        async with host.sessions() as db:
            shape = await host.service(db, policy=policy).cleanup_stuck_jobs(action="retry")
        assert (shape["actions"], shape["poison"]) == ({"mark_failed": 0, "retry": 1}, 0)
        assert (await host.job(job_id)).status == "queued"
        await _get_stuck_again(host, job_id)
    async with host.sessions() as db:
        shape = await host.service(db, policy=policy).cleanup_stuck_jobs(action="retry")

    assert (shape["actions"], shape["poison"]) == ({"mark_failed": 1, "retry": 0}, 1)
    job = await host.job(job_id)
    assert job.status == "failed"
    assert "recovered 2 times within 3 days" in (job.error_message or "")


async def test_a_session_in_which_the_caller_has_only_read_is_fine_and_keeps_its_objects(host: Host) -> None:
    job_id = await host.add("running", age=HOUR)
    async with host.sessions() as session, session.begin():
        session.add(User(name="ada"))

    async with host.sessions() as db:
        user = (await db.scalars(sa.select(User))).one()
        await db.execute(sa.text("SELECT name FROM users"))
        shape = await host.service(db).cleanup_stuck_jobs()
        name = user.name

    assert (shape["cleaned_jobs"]["total"], name) == (1, "ada")
    assert (await host.job(job_id)).status == "failed"


async def test_jobs_the_caller_had_loaded_are_read_anew_after_a_cleanup(host: Host) -> None:
    job_id = await host.add("running", age=HOUR)

    async with host.sessions() as db:
        job = await db.get_one(AIGenerationJob, job_id)
        await host.service(db).cleanup_stuck_jobs()
        again = await db.get_one(AIGenerationJob, job_id)

    assert (again is job, job.status) == (True, "failed")


async def _add_user(db: AsyncSession) -> None:
    db.add(User(name="eve"))


async def _flush_user(db: AsyncSession) -> None:
    db.add(User(name="eve"))
    await db.flush()


async def _execute_insert(db: AsyncSession) -> None:
    await db.execute(sa.insert(User).values(name="eve"))


async def _execute_text(db: AsyncSession) -> None:
    await db.execute(sa.text("UPDATE users SET name = 'eve'"))


async def _modify_user(db: AsyncSession) -> None:
    (await db.scalars(sa.select(User))).one().name = "eve"


async def _delete_user(db: AsyncSession) -> None:
    await db.delete((await db.scalars(sa.select(User))).one())


@pytest.mark.parametrize("change", [_add_user, _flush_user, _execute_insert, _execute_text, _modify_user, _delete_user])
async def test_a_session_that_holds_the_callers_changes_is_refused_and_nothing_is_committed(
    host: Host, change: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    job_id = await host.add("running", age=HOUR)
    async with host.sessions() as session, session.begin():
        session.add(User(name="ada"))

    async with host.sessions() as db:
        await change(db)
        with pytest.raises(PendingChangesError, match="not committed"):
            await host.service(db).cleanup_stuck_jobs()
        await db.rollback()

    async with host.sessions() as db:
        assert [user.name for user in await db.scalars(sa.select(User))] == ["ada"]
        assert (await host.service(db).cleanup_stuck_jobs())["cleaned_jobs"]["total"] == 1
    assert (await host.job(job_id)).status == "failed"


async def test_without_its_tables_a_cleanup_is_refused_with_the_command_that_makes_them(database: Database) -> None:
    engine = create_async_engine(database.url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    host = Host(engine)
    job_id = await host.add("running", age=HOUR)

    async with host.sessions() as db:
        assert (await host.service(db).monitor_stuck_jobs())["stuck_jobs"]["total"] == 1
        with pytest.raises(LedgerMissingError, match="unstick db upgrade"):
            await host.service(db).cleanup_stuck_jobs()

    assert (await host.job(job_id)).status == "running"
    await engine.dispose()


async def test_the_command_that_makes_the_tables_can_be_followed_and_tells_no_password(
    postgres_database: Database, tmp_path: Path
) -> None:
    password = "p@ss word%/'"
    engine = create_async_engine(sa.make_url(postgres_database.url).set(password=password))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    host = Host(engine)
    async with host.sessions() as db:
        with pytest.raises(LedgerMissingError) as refused:
            await host.service(db).cleanup_stuck_jobs()
        said = str(refused.value)
        assert not re.search(f"{re.escape(password)}|{quote(password, safe='')}|\\*\\*\\*", said)
        assert "in place of PASSWORD" in said

        [command] = re.findall(r"Make them with: (.* unstick db upgrade) \(", said)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        followed = command.replace("PASSWORD", quote(password, safe=""))
        shell = await asyncio.create_subprocess_exec("sh", "-c", followed, env={"PATH": path}, cwd=tmp_path)
        assert await shell.wait() == 0
        assert (await host.service(db).cleanup_stuck_jobs())["cleaned_jobs"]["total"] == 0
    await engine.dispose()


async def test_lists_are_bounded_and_continue_at_the_cursor_while_counts_stay_exact(host: Host) -> None:
    ids = [await host.add("queued", age=timedelta(minutes=90 - n)) for n in range(5)]

    listed: list[int | str] = []
    cursor: str | None = None
    async with host.sessions() as db:
        for _ in range(3):
            shape = await host.service(db).monitor_stuck_jobs(limit=2, cursor=cursor)
            assert shape["stuck_jobs"]["total"] == 5
            listed += [job["id"] for job in shape["queued_jobs"]]
            cursor = shape["next_cursor"]

    assert (listed, cursor) == (ids, None)


@pytest.mark.parametrize("cursor", ["", "x", "e30", "eyJxdWV1ZWQiOlsieCIsMV19", "eyJkb25lIjpbXX0="])
@ON_SQLITE
async def test_a_cursor_that_is_not_ours_is_refused(host: Host, cursor: str) -> None:
    async with host.sessions() as db:
        with pytest.raises(InvalidRequestError, match="cursor"):
            await host.service(db).monitor_stuck_jobs(cursor=cursor)


async def test_each_change_stands_in_the_ledger_with_who_what_and_the_pre_image(host: Host) -> None:
    job_id = await host.add("running", age=HOUR)

    async with host.sessions() as db:
        shape = await host.service(db, actor="ada").cleanup_stuck_jobs()

    async with host.engine.connect() as connection:
        calls = (await connection.execute(sa.select(audit).order_by(audit.c.id))).all()
        record = (await connection.execute(sa.select(recoveries))).one()
    assert [(call.actor, call.call, call.outcome) for call in calls] == [
        ("ada", "jobs.cleanup", "started"),
        ("ada", "jobs.cleanup", "done"),
    ]
    assert calls[1].operation_id == calls[0].id == shape["operation_id"] == record.operation_id
    assert calls[1].result == {"applied": 1, "lost_race": 0, "failed": 0, "left": 0, "braked": 0}
    assert (record.job_id, record.state, record.outcome) == (str(job_id), "running", "applied")
    assert '"running"' in record.pre_image


async def _get_stuck_again(host: Host, job_id: int) -> None:
    moment = await host.now() - HOUR
    async with host.sessions() as session, session.begin():
        job = await session.get_one(AIGenerationJob, job_id)
        job.status, job.started_at = "running", moment
