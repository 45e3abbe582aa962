from __future__ import annotations

import tomllib
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.servers import EACH_KIND
from unstick.config import SourceSettings
from unstick.domain.errors import ConfigurationError, SourceUnavailableError
from unstick.domain.job import JobState
from unstick.presets.preset import SchemaVersion, load_preset
from unstick.sql import inspection as inspection_module
from unstick.sql.dialects import dialect_for
from unstick.sql.engine import open_engine
from unstick.sql.facts import table_facts
from unstick.sql.inspection import (
    Found,
    Inspection,
    _reading,
    inspect_database,
    inspect_table,
)
from unstick.sql.mapping import JobTable, places_of
from unstick.sql.proposal import propose
from unstick.sql.proposed_file import to_toml
from unstick.sql.reflection import unknown_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.sql.proposal import Doubt

DATABASES = EACH_KIND
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
WORDS = ("queued", "running", "completed", "failed")


async def likeliest(engine: AsyncEngine) -> Inspection:
    found = await inspect_database(engine)
    assert found.systems == ()
    assert found.inspection is not None
    return found.inspection


def toml_of(name: str, url: str, inspection: Inspection) -> str:
    return to_toml(name, url, Found(systems=(), inspection=inspection))


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(database.url, create=True)
    yield engine
    await engine.dispose()


@pytest.fixture
async def sqlite(sqlite_database: Database) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(sqlite_database.url, create=True)
    yield engine
    await engine.dispose()


@pytest.fixture
async def postgres(postgres_database: Database) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(postgres_database.url, create=True)
    yield engine
    await engine.dispose()


@pytest.fixture
async def mariadb(mariadb_database: Database) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(mariadb_database.url, create=True)
    yield engine
    await engine.dispose()


async def run(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def run_alone(engine: AsyncEngine, statement: str) -> None:
    """Run a statement that PostgreSQL allows in no transaction."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql(statement)
        await connection.commit()


@asynccontextmanager
async def another_user(engine: AsyncEngine, *grants: str) -> AsyncIterator[AsyncEngine]:
    """The same database as a user who may do only this."""
    user = f"ann_{engine.url.database}"
    made, gone = f"CREATE USER {user} IDENTIFIED BY 'hunter2'", [f"DROP USER {user}"]
    if engine.dialect.name == "postgresql":
        made, gone = f"CREATE ROLE {user} LOGIN PASSWORD 'hunter2'", [f"DROP OWNED BY {user}", f"DROP ROLE {user}"]
    await run(engine, made, *(f"GRANT {grant} TO {user}" for grant in grants))
    theirs = open_engine(engine.url.set(username=user, password="hunter2").render_as_string(hide_password=False))
    try:
        yield theirs
    finally:
        await theirs.dispose()
        await run(engine, *gone)


async def fill(engine: AsyncEngine, table: sa.Table, rows: Sequence[dict[str, Any]] = ()) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
        if rows:
            await connection.execute(table.insert(), list(rows))


def time_type() -> sa.DateTime:
    return sa.DateTime(timezone=True).with_variant(mysql.TIMESTAMP(fsp=6), "mysql")


def jobs_table(
    *more: sa.schema.SchemaItem, name: str = "jobs", status: sa.types.TypeEngine[Any] | None = None
) -> sa.Table:
    """The plainest table: every time knows its zone, an index leads to the open jobs, and only a retry is in doubt."""
    table = sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("status", status or sa.String(20), nullable=False),
        sa.Column("created_at", time_type(), server_default=sa.func.now()),
        sa.Column("started_at", time_type(), nullable=True),
        sa.Column("completed_at", time_type(), nullable=True),
        *more,
    )
    sa.Index(f"{name}_by_status", table.c.status, table.c.started_at)
    return table


def at(minute: float) -> datetime:
    return NOON + timedelta(minutes=minute)


def rows(*words: str, **more: object) -> list[dict[str, Any]]:
    """One row a word: claimed a minute after it came, finished ten minutes later."""
    made: list[dict[str, Any]] = []
    for number, word in enumerate(words):
        begun = number * 20
        made.append({
            "status": word,
            "created_at": at(begun),
            "started_at": None if word == "queued" else at(begun + 1),
            "completed_at": None if word in ("queued", "running") else at(begun + 11),
            **more,
        })  # fmt: skip
    return made


def doubts(found: Inspection, key: str) -> list[Doubt]:
    return [doubt for doubt in found.doubts if doubt.key == key]


def messages(found: Inspection, key: str) -> str:
    return "\n".join(doubt.message for doubt in doubts(found, key))


def without_timezone(found: Inspection) -> list[str]:
    """The doubts, but for the one that SQLite's times always raise."""
    return [doubt.message for doubt in found.doubts if doubt.key != "timezone"]


async def test_a_clear_table_is_understood_and_raises_no_doubt(engine: AsyncEngine) -> None:
    await fill(engine, jobs_table(sa.Column("scheduled_at", time_type())), rows(*WORDS))
    found = await inspect_table(engine, "jobs")
    assert without_timezone(found) == []
    assert not found.blocked
    assert found.sampled == 4
    assert found.proposal.columns == {
        "id": "id",
        "state": "status",
        "enqueued_at": "created_at",
        "scheduled_at": "scheduled_at",
        "started_at": "started_at",
        "completed_at": "completed_at",
    }
    assert found.proposal.states == {
        JobState.QUEUED: ("queued",),
        JobState.RUNNING: ("running",),
        JobState.SUCCEEDED: ("completed",),
        JobState.FAILED: ("failed",),
    }


async def test_inspecting_changes_nothing(engine: AsyncEngine) -> None:
    await fill(engine, table := jobs_table(sa.Column("updated_at", time_type())), rows(*WORDS))

    async def everything() -> tuple[object, ...]:
        async with engine.connect() as connection:
            there = await connection.run_sync(
                lambda c: (sa.inspect(c).get_table_names(), sa.inspect(c).get_indexes("jobs"))
            )
            return there, (await connection.execute(sa.select(table))).all()

    before = await everything()
    await inspect_table(engine, "jobs")
    assert await everything() == before


async def test_a_served_database_refuses_a_write_while_it_is_inspected(engine: AsyncEngine) -> None:
    if engine.dialect.name == "sqlite":
        return
    await fill(engine, jobs_table(), rows("queued"))
    with pytest.raises(SourceUnavailableError, match=r"(?i)read.only"):
        async with _reading(engine) as connection:
            await connection.exec_driver_sql("UPDATE jobs SET status = 'failed'")


async def test_on_postgres_the_statement_timeout_ends_with_the_inspection(postgres: AsyncEngine) -> None:
    async with _reading(postgres) as connection:
        assert await connection.scalar(sa.text("SHOW statement_timeout")) == "5s"
    async with postgres.connect() as connection:
        assert await connection.scalar(sa.text("SHOW statement_timeout")) == "0"


async def test_no_more_rows_are_read_than_the_bound(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection_module, "SAMPLE_ROWS", 3)
    await fill(engine, jobs_table(), rows("paused", *WORDS[:3]))
    found = await inspect_table(engine, "jobs")
    assert found.sampled == 3
    assert "paused" not in messages(found, "states")


class TestOldJobs:
    """What is stuck is old: of the words it holds, the newest rows need have none."""

    @pytest.fixture(autouse=True)
    def _two_rows_a_look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inspection_module, "SAMPLE_ROWS", 2)

    async def test_the_word_of_the_oldest_rows_is_found(self, engine: AsyncEngine) -> None:
        over = {"completed_at": NOON}
        table = jobs_table()
        await fill(engine, table, [*rows("queued", "running", **over), *rows("completed", "failed", "completed")])
        states = (await inspect_table(engine, "jobs")).proposal.states
        assert (states[JobState.QUEUED], states[JobState.RUNNING]) == (("queued",), ("running",))

    async def test_the_word_of_open_jobs_between_old_and_new_ones_is_found(self, engine: AsyncEngine) -> None:
        over = ("completed", "failed", "completed")
        await fill(engine, jobs_table(), rows(*over, "queued", "running", *over))
        found = await inspect_table(engine, "jobs")
        assert (found.proposal.states[JobState.QUEUED], found.proposal.states[JobState.RUNNING]) == (
            ("queued",),
            ("running",),
        )
        assert (found.sampled, found.blocked) == (2, False)

    async def test_no_look_sorts_a_table_that_no_key_sorts(self, engine: AsyncEngine) -> None:
        """X4: the oldest rows are those of the least key, where an index gives them; else all would be read."""
        await run(
            engine,
            "CREATE TABLE jobs (id INTEGER NOT NULL, shard INTEGER NOT NULL, status VARCHAR(9),"
            " started_at TIMESTAMP NULL, PRIMARY KEY (shard, id))",
            "INSERT INTO jobs VALUES " + ", ".join(f"({n}, {n}, 'completed', CURRENT_TIMESTAMP)" for n in range(4)),
        )
        asked: list[str] = []

        def hook(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
            asked.append(statement)

        event.listen(engine.sync_engine, "before_cursor_execute", hook)
        await inspect_table(engine, "jobs")

        looks = [statement for statement in asked if "jobs.status" in statement]
        assert looks
        assert not [statement for statement in looks if "ORDER BY" in statement]

    async def test_a_new_rows_own_word_is_known_without_such_a_row(self, engine: AsyncEngine) -> None:
        table = jobs_table()
        table.c.status.server_default = sa.DefaultClause("pending")
        await fill(engine, table, rows("completed", "failed", "completed"))
        assert (await inspect_table(engine, "jobs")).proposal.states[JobState.QUEUED] == ("pending",)

    async def test_what_postgres_knows_to_be_common_is_known(self, postgres: AsyncEngine) -> None:
        over = rows("completed", "failed", "completed")
        table = jobs_table(status=sa.CHAR(12))
        between = [{**row, "completed_at": NOON} for row in rows(*["running"] * 50)]
        await fill(postgres, table, [*over, *between, *over])
        assert JobState.RUNNING not in (await inspect_table(postgres, "jobs")).proposal.states
        await run(postgres, "ANALYZE jobs")
        assert (await inspect_table(postgres, "jobs")).proposal.states[JobState.RUNNING] == ("running",)

    async def test_where_none_is_found_anywhere_nothing_can_be_watched_and_that_blocks(
        self, engine: AsyncEngine
    ) -> None:
        await fill(engine, jobs_table(), rows("completed", "failed", "completed"))
        found = await inspect_table(engine, "jobs")
        assert [doubt.key for doubt in found.doubts if doubt.severity == "blocker"] == ["states"]
        assert "no known word for queued or for running" in messages(found, "states")
        assert doubts(found, "sample") == []

    async def test_older_rows_that_can_not_be_read_are_told(self, postgres: AsyncEngine) -> None:
        await run(
            postgres,
            "CREATE FUNCTION broken() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$",
            "CREATE VIEW jobs AS SELECT i AS id, 'completed' AS status, now() AS started_at,"
            " CASE WHEN i = 4 THEN broken() ELSE now() END AS completed_at FROM generate_series(1, 4) AS i",
        )
        told = messages(await inspect_table(postgres, "jobs"), "sample")
        assert "the older rows of jobs could not be read (not today" in told


async def test_a_tables_name_that_holds_sql_is_a_name_where_a_job_system_is_recognised_by_it(
    postgres: AsyncEngine,
) -> None:
    preset = load_preset("saq")
    assert preset.version is not None
    version = SchemaVersion(sql=preset.version.sql, known=("1",))
    columns = {*preset.columns_by_name.values(), *(name for write in preset.fail + preset.retry for name in write.set)}
    hostile = "(SELECT 1 version)x;COMMIT;CREATE TABLE h();--:{id}saq_jobs"
    names = sa.Table(hostile, sa.MetaData(), *(sa.Column(name, sa.Text) for name in sorted(columns)))
    quoted = sa.Table("Eu_saq_versions", sa.MetaData(), sa.Column("version", sa.Integer))
    await fill(postgres, names)
    await fill(postgres, quoted)
    async with postgres.begin() as connection:
        await connection.execute(sa.insert(quoted).values(version=1))

    (told,) = (await inspect_database(postgres)).systems

    assert told.problem is not None
    assert f'"{hostile.removesuffix("jobs")}versions" does not exist' in told.problem
    async with postgres.connect() as connection:
        assert (await connection.execute(sa.text("SELECT to_regclass('h')"))).scalar() is None
        places = places_of(JobTable.from_preset(preset, "Eu_saq_jobs"), dialect_for(postgres.dialect))
        assert await unknown_version(connection, preset, version, places) is None


async def test_a_table_that_is_not_there_is_told_with_the_nearest_name(engine: AsyncEngine) -> None:
    await fill(engine, jobs_table())
    with pytest.raises(ConfigurationError, match=r"There is no table job; did you mean jobs\?"):
        await inspect_table(engine, "job")


async def test_a_table_of_another_schema_is_told_with_it(postgres: AsyncEngine) -> None:
    await run(postgres, "CREATE SCHEMA verarbeitung", 'CREATE TABLE verarbeitung."Aufträge" (nr bigint)')
    with pytest.raises(ConfigurationError, match=r"There is no table Aufträge; did you mean verarbeitung\.Aufträge\?"):
        await inspect_table(postgres, "Aufträge")


async def test_a_database_that_does_not_answer_is_told_as_such() -> None:
    engine = open_engine("postgresql://nobody@localhost:1/none")
    with pytest.raises(SourceUnavailableError):
        await inspect_table(engine, "jobs")
    await engine.dispose()


async def test_a_table_that_may_not_be_read_is_doubted_and_its_columns_understood(postgres: AsyncEngine) -> None:
    await run(
        postgres,
        "CREATE SCHEMA odd",
        "CREATE FUNCTION odd.broken() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$",
        "CREATE VIEW jobs AS SELECT 1 AS id, odd.broken() AS status, now() AS started_at",
    )
    found = await inspect_table(postgres, "jobs")
    assert "jobs could not be read (not today" in messages(found, "sample")
    assert found.proposal.columns["started_at"] == "started_at"


class TestChoosing:
    async def test_of_all_tables_the_one_that_looks_most_like_jobs_is_taken(self, engine: AsyncEngine) -> None:
        orders = sa.Table(
            "orders",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("status", sa.String(20)),
            sa.Column("created_at", sa.DateTime),
        )
        await fill(engine, orders, [{"status": "pending", "created_at": datetime(2026, 1, 1)}])  # noqa: DTZ001
        await fill(engine, jobs_table(name="render_jobs"), rows(*WORDS))
        await fill(engine, jobs_table(name="unstick_jobs"), rows(*WORDS))
        found = await likeliest(engine)
        assert found.facts.name == "render_jobs"
        assert found.others == ("orders",)

    async def test_a_table_of_any_name_is_known_by_its_words(self, engine: AsyncEngine) -> None:
        await fill(engine, jobs_table(name="renderings"), rows(*WORDS))
        await fill(engine, jobs_table(name="shop_visits"), rows("north", "south"))
        assert (await likeliest(engine)).facts.name == "renderings"

    async def test_where_nothing_looks_like_jobs_none_is_taken(self, engine: AsyncEngine) -> None:
        users = sa.Table(
            "users",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(20)),
            sa.Column("status", sa.String(20)),
            sa.Column("created_at", sa.DateTime),
            sa.Column("updated_at", sa.DateTime),
        )
        await fill(engine, users, [{"name": "Ada", "status": "active"}])
        with pytest.raises(ConfigurationError, match="No table here looks like a jobs table"):
            await likeliest(engine)

    async def test_in_an_empty_database_none_is_taken(self, engine: AsyncEngine) -> None:
        with pytest.raises(ConfigurationError, match="No table here looks like a jobs table"):
            await likeliest(engine)

    async def test_a_table_that_somebody_has_locked_hinders_only_its_own_sample(
        self, postgres: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inspection_module, "_TIMEOUT_MS", 500)
        for name in ("a_jobs", "b_jobs"):
            await run(
                postgres,
                f"CREATE TABLE {name} (id bigint PRIMARY KEY, status text, started_at timestamptz)",
                f"INSERT INTO {name} VALUES (1, 'queued', now()), (2, 'running', now()), (3, 'failed', now())",
            )
        async with postgres.begin() as other:
            await other.exec_driver_sql("LOCK TABLE a_jobs IN ACCESS EXCLUSIVE MODE")
            found = await likeliest(postgres)
            locked = await inspect_table(postgres, "a_jobs")
        assert (found.facts.name, found.sampled, found.others) == ("b_jobs", 3, ("a_jobs",))
        assert "a_jobs could not be read (canceling statement due to statement timeout)" in messages(locked, "sample")

    async def test_a_lock_that_hides_a_tables_columns_is_told_in_one_sentence(
        self, postgres: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PostgreSQL can't tell a column's default while its table is locked."""
        monkeypatch.setattr(inspection_module, "_TIMEOUT_MS", 500)
        await fill(postgres, jobs_table())
        async with postgres.begin() as other:
            await other.exec_driver_sql("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            why = r"No table here looks like .* jobs could not be read \(canceling statement .*look again when nobody"
            with pytest.raises(ConfigurationError, match=why):
                await likeliest(postgres)

    async def test_a_table_whose_columns_can_not_be_told_hinders_no_other(self, sqlite: AsyncEngine) -> None:
        await fill(sqlite, jobs_table(), rows(*WORDS))
        await run(
            sqlite,
            "PRAGMA writable_schema = ON",
            "INSERT INTO sqlite_master VALUES ('table', 'odd', 'odd', 0, 'CREATE VIRTUAL TABLE odd USING gone')",
        )
        await sqlite.dispose()
        found = await inspect_database(sqlite)
        assert found.inspection is not None
        assert found.inspection.facts.name == "jobs"
        [unread] = found.unread
        assert (unread.table, unread.cause) == ("odd", "no such module: gone")
        with pytest.raises(SourceUnavailableError, match=r"odd could not be read \(no such module: gone\): mend that"):
            await inspect_table(sqlite, "odd")

    async def test_tables_that_the_user_may_not_read_are_named_with_what_to_grant(
        self, mariadb: AsyncEngine, postgres: AsyncEngine
    ) -> None:
        """MariaDB tells such a user nothing of the table, PostgreSQL all of it but the rows."""
        for engine, insert_on in ((mariadb, "INSERT, UPDATE ON jobs"), (postgres, "INSERT ON jobs")):
            await fill(engine, jobs_table(), rows(*WORDS))
            await fill(engine, jobs_table(name="old_jobs"), rows(*WORDS))
            async with another_user(engine, insert_on, "SELECT ON old_jobs") as theirs:
                found = await inspect_database(theirs)
                assert found.inspection is not None
                assert (found.inspection.facts.name, found.blocked) == ("old_jobs", False)
                [unread] = found.unread
                assert unread.table == "jobs"
                assert "denied" in unread.cause
                assert unread.remedy.startswith("grant SELECT on jobs to the user that the URL names")
        async with another_user(postgres, insert_on, "SELECT ON old_jobs") as theirs:
            named = await inspect_table(theirs, "jobs")
        assert [doubt.key for doubt in named.doubts if doubt.severity == "blocker"] == ["sample"]
        assert "grant SELECT on jobs" in messages(named, "sample")

    async def test_a_table_that_is_named_needs_no_likeness(self, engine: AsyncEngine) -> None:
        await run(engine, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body VARCHAR(20))")
        found = await inspect_table(engine, "notes")
        assert [doubt.key for doubt in found.doubts if doubt.severity == "blocker"] == ["state", "started_at"]
        assert found.blocked

    async def test_a_table_in_another_schema_is_found_and_spelled_with_it(self, postgres: AsyncEngine) -> None:
        await run(
            postgres,
            "CREATE SCHEMA billing",
            "CREATE TABLE billing.jobs (id bigint PRIMARY KEY, state text, started_at timestamptz)",
            "INSERT INTO billing.jobs VALUES (1, 'running', now())",
        )
        assert (await likeliest(postgres)).facts.spelling == "billing.jobs"
        named = await inspect_table(postgres, "billing.jobs")
        assert named.facts.schema == "billing"
        assert tomllib.loads(toml_of("main", "postgresql://h/d", named))["sources"]["main"]["table"] == "billing.jobs"
        assert "ON billing.jobs (state, started_at)" in messages(named, "index")


class TestShapes:
    async def test_the_first_users_table_is_understood_whole(self, engine: AsyncEngine) -> None:
        more = (
            sa.Column("job_type", sa.String(50)),
            sa.Column("input_data", sa.JSON),
            sa.Column("progress", sa.Integer),
            sa.Column("success", sa.Boolean),
            sa.Column("error_message", sa.Text),
            sa.Column("tokens_used", sa.Integer),
            sa.Column("cost_usd", sa.Numeric(10, 4)),
            sa.Column("updated_at", time_type()),
        )
        await fill(engine, jobs_table(*more, name="ai_generation_jobs"), rows(*WORDS))
        found = await likeliest(engine)
        assert found.facts.name == "ai_generation_jobs"
        assert found.proposal.columns == {
            "id": "id",
            "state": "status",
            "kind": "job_type",
            "enqueued_at": "created_at",
            "started_at": "started_at",
            "heartbeat_at": "updated_at",
            "completed_at": "completed_at",
            "success": "success",
            "error": "error_message",
            "progress": "progress",
            "payload": "input_data",
            "tokens": "tokens_used",
            "cost": "cost_usd",
        }
        assert [doubt.key for doubt in found.doubts if doubt.key != "timezone"] == ["heartbeat_at", "scheduled_at"]

    async def test_a_uuid_key_and_words_in_capitals_are_understood(self, engine: AsyncEngine) -> None:
        table = sa.Table(
            "background_results",
            sa.MetaData(),
            sa.Column("id", sa.Uuid, primary_key=True),
            sa.Column("status", sa.String(10), nullable=False),
            sa.Column("enqueued_at", time_type()),
            sa.Column("started_at", time_type()),
            sa.Column("finished_at", time_type()),
            sa.Column("run_after", time_type()),
            sa.Column("task_path", sa.Text),
            sa.Column("queue_name", sa.String(32)),
            sa.Column("args_kwargs", sa.JSON),
            sa.Column("worker_ids", sa.JSON),
            sa.Column("traceback", sa.Text),
        )
        words = ("READY", "RUNNING", "FAILED", "SUCCESSFUL")
        begun = {"enqueued_at": NOON, "started_at": NOON}
        await fill(engine, table, [{"id": uuid.uuid4(), "status": word, **begun} for word in words])
        proposal = (await likeliest(engine)).proposal
        assert proposal.columns["id"] == "id"
        assert proposal.columns["kind"] == "task_path"
        assert proposal.columns["completed_at"] == "finished_at"
        assert proposal.columns["scheduled_at"] == "run_after"
        assert proposal.columns["error"] == "traceback"
        assert "worker" not in proposal.columns
        assert proposal.states == {
            JobState.QUEUED: ("READY",),
            JobState.RUNNING: ("RUNNING",),
            JobState.SUCCEEDED: ("SUCCESSFUL",),
            JobState.FAILED: ("FAILED",),
        }

    async def test_an_enums_words_are_known_without_a_row_and_no_others_are_proposed(self, engine: AsyncEngine) -> None:
        # SQLite has no enum: there SQLAlchemy writes a check constraint.
        words = sa.Enum("waiting", "doing", "paused", "dead", name="job_state", create_constraint=True)
        await fill(engine, jobs_table(status=words))
        found = await inspect_table(engine, "jobs")
        assert found.proposal.states == {
            JobState.QUEUED: ("waiting",),
            JobState.RUNNING: ("doing",),
            JobState.FAILED: ("dead",),
        }
        assert "jobs.status can be 'paused', which means no state we know" in messages(found, "states")

    async def test_the_words_of_a_check_constraint_are_known_without_a_row(self, engine: AsyncEngine) -> None:
        allowed = sa.CheckConstraint("status IN ('queued', 'running', 'over', 'failed')", name="known_words")
        await fill(engine, jobs_table(allowed), rows("queued"))
        found = await inspect_table(engine, "jobs")
        assert found.facts.columns[1].values == ("queued", "running", "over", "failed")

    async def test_a_check_constraint_about_more_than_the_words_is_not_taken_for_them(
        self, engine: AsyncEngine
    ) -> None:
        told = sa.CheckConstraint("status <> 'failed' OR completed_at IS NOT NULL", name="told")
        await fill(engine, jobs_table(told))
        assert (await inspect_table(engine, "jobs")).facts.columns[1].values == ()

    async def test_what_no_command_would_start_with_blocks(self, sqlite: AsyncEngine) -> None:
        """Each half would do by itself: running jobs without a time, and the time of queued ones without a word."""
        await run(
            sqlite,
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT, created_at DATETIME)",
            "INSERT INTO jobs (status, created_at) VALUES ('running', '2026-11-23'), ('failed', '2026-11-23')",
        )
        found = await inspect_table(sqlite, "jobs")
        assert [doubt.key for doubt in found.doubts if doubt.severity == "blocker"] == ["mapping"]
        assert "lets no job be judged" in messages(found, "mapping")

    async def test_codes_block_and_are_listed(self, engine: AsyncEngine) -> None:
        table = jobs_table(status=sa.SmallInteger())
        await fill(engine, table, [{"status": code, "created_at": NOON} for code in (0, 1, 1, 3)])
        found = await inspect_table(engine, "jobs")
        assert found.blocked
        assert "the codes 1, 0, 3" in messages(found, "states") or "the codes 1, 3, 0" in messages(found, "states")
        assert found.proposal.states == {}

    async def test_an_empty_table_is_taken_to_use_the_common_words_and_doubted(self, engine: AsyncEngine) -> None:
        await fill(engine, jobs_table())
        found = await inspect_table(engine, "jobs")
        assert found.proposal.states[JobState.FAILED] == ("failed",)
        assert "nothing tells which words jobs.status uses" in messages(found, "states")

    async def test_free_text_named_status_is_not_taken_for_words(self, engine: AsyncEngine) -> None:
        await fill(engine, jobs_table(), rows(*(f"step {number}" for number in range(41))))
        assert (await inspect_table(engine, "jobs")).facts.columns[1].values == ()

    async def test_the_blanks_that_fill_up_a_word_are_no_part_of_it(self, engine: AsyncEngine) -> None:
        await fill(engine, jobs_table(status=sa.CHAR(12)), rows(*WORDS))
        found = await inspect_table(engine, "jobs")
        assert found.proposal.states == {
            JobState.QUEUED: ("queued",),
            JobState.RUNNING: ("running",),
            JobState.SUCCEEDED: ("completed",),
            JobState.FAILED: ("failed",),
        }

    async def test_types_nobody_knows_are_no_hindrance(self, engine: AsyncEngine) -> None:
        await run(engine, "CREATE TABLE jobs (id INTEGER PRIMARY KEY, status VARCHAR(9), started_at TIMESTAMP NULL)")
        if engine.dialect.name == "sqlite":
            await run(engine, "ALTER TABLE jobs ADD COLUMN shape GEOMETRY")
        elif engine.dialect.name == "postgresql":
            await run(engine, "ALTER TABLE jobs ADD COLUMN shape polygon")
        assert (await inspect_table(engine, "jobs")).proposal.columns["started_at"] == "started_at"

    async def test_a_boolean_is_known_in_every_database(self, engine: AsyncEngine) -> None:
        await fill(engine, jobs_table(sa.Column("success", sa.Boolean)), rows(*WORDS))
        column = (await inspect_table(engine, "jobs")).facts.column("success")
        assert column is not None
        assert column.kind == "boolean"

    async def test_a_domains_values_are_those_beneath(self, postgres: AsyncEngine) -> None:
        await run(
            postgres,
            "CREATE DOMAIN word AS text",
            "CREATE TABLE jobs (id bigint PRIMARY KEY, status word, started_at timestamptz)",
            "INSERT INTO jobs SELECT i, (ARRAY['queued','running','failed'])[i], now() FROM generate_series(1, 3) i",
        )
        assert (await inspect_table(postgres, "jobs")).proposal.states[JobState.FAILED] == ("failed",)

    async def test_an_id_that_is_only_part_of_the_key_blocks(self, engine: AsyncEngine) -> None:
        await run(
            engine,
            "CREATE TABLE jobs (id INTEGER NOT NULL, shard INTEGER NOT NULL, status VARCHAR(9),"
            " started_at TIMESTAMP NULL, PRIMARY KEY (id, shard))",
        )
        assert "jobs.id is not unique by itself" in messages(await inspect_table(engine, "jobs"), "id")

    async def test_a_unique_index_makes_an_id_unless_it_is_partial(self, postgres: AsyncEngine) -> None:
        await run(
            postgres,
            "CREATE TABLE jobs (id bigint, status text, started_at timestamptz)",
            "CREATE UNIQUE INDEX waiting ON jobs (id) WHERE status = 'queued'",
        )
        assert doubts(await inspect_table(postgres, "jobs"), "id") != []
        await run(postgres, "CREATE UNIQUE INDEX whole ON jobs (id)")
        assert doubts(await inspect_table(postgres, "jobs"), "id") == []


class TestTimes:
    async def test_times_without_a_zone_are_doubted(self, engine: AsyncEngine) -> None:
        table = sa.Table(
            "jobs",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("status", sa.String(20)),
            sa.Column("started_at", sa.DateTime),
        )
        await fill(engine, table)
        assert "started_at of jobs has no time zone" in messages(await inspect_table(engine, "jobs"), "timezone")

    async def test_times_with_a_zone_are_not(self, engine: AsyncEngine) -> None:
        if engine.dialect.name == "sqlite":
            return
        await fill(engine, jobs_table(), rows(*WORDS))
        assert doubts(await inspect_table(engine, "jobs"), "timezone") == []

    @pytest.mark.parametrize(
        ("text", "doubted"),
        [("2026-11-23T12:00:00Z", False), ("2026-11-23 12:00:00+02:00", False), ("2026-11-23", True)],
    )
    async def test_on_sqlite_the_text_tells_its_zone(self, sqlite: AsyncEngine, text: str, doubted: bool) -> None:
        await run(
            sqlite,
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT, started_at TEXT)",
            f"INSERT INTO jobs (status, started_at) VALUES ('running', '{text}')",
        )
        found = await inspect_table(sqlite, "jobs")
        assert found.proposal.columns["started_at"] == "started_at"
        assert bool(doubts(found, "timezone")) is doubted

    async def test_times_kept_as_numbers_are_not_mapped_and_doubted(self, engine: AsyncEngine) -> None:
        await run(engine, "CREATE TABLE jobs (id INTEGER PRIMARY KEY, status VARCHAR(9), started_at BIGINT)")
        found = await inspect_table(engine, "jobs")
        assert "started_at" not in found.proposal.columns
        assert "jobs.started_at sounds like `started_at` and holds whole numbers" in messages(found, "started_at")

    async def test_text_that_is_no_time_is_not_mapped_and_doubted(self, sqlite: AsyncEngine) -> None:
        await run(
            sqlite,
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT, started_at TEXT)",
            "INSERT INTO jobs (status, started_at) VALUES ('running', 'yesterday')",
        )
        found = await inspect_table(sqlite, "jobs")
        assert "started_at" not in found.proposal.columns
        assert "holds text, which isn't read as time" in messages(found, "started_at")

    @pytest.mark.parametrize(
        ("values", "severity"),
        [
            (["1732363200", "1732363201"], "blocker"),
            (["'2026-11-23 12:00:00'", "'Mon, 23 Nov 2026'"], "warning"),
            (["'2026-11-23 12:00:00'", "'2026-11-23T12:00:00.25'"], None),
        ],
    )
    async def test_a_time_column_whose_values_do_not_parse_blocks_or_warns_by_how_many(
        self, sqlite: AsyncEngine, values: list[str], severity: str | None
    ) -> None:
        await run(
            sqlite,
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT, created_at DATETIME, started_at DATETIME)",
            *(f"INSERT INTO jobs (status, started_at) VALUES ('running', {value})" for value in values),
        )
        found = doubts(await inspect_table(sqlite, "jobs"), "started_at")
        assert [doubt.severity for doubt in found] == ([severity] if severity else [])

    async def test_times_that_can_not_be_used_are_each_named_with_the_cause(self, postgres: AsyncEngine) -> None:
        await run(
            postgres,
            "CREATE TABLE jobs (id bigint PRIMARY KEY, status text, queued_at bigint, created_at timestamptz,"
            " created bigint, started_at date, started int, finished numeric, deleted_at timestamptz,"
            " updated_at boolean)",
            "INSERT INTO jobs VALUES (1, 'running', 7, now(), 1732363200, now(), 1, 1732363200.5, NULL, true)",
        )
        found = await inspect_table(postgres, "jobs")
        assert "jobs.queued_at sounds like `enqueued_at` and holds whole numbers" in messages(found, "enqueued_at")
        assert messages(found, "enqueued_at").endswith("; created_at is taken in its place")
        assert "jobs.started_at sounds like `started_at` and holds dates without a time" in messages(
            found, "started_at"
        )
        assert "jobs.created sounds" not in messages(found, "enqueued_at")
        assert "jobs.started sounds" not in messages(found, "started_at")
        assert "jobs.finished sounds like `completed_at` and holds numbers" in messages(found, "completed_at")
        assert "jobs.updated_at sounds like `heartbeat_at` and holds true or false" in messages(found, "heartbeat_at")
        assert "deleted_at of jobs is a time, and its name doesn't tell of what" in messages(found, "columns")


class TestHeartbeat:
    async def inspect(self, engine: AsyncEngine, *times: tuple[float, float | None]) -> Inspection:
        """Look at jobs that started at noon, each last changed and completed at these minutes."""
        made = rows(*WORDS)
        for updated, completed in times:
            ended = None if completed is None else at(completed)
            made += rows(
                "completed" if ended else "running", started_at=NOON, completed_at=ended, updated_at=at(updated)
            )
        table = jobs_table(sa.Column("updated_at", time_type()))
        await fill(engine, table, [{"updated_at": None, **row} for row in made])
        return await inspect_table(engine, "jobs")

    NEVER = "jobs.updated_at never moves while a job runs: in all 2 rows that tell"

    async def test_an_updated_at_that_never_moves_is_doubted(self, engine: AsyncEngine) -> None:
        """L1: what moves it may be left undone where nothing else changes."""
        found = await self.inspect(engine, (0, 30), (0.01, None))
        assert self.NEVER in messages(found, "heartbeat_at")

    async def test_an_updated_at_that_moved_in_one_job_is_not(self, engine: AsyncEngine) -> None:
        found = await self.inspect(engine, (0, 30), (4, None), (0, 40))
        assert "never moves" not in messages(found, "heartbeat_at")
        assert "only if the application moves it" in messages(found, "heartbeat_at")

    async def test_a_last_change_that_was_the_jobs_end_tells_nothing(self, engine: AsyncEngine) -> None:
        found = await self.inspect(engine, (30, 30), (12, 12))
        assert "never moves" not in messages(found, "heartbeat_at")

    async def test_a_last_change_that_was_the_jobs_end_does_not_hide_those_that_never_moved(
        self, sqlite: AsyncEngine
    ) -> None:
        found = await self.inspect(sqlite, (0, 30), (0.01, None), (40, 40))
        assert self.NEVER in messages(found, "heartbeat_at")

    async def test_a_job_that_only_just_began_tells_nothing(self, sqlite: AsyncEngine) -> None:
        table = jobs_table(sa.Column("updated_at", time_type()))
        await fill(sqlite, table, rows("running", created_at=NOON, started_at=NOON, updated_at=NOON))
        assert "never moves" not in messages(await inspect_table(sqlite, "jobs"), "heartbeat_at")

    async def test_on_postgres_an_indexed_heartbeat_is_doubted(self, postgres: AsyncEngine) -> None:
        """X1: an index on the column that every beat writes costs the heap-only updates."""
        table = jobs_table(sa.Column("heartbeat_at", time_type()))
        await fill(postgres, table)
        assert doubts(await inspect_table(postgres, "jobs"), "heartbeat_at") == []
        await run(postgres, "CREATE INDEX by_beat ON jobs (status) INCLUDE (heartbeat_at)")
        doubt = messages(await inspect_table(postgres, "jobs"), "heartbeat_at")
        assert "jobs.heartbeat_at is in the index by_beat" in doubt

    async def test_elsewhere_it_is_not(self, mariadb: AsyncEngine) -> None:
        await fill(mariadb, jobs_table(sa.Column("heartbeat_at", time_type(), index=True)))
        assert doubts(await inspect_table(mariadb, "jobs"), "heartbeat_at") == []


class TestRunningWithoutStart:
    async def test_running_jobs_that_bear_no_start_are_doubted(self, engine: AsyncEngine) -> None:
        await fill(engine, jobs_table(), [*rows("running"), *rows("running", started_at=None), *rows("failed")])
        found = messages(await inspect_table(engine, "jobs"), "started_at")
        assert "jobs.started_at is null in 1 of the 2 running rows read: these are judged by nothing" in found

    async def test_with_a_heartbeat_they_are_judged_by_that(self, engine: AsyncEngine) -> None:
        table = jobs_table(sa.Column("heartbeat_at", time_type()))
        await fill(engine, table, rows("running", started_at=None, heartbeat_at=NOON))
        assert "by `heartbeat_at` alone" in messages(await inspect_table(engine, "jobs"), "started_at")


class TestRetry:
    async def test_without_a_time_to_wait_for_a_claim_by_a_null_start_is_doubted(self, engine: AsyncEngine) -> None:
        await fill(engine, jobs_table(), rows(*WORDS))
        [doubt] = doubts(await inspect_table(engine, "jobs"), "scheduled_at")
        assert (doubt.severity, "`retry` sets jobs.started_at to now" in doubt.message) == ("warning", True)

    async def test_where_nothing_can_be_retried_or_no_start_is_written_there_is_no_doubt(
        self, engine: AsyncEngine
    ) -> None:
        await fill(engine, jobs_table(name="never_queued"), rows("running", "completed", "failed"))
        assert doubts(await inspect_table(engine, "never_queued"), "scheduled_at") == []
        await fill(engine, jobs_table(sa.Column("run_at", time_type()), name="timed"), rows(*WORDS))
        assert doubts(await inspect_table(engine, "timed"), "scheduled_at") == []

    async def test_an_attempt_that_worker_and_retry_could_both_count_is_doubted(self, engine: AsyncEngine) -> None:
        assert doubts(await self._inspected(engine), "attempt") == []
        attempts = sa.Column("attempts", sa.Integer, server_default="0")
        assert "jobs.attempts goes up by one" in messages(await self._inspected(engine, attempts), "attempt")

    async def _inspected(self, engine: AsyncEngine, *more: sa.Column[Any]) -> Inspection:
        await run(engine, "DROP TABLE IF EXISTS jobs")
        await fill(engine, jobs_table(*more), rows(*WORDS))
        return await inspect_table(engine, "jobs")


INDEX_STATEMENTS = {
    "sqlite": "CREATE INDEX jobs_open ON jobs (status, started_at) WHERE completed_at IS NULL;",
    "postgresql": "CREATE INDEX CONCURRENTLY jobs_open ON jobs (status, started_at) WHERE completed_at IS NULL;",
    "mysql": "CREATE INDEX jobs_open ON jobs (status, started_at);",
}


class TestIndex:
    @pytest.fixture
    async def bare(self, engine: AsyncEngine) -> AsyncEngine:
        table = jobs_table()
        table.indexes.clear()
        await fill(engine, table, rows(*WORDS))
        return engine

    async def test_a_missing_index_is_doubted_and_its_exact_statement_takes_the_doubt_away(
        self, bare: AsyncEngine
    ) -> None:
        told = messages(await inspect_table(bare, "jobs"), "index")
        statement = told.partition(": run ")[2]
        assert statement == INDEX_STATEMENTS[bare.dialect.name]
        await run_alone(bare, statement)
        assert doubts(await inspect_table(bare, "jobs"), "index") == []

    @pytest.mark.parametrize(
        ("index", "enough"),
        [
            ("ON jobs (started_at)", False),
            ("ON jobs (created_at, status)", False),
            ("ON jobs (status)", True),
            ("ON jobs (completed_at)", True),
        ],
    )
    async def test_an_index_is_enough_where_it_leads_to_the_open_jobs(
        self, bare: AsyncEngine, index: str, enough: bool
    ) -> None:
        await run(bare, f"CREATE INDEX another {index}")
        assert (doubts(await inspect_table(bare, "jobs"), "index") == []) is enough

    @pytest.mark.parametrize(
        ("index", "enough"),
        [
            ("(created_at) WHERE completed_at IS NULL", True),
            ("(status, started_at) WHERE completed_at IS NOT NULL", False),
            ("(status, started_at) WHERE status = 'queued'", False),
        ],
    )
    async def test_a_partial_index_is_enough_where_it_holds_every_open_job(
        self, bare: AsyncEngine, index: str, enough: bool
    ) -> None:
        if bare.dialect.name == "mysql":
            return
        await run(bare, f"CREATE INDEX another ON jobs {index}")
        assert (doubts(await inspect_table(bare, "jobs"), "index") == []) is enough

    async def test_an_index_on_an_expression_is_no_hindrance(self, postgres: AsyncEngine) -> None:
        table = jobs_table()
        table.indexes.clear()
        await fill(postgres, table)
        await run(postgres, "CREATE INDEX another ON jobs (lower(status))")
        assert doubts(await inspect_table(postgres, "jobs"), "index") != []

    async def test_names_are_quoted_where_they_must_be(self, engine: AsyncEngine) -> None:
        table = sa.Table(
            "Job Table",
            sa.MetaData(),
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("State", sa.Text),
            sa.Column("startedAt", sa.DateTime),
        )
        await fill(engine, table)
        statement = messages(await likeliest(engine), "index").partition(": run ")[2]
        await run_alone(engine, statement)
        assert doubts(await likeliest(engine), "index") == []

    async def test_a_partitioned_table_gets_a_statement_it_accepts(self, postgres: AsyncEngine) -> None:
        await run(
            postgres,
            "CREATE TABLE jobs (id bigint, status text, started_at timestamptz) PARTITION BY RANGE (id)",
            "CREATE TABLE jobs_1 PARTITION OF jobs FOR VALUES FROM (0) TO (10)",
        )
        statement = messages(await inspect_table(postgres, "jobs"), "index").partition(": run ")[2]
        await run(postgres, statement)
        assert doubts(await inspect_table(postgres, "jobs"), "index") == []


class TestModel:
    def test_a_models_own_types_tell_as_much_as_a_database(self) -> None:
        class Base(DeclarativeBase):
            pass

        class Instant(sa.types.TypeDecorator[datetime]):
            impl = sa.DateTime(timezone=True)
            cache_ok = True

        class Job(Base):
            __tablename__ = "jobs"
            id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
            status: Mapped[str] = mapped_column(sa.Enum("queued", "running", "failed", name="words"))
            created_at: Mapped[datetime]
            started_at: Mapped[datetime] = mapped_column(Instant)
            lasted: Mapped[timedelta]

        facts = table_facts(sa.inspect(Job).local_table)  # type: ignore[arg-type]
        assert [column.kind for column in facts.columns] == ["uuid", "text", "naive_time", "time", "other"]
        proposal = propose(facts)
        assert proposal.states[JobState.FAILED] == ("failed",)
        assert [doubt.key for doubt in proposal.doubts] == ["timezone"]


class TestToml:
    @pytest.fixture
    async def found(self, sqlite: AsyncEngine) -> Inspection:
        await fill(sqlite, jobs_table(), rows("pending", *WORDS))
        return await inspect_table(sqlite, "jobs")

    def test_the_file_is_what_the_settings_read(self, found: Inspection) -> None:
        [(name, source)] = tomllib.loads(toml_of("main", "sqlite:///jobs.db", found))["sources"].items()
        settings = SourceSettings(**source)
        assert (name, settings.table, settings.timezone) == ("main", "jobs", "UTC")
        assert settings.columns == found.proposal.columns
        assert settings.states == found.proposal.states
        assert source["states"]["queued"] == ["queued", "pending"]
        assert source["states"]["failed"] == "failed"

    def test_every_doubt_stands_as_a_comment(self, found: Inspection) -> None:
        text = toml_of("main", "sqlite:///jobs.db", found)
        assert found.doubts
        for doubt in found.doubts:
            assert f"# {doubt.severity}, {doubt.key}: {doubt.message}\n" in text

    @pytest.mark.parametrize(
        ("url", "bare"),
        [
            ("postgresql://ann:s3cret@db/app", "postgresql://ann@db/app"),
            ("postgresql://ann:p%40s3cret@db:5433/app?sslmode=require", "postgresql://ann@db:5433/app?sslmode=require"),
            ("postgresql://db/app?user=ann&password=s3cret", "postgresql://db/app?user=ann"),
            ("mysql://ann:s3cret@db/app", "mysql://ann@db/app"),
        ],
    )
    def test_the_password_is_left_out_and_where_it_goes_is_told(self, found: Inspection, url: str, bare: str) -> None:
        text = toml_of("billing", url, found)
        assert tomllib.loads(text)["sources"]["billing"]["url"] == bare
        assert "s3cret" not in text
        assert "UNSTICK_SOURCES__BILLING__URL" in text

    def test_a_url_without_a_password_is_kept_as_it_is(self, found: Inspection) -> None:
        text = toml_of("main", "sqlite:///my jobs.db", found)
        assert tomllib.loads(text)["sources"]["main"]["url"] == "sqlite:///my jobs.db"
        assert "UNSTICK_SOURCES__" not in text

    async def test_whatever_the_words_and_names_hold_the_file_can_be_read(self, sqlite: AsyncEngine) -> None:
        odd = 'a"b\\c\nd\x7fé\u2028'
        name = odd.replace('"', '""')
        await run(
            sqlite,
            f'CREATE TABLE "jobs {name}" (id INTEGER PRIMARY KEY, status TEXT, started_at DATETIME)',
        )
        await run(sqlite, f"INSERT INTO \"jobs {name}\" (status) VALUES ('{odd}'), ('run.FAILED'), ('queued')")
        found = await likeliest(sqlite)
        source = tomllib.loads(toml_of(f"my {odd}", "sqlite:///x", found))["sources"][f"my {odd}"]
        assert source["table"] == f"jobs {odd}"
        assert source["states"] == {"queued": "queued", "failed": "run.FAILED"}

    async def test_codes_are_written_as_numbers(self, sqlite: AsyncEngine) -> None:
        await fill(sqlite, jobs_table(status=sa.Integer()), [{"status": 3}])
        found = await inspect_table(sqlite, "jobs")
        said = propose(found.facts, states={JobState.FAILED: (3,), JobState.QUEUED: (0, 1)})
        told = Inspection(facts=found.facts, proposal=said, doubts=said.doubts, sampled=1)
        source = tomllib.loads(toml_of("main", "sqlite:///x", told))["sources"]["main"]
        assert source["states"] == {"queued": [0, 1], "failed": 3}
