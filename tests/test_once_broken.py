"""Where promises once didn't hold: partitions, writes past the ORM, a batch that takes too long, a collation."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.jobs import open_bench
from tests.test_guards import partition
from tests.test_ledger_elsewhere import STUCK, Apart, apart
from tests.test_races import bench, elsewhere, host, on_databases, statuses, stuck
from unstick.admin import AdminService
from unstick.domain.errors import PendingChangesError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Outcome
from unstick.pipeline.settling import settle_intents
from unstick.sql.engine import open_engine, use_write_ahead_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.jobs import SqlBench
    from tests.servers import Database

__all__ = ["apart", "bench"]


async def test_a_held_row_that_shares_its_address_with_a_free_one_does_not_stop_the_sweep(
    postgres_database: Database,
) -> None:
    """P2: in a partitioned table the ruling's second try locks the free row, and then waits for its twin."""
    opened = await open_bench(postgres_database)
    await partition(opened)
    await opened.put(*({"id": number} for number in range(1, 9)))
    twins = "SELECT min(id) FROM ai_generation_jobs GROUP BY ctid HAVING count(*) = 2"
    async with host(opened) as app, app.connect() as worker:
        held = (await worker.execute(sa.text(twins))).scalars().first()
        await worker.execute(sa.text(f"SELECT 1 FROM ai_generation_jobs WHERE id = {held} FOR UPDATE"))
        try:
            report = await opened.sweep()
        finally:
            await worker.rollback()
            await opened.close()

    assert [report.tally.of(outcome=each) for each in (Outcome.APPLIED, Outcome.LOST_RACE)] == [7, 1]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)


async def by_bulk(db: AsyncSession) -> None:
    await db.run_sync(lambda session: session.bulk_save_objects([User(id=1)]))


async def by_connection(db: AsyncSession) -> None:
    await (await db.connection()).execute(sa.insert(User).values(id=1))


async def by_query(db: AsyncSession) -> None:
    inserted = sa.insert(User).values(id=1).returning(User.id).cte("inserted")
    (await db.execute(sa.select(inserted.c.id))).all()


EVERYWHERE = ("sqlite", "postgres18", "mariadb")
WAYS = [(database, way) for database in EVERYWHERE for way in (by_bulk, by_connection)]


@pytest.mark.parametrize(
    ("database", "write"), [*WAYS, ("postgres18", by_query)], indirect=["database"]
)  # only PostgreSQL writes within a query
async def test_what_a_caller_wrote_without_the_orm_noticing_is_pending_too(
    bench: SqlBench, write: Callable[[AsyncSession], Any]
) -> None:
    """0003: or a cleanup would commit it, unseen."""
    await stuck(bench, 1)
    async with host(bench) as app:
        async with app.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(app) as db:
            await write(db)
            with pytest.raises(PendingChangesError):
                await AdminService(db, jobs=bench.jobs, policy=Policy()).cleanup_stuck_jobs()
    assert await statuses(bench) == ["running"]


@contextmanager
def before_first(engine: AsyncEngine, fragment: str, act: Callable[[], None]) -> Iterator[list[str]]:
    seen: list[str] = []

    def hook(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if fragment in statement and not seen:
            seen.append(statement)
            act()

    event.listen(engine.sync_engine, "before_cursor_execute", hook)
    try:
        yield seen
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", hook)


async def test_a_batch_that_takes_longer_than_an_intent_may_is_recorded_as_what_it_did(apart: Apart) -> None:
    """Promise 2, 0008: a paused process, or a slow trigger and many refused rows; another settles meanwhile."""
    if apart.bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(apart.bench.engine)
    job_id = await apart.bench.add(JobState.RUNNING, STUCK)

    async def another_starts() -> None:
        ours = [open_engine(e.url.render_as_string(hide_password=False)) for e in (apart.bench.engine, apart.ledger)]
        try:
            other = Apart(await _like(apart.bench, ours[0]), ours[1])
            await other.time_passes()
            assert await settle_intents(other.watched) == 1
        finally:
            for each in ours:
                await each.dispose()

    with before_first(apart.bench.engine, "UPDATE ai_generation_jobs", lambda: elsewhere(another_starts)) as seen:
        report = await apart.sweep()

    assert seen
    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    assert await apart.statuses() == ["failed"]
    assert (await apart.told())[str(job_id)] == Outcome.APPLIED


async def _like(bench: SqlBench, engine: AsyncEngine) -> SqlBench:
    return type(bench)(engine=engine, table=bench.table, jobs=bench.jobs, source=bench.source)


@on_databases("postgres15")  # whose build knows ICU
async def test_errors_that_their_column_takes_for_the_same_share_no_record(bench: SqlBench) -> None:
    """0007: a cast to text keeps a collation that isn't deterministic, so that a pre-image is another job's."""
    await bench.execute(
        "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "ALTER TABLE ai_generation_jobs ALTER error_message TYPE text COLLATE loose",
    )
    said = ["Timeout", "timeout", "Timeout"]
    await bench.put(*({"error_message": each} for each in said))

    await bench.sweep()

    images = {int(record.job_id): json.loads(record.pre_image) for record in await bench.recoveries()}
    assert [images[number]["error_message"] for number in (1, 2, 3)] == said
