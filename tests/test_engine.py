"""Engines from plain URLs: what is said where one can't be opened, and what a cancellation leaves behind."""

import asyncio
import sys
import threading

import pytest
import sqlalchemy as sa

from tests.servers import Database
from unstick.domain.errors import ConfigurationError
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import async_url, open_engine, shown_url


@pytest.mark.parametrize(
    ("url", "driver", "package"),
    [
        ("postgresql://host/app", "psycopg", "'unstick[postgres]'"),
        ("postgresql+asyncpg://host/app", "asyncpg", "asyncpg"),
        ("mariadb://host/app", "asyncmy", "'unstick[mysql]'"),
        ("mysql+aiomysql://host/app", "aiomysql", "aiomysql"),
    ],
)
def test_a_missing_driver_is_told_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, url: str, driver: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)  # which Python's import takes for one that isn't installed
    with pytest.raises(ConfigurationError) as caught:
        open_engine(url)
    assert str(caught.value).endswith(f"isn't installed. Install it with: pip install {package}")


@pytest.mark.parametrize(
    "statement", ["UPDATE notes SET note = pause()", "SELECT pause() FROM notes UNION ALL SELECT 'another'"]
)
async def test_on_sqlite_a_transaction_that_is_cancelled_gives_its_locks_back_at_once(
    sqlite_database: Database, statement: str
) -> None:
    engine = open_engine(sqlite_database.url, create=True)
    connections = EngineConnections(engine)
    loop, paused, cancelled = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def pause() -> None:
        loop.call_soon_threadsafe(paused.set)
        assert cancelled.wait(30)

    async def write(note: str, *statements: str) -> None:
        async with connections.writing() as (connection, _):
            raw = await connection.get_raw_connection()
            assert raw.driver_connection is not None
            await raw.driver_connection.create_function("pause", 0, pause)
            await connection.execute(sa.text("INSERT INTO notes VALUES (:note)"), {"note": note})
            for each in statements:
                await connection.execute(sa.text(each))

    async def be_cancelled() -> None:
        try:
            await write("cancelled", statement)
        except asyncio.CancelledError:
            await write("recorded")

    async with connections.writing() as (connection, _):
        await connection.execute(sa.text("CREATE TABLE notes (note TEXT)"))
    writing = asyncio.create_task(be_cancelled())
    await paused.wait()
    writing.cancel()
    cancelled.set()
    await writing
    async with connections.reading() as (connection, _):
        assert list((await connection.execute(sa.text("SELECT note FROM notes"))).scalars()) == ["recorded"]
    await engine.dispose()


def test_a_url_is_shown_without_its_secrets_wherever_they_are() -> None:
    url = async_url("postgresql://ada:s3cret@db-7/app?password=hunter2&sslmode=require")
    assert shown_url(url) == "postgresql+psycopg://ada:***@db-7/app?password=hidden&sslmode=require"
