"""A foreign table of workers says whether a job's worker lives, on every database."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from tests.jobs import AWARE, NAIVE
from tests.servers import EACH_KIND
from tests.witnessing import statements_of, word, words
from unstick.config import RegistrySettings
from unstick.domain.errors import ConfigurationError, SourceUnavailableError
from unstick.domain.evidence import Holding
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.registry import WorkerRegistry
from unstick.testing.witnesses import WitnessConformance, running_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.domain.job import Job

DATABASES = EACH_KIND

SECOND = timedelta(seconds=1)
SECTION = {
    "table": "workers",
    "columns": {"id": "id", "heartbeat_at": "last_heartbeat", "started_at": "started_at"},
    "alive_for": "30s",
}


class Office:
    """A table of workers, and the witness that reads it."""

    def __init__(self, engine: AsyncEngine, table: sa.Table, section: dict[str, Any], zone: str) -> None:
        self.engine = engine
        self.table = table
        self.witness = self.reading(zone=zone, **section)
        self._last = 0

    def reading(self, *, zone: str = "UTC", **section: Any) -> WorkerRegistry:  # noqa: ANN401
        settings = RegistrySettings.model_validate(SECTION | section)
        return WorkerRegistry(settings, EngineConnections(self.engine), zone)

    async def clock(self) -> datetime:
        async with EngineConnections(self.engine).reading() as (_, now):
            return now

    async def add(self, name: object, *, beat: timedelta | None, began: timedelta = timedelta(days=30)) -> datetime:
        """Add a worker by the ages of its heartbeat and its start, and return when it began."""
        now = await self.clock()
        times = {"last_heartbeat": beat, "started_at": began}
        row = {key: None if age is None else now - age for key, age in times.items()}
        async with self.engine.begin() as connection:
            await connection.execute(sa.insert(self.table).values(id=name, **row))
        return now - began

    async def job(self, worker: str | None, **known: Any) -> Job:  # noqa: ANN401
        self._last += 1
        return running_job(self._last, await self.clock(), worker=worker, **known)

    # As `WitnessStand`:

    async def held(self) -> Job:
        await self.add(self._last + 1, beat=SECOND)
        return await self.job(str(self._last + 1))

    async def released(self) -> Job:
        await self.add(self._last + 1, beat=90 * SECOND)
        return await self.job(str(self._last + 1))

    async def strange(self, number: int) -> Sequence[Job]:
        now = await self.clock()
        return [running_job(f"strange-{each}", now) for each in range(number)]


async def open_office(
    database: Database,
    key: Any = sa.BigInteger,  # noqa: ANN401
    *,
    time: Any = AWARE,  # noqa: ANN401
    zone: str = "UTC",
    **section: Any,  # noqa: ANN401
) -> Office:
    table = sa.Table(
        "workers",
        sa.MetaData(),
        sa.Column("id", key, primary_key=True, autoincrement=False),
        sa.Column("last_heartbeat", time),
        sa.Column("started_at", time),
    )
    engine = open_engine(database.url, create=True)
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
    return Office(engine, table, section, zone)


@pytest.fixture
async def office(database: Database) -> AsyncIterator[Office]:
    office = await open_office(database)
    yield office
    await office.engine.dispose()


class TestRegistry(WitnessConformance):
    @pytest.fixture
    def stand(self, office: Office) -> Office:
        return office


async def test_the_heartbeat_decides(office: Office) -> None:
    """Item 1: a healthy long job is held by its worker's heartbeat, however long ago it began."""
    await office.add(7, beat=5 * SECOND)
    await office.add(8, beat=31 * SECOND)
    await office.add(9, beat=None)

    assert await word(office.witness, await office.job("7", age=timedelta(days=9))) == (Holding.HELD, "worker 7 beats")
    holding, said = await word(office.witness, await office.job("8"))
    assert (holding, (said or "")[:28]) == (Holding.RELEASED, "worker 8 has not beaten for ")
    assert await word(office.witness, await office.job("9")) == (Holding.UNKNOWN, "worker 9 has never beaten")


async def test_the_time_told_is_that_of_the_heartbeat(office: Office) -> None:
    await office.add(7, beat=20 * SECOND)
    job = await office.job("7")
    at = (await office.witness.ask([job], await office.clock()))[job.id].at
    assert at is not None
    assert timedelta(seconds=19) < await office.clock() - at < timedelta(seconds=29)


async def test_a_worker_that_is_not_there_has_released_its_jobs(office: Office) -> None:
    job = await office.job("7")
    assert await word(office.witness, job) == (Holding.RELEASED, "worker 7 is not in workers")


@pytest.mark.parametrize("worker", [None, ""])
async def test_a_job_that_names_no_worker_is_unknown_unless_its_system_strikes_workers(
    office: Office, worker: str | None
) -> None:
    """L10: a worker that was struck while it lived has its jobs orphaned, so this must be asked for."""
    job = await office.job(worker)
    striking = office.reading(unowned="released")
    assert await word(office.witness, job) == (Holding.UNKNOWN, "the job names no worker")
    assert await word(striking, job) == (Holding.RELEASED, "the job names no worker")


async def test_without_any_worker_named_nothing_is_asked(office: Office) -> None:
    with statements_of(office.engine) as ran:
        await words(office.witness, [await office.job(None)])
    assert [each for each in ran if "workers" in each] == []


async def test_a_worker_that_began_after_the_job_is_another(office: Office) -> None:
    """Item 13: the same name after a restart must not hide the job that died with the one before."""
    await office.add(7, beat=SECOND, began=10 * SECOND)
    holding, said = await word(office.witness, await office.job("7"))
    assert (holding, (said or "")[-37:]) == (Holding.RELEASED, "UTC, after the job: it is another one")

    await office.add(8, beat=SECOND, began=timedelta(hours=2))
    assert (await word(office.witness, await office.job("8")))[0] is Holding.HELD

    began_at = await office.add(9, beat=SECOND, began=timedelta(hours=1))
    job = replace(await office.job("9"), started_at=began_at - SECOND)
    holding, said = await word(office.witness, job)
    assert (holding, (said or "")[-49:]) == (Holding.UNKNOWN, "job's times don't tell whether it is the same one")


async def test_without_a_start_the_heartbeat_alone_decides(office: Office) -> None:
    witness = office.reading(columns={"id": "id", "heartbeat_at": "last_heartbeat"})
    await office.add(7, beat=SECOND, began=10 * SECOND)
    assert (await word(witness, await office.job("7")))[0] is Holding.HELD


async def test_a_heartbeat_in_the_future_says_nothing(office: Office) -> None:
    """A worker whose clock is an hour ahead would seem alive for an hour after its death."""
    await office.add(7, beat=-timedelta(hours=1))
    await office.add(8, beat=-5 * SECOND)
    assert await word(office.witness, await office.job("7")) == (Holding.UNKNOWN, "worker 7 beats in the future")
    assert (await word(office.witness, await office.job("8")))[0] is Holding.HELD


async def test_whoever_says_until_when_it_lives_lives_until_then(database: Database) -> None:
    """However far ahead that is; a number is a time, and of none nobody knows."""
    for time in (AWARE, sa.BigInteger()):
        office = await open_office(
            database, time=time, columns={"id": "id", "expires_at": "last_heartbeat"}, alive_for=None
        )
        now = await office.clock()
        for name, until in ((7, now + timedelta(days=1)), (8, now - 90 * SECOND), (9, None)):
            value = until if time is AWARE or until is None else int(until.timestamp())
            async with office.engine.begin() as connection:
                await connection.execute(sa.insert(office.table).values(id=name, last_heartbeat=value))
        jobs = [await office.job(name) for name in ("7", "8", "9")]
        assert await words(office.witness, jobs) == [Holding.HELD, Holding.RELEASED, Holding.UNKNOWN]
        async with office.engine.begin() as connection:
            await connection.run_sync(office.table.drop)
        await office.engine.dispose()


async def test_naive_times_mean_what_the_mapping_says(database: Database) -> None:
    """C2: read as UTC, a fresh heartbeat from Berlin would be one from the future, and a stale one fresh."""
    office = await open_office(database, time=NAIVE, zone="Europe/Berlin")
    now = await office.clock()
    for name, age in ((7, SECOND), (8, 90 * SECOND)):
        local = (now - age).astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)
        async with office.engine.begin() as connection:
            await connection.execute(sa.insert(office.table).values(id=name, last_heartbeat=local))

    held, released = await office.job("7"), await office.job("8")
    assert await words(office.witness, [held, released]) == [Holding.HELD, Holding.RELEASED]
    await office.engine.dispose()


async def test_numbers_are_found_by_their_text_and_nothing_else_is_a_number(office: Office) -> None:
    await office.add(7, beat=SECOND)
    strange = ["07", "7.0", "seven", "7;--", "99999999999999999999", "-7", "\u0667"]
    jobs = [await office.job("7"), *[await office.job(name) for name in strange]]
    assert await words(office.witness, jobs) == [Holding.HELD, *[Holding.RELEASED] * len(strange)]


async def test_a_number_that_the_column_can_not_hold_spoils_no_other(database: Database) -> None:
    """P2: one job's odd worker is nobody, and the others' are looked up all the same."""
    office = await open_office(database, sa.SmallInteger)
    await office.add(7, beat=SECOND)
    said = await words(office.witness, [await office.job(name) for name in ("7", "100000")])
    await office.engine.dispose()
    assert said == [Holding.HELD, Holding.RELEASED]


async def test_text_is_found_to_the_letter_the_database_compares(database: Database) -> None:
    office = await open_office(database, sa.String(20))
    await office.add("box:1", beat=SECOND)
    long = "a" * 20
    await office.add(long, beat=SECOND)

    jobs = [await office.job(name) for name in ("box:1", "box:2", f"{long}b", 'it\'s "odd" \\')]
    said = await words(office.witness, jobs)
    await office.engine.dispose()

    assert said == [Holding.HELD, Holding.RELEASED, Holding.RELEASED, Holding.RELEASED]


async def test_blanks_that_fill_a_column_do_not_count(database: Database) -> None:
    """A job's CHAR column gives `box:1` back with blanks, which PostgreSQL's text column of workers hasn't."""
    office = await open_office(database, sa.String(20))
    await office.add("box:1", beat=SECOND)
    assert await words(office.witness, [await office.job("box:1    ")]) == [Holding.HELD]
    await office.engine.dispose()


async def test_a_collation_that_takes_two_names_for_one_convicts_neither(mariadb_database: Database) -> None:
    """Where the database holds `Box` and `box` equal, the heartbeat of either is the worker's."""
    office = await open_office(mariadb_database, sa.String(20, collation="utf8mb4_general_ci"))
    await office.add("Box", beat=SECOND)
    assert await words(office.witness, [await office.job("box")]) == [Holding.HELD]
    await office.engine.dispose()


async def test_uuids_are_found_however_they_are_written(database: Database) -> None:
    office = await open_office(database, sa.Uuid)
    key = uuid.uuid4()
    await office.add(key, beat=SECOND)
    stored = key.hex if database.backend != "postgresql" else str(key)
    jobs = [await office.job(stored), await office.job(str(uuid.uuid4()))]
    if database.backend == "postgresql":
        jobs.append(await office.job("no uuid"))
    said = await words(office.witness, jobs)
    await office.engine.dispose()
    assert said == [Holding.HELD, *[Holding.RELEASED] * (len(jobs) - 1)]


async def test_one_row_that_can_not_be_read_is_unknown_and_the_others_are_read(sqlite_database: Database) -> None:
    office = await open_office(sqlite_database)
    await office.add(7, beat=SECOND)
    async with office.engine.begin() as connection:
        await connection.exec_driver_sql("INSERT INTO workers (id, last_heartbeat) VALUES (8, 'yesterday')")
    jobs = [await office.job("7"), await office.job("8")]
    assert await words(office.witness, jobs) == [Holding.HELD, Holding.UNKNOWN]
    assert "can't be read" in ((await word(office.witness, jobs[1]))[1] or "")
    await office.engine.dispose()


async def test_ten_thousand_jobs_cost_one_statement(office: Office) -> None:
    """P5: not one question a job; the clock is read beside it, and once the table's columns."""
    await office.add(7, beat=SECOND)
    first = await office.job("7")
    jobs = [first, *(replace(first, id=-number, worker=str(number)) for number in range(10, 10_009))]
    await office.witness.check()

    with statements_of(office.engine) as ran:
        said = await words(office.witness, jobs)

    assert said == [Holding.HELD, *[Holding.RELEASED] * 9_999]
    assert len([each for each in ran if "workers" in each]) == 1
    assert len(ran) <= 3


async def test_it_is_asked_in_a_transaction_of_its_own_that_only_reads(office: Office) -> None:
    """X4: it takes no lock, and leaves no transaction behind."""
    await office.add(7, beat=SECOND)
    job = await office.job("7")
    with statements_of(office.engine) as ran:
        await words(office.witness, [job])
    assert [each for each in ran if each.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE", "BEGIN IMM"))] == []
    assert office.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"table": "wrkers"}, "There is no table 'wrkers' in .*; did you mean 'workers'?"),
        ({"columns": {"id": "id", "heartbeat_at": "beat"}}, "has no column 'beat', which the mapping of the registry"),
        ({"columns": {"id": "id", "heartbeat_at": "id"}}, "Column 'id' of workers is .*, not a date and time"),
        ({"columns": {"id": "last_heartbeat", "heartbeat_at": "last_heartbeat"}}, "must be an integer, text or UUID"),
    ],
)
async def test_a_mapping_that_does_not_fit_is_told_before_anybody_is_asked(
    office: Office, section: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        await office.reading(**section).check()


async def test_a_database_that_does_not_answer_is_said_to_be() -> None:
    """M1: what can't be asked raises, and so is UNKNOWN; it is never an empty table."""
    engine = open_engine("postgresql://nobody@127.0.0.1:1/none")
    witness = WorkerRegistry(RegistrySettings.model_validate(SECTION), EngineConnections(engine))
    with pytest.raises(SourceUnavailableError):
        await word(witness, running_job(1, datetime.now(UTC), worker="7"))
    await engine.dispose()
