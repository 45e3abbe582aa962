"""Rows, ids and names that break reapers: one bad row never stops a sweep, and never hides the others."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.jobs import COLUMNS, NAIVE, declared, jobs_table, open_bench
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action, Outcome
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.sql.connections import SessionConnections
from unstick.sql.ledger import SqlLedger
from unstick.sql.source import SqlSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.jobs import SqlBench
    from tests.servers import Database
    from unstick.pipeline.sweep import SweepReport

REFUSED = ("by_check", "by_trigger", "by_trigger_with_its_own_code")
"""Job types that the rules of `refuse` keep from ending as failed."""

REFUSALS: dict[str, Sequence[str]] = {
    "sqlite": (
        """CREATE TRIGGER guarded BEFORE UPDATE ON ai_generation_jobs
           WHEN NEW.status = 'failed' AND NEW.job_type LIKE 'by_trigger%'
           BEGIN SELECT RAISE(ABORT, 'the host says no'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.status = 'failed' AND NEW.job_type = 'by_trigger' THEN RAISE 'the host says no'; END IF;
             IF NEW.status = 'failed' AND NEW.job_type = 'by_trigger_with_its_own_code' THEN
               RAISE 'the host says no' USING ERRCODE = 'U4711'; END IF;
             RETURN NEW; END $$""",
        "CREATE TRIGGER guarded BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION guard()",
    ),
    "mysql": (
        """CREATE TRIGGER guarded BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW BEGIN
             IF NEW.status = 'failed' AND NEW.job_type = 'by_trigger' THEN
               SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'the host says no'; END IF;
             IF NEW.status = 'failed' AND NEW.job_type = 'by_trigger_with_its_own_code' THEN
               SIGNAL SQLSTATE 'U4711' SET MESSAGE_TEXT = 'the host says no', MYSQL_ERRNO = 9999; END IF; END""",
    ),
}
CHECK = sa.CheckConstraint("job_type <> 'by_check' OR status <> 'failed'", name="never_fails")
NO_BUDGET = Policy(max_recoveries=0)


@pytest.fixture
async def benches(database: Database) -> AsyncIterator[Benches]:
    opened = Benches(database)
    yield opened
    await opened.close()


class Benches:
    """Opens benches on one database and closes them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._opened: list[SqlBench] = []

    async def open(self, table: sa.Table | None = None, **mapping: Any) -> SqlBench:  # noqa: ANN401
        table = jobs_table() if table is None else table
        bench = await open_bench(self.database, table, declared(table, **mapping))
        self._opened.append(bench)
        return bench

    async def close(self) -> None:
        for bench in self._opened:
            await bench.close()


async def statuses(bench: SqlBench) -> list[str]:
    return [row["status"] for row in await bench.rows()]


def outcomes(report: SweepReport) -> tuple[int, int, int]:
    return (
        report.tally.of(outcome=Outcome.APPLIED),
        report.tally.of(outcome=Outcome.LOST_RACE),
        report.tally.of(outcome=Outcome.FAILED),
    )


async def records(bench: SqlBench) -> dict[str, list[tuple[str, str]]]:
    """What was recorded of each job: outcomes and words, in order."""
    said: dict[str, list[tuple[str, str]]] = {}
    for record in await bench.recoveries():
        said.setdefault(record.job_id, []).append((record.outcome, record.detail))
    return said


async def test_rows_the_database_refuses_are_recorded_with_its_words_and_the_rest_recovered(benches: Benches) -> None:
    """P2: a CHECK, a trigger that raises, and one that raises with a code of its own."""
    bench = await benches.open(jobs_table(CHECK))
    await bench.execute(*REFUSALS[benches.database.backend])
    kinds = ["fine", *REFUSED, "fine", REFUSED[1], "fine"]
    await bench.put(*({"job_type": kind} for kind in kinds))

    report = await bench.sweep()
    again = await bench.sweep()

    assert outcomes(report) == (3, 0, 4)
    assert outcomes(again) == (0, 0, 4)
    assert await statuses(bench) == ["failed" if kind == "fine" else "running" for kind in kinds]
    said = await records(bench)
    for job_id, kind in enumerate(kinds, start=1):
        if kind == "fine":
            assert [outcome for outcome, _ in said[str(job_id)]] == ["applied"]
        else:
            words = "never_fails" if kind == "by_check" else "the host says no"
            assert [outcome for outcome, _ in said[str(job_id)]] == ["failed", "failed"]
            assert all(words in detail for _, detail in said[str(job_id)])


async def test_a_first_page_of_refused_rows_does_not_block_the_rest(benches: Benches) -> None:
    """P1: the first two pages hold nothing but rows that a trigger refuses."""
    bench = await benches.open()
    await bench.execute(*REFUSALS[benches.database.backend])
    bench.batches_of(3)
    kinds = ["by_trigger"] * 6 + ["fine"] * 4
    await bench.put(*({"job_type": kind} for kind in kinds))

    report = await bench.sweep()

    assert outcomes(report) == (4, 0, 6)
    assert await statuses(bench) == ["running"] * 6 + ["failed"] * 4


async def test_no_page_is_larger_than_a_batch(benches: Benches) -> None:
    """P4: pages are bounded, also where rows in them can't be read."""
    bench = await benches.open()
    bench.batches_of(3)
    await bench.put(*({} for _ in range(10)))
    look = (await bench.sweep(None, policy=Policy(running_after=timedelta(days=9)))).look

    sizes = [len(page.suspects) async for page in bench.source.suspects(_with_default_thresholds(look))]

    assert sizes == [3, 3, 3, 1]


def _with_default_thresholds(look: Any) -> Any:  # noqa: ANN401
    return type(look)(taken_at=look.taken_at, queued_after=timedelta(minutes=5), running_after=timedelta(minutes=30))


async def test_a_retry_that_a_unique_index_refuses_is_recorded_and_the_rest_retried(benches: Benches) -> None:
    """P2 (procrastinate#1446): another job of the same kind waits already."""
    bench = await benches.open(jobs_table(sa.UniqueConstraint("status", "job_type", name="one_a_kind")))
    await bench.put({"job_type": "a"}, {"job_type": "b"}, {"job_type": "c"})
    await bench.put({"job_type": "b", "status": "queued"}, started=timedelta(0))

    report = await bench.sweep(Action.RETRY)

    assert outcomes(report) == (2, 0, 1)
    assert await statuses(bench) == ["queued", "running", "queued", "queued"]
    [(outcome, detail)] = (await records(bench))["2"]
    assert outcome == "failed"
    assert "unique" in detail.lower() or "duplicate" in detail.lower()


async def test_rows_that_only_a_deferred_constraint_refuses_do_not_take_the_batch_with_them(
    postgres_database: Database,
) -> None:
    """P2: what is checked at commit is refused row by row as well."""
    table = jobs_table(sa.UniqueConstraint("status", "job_type", deferrable=True, initially="DEFERRED"))
    bench = await open_bench(postgres_database, table)
    await bench.put({"job_type": "a"}, {"job_type": "b"})
    await bench.put({"job_type": "b", "status": "queued"}, started=timedelta(0))

    try:
        report = await bench.sweep(Action.RETRY)

        assert outcomes(report) == (1, 0, 1)
        assert await statuses(bench) == ["queued", "running", "queued"]
    finally:
        await bench.close()


@pytest.mark.parametrize("code", ["21000", "27000", "38000", "54000"])
async def test_errors_a_rows_own_trigger_can_cause_do_not_stop_a_sweep(postgres_database: Database, code: str) -> None:
    """P2: a subquery with two rows, a row changed twice, an outside routine, an index entry that is too large."""
    bench = await open_bench(postgres_database)
    await bench.execute(
        f"""CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF NEW.job_type = 'bad' THEN RAISE 'the host says no' USING ERRCODE = '{code}'; END IF;
              RETURN NEW; END $$""",
        "CREATE TRIGGER guarded BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION guard()",
    )
    await bench.put({"job_type": "bad"}, {})

    try:
        assert outcomes(await bench.sweep()) == (1, 0, 1)
    finally:
        await bench.close()


@pytest.mark.parametrize("database", ["sqlite", "postgres18"], indirect=True)  # MariaDB's triggers can't
async def test_a_trigger_that_drops_the_write_in_silence_is_not_counted_as_a_recovery(benches: Benches) -> None:
    """R7, P2: the database took the write and did nothing; the report says so and the others are recovered."""
    bench = await benches.open()
    ignore = {
        "sqlite": (
            """CREATE TRIGGER deaf BEFORE UPDATE ON ai_generation_jobs WHEN NEW.job_type = 'deaf'
               BEGIN SELECT RAISE(IGNORE); END""",
        ),
        "postgresql": (
            """CREATE FUNCTION deaf() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.job_type = 'deaf' THEN RETURN NULL; END IF; RETURN NEW; END $$""",
            "CREATE TRIGGER deaf BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION deaf()",
        ),
    }
    await bench.execute(*ignore[benches.database.backend])
    await bench.put({}, {"job_type": "deaf"}, {})

    report = await bench.sweep()

    assert report.tally.of(outcome=Outcome.APPLIED) == 2
    assert await statuses(bench) == ["failed", "running", "failed"]
    assert "applied" not in [outcome for outcome, _ in (await records(bench))["2"]]


async def test_a_message_too_long_for_its_column_is_cut(benches: Benches) -> None:
    """P2: what the column declares is kept to; a narrower rule that nobody declared is the database's to refuse."""
    table = jobs_table()
    narrow = sa.Column("said", sa.String(60), sa.CheckConstraint("job_type <> 'narrower' OR length(said) <= 40"))
    table.append_column(narrow)
    bench = await benches.open(table, columns=COLUMNS | {"error": "said"})
    # Of the queued ones the database refuses none: what rules on them all at once must keep to the length by itself.
    await bench.put({}, {"job_type": "narrower"}, {}, {"status": "queued"}, {"status": "queued"})

    report = await bench.sweep()

    assert outcomes(report) == (4, 0, 1)
    for row in [row for row in await bench.rows() if row["job_type"] != "narrower"]:
        assert row["said"].startswith(("Job stuck in running for more", "Job stuck in queued for more"))
        assert row["said"].endswith(" Automatically cleaned up.")
        assert len(row["said"]) <= 60


async def assert_told_apart(
    bench: SqlBench, *, good: set[int], unreadable: set[int], either: set[int], untouched: set[int]
) -> None:
    """Two sweeps: good jobs recovered, unreadable ones reported each time and never acted on, others let be.

    What a job needs in order to be failed may be readable where the rest of its row isn't: `either`.
    """
    report, again = await bench.sweep(), await bench.sweep()
    async with bench.engine.connect() as connection:
        statement = sa.text("SELECT id FROM ai_generation_jobs WHERE status = 'failed' AND completed_at IS NOT NULL")
        ended = set(await connection.scalars(statement))
    assert good <= ended <= good | either
    reported = unreadable | either - ended
    assert outcomes(report) == (len(ended), 0, len(reported))
    assert outcomes(again) == (0, 0, len(reported))
    said = {int(job_id): [outcome for outcome, _ in each] for job_id, each in (await records(bench)).items()}
    assert said == {job_id: ["applied"] if job_id in ended else ["failed", "failed"] for job_id in ended | reported}
    assert not untouched & said.keys()


@pytest.mark.parametrize("database", ["postgres18", "postgres18-asyncpg", "postgres15"], indirect=True)
async def test_times_postgres_can_hold_and_python_cannot_are_reported_and_the_rest_recovered(
    benches: Benches,
) -> None:
    """P2: infinity, -infinity, a year beyond 9999 and one before Christ."""
    bench = await benches.open()
    bench.batches_of(4)
    await bench.put(*({} for _ in range(9)))
    await bench.execute(
        "UPDATE ai_generation_jobs SET started_at = '-infinity' WHERE id = 2",
        "UPDATE ai_generation_jobs SET started_at = '-infinity', updated_at = 'infinity' WHERE id = 3",
        "UPDATE ai_generation_jobs SET created_at = '20000-01-01' WHERE id = 5",
        "UPDATE ai_generation_jobs SET started_at = '0044-03-15 BC' WHERE id = 6",
        "UPDATE ai_generation_jobs SET started_at = 'infinity' WHERE id = 7",
    )

    await assert_told_apart(bench, good={1, 4, 8, 9}, unreadable={2}, either={5, 6}, untouched={3, 7})


async def test_zero_dates_are_reported_and_the_rest_recovered(mariadb_database: Database) -> None:
    """P2: what MariaDB keeps where somebody wrote no date."""
    bench = await open_bench(mariadb_database)
    await bench.put({}, {}, {}, {}, {})
    await bench.execute(
        "SET sql_mode = ''",
        "UPDATE ai_generation_jobs SET started_at = '0000-00-00 00:00:00' WHERE id = 2",
        "UPDATE ai_generation_jobs SET updated_at = '0000-00-00 00:00:00' WHERE id = 3",
        "UPDATE ai_generation_jobs SET created_at = '2026-00-00 00:00:00' WHERE id = 4",
        "SET sql_mode = DEFAULT",
    )

    try:
        await assert_told_apart(bench, good={1, 5}, unreadable={2}, either={3, 4}, untouched=set())
    finally:
        await bench.close()


async def test_text_that_is_no_time_or_no_text_is_reported_or_let_be_and_the_rest_recovered(
    sqlite_database: Database,
) -> None:
    """P2: SQLite keeps anything in any column, and takes a number for a Julian day; we act on dates only."""
    bench = await open_bench(sqlite_database)
    bench.batches_of(4)
    await bench.put(*({} for _ in range(17)))
    odd = {
        2: ("started_at", "'soon'"),
        3: ("started_at", "'12:30'"),
        4: ("started_at", "2460000.5"),
        5: ("started_at", "1700000000"),
        6: ("created_at", "'never'"),
        7: ("job_type", "CAST(x'ff00ff' AS TEXT)"),
        8: ("job_type", "CAST(x'c3' AS TEXT)"),
        9: ("started_at", "x'00ff'"),
        10: ("attempt", "'many'"),
        11: ("updated_at", "''"),
        12: ("started_at", "'2026-02-30 10:00:00'"),
        15: ("updated_at", "20000"),
        16: ("updated_at", "'00:30'"),
    }
    await bench.execute(
        *(f"UPDATE ai_generation_jobs SET {name} = {value} WHERE id = {i}" for i, (name, value) in odd.items())
    )

    await assert_told_apart(
        bench, good={1, 13, 14, 17}, unreadable={3, 4, 15, 16}, either={6, 7, 8, 10, 12}, untouched={2, 5, 9, 11}
    )
    await bench.close()


@pytest.mark.parametrize("lent", [False, True], ids=["engine", "session"])
async def test_a_fence_that_is_no_text_is_left_and_the_rest_retried(sqlite_database: Database, lent: bool) -> None:
    """P2: bytes that are no UTF-8 where the worker's name should be, read by our driver and by a host's own."""
    table = jobs_table(sa.Column("worker", sa.String(40)))
    bench = await open_bench(sqlite_database, table, declared(table, columns=COLUMNS | {"worker": "worker"}))
    await bench.put(*({"worker": "w"} for _ in range(5)))
    await bench.execute("UPDATE ai_generation_jobs SET worker = CAST(x'ff' AS TEXT) WHERE id = 3")
    engine = create_async_engine(sqlite_database.url)
    async with AsyncSession(engine) as session:
        connections = SessionConnections(session)
        source = SqlSource("main", bench.jobs, connections)
        theirs = Watched(source=source, ledger=SqlLedger(connections), policy=Policy())
        report = await sweep(theirs if lent else bench.watched(), SweepOrder(actor="test", action=Action.RETRY))
    await engine.dispose()
    async with bench.engine.connect() as connection:
        found = list(await connection.scalars(sa.text("SELECT status FROM ai_generation_jobs ORDER BY id")))
    await bench.close()

    assert report.tally.of(outcome=Outcome.APPLIED) == 4
    assert found == ["queued", "queued", "running", "queued", "queued"]


async def test_an_id_that_is_no_text_does_not_stop_a_sweep(sqlite_database: Database) -> None:
    """P2: a key whose bytes are no UTF-8."""
    bench = await open_bench(sqlite_database, jobs_table(key=sa.Column("id", sa.String(40), primary_key=True)))
    await bench.put({"id": "a"}, {"id": "b"}, {"id": "z"})
    await bench.execute(
        "UPDATE ai_generation_jobs SET id = CAST(x'62ff' AS TEXT) WHERE id = 'b'",
    )

    try:
        report = await bench.sweep()

        assert report.tally.of(outcome=Outcome.APPLIED) == 2
        async with bench.engine.connect() as connection:
            ended = await connection.scalars(sa.text("SELECT id FROM ai_generation_jobs WHERE status = 'failed'"))
            assert sorted(ended) == ["a", "z"]
    finally:
        await bench.close()


async def test_states_nobody_mapped_are_let_be(benches: Benches) -> None:
    """P2: a null state, an unknown one, and known ones in other letters or with blanks behind them."""
    table = jobs_table()
    table.c.status.nullable = True
    bench = await benches.open(table)
    words = ["running", None, "RUNNING", "running  ", "mystery", "Pending", "running"]
    await bench.put(*({"status": word} for word in words))

    report = await bench.sweep()
    again = await bench.sweep()

    same = words if benches.database.backend == "mysql" else ["running"] * 7  # MariaDB compares by collation
    stuck = [word in ({"running", "RUNNING", "running  ", "Pending"} & {*same}) for word in words]
    assert outcomes(report) == (sum(stuck), 0, 0)
    assert outcomes(again) == (0, 0, 0)
    assert await statuses(bench) == ["failed" if hit else word for hit, word in zip(stuck, words, strict=True)]


ODD_TEXT = [
    "plain", "it's", 'say "hi"', "back\\slash", "per%cent", "%s", "%(x)s", "co:lon", ":name", "::int", "a,b", "{}",
    "[1]", "null", "007", "1e3", "ünïcödé", "日本語", "😀", "line\nbreak", "tab\there", "$1", "?", ";--", "trailing.",
]  # fmt: skip


async def recovers_each_way(bench: SqlBench, keys: Sequence[object]) -> None:
    """Every job is retried, failed for its spent budget, and failed by a ruling; reports, rows and records agree."""
    await bench.put(*({"id": key} for key in keys))
    bench.batches_of(4)

    retried = await bench.sweep(Action.RETRY)
    async with bench.engine.begin() as connection:
        then = bench.store(await bench.source.clock() - timedelta(hours=3))
        await connection.execute(sa.update(bench.table).values(status="running", started_at=then))
    spent = await bench.sweep(Action.RETRY, policy=Policy(max_recoveries=1))
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(bench.table).values(status="running", started_at=then, completed_at=None))
    failed = await bench.sweep(Action.MARK_FAILED)

    assert [outcomes(each) for each in (retried, spent, failed)] == [(len(keys), 0, 0)] * 3
    assert {row["status"] for row in await bench.rows()} == {"failed"}
    by_id = await records(bench)
    assert {str(row["id"]) for row in await bench.rows()} == set(by_id)
    assert {tuple(outcome for outcome, _ in each) for each in by_id.values()} == {("applied",) * 3}


async def test_ids_of_every_kind_are_recovered(benches: Benches) -> None:
    """R7: the key goes out and comes back unchanged, also through pages and budgets."""
    big = [1, 2**31, 2**53 + 1, 2**63 - 1]
    for name, type_, keys in (
        ("big", sa.BigInteger, big),
        ("texts", sa.String(80), ODD_TEXT),
        ("padded", sa.CHAR(12), ["a", "b c", "sixteen"]),
        ("uuids", sa.Uuid if benches.database.backend == "postgresql" else sa.CHAR(36), _uuids(benches.database)),
    ):
        bench = await benches.open(
            jobs_table(key=sa.Column("id", type_, primary_key=True, autoincrement=False), name=f"jobs_{name}")
        )
        await recovers_each_way(bench, keys)
        await bench.execute("DELETE FROM unstick_recoveries")


def _uuids(database: Database) -> list[object]:
    made = [uuid.uuid5(uuid.NAMESPACE_DNS, str(number)) for number in range(9)]
    return list(made) if database.backend == "postgresql" else [str(each) for each in made]


async def test_an_id_longer_than_most_is_recovered_and_recorded(benches: Benches) -> None:
    """P2: nothing in the ledger is narrower than the host's key."""
    bench = await benches.open(jobs_table(key=sa.Column("id", sa.String(700), primary_key=True)))
    await bench.put({"id": "a"}, {"id": "l" * 600}, {"id": "l" * 599 + "m"}, {"id": "z"})

    report = await bench.sweep(Action.RETRY)

    assert outcomes(report) == (4, 0, 0)
    assert {record.job_id for record in await bench.recoveries()} == {row["id"] for row in await bench.rows()}


COLLATIONS = (
    ("latin1", "latin1_swedish_ci"),
    ("utf8mb4", "utf8mb4_bin"),
    ("utf8mb4", "utf8mb4_unicode_ci"),
    ("utf8mb3", "utf8mb3_general_ci"),
    ("utf8mb4", "utf8mb4_nopad_bin"),
)


async def test_text_keys_and_states_of_any_collation_are_recovered(mariadb_database: Database) -> None:
    """P2: tables older than the server's default: no "Illegal mix of collations", no key taken for another."""
    benches = Benches(mariadb_database)
    try:
        for charset, collation in COLLATIONS:
            table = jobs_table(
                sa.Column("worker", sa.String(50)),
                key=sa.Column("id", sa.String(80), primary_key=True),
                name=f"jobs_{collation}",
            )
            table.kwargs.update(mysql_charset=charset, mysql_collate=collation)
            bench = await benches.open(table, columns=COLUMNS | {"worker": "worker"})
            keys: list[object] = ["a", "b", "é", "it's", "ß"]
            if collation.endswith("_bin"):
                keys += ["A", "É", "B"]
            await recovers_each_way(bench, keys)
            await bench.execute("DELETE FROM unstick_recoveries")
    finally:
        await benches.close()


async def test_keys_that_differ_only_in_letter_case_have_budgets_of_their_own(mariadb_database: Database) -> None:
    """P2, B1: the ledger tells `a` from `A` where the host's table does."""
    table = jobs_table(key=sa.Column("id", sa.String(80, collation="utf8mb4_bin"), primary_key=True))
    bench = await open_bench(mariadb_database, table)
    try:
        await bench.put({"id": "A"})
        await bench.sweep(Action.RETRY)
        await bench.put({"id": "a"})

        report = await bench.sweep(Action.RETRY, policy=Policy(max_recoveries=1))

        assert report.tally.of(action=Action.RETRY, outcome=Outcome.APPLIED) == 1
    finally:
        await bench.close()


async def test_integers_beyond_a_signed_bigint_are_recovered(mariadb_database: Database) -> None:
    """R7: an unsigned key."""
    key = sa.Column("id", mysql.BIGINT(unsigned=True), primary_key=True, autoincrement=False)
    bench = await open_bench(mariadb_database, jobs_table(key=key))
    try:
        await recovers_each_way(bench, [1, 2**63 + 5, 2**64 - 1])
    finally:
        await bench.close()


async def test_a_uuid_column_of_mariadbs_own_is_recovered(mariadb_database: Database) -> None:
    """R7: MariaDB 10.7 and later have the type."""
    bench = await open_bench(mariadb_database, jobs_table(key=sa.Column("id", sa.UUID(), primary_key=True)))
    try:
        await recovers_each_way(bench, [uuid.uuid5(uuid.NAMESPACE_DNS, str(number)) for number in range(5)])
    finally:
        await bench.close()


async def test_a_table_in_another_schema_with_a_state_type_of_its_own_is_recovered(postgres_database: Database) -> None:
    """R7: a qualified name, a native enum, a domain's base type and padded text."""
    bench = await open_bench(postgres_database)
    await bench.execute(
        'CREATE SCHEMA "Odd Schema"',
        "CREATE TYPE \"Odd Schema\".\"Job State\" AS ENUM ('queued', 'running', 'completed', 'failed', 'it''s over')",
        """CREATE TABLE "Odd Schema"."Jobs" (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
             status "Odd Schema"."Job State" NOT NULL, started_at timestamptz, completed_at timestamptz,
             worker char(20), attempt smallint, progress numeric)""",
        """INSERT INTO "Odd Schema"."Jobs" (status, started_at, worker, attempt, progress)
           SELECT 'running', now() - interval '2 hours', 'w', 1, 0.1 FROM generate_series(1, 5)""",
    )
    table = sa.Table("Jobs", sa.MetaData(), schema="Odd Schema")
    jobs = declared(
        table,
        columns={name: name for name in ("id", "started_at", "completed_at", "worker", "attempt", "progress")}
        | {"state": "status"},
        states={
            JobState.QUEUED: ("queued",),
            JobState.RUNNING: ("running",),
            JobState.SUCCEEDED: ("completed",),
            JobState.FAILED: ("it's over", "failed"),
        },
    )
    other = await open_bench(postgres_database, sa.Table("unused", sa.MetaData(), sa.Column("id", sa.Integer)), jobs)
    try:
        assert outcomes(await other.sweep(Action.RETRY)) == (5, 0, 0)
        await bench.execute("""UPDATE "Odd Schema"."Jobs" SET status='running', started_at = '2020-01-01'""")
        assert outcomes(await other.sweep()) == (5, 0, 0)
        async with bench.engine.connect() as connection:
            ended = await connection.execute(sa.text('SELECT status::text, attempt FROM "Odd Schema"."Jobs"'))
            assert {tuple(row) for row in ended} == {("it's over", 2)}
    finally:
        await other.close()
        await bench.close()


ODD_NAMES = {
    "state": "select",
    "kind": "Order",
    "started_at": "started at",
    "heartbeat_at": "last:beat",
    "completed_at": "100%",
    "error": "it's",
    "attempt": 'the "nth"',
    "scheduled_at": "back\\slash",
    "worker": "{who}",
    "token": "a%sb",
}


async def test_names_that_need_quoting_and_words_with_quotes_are_read_written_and_recorded(benches: Benches) -> None:
    """R7: whatever the host called its columns; the pre-image names them as the host does."""
    time = sa.DateTime(timezone=True) if benches.database.backend == "postgresql" else NAIVE
    types: dict[str, Any] = {
        "state": sa.String(20), "kind": sa.String(20), "error": sa.Text, "attempt": sa.Integer,
        "worker": sa.String(20), "token": sa.Integer,
    }  # fmt: skip
    columns = [sa.Column(name, types.get(key, time), key=key) for key, name in ODD_NAMES.items()]
    table = sa.Table("Jobs of 100%", sa.MetaData(), sa.Column("ID", sa.Integer, primary_key=True), *columns)
    words = {JobState.QUEUED: ('it\'s "new"',), JobState.RUNNING: ("100% :on",), JobState.FAILED: ("o\\ver",)}
    bench = await benches.open(table, columns=ODD_NAMES | {"id": "ID"}, states=words)
    began = await bench.source.clock() - timedelta(hours=2)
    row = {"state": "100% :on", "started_at": began, "kind": "x", "attempt": 1, "worker": "w", "token": 1}
    async with bench.engine.begin() as connection:
        await connection.execute(sa.insert(table).values([row, row, row]))

    retried = await bench.sweep(Action.RETRY)
    async with bench.engine.begin() as connection:
        await connection.execute(sa.update(table).values(row))
    failed = await bench.sweep()

    assert (outcomes(retried), outcomes(failed)) == ((3, 0, 0), (3, 0, 0))
    async with bench.engine.connect() as connection:
        ended = list(await connection.execute(sa.select(table.c.state, table.c.error)))
    assert {state for state, _ in ended} == {"o\\ver"}
    assert all(said.startswith("Job stuck") for _, said in ended)
    images = [_json(record.pre_image) for record in await bench.recoveries()]
    assert {frozenset(image) for image in images} == {
        frozenset(ODD_NAMES[key] for key in keys)
        for keys in (
            ("state", "started_at", "heartbeat_at", "attempt", "scheduled_at", "worker", "token"),
            ("state", "completed_at", "error"),
        )
    }


def _json(text: str) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(text)
    return loaded


async def test_states_that_are_numbers_are_recovered(benches: Benches) -> None:
    """R7: codes in place of words."""
    table = sa.Table(
        "numbered",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("state", sa.SmallInteger),
        sa.Column("started_at", NAIVE),
        sa.Column("success", sa.SmallInteger),
    )
    codes = {JobState.QUEUED: ("0",), JobState.RUNNING: ("1", "2"), JobState.FAILED: ("-1",)}
    columns = {"id": "id", "state": "state", "started_at": "started_at", "success": "success"}
    bench = await benches.open(table, columns=columns, states=codes)
    began = (await bench.source.clock() - timedelta(hours=2)).replace(tzinfo=None)
    async with bench.engine.begin() as connection:
        await connection.execute(
            sa.insert(table).values([{"state": state, "started_at": began} for state in (0, 1, 2, 3, -1)])
        )

    report = await bench.sweep()

    assert outcomes(report) == (3, 0, 0)
    assert [(row["state"], row["success"]) for row in await bench.rows()] == [
        (-1, 0), (-1, 0), (-1, 0), (3, None), (-1, None),
    ]  # fmt: skip


async def test_a_progress_or_token_of_any_exact_type_is_part_of_the_fence_and_matches_itself(benches: Benches) -> None:
    """R7: what was read is found again, or the job would lose its race for ever."""
    postgres = benches.database.backend == "postgresql"
    table = jobs_table(
        sa.Column("progress", sa.Numeric(20, 17)),
        sa.Column("token", postgresql.UUID if postgres else sa.CHAR(36)),
        sa.Column("worker", sa.String(255)),
    )
    bench = await benches.open(table, columns=COLUMNS | {key: key for key in ("progress", "token", "worker")})
    await bench.put({}, {}, {}, {"worker": ODD_TEXT[3] + ODD_TEXT[17]})
    token = uuid.uuid5(uuid.NAMESPACE_DNS, "x")
    await bench.execute(
        f"UPDATE ai_generation_jobs SET token = '{token}' WHERE id = 1",
        "UPDATE ai_generation_jobs SET progress = 0.30000000000000004 WHERE id = 2",
        "UPDATE ai_generation_jobs SET progress = 1 WHERE id = 3",
    )

    assert outcomes(await bench.sweep()) == (4, 0, 0)
