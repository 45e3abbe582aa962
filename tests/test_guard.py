"""The guard on every database: what a worker that knows nothing of Unstick can no longer write, and what passes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from tests.jobs import COLUMNS, STATES, SqlBench, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from tests.test_races import ROW_LOCKING, host, on_databases, somebody_waits, until
from unstick.cli import main
from unstick.config import Settings, SourceSettings
from unstick.domain.errors import ConfigurationError, LateFinishError, SourceUnavailableError
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.sql import guard as guards
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.reflection import mapped_table
from unstick.testing.conformance import Ages
from unstick.wiring import guard_table, upgrade_database, worker_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    from tests.servers import Database
    from unstick.domain.job import JobId
    from unstick.sql.mapping import JobTable

    Taken = Callable[[SqlBench], Coroutine[Any, Any, None]]
    Said = tuple[int | str | None, str, str]
    Command = Callable[..., Said]

DATABASES = EACH_KIND

POSTGRES = ["postgres18", "postgres18-asyncpg", "postgres15"]
FENCED = COLUMNS | {"token": "token", "worker": "worker"}
HOURS = Ages(enqueued=timedelta(hours=2), started=timedelta(hours=2))
TRIGGERS = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'",
    "postgresql": "SELECT t.tgname, pg_get_triggerdef(t.oid) || p.prosrc FROM pg_trigger AS t JOIN pg_proc AS p"
    " ON p.oid = t.tgfoid WHERE NOT t.tgisinternal",
    "mysql": "SELECT trigger_name, action_statement FROM information_schema.triggers WHERE trigger_schema = DATABASE()",
}


def guarded_table(**options: Any) -> sa.Table:  # noqa: ANN401
    return jobs_table(sa.Column("token", sa.Integer), sa.Column("worker", sa.String(200)), **options)


def settings(bench: SqlBench, jobs: JobTable | None = None) -> Settings:
    mapping = jobs or bench.jobs
    section = {
        "url": bench.engine.url.render_as_string(hide_password=False),
        "table": mapping.full_name,
        "columns": dict(mapping.columns),
        "states": dict(mapping.states),
    }
    return Settings(sources={"main": SourceSettings.model_validate(section)})


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[SqlBench]:
    """A jobs table without the guard."""
    table = guarded_table()
    opened = await open_bench(database, table, declared(table, columns=FENCED))
    yield opened
    await opened.close()


@pytest.fixture
async def guarded(bench: SqlBench) -> SqlBench:
    await guard_table(settings(bench), carry_out="install")
    return bench


async def triggers(bench: SqlBench) -> dict[str, str]:
    async with bench.engine.connect() as connection:
        rows = await connection.execute(sa.text(TRIGGERS[bench.source._connections.dialect.name]))
        return {row[0]: row[1] for row in rows}


async def says(bench: SqlBench, assignments: str, job_id: JobId = 1) -> int:
    """Write as a worker does that knows the job by its id, on a connection Unstick never touched."""
    statement = f"UPDATE ai_generation_jobs SET {assignments} WHERE id = :id"
    async with host(bench) as app, app.begin() as worker:
        result: sa.CursorResult[Any] = await worker.execute(sa.text(statement), {"id": job_id})
        return result.rowcount


def refusal(bench: SqlBench, job_id: object = 1) -> str:
    job = "this job" if bench.engine.dialect.name == "sqlite" else f"job {job_id}"
    return f"unstick guard: {job} was taken from this worker; its result came too late"


async def recovered(bench: SqlBench) -> None:
    """Let a worker begin a job, and take it from it: the job waits as attempt 2 with token 8."""
    await bench.put({"attempt": 1, "token": 7})
    report = await bench.sweep(Action.RETRY)
    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    row = await bench.row(1)
    assert (row["status"], row["attempt"], row["token"]) == ("queued", 2, 8)


async def claimed_again(bench: SqlBench) -> None:
    await recovered(bench)
    assert await says(bench, "status = 'running', token = 9") == 1


# What is refused

LATE = [
    (claimed_again, "status = 'completed', attempt = 1", guards.another_attempt),
    (claimed_again, "status = 'failed', attempt = 1", guards.another_attempt),
    (claimed_again, "status = 'completed', token = 7", guards.another_attempt),
    (claimed_again, "status = 'failed', token = NULL", guards.another_attempt),
    (recovered, "status = 'failed', attempt = 1, token = 7", guards.another_attempt),
    (recovered, "status = 'completed'", guards.queued_again),
]


@pytest.mark.parametrize(("taken", "write", "_rule"), LATE)
async def test_a_late_result_is_refused_and_the_row_is_as_it_was(
    guarded: SqlBench, taken: Taken, write: str, _rule: guards.Rule
) -> None:
    """R5, R6: a worker that was thought dead comes back after its job was given to another."""
    await taken(guarded)
    before = await guarded.row(1)

    with pytest.raises(DBAPIError, match=refusal(guarded)):
        await says(guarded, f"{write}, error_message = 'late'")

    assert await guarded.row(1) == before


@pytest.mark.parametrize(("taken", "write", "rule"), LATE)
async def test_without_its_rule_a_late_result_would_land(
    bench: SqlBench, taken: Taken, write: str, rule: guards.Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the tests above would fail."""
    monkeypatch.setattr(guards, "RULES", {each: gap for each, gap in guards.RULES.items() if each is not rule})
    await guard_table(settings(bench), carry_out="install")
    await taken(bench)

    assert await says(bench, write) == 1


@on_databases(*ROW_LOCKING)
@pytest.mark.parametrize("write", ["status = 'completed'", "status = 'failed', attempt = 1"])
async def test_a_late_result_that_waited_for_the_recovery_is_judged_by_what_it_finds(
    guarded: SqlBench, write: str
) -> None:
    """The worker's statement began while the job was still its own."""
    await guarded.put({"attempt": 1, "token": 7})
    async with host(guarded) as app, app.connect() as recovery:
        await recovery.execute(sa.text("UPDATE ai_generation_jobs SET status = 'queued', attempt = 2, token = 8"))
        late = asyncio.create_task(says(guarded, write))
        await until(lambda: somebody_waits(guarded), every=0.2)  # MariaDB looks anew only where nobody asked for 0.1 s
        await recovery.commit()
        with pytest.raises(DBAPIError, match=refusal(guarded)):
            await late

    assert (await guarded.row(1))["status"] == "queued"


async def test_a_refused_worker_loses_all_that_its_transaction_wrote(guarded: SqlBench) -> None:
    await recovered(guarded)
    before = await guarded.row(1)
    async with host(guarded) as app, app.connect() as worker:
        await worker.execute(sa.text("UPDATE ai_generation_jobs SET error_message = 'half' WHERE id = 1"))
        with pytest.raises(DBAPIError, match=refusal(guarded)):
            await worker.execute(sa.text("UPDATE ai_generation_jobs SET status = 'completed' WHERE id = 1"))
        await worker.rollback()

    assert await guarded.row(1) == before


async def test_a_late_result_is_refused_where_the_row_has_no_state_at_all(database: Database) -> None:
    """R5: a state that is null isn't an end, and what SQL makes of comparing with it is neither true nor false."""
    table = guarded_table()
    table.c.status.nullable = True
    opened = await open_bench(database, table, declared(table, columns=FENCED))
    await guard_table(settings(opened), carry_out="install")
    await opened.put({"status": None, "attempt": 2, "token": 8})

    with pytest.raises(DBAPIError, match=refusal(opened)):
        await says(opened, "status = 'completed', attempt = 1")

    assert (await opened.row(1))["status"] is None
    await opened.close()


# What passes


@pytest.mark.parametrize(
    ("row", "write"),
    [
        ({"status": "running"}, "status = 'completed'"),
        ({"status": "running"}, "status = 'completed', attempt = 1, token = 7"),
        ({"status": "running"}, "status = 'failed', error_message = 'no'"),
        ({"status": "running"}, "updated_at = CURRENT_TIMESTAMP"),
        ({"status": "running"}, "status = 'queued', attempt = 2, token = 8"),
        ({"status": "running"}, "status = 'cancelled', attempt = 2"),
        ({"status": "running", "token": None}, "status = 'completed', token = NULL"),
        ({"status": "queued"}, "status = 'running', attempt = 2, token = 8"),
        ({"status": "queued"}, "status = 'failed'"),
        ({"status": "queued"}, "status = 'cancelled'"),
        ({"status": "queued"}, "attempt = 5, token = 9"),
        ({"status": "delayed"}, "status = 'completed'"),
        ({"status": "failed"}, "status = 'completed', attempt = 2"),
        ({"status": "cancelled"}, "status = 'failed', token = 8"),
        ({"status": "completed"}, "status = 'queued', attempt = 2"),
        ({"status": "completed"}, "status = 'completed', attempt = 2"),
    ],
)
async def test_whatever_ends_no_job_of_another_passes(guarded: SqlBench, row: Mapping[str, object], write: str) -> None:
    await guarded.put({"attempt": 1, "token": 7, **row})

    assert await says(guarded, write) == 1


@pytest.mark.parametrize("ruled_from", [1, 1000], ids=["ruled", "decided"])
@pytest.mark.parametrize("action", CHANGES)
async def test_a_sweep_recovers_what_is_guarded(database: Database, action: Action, ruled_from: int) -> None:
    table = guarded_table()
    bench = await open_bench(database, table, declared(table, columns=FENCED), ruled_from=ruled_from)
    await guard_table(settings(bench), carry_out="install")
    for state in (JobState.QUEUED, JobState.RUNNING, JobState.RUNNING):
        await bench.add(state, HOURS)

    report = await bench.sweep(action)

    statuses = [row["status"] for row in await bench.rows()]
    await bench.close()
    assert report.tally.of(outcome=Outcome.APPLIED) == 3
    assert statuses == ["failed" if action is Action.MARK_FAILED else "queued"] * 3


async def test_the_poison_of_a_guarded_job_is_marked(guarded: SqlBench) -> None:
    await guarded.put({"attempt": 1, "token": 7})
    report = await guarded.sweep(Action.RETRY, policy=Policy(max_recoveries=0))

    assert report.tally.of(outcome=Outcome.APPLIED) == 1
    assert (await guarded.row(1))["status"] == "failed"


async def test_the_kits_own_ends_pass_and_its_late_ones_are_still_told(guarded: SqlBench, database: Database) -> None:
    if database.backend == "sqlite":
        await use_write_ahead_log(guarded.engine)
    await guarded.put(*({"status": "queued", "attempt": 0, "token": 0} for _ in range(3)))
    async with worker_on(
        "main", database.url, guarded.jobs, every=timedelta(seconds=10), lease=timedelta(seconds=30)
    ) as worker:
        first, second, third = await worker.claim(limit=3)
        await worker.finish(first)
        await worker.fail(second, "no")
        await worker.requeue(third, counted=True)
        await guarded.execute("UPDATE ai_generation_jobs SET scheduled_at = NULL WHERE status = 'queued'")
        (again,) = await worker.claim()
        with pytest.raises(LateFinishError):
            await worker.finish(third)
        await worker.finish(again)

    assert [row["status"] for row in await guarded.rows()] == ["completed", "failed", "completed"]


async def test_unsticks_own_table_can_be_guarded(database: Database) -> None:
    own = Settings(sources={"main": SourceSettings.model_validate({"url": database.url})})
    await upgrade_database(own)
    found = await guard_table(own, carry_out="install")
    engine = open_engine(database.url)
    async with engine.begin() as connection:
        await connection.execute(
            sa.text("INSERT INTO jobs (status, job_type, created_at, attempt) VALUES ('queued', 'a', '2026-01-01', 0)")
        )
    with pytest.raises(DBAPIError, match="unstick guard: "):
        async with engine.begin() as connection:
            await connection.execute(sa.text("UPDATE jobs SET status = 'completed'"))
    await engine.dispose()
    assert (found.table, found.gaps) == ("jobs", ())


# Names, words and types

WORDS: dict[str, tuple[Any, dict[JobState, tuple[Any, ...]]]] = {
    "text": (sa.String(20), STATES),
    "enumeration": (sa.Enum(*(word for words in STATES.values() for word in words), name="job_state"), STATES),
    "filled up with blanks": (sa.CHAR(20), STATES),
    "numbers": (sa.SmallInteger(), {state: (number,) for number, state in enumerate(STATES)}),
    "odd words": (
        sa.String(20),
        {
            JobState.QUEUED: ('it\'s 50% "in"', "in:line"),
            JobState.RUNNING: ("$unstick$",),
            JobState.SUCCEEDED: ("o\\k",),
            JobState.FAILED: ("`no`; --",),
        },
    ),
}


def odd_table(state: Any, schema: str | None) -> tuple[sa.Table, JobTable]:  # noqa: ANN401
    columns = {"id": 'the "id"', "state": "State 100%s", "started_at": "order", "attempt": "try's", "token": "new.old"}
    table = sa.Table(
        'Odd jobs; 50% "x"',
        sa.MetaData(),
        sa.Column(columns["id"], sa.String(200), primary_key=True),
        sa.Column(columns["state"], state, nullable=False),
        sa.Column(columns["started_at"], sa.DateTime),
        sa.Column(columns["attempt"], sa.Integer),
        sa.Column(columns["token"], sa.String(36)),
        schema=schema,
    )
    return table, declared(table, columns=columns)


def schema_of(database: Database) -> str | None:
    """A schema to name: a new one on PostgreSQL, and elsewhere the one there is."""
    return {"postgresql": "Odd 50%", "mysql": database.url.split("?")[0].rpartition("/")[2], "sqlite": "main"}[
        database.backend
    ]


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("with_schema", [False, True], ids=["", "schema"])
async def test_odd_names_and_words_of_any_type_are_guarded_to_the_letter(
    database: Database, kind: str, *, with_schema: bool
) -> None:
    type_, states = WORDS[kind]
    table, jobs = odd_table(type_, schema_of(database) if with_schema else None)
    jobs = _with_states(jobs, states)
    engine = open_engine(database.url, create=True)
    if with_schema and database.backend == "postgresql":
        async with engine.begin() as connection:
            await connection.execute(sa.schema.CreateSchema("Odd 50%"))
    await engine.dispose()
    bench = await open_bench(database, table, jobs)
    await guard_table(settings(bench), carry_out="install")
    await guard_table(settings(bench), carry_out="install")
    key = "k" * 45
    states_of = {state: words[0] for state, words in states.items()}

    refused = [
        (JobState.QUEUED, {"state": states_of[JobState.SUCCEEDED]}),
        (JobState.RUNNING, {"state": states_of[JobState.FAILED], "token": "mine"}),
        (JobState.RUNNING, {"state": states_of[JobState.SUCCEEDED], "attempt": 1}),
    ]
    passing = [
        (JobState.RUNNING, {"state": states_of[JobState.SUCCEEDED], "attempt": 2, "token": "theirs"}),
        (JobState.QUEUED, {"state": states_of[JobState.FAILED]}),
        (JobState.QUEUED, {"state": states_of[JobState.RUNNING], "attempt": 3, "token": "x"}),
    ]
    for state, values in refused:
        await _put_odd(bench, key, states_of[state])
        with pytest.raises(DBAPIError, match=refusal(bench, key)):
            await _write_odd(bench, values)
    for state, values in passing:
        await _put_odd(bench, key, states_of[state])
        await _write_odd(bench, values)

    await guard_table(settings(bench), carry_out="remove")
    left = await triggers(bench)
    await bench.close()
    assert left == {}


def _with_states(jobs: JobTable, states: Mapping[JobState, tuple[Any, ...]]) -> JobTable:
    return type(jobs)(name=jobs.name, schema=jobs.schema, columns=jobs.columns, states=states)


async def _put_odd(bench: SqlBench, key: str, state: object) -> None:
    row = _named(bench, {"id": key, "state": state, "attempt": 2, "token": "theirs"})
    async with bench.engine.begin() as connection:
        await connection.execute(sa.delete(bench.table))
        await connection.execute(sa.insert(bench.table).values(row))


async def _write_odd(bench: SqlBench, values: Mapping[str, object]) -> None:
    async with host(bench) as app, app.begin() as worker:
        await worker.execute(sa.update(bench.table).values(_named(bench, values)))


def _named(bench: SqlBench, values: Mapping[str, object]) -> dict[str, object]:
    return {name: values[key] for key, name in bench.jobs.columns.items() if key in values}


async def test_a_long_id_is_cut_where_a_message_has_no_room_for_it(mariadb_database: Database) -> None:
    table, jobs = odd_table(sa.String(20), None)
    bench = await open_bench(mariadb_database, table, jobs)
    await guard_table(settings(bench), carry_out="install")
    await _put_odd(bench, "ж" * 200, "queued")

    with pytest.raises(DBAPIError, match=refusal(bench, "ж" * 50)):
        await _write_odd(bench, {"state": "completed"})
    await bench.close()


async def test_tables_whose_long_names_begin_alike_have_guards_of_their_own(database: Database) -> None:
    tables = [jobs_table(name="j" * 55 + suffix, indexed=False) for suffix in ("_one", "_two")]
    benches = [await open_bench(database, table, declared(table)) for table in tables]
    found = [await guard_table(settings(bench), carry_out="install") for bench in benches]
    made = await triggers(benches[0])
    await guard_table(settings(benches[0]), carry_out="remove")
    left = await triggers(benches[1])
    for bench in benches:
        await bench.close()

    assert set(made) == {each.name for each in found}
    assert [len(name) for name in made] == [63, 63]
    assert set(left) == {found[1].name}


def test_a_name_is_cut_between_characters() -> None:
    assert guards.guard_name("jobs") == "unstick_guard_jobs"
    assert len(guards.guard_name("ж" * 40).encode()) in {62, 63}


# Mappings that lack something


async def test_without_token_and_attempt_only_the_queue_is_guarded_and_that_is_said(bench: SqlBench) -> None:
    lean = declared(bench.table, columns={k: v for k, v in COLUMNS.items() if k != "attempt"})
    found = await guard_table(settings(bench, lean), carry_out="install")
    await bench.put({"status": "queued"}, {"attempt": 2})

    with pytest.raises(DBAPIError, match=refusal(bench)):
        await says(bench, "status = 'completed'")
    assert await says(bench, "status = 'completed', attempt = 1", 2) == 1
    assert found.gaps == (guards.RULES[guards.another_attempt],)


async def test_workers_that_end_queued_jobs_are_not_kept_from_it(bench: SqlBench) -> None:
    """A table without a word for running has no claims: each success would be one of a queued job."""
    states: dict[JobState, tuple[str, ...]] = {
        state: words for state, words in STATES.items() if state is not JobState.RUNNING
    }
    found = await guard_table(settings(bench, declared(bench.table, states=states)), carry_out="install")
    await bench.put({"status": "queued", "attempt": 2})

    with pytest.raises(DBAPIError, match=refusal(bench)):
        await says(bench, "status = 'completed', attempt = 1")
    assert await says(bench, "status = 'completed'") == 1
    assert found.gaps == (guards.RULES[guards.queued_again],)


async def test_a_mapping_with_nothing_to_guard_by_is_refused(bench: SqlBench) -> None:
    states = {JobState.QUEUED: ("queued",), JobState.RUNNING: ("running",)}
    with pytest.raises(ConfigurationError, match="nothing by which a late result could be told"):
        await guard_table(settings(bench, declared(bench.table, states=states)))


# Installing and removing


async def test_nothing_is_installed_unless_told_and_twice_is_as_once(bench: SqlBench) -> None:
    printed = await guard_table(settings(bench))
    before = await triggers(bench)
    await guard_table(settings(bench), carry_out="install")
    once = await triggers(bench)
    await guard_table(settings(bench), carry_out="install")
    twice = await triggers(bench)
    await guard_table(settings(bench), carry_out="remove")
    after = await triggers(bench)
    await guard_table(settings(bench), carry_out="remove")

    await bench.execute(*printed.install)
    by_hand = await triggers(bench)
    await bench.execute(*printed.remove)
    assert (before, after, await triggers(bench)) == ({}, {}, {})
    assert set(once) == {"unstick_guard_ai_generation_jobs"}
    assert once == twice == by_hand


async def test_a_changed_mapping_replaces_the_guard(guarded: SqlBench) -> None:
    states = STATES | {JobState.SUCCEEDED: ("done",)}
    await guard_table(settings(guarded, declared(guarded.table, columns=FENCED, states=states)), carry_out="install")
    await guarded.put({"status": "queued"})

    with pytest.raises(DBAPIError, match=refusal(guarded)):
        await says(guarded, "status = 'done'")
    assert await says(guarded, "status = 'completed'") == 1
    assert len(await triggers(guarded)) == 1


@on_databases(*POSTGRES)
async def test_a_removed_guard_leaves_no_function(guarded: SqlBench) -> None:
    await guard_table(settings(guarded), carry_out="remove")
    async with guarded.engine.connect() as connection:
        functions = await connection.execute(sa.text("SELECT proname FROM pg_proc WHERE proname LIKE 'unstick%'"))
        assert functions.all() == []


@on_databases(*POSTGRES)
async def test_the_guard_is_none_of_the_triggers_that_change_what_is_written(guarded: SqlBench) -> None:
    """Sweeps would lock rows first, for nothing; with a host's own trigger they still do."""
    assert await _triggered(guarded) is False
    await guarded.execute(
        "CREATE FUNCTION host() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        "CREATE TRIGGER host BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION host()",
    )
    assert await _triggered(guarded) is True
    await guarded.put({}, {})
    assert (await guarded.sweep()).tally.of(outcome=Outcome.APPLIED) == 2


async def _triggered(bench: SqlBench) -> bool:
    source = bench.another()
    async with source._connections.reading() as (connection, _):
        return (await mapped_table(source._connections, connection, bench.jobs)).triggered


@on_databases("postgres18")
async def test_a_role_that_may_not_is_told_so_in_a_sentence(bench: SqlBench) -> None:
    role = f"app_{bench.engine.url.database}"
    await bench.execute(f"CREATE ROLE {role} LOGIN", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    theirs = settings(bench).sources["main"].model_dump()
    theirs["url"] = bench.engine.url.set(username=role).render_as_string(hide_password=False)
    with pytest.raises(SourceUnavailableError, match="refuses to install the guard: permission denied"):
        await guard_table(Settings(sources={"main": SourceSettings.model_validate(theirs)}), carry_out="install")
    await bench.execute(f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


# The command


@pytest.fixture
def unstick(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run the command on a configured jobs table; return its exit code, and what it said on stdout and stderr."""
    table = guarded_table()

    async def prepare() -> None:
        opened = await open_bench(database, table)
        await opened.put({"status": "queued"})
        await opened.close()

    asyncio.run(prepare())

    def run(*arguments: str, columns: Mapping[str, str] = FENCED) -> Said:
        source = {"url": database.url, "table": table.name, "columns": columns, "states": STATES}
        monkeypatch.setenv("UNSTICK_SOURCES", json.dumps({"main": source}))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["unstick", "guard", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def made(database: Database) -> dict[str, str]:
    async def ask() -> dict[str, str]:
        engine = open_engine(database.url)
        async with engine.connect() as connection:
            rows = (await connection.execute(sa.text(TRIGGERS[database.backend]))).all()
        await engine.dispose()
        return {row[0]: row[1] for row in rows}

    return asyncio.run(ask())


def test_the_command_prints_what_it_would_do_and_does_what_it_printed(database: Database, unstick: Command) -> None:
    printed = unstick("--json")
    before = made(database)
    installed = unstick("--install", "--json")
    there = made(database)
    removed = unstick("--remove")
    after = made(database)
    said = unstick("--install")

    document = json.loads(printed[1])
    assert (printed, set(document)) == (installed, {"install", "remove"})
    assert printed[2] == ""
    assert (before, after, made(database)) == ({}, {}, there)
    assert set(there) == {"unstick_guard_ai_generation_jobs"}
    assert removed == (0, "ai_generation_jobs has no trigger unstick_guard_ai_generation_jobs any more.\n", "")
    assert said[1].startswith("ai_generation_jobs has the trigger unstick_guard_ai_generation_jobs; ")


def test_what_is_printed_is_a_script_for_the_databases_own_client(database: Database, unstick: Command) -> None:
    _, out, _ = unstick()
    install, remove = out.split("\n\n")
    assert (install[:3], remove[:3]) == ("-- ", "-- ")

    _client(database, install)
    assert set(made(database)) == {"unstick_guard_ai_generation_jobs"}
    _client(database, remove)
    assert made(database) == {}


def _client(database: Database, script: str) -> None:
    url = sa.make_url(database.url)
    match database.backend:
        case "sqlite":
            with closing(sqlite3.connect(str(url.database))) as connection:
                connection.executescript(script)
        case "postgresql":
            with psycopg.connect(host=str(url.query["host"]), user="postgres", dbname=url.database) as session:
                session.execute(script.encode())
        case "mysql":
            socket = f"--socket={url.query['unix_socket']}"
            command = ["mariadb", "--no-defaults", socket, "--user=root", str(url.database)]
            subprocess.run(command, input=script, text=True, check=True, capture_output=True)


@on_databases("sqlite")
def test_the_command_says_on_stderr_what_the_guard_can_not_refuse(unstick: Command) -> None:
    lean = {key: name for key, name in COLUMNS.items() if key != "attempt"}
    status, out, err = unstick("--install", "--json", columns=lean)

    assert (status, set(json.loads(out))) == (0, {"install", "remove"})
    assert err.startswith("unstick: warning: the guard of ai_generation_jobs is not complete: it has no `token` ")
    assert err.count("\n") == 1


@on_databases("sqlite")
def test_the_command_can_not_install_and_remove_at_once(database: Database, unstick: Command) -> None:
    status, out, err = unstick("--install", "--remove")

    assert (status, out) == (2, "")
    assert "at once" in err
    assert made(database) == {}
