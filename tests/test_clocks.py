"""Clocks that mislead reapers: the sweeper's own, naive columns, servers elsewhere, and the hour that comes twice."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
import time_machine
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.jobs import NAIVE, declared, jobs_table, open_bench
from tests.servers import Database
from unstick.domain.diagnosis import diagnose
from unstick.domain.errors import ConfigurationError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy, decide
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.domain.suspect import Look, Position
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.sql.connections import SessionConnections
from unstick.sql.ledger import SqlLedger
from unstick.sql.source import SqlSource
from unstick.sql.tables import recoveries
from unstick.sql.times import NaiveTime
from unstick.testing.conformance import batch_of, since_of, suspects_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.jobs import SqlBench

MINUTE = timedelta(minutes=1)
NEW_YORK = "America/New_York"
TOKYO = "Asia/Tokyo"
SECOND_PASS_ENDS = datetime(2026, 11, 1, 7, tzinfo=UTC)
"""New York's clocks go back at 06:00 UTC, from 02:00 to 01:00; the repeated hour is 05:00 to 07:00 UTC."""


def in_zone(zone: str) -> Callable[[datetime], datetime]:
    """How an app that writes naive local times stores an instant."""
    return lambda instant: instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


@asynccontextmanager
async def opened(
    database: Database,
    table: sa.Table,
    *,
    timezone: str = "UTC",
    store: Callable[[datetime], object] | None = None,
) -> AsyncIterator[SqlBench]:
    bench = await open_bench(database, table, declared(table, timezone=timezone), store)
    try:
        yield bench
    finally:
        await bench.close()


async def fill(bench: SqlBench) -> None:
    """Two jobs of each state on either side of its threshold: ids 1 and 3 are stuck, 2 and 4 aren't."""
    now = await bench.source.clock()
    for status, times, age in (
        ("running", ("started_at", "updated_at"), 31),
        ("running", ("started_at", "updated_at"), 29),
        ("queued", ("created_at", "scheduled_at"), 6),
        ("queued", ("created_at", "scheduled_at"), 4),
    ):
        stored = {name: bench.store(now - age * MINUTE) for name in times}
        async with bench.engine.begin() as connection:
            await connection.execute(sa.insert(bench.table).values(status=status, **stored))


STUCK = ["failed", "running", "failed", "queued"]
RETRIED = ["queued", "running", "queued", "queued"]


async def assert_judged_right(bench: SqlBench) -> None:
    """The old ones are found and dated now; retried ones wait anew, and nothing else is touched, ever."""
    await fill(bench)
    retried = await bench.sweep(Action.RETRY)
    assert [row["status"] for row in await bench.rows()] == RETRIED
    again = await bench.sweep()
    assert (applied(retried), applied(again)) == (2, 0)

    await bench.execute(f"DELETE FROM {bench.table.name}", "DELETE FROM unstick_recoveries")
    await fill(bench)
    failed = await bench.sweep()
    rows = await bench.rows()
    assert applied(failed) == 2
    assert [row["status"] for row in rows] == STUCK
    ends = [row["completed_at"] for row in rows if row["completed_at"] is not None]
    assert len(ends) == 2
    now = await bench.source.clock()
    earliest, latest = bench.store(now - MINUTE), bench.store(now + MINUTE)
    assert all(earliest <= end <= latest for end in ends)
    assert all(abs(record.at - now) < MINUTE for record in await bench.recoveries())


def applied(report: Any) -> int:  # noqa: ANN401
    number: int = report.tally.of(outcome=Outcome.APPLIED)
    return number


@pytest.mark.parametrize("hours", [-3, 3])
async def test_a_sweeper_whose_own_clock_is_wrong_finds_and_dates_the_same_jobs(database: Database, hours: int) -> None:
    """C1: the database's clock judges ages and dates ends, whatever the sweeper's says."""
    async with opened(database, jobs_table()) as bench:
        await fill(bench)
        before = datetime.now(UTC)
        with time_machine.travel(before + timedelta(hours=hours), tick=True):
            report = await bench.sweep()
            assert abs(datetime.now(UTC) - before) > timedelta(hours=2)

        assert applied(report) == 2
        rows = await bench.rows()
        assert [row["status"] for row in rows] == STUCK
        written = [bench._aware(row["completed_at"]) for row in rows if row["completed_at"] is not None]
        written += [record.at for record in await bench.recoveries()] + [entry.at for entry in await bench.audit()]
        assert len(written) == 6
        assert all(at is not None and abs(at - before) < MINUTE for at in written)


@dataclass(frozen=True)
class Form:
    """How a table keeps its times."""

    timezone: str
    store: Callable[[datetime], object]
    time: Any = NAIVE


FORMS = {
    "naive in UTC": Form("UTC", in_zone("UTC")),
    "naive in New York": Form(NEW_YORK, in_zone(NEW_YORK)),
    "naive in Tokyo": Form(TOKYO, in_zone(TOKYO)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_naive_times_mean_what_the_mapping_says_wherever_the_server_is(database: Database, form: Form) -> None:
    """C2: a server in Asia/Kolkata, and columns in another zone."""
    table = jobs_table(time=form.time)
    async with opened(await abroad(database), table, timezone=form.timezone, store=form.store) as bench:
        await assert_judged_right(bench)


@pytest.mark.parametrize("database", ["postgres18", "postgres18-asyncpg", "mariadb"], indirect=True)
async def test_aware_times_mean_themselves_wherever_the_server_is(database: Database) -> None:
    """C2: `timestamptz`, and MariaDB's TIMESTAMP, under sessions of other zones; the mapping's zone doesn't matter."""
    postgres = database.backend == "postgresql"
    type_: Any = postgresql.TIMESTAMP(timezone=True) if postgres else mysql.TIMESTAMP(fsp=6)
    table = jobs_table(time=type_)
    store = (lambda instant: instant) if postgres else in_zone("UTC")
    app = create_async_engine(database.url)  # the application's own session stays where the server was at first
    async with app.connect() as connection:
        await connection.execute(sa.text("SELECT 1"))
    async with opened(await abroad(database), table, timezone=TOKYO, store=store) as bench:
        await assert_judged_right(replace(bench, engine=app))
    await app.dispose()


async def abroad(database: Database) -> Database:
    """The same database, whose sessions are in India unless they say otherwise."""
    if database.backend == "postgresql":
        engine = create_async_engine(database.url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            name = (await connection.execute(sa.text("SELECT current_database()"))).scalar_one()
            await connection.execute(sa.text(f"ALTER DATABASE {name} SET timezone = 'Asia/Kolkata'"))
        await engine.dispose()
    elif database.backend == "mysql":
        url = sa.make_url(database.url).update_query_dict({"init_command": "SET time_zone = '+05:30'"})
        return Database(database.name, url.render_as_string(hide_password=False), database.backend)
    return database


def mixed_table(database: Database) -> tuple[sa.Table, dict[str, str]]:
    """Some columns naive in Tokyo, some aware, as tables become that are written by several hands."""
    table = jobs_table(time=NAIVE)
    aware: Any = postgresql.TIMESTAMP(timezone=True) if database.backend == "postgresql" else mysql.TIMESTAMP(fsp=6)
    for name in ("created_at", "updated_at"):
        table.c[name].type = aware
        table.c[name].nullable = True
    return table, {"created_at": "aware", "updated_at": "aware"}


async def test_a_mix_of_times_that_mariadb_cannot_compare_is_refused(mariadb_database: Database) -> None:
    """C2: without its time zone tables the server can't bring DATETIME to the UTC of TIMESTAMP."""
    table, _ = mixed_table(mariadb_database)
    async with opened(await abroad(mariadb_database), table, timezone=TOKYO) as bench:
        with pytest.raises(ConfigurationError, match="mixes TIMESTAMP columns"):
            await bench.source.clock()


async def test_a_table_that_mixes_naive_and_aware_columns_is_judged_listed_and_summed_up_right(
    postgres_database: Database,
) -> None:
    """C2: each column by its own form; what is listed first waited longest, and a cursor neither skips nor repeats."""
    table, _ = mixed_table(postgres_database)
    zoned = in_zone(TOKYO)

    def plain(instant: datetime) -> datetime:
        return instant

    async with opened(await abroad(postgres_database), table, timezone=TOKYO) as bench:
        now = await bench.source.clock()
        rows = [
            ("queued", {"created_at": plain(now - 40 * MINUTE)}, 40),
            ("queued", {"created_at": plain(now - 900 * MINUTE), "started_at": zoned(now - 50 * MINUTE)}, 50),
            ("queued", {"created_at": plain(now - 60 * MINUTE), "scheduled_at": zoned(now - 30 * MINUTE)}, 30),
            ("queued", {"created_at": plain(now - 4 * MINUTE)}, 4),
            ("queued", {"created_at": plain(now - 60 * MINUTE), "scheduled_at": zoned(now - 4 * MINUTE)}, 4),
            ("running", {"started_at": zoned(now - 70 * MINUTE), "updated_at": plain(now - 45 * MINUTE)}, 45),
            ("running", {"started_at": zoned(now - 35 * MINUTE), "updated_at": plain(now - 90 * MINUTE)}, 35),
            ("running", {"started_at": zoned(now - 90 * MINUTE), "updated_at": plain(now - 20 * MINUTE)}, 20),
            ("running", {"started_at": zoned(now - 20 * MINUTE), "updated_at": plain(now - 90 * MINUTE)}, 20),
        ]
        async with bench.engine.begin() as connection:
            for status, times, _ in rows:
                await connection.execute(sa.insert(table).values(status=status, **times))
        look = Look(taken_at=now, queued_after=5 * MINUTE, running_after=30 * MINUTE)

        open_jobs = await bench.source.open_jobs()
        queued = await listed(bench, look, JobState.QUEUED)
        running = await listed(bench, look, JobState.RUNNING)
        in_python = {
            each.job_id: decide(each, diagnose(each.state, each.since), Policy(), Action.MARK_FAILED, 0).error_message(
                look
            )
            for each in await suspects_of(bench, look)
        }
        await bench.sweep()

        async with bench.engine.connect() as connection:
            shared = (await connection.execute(sa.select(recoveries.c.job_count))).scalars().all()
        assert shared == [3, 2]  # one record a state: the database itself says each message
        said = {row["id"]: row["error_message"] for row in await bench.rows() if row["status"] == "failed"}
        assert said == in_python
        assert [row["status"] for row in await bench.rows()] == [
            "failed" if age > (5 if status == "queued" else 30) else status for status, _, age in rows
        ]
        assert (queued, running) == ([2, 1, 3], [6, 7])
        assert minutes_ago(open_jobs.queued_since, now) == 50
        assert minutes_ago(open_jobs.running_since, now) == 45


async def listed(bench: SqlBench, look: Look, state: JobState) -> list[object]:
    """A whole list, one job a page; a page too many says that it repeats itself."""
    found: list[object] = []
    position: Position | None = None
    for _ in range(20):
        page = await bench.source.list_suspects(look, state, limit=1, after=position)
        if not page:
            return found
        found.append(page[0].id)
        position = Position(since=since_of(page[0]), job_id=page[0].id)
    raise AssertionError(f"the list doesn't end: {found}")


def minutes_ago(at: datetime | None, now: datetime) -> int:
    assert at is not None
    return round((now - at) / MINUTE)


async def test_a_list_ends_whatever_fractions_its_times_have(database: Database) -> None:
    """C3: times are kept to the microsecond, and compared in what SQLite makes of them."""
    async with opened(database, jobs_table()) as bench:
        now = await bench.source.clock()
        fractions = [0, 1, 400, 499, 500, 501, 600, 999, 999_499, 999_500, 999_999]
        second = (now - timedelta(hours=2)).replace(microsecond=0)
        await bench.put(*({"started_at": bench.store(second + timedelta(microseconds=us))} for us in fractions))
        look = Look(taken_at=now, queued_after=5 * MINUTE, running_after=30 * MINUTE)

        assert sorted(await listed(bench, look, JobState.RUNNING), key=str) == sorted(range(1, 12), key=str)


async def test_a_hosts_session_in_another_zone_is_read_right_and_given_back(mariadb_database: Database) -> None:
    """C2: TIMESTAMP columns through a host's session in Tokyo, which stays there."""
    table = jobs_table(time=NAIVE)
    for name in ("created_at", "scheduled_at", "started_at", "updated_at", "completed_at"):
        table.c[name].type = mysql.TIMESTAMP(fsp=6)
        table.c[name].nullable = True
    async with opened(mariadb_database, table, store=in_zone("UTC")) as bench:
        await fill(bench)
        url = sa.make_url(mariadb_database.url).update_query_dict({"init_command": "SET time_zone = '+09:00'"})
        engine = create_async_engine(url)
        try:
            async with AsyncSession(engine) as session:
                connections = SessionConnections(session)
                source = SqlSource("main", bench.jobs, connections)
                watched = Watched(source=source, ledger=SqlLedger(connections), policy=Policy())
                report = await sweep(watched, SweepOrder(actor="host"))
                zone = (await session.execute(sa.text("SELECT @@session.time_zone"))).scalar_one()
        finally:
            await engine.dispose()

        assert applied(report) == 2
        rows = await bench.rows()
        assert [row["status"] for row in rows] == STUCK
        now = (await bench.source.clock()).replace(tzinfo=None)
        assert [abs(row["completed_at"] - now) < MINUTE for row in rows if row["completed_at"]] == [True, True]
        assert zone == "+09:00"


# The hour that comes twice, and the one that doesn't come.

ZONES = [NEW_YORK, "Europe/Berlin", "Europe/Dublin", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]


@pytest.mark.parametrize("zone", ZONES)
def test_no_horizon_accuses_a_time_that_may_lie_after_it(zone: str) -> None:
    """C3: every quarter of an hour of a year, against what is written a quarter of an hour to three hours later."""
    form = NaiveTime(ZoneInfo(zone))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    steps = [start + quarter * 15 * MINUTE for quarter in range(366 * 96)]
    stored = [form.write(instant) for instant in steps]
    for place, instant in enumerate(steps[:-12]):
        horizon = form.horizon(instant)
        assert not any(written < horizon for written in stored[place : place + 12])  # type: ignore[operator]


@pytest.mark.parametrize("zone", ZONES)
def test_a_local_time_is_never_read_as_older_than_it_is(zone: str) -> None:
    """C3: what a local time means is the instant that was written, or, where the hour comes twice, the later one."""
    form = NaiveTime(ZoneInfo(zone))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    steps = [start + quarter * 15 * MINUTE for quarter in range(366 * 96)]
    stored = Counter(form.write(instant) for instant in steps)
    for instant in steps:
        read, twice = form.read(form.write(instant)), stored[form.write(instant)] > 1
        assert read == instant or (twice and read is not None and instant < read <= instant + timedelta(hours=1))


@pytest.mark.parametrize("zone", ZONES)
def test_every_horizon_accuses_what_is_surely_older(zone: str) -> None:
    """C3: no zone's repeated time is longer than an hour, so an hour later every doubt has gone."""
    form = NaiveTime(ZoneInfo(zone))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    steps = [start + quarter * 15 * MINUTE for quarter in range(366 * 96)]
    stored = [form.write(instant) for instant in steps]
    for place in range(12, len(steps)):
        horizon = form.horizon(steps[place])
        # An hour for the doubt, and one for the local time that runs twice.
        assert all(written < horizon for written in stored[place - 12 : place - 8])  # type: ignore[operator]


@pytest.mark.parametrize("change", [SECOND_PASS_ENDS, datetime(2026, 3, 8, 7, tzinfo=UTC)], ids=["back", "forward"])
async def test_when_clocks_change_no_young_job_is_accused_and_no_old_one_forgotten(
    database: Database, change: datetime
) -> None:
    """C3: jobs queued every minute around the change; looks around each turn of the hour."""
    store = in_zone(NEW_YORK)
    async with opened(database, jobs_table(time=NAIVE), timezone=NEW_YORK, store=store) as bench:
        first = change - timedelta(hours=3)
        born = {number + 1: first + number * MINUTE for number in range(300)}
        async with bench.engine.begin() as connection:
            rows = [{"status": "queued", "created_at": store(instant)} for instant in born.values()]
            await connection.execute(sa.insert(bench.table), rows)
        # The repeated hour's second pass begins at 120 and ends at 180; what is judged then is five minutes older.
        for minutes in (60, 90, 119, 120, 121, 123, 124, 125, 126, 150, 179, 181, 184, 186, 299):
            look = Look(taken_at=first + minutes * MINUTE, queued_after=5 * MINUTE, running_after=30 * MINUTE)
            ages = {job_id: look.taken_at - instant for job_id, instant in born.items()}
            # Written later than the look: not there yet for a real one.
            unborn = {job_id for job_id, age in ages.items() if age < timedelta(0)}

            found = {s.job_id async for page in bench.source.suspects(look) for s in page.suspects}

            assert not {job_id for job_id in found - unborn if ages[job_id] <= 5 * MINUTE}  # type: ignore[index]
            patience = 5 * MINUTE if look.taken_at > change + 5 * MINUTE else 66 * MINUTE
            assert {job_id for job_id, age in ages.items() if age > patience} <= found


async def test_in_the_repeated_hour_the_write_judges_as_the_look_did(database: Database) -> None:
    """C3: jobs of one and three minutes are left, one of an hour and a half is recovered, in either pass."""
    store = in_zone(NEW_YORK)
    async with opened(database, jobs_table(time=NAIVE), timezone=NEW_YORK, store=store) as bench:
        for minutes in (-90, -60, -58, -30, -1):
            taken_at = SECOND_PASS_ENDS + minutes * MINUTE
            await bench.execute(f"DELETE FROM {bench.table.name}")
            rows = [{"status": "queued", "created_at": store(taken_at - age * MINUTE)} for age in (1, 3, 90)]
            await bench.put(*(row | {"started_at": None} for row in rows))
            later = Look(taken_at=taken_at + timedelta(days=1), queued_after=5 * MINUTE, running_after=30 * MINUTE)
            look = Look(taken_at=taken_at, queued_after=5 * MINUTE, running_after=30 * MINUTE)
            all_three = [s async for page in bench.source.suspects(later) for s in page.suspects]
            assert len(all_three) == 3
            batch = batch_of(all_three, later)

            await bench.source.recover(replace(batch, look=look))

            assert [row["status"] for row in await bench.rows()] == ["queued", "queued", "failed"]


# SQLite's text times.

SPELLINGS: dict[str, Callable[[datetime], str]] = {
    "SQLAlchemy's": lambda at: at.strftime("%Y-%m-%d %H:%M:%S.%f"),
    "CURRENT_TIMESTAMP's": lambda at: at.strftime("%Y-%m-%d %H:%M:%S"),
    "with a T": lambda at: at.strftime("%Y-%m-%dT%H:%M:%S"),
    "with a T and milliseconds": lambda at: at.isoformat(timespec="milliseconds"),
    "JavaScript's": lambda at: at.strftime("%Y-%m-%dT%H:%M:%S.123Z"),
    "Python's": lambda at: at.replace(tzinfo=UTC).isoformat(),
    "with a blank and Z": lambda at: at.strftime("%Y-%m-%d %H:%M:%SZ"),
    "two hours east": lambda at: (at + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S.%f+02:00"),
    "five hours west": lambda at: (at - timedelta(hours=5)).strftime("%Y-%m-%d %H:%M:%S-05:00"),
    "to the minute": lambda at: at.strftime("%Y-%m-%dT%H:%M"),
    "with nanoseconds": lambda at: at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "789",
}


@pytest.mark.parametrize("action", CHANGES)
async def test_text_times_of_every_spelling_are_judged_alike_and_found_again_by_the_write(
    sqlite_database: Database, action: Action
) -> None:
    """C3: the look and the compare-and-set agree on every spelling."""
    table = jobs_table(time=sa.Text())
    async with opened(sqlite_database, table) as bench:
        now = (await bench.source.clock()).replace(tzinfo=None)
        ages = [31, 28, 31, 28]
        for spell in SPELLINGS.values():
            await bench.put(*({"started_at": spell(now - age * MINUTE), "created_at": None} for age in ages[:2]))
            await bench.put(
                *({"started_at": spell(now - 99 * MINUTE), "updated_at": spell(now - age * MINUTE)} for age in ages[2:])
            )
        report = await bench.sweep(action)

        left = [row["status"] == "running" for row in await bench.rows()]
        assert left == [age == 28 for _ in SPELLINGS for age in ages]
        assert applied(report) == 2 * len(SPELLINGS)
        assert applied(await bench.sweep(action)) == 0


@pytest.mark.parametrize("zone", [NEW_YORK, TOKYO])
async def test_text_times_with_an_offset_mean_themselves_where_naive_ones_are_local(
    sqlite_database: Database, zone: str
) -> None:
    """C2: one column that naive local times and times with an offset were written to: no live job is accused."""
    table = jobs_table(time=sa.Text())
    async with opened(sqlite_database, table, timezone=zone) as bench:
        now = (await bench.source.clock()).replace(tzinfo=None)
        ages = [1, 29, 31, 240, 1500]
        spells = {name: spell for name, spell in SPELLINGS.items() if spell(now)[19:].endswith(("Z", ":00"))}
        assert len(spells) == 5
        for spell in spells.values():
            await bench.put(*({"started_at": spell(now - age * MINUTE), "created_at": None} for age in ages))
        local = in_zone(zone)
        await bench.put(
            *({"started_at": str(local((now - age * MINUTE).replace(tzinfo=UTC))), "created_at": None} for age in ages)
        )
        counts = await bench.source.count_suspects(
            Look(taken_at=now.replace(tzinfo=UTC), queued_after=5 * MINUTE, running_after=30 * MINUTE)
        )

        await bench.sweep()

        found = [row["status"] == "failed" for row in await bench.rows()]
        assert found == [age > 30 for _ in range(len(spells) + 1) for age in ages]
        assert counts.running == sum(found)
