"""Unstick's own tables: what the migrations make is what the code works with."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tests.jobs import jobs_table, statements
from unstick.sql import schema
from unstick.sql.engine import open_engine
from unstick.sql.tables import jobs_metadata, metadata

if TYPE_CHECKING:
    from tests.servers import Database

BOTH = schema.branches(own_jobs=True)


async def test_the_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    engine = open_engine(database.url, create=True)
    await schema.upgrade(engine, BOTH)

    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
    await engine.dispose()


async def test_upgrading_twice_changes_nothing_and_nothing_is_missing_after(database: Database) -> None:
    engine = open_engine(database.url, create=True)
    assert set(await schema.missing(engine, BOTH)) == set(schema.heads(BOTH))
    await schema.upgrade(engine, BOTH)
    await schema.upgrade(engine, BOTH)

    assert await schema.missing(engine, BOTH) == ()
    assert set(await schema.current(engine)) == set(schema.heads(BOTH))
    await engine.dispose()


async def test_on_sqlite_nobody_else_can_make_them_once_it_was_looked_which_there_are(
    sqlite_database: Database,
) -> None:
    """Two upgrades at once: the second waits, and finds them made."""
    engine = open_engine(sqlite_database.url, create=True)
    refused: list[bool] = []

    @sa.event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _try_to_write(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            refused.append(_is_locked(engine.url.database or ""))

    await schema.upgrade(engine, BOTH)
    await engine.dispose()

    assert set(refused) == {True}


def _is_locked(file: str) -> bool:
    with closing(sqlite3.connect(file, timeout=0)) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


async def test_a_hosts_own_table_called_jobs_is_left_alone(database: Database) -> None:
    """Only where a source names no table does Unstick make its own."""
    engine = open_engine(database.url, create=True)
    async with engine.begin() as connection:
        await connection.run_sync(jobs_table(name="jobs").metadata.create_all)
    await schema.upgrade(engine, schema.branches(own_jobs=False))

    async with engine.connect() as connection:
        columns = await connection.run_sync(
            lambda sync: {each["name"] for each in sa.inspect(sync).get_columns("jobs")}
        )
    assert "updated_at" in columns
    assert "worker" not in columns
    await engine.dispose()


async def test_the_printed_statements_make_the_same_tables(database: Database) -> None:
    engine = open_engine(database.url, create=True)
    script = schema.upgrade_script(engine.dialect.name, BOTH)
    async with engine.begin() as connection:
        for statement in statements(script):
            await connection.exec_driver_sql(statement)

    assert await schema.missing(engine, BOTH) == ()
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
    await engine.dispose()


def _differences(connection: sa.Connection) -> list[Any]:
    options = {"version_table": schema.VERSION_TABLE, "compare_type": True}
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, _both()))


def _both() -> sa.MetaData:
    both = sa.MetaData()
    for table in (*metadata.tables.values(), *jobs_metadata.tables.values()):
        table.to_metadata(both)
    return both
