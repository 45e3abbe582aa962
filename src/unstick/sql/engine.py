"""Engines from plain URLs, set up so that no update is lost and nobody is blocked for long."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any
from weakref import WeakSet

import aiosqlite
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from unstick.domain.errors import ConfigurationError
from unstick.sql.dialects import mysql_guest_settings

WRITES = "unstick_writes"
"""The execution option of a connection that is going to write."""

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mysql+asyncmy",
}
_BROUGHT_BY = {
    "psycopg": "'unstick[postgres]'",
    "asyncmy": "'unstick[mysql]'",
    "asyncpg": "asyncpg",
    "aiomysql": "aiomysql",
}
"""What to install for each driver: an extra of ours brings one a database, others come by themselves."""
PLACEHOLDER = "PASSWORD"
"""What a URL that is shown says in place of its password: a word that needs no quoting anywhere."""
SECRETS = frozenset({"password", "passwd", "sslpassword"})
"""What in a URL's query is as secret as its password."""
_BUSY_TIMEOUT_MS = 5_000


def async_url(url: str) -> URL:
    """Return the URL with the driver Unstick uses where it names none.

    Raises:
        ConfigurationError: it isn't a database URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number is the latter
        raise ConfigurationError(
            "The database URL can't be read; it looks like postgresql://user:password@host/database."
        ) from None
    return parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))


def url_without_secrets(url: URL) -> tuple[str, bool]:
    """Return a URL to paste, with a placeholder for each secret, and whether there is any."""
    shown = url if url.password is None else url.set(password=PLACEHOLDER)
    shown = shown.update_query_dict(dict.fromkeys(SECRETS & url.query.keys(), PLACEHOLDER))
    return shown.render_as_string(hide_password=False), shown != url


def shown_url(url: URL) -> str:
    """Return a URL to read, without what is secret in it."""
    shown = url.update_query_dict(dict.fromkeys(SECRETS & url.query.keys(), "hidden"))
    return shown.render_as_string(hide_password=True)


def open_engine(url: str, *, create: bool = False) -> AsyncEngine:
    """Open an engine; no connection is made yet.

    Args:
        url: the database.
        create: a SQLite file that isn't there may be made.

    Raises:
        ConfigurationError: the URL can't be read, its database isn't known, its driver isn't installed, or the
            SQLite file isn't there.
    """
    parsed = async_url(url)
    if not create:
        _need_file(parsed)
    try:
        engine = create_async_engine(parsed, pool_pre_ping=True, **_options(parsed))
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigurationError(_missing_driver(parsed)) from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    elif engine.dialect.name == "mysql":
        _prepare_mysql(engine)
    elif engine.dialect.name != "postgresql":
        raise ConfigurationError(f"{engine.dialect.name} isn't supported; SQLite, PostgreSQL and MariaDB/MySQL are.")
    return engine


def _need_file(url: URL) -> None:
    """Refuse a mistyped path, which SQLite would answer with an empty file of that name."""
    name = url.database or ""
    in_a_file = url.get_backend_name() == "sqlite" and name not in {"", ":memory:"} and not name.startswith("file:")
    if in_a_file and not Path(name).exists():
        raise ConfigurationError(f"There is no SQLite file at {name}.")


def _options(url: URL) -> dict[str, Any]:
    match url.get_driver_name():
        case "psycopg":
            # A transaction-pooling pgbouncer hands each transaction another connection: nothing may be prepared.
            return {"connect_args": {"prepare_threshold": None, "application_name": "unstick"}}
        case "asyncpg":
            return {"connect_args": {"server_settings": {"application_name": "unstick"}}}
        case "aiosqlite":
            return {"connect_args": {"async_creator_fn": _connect_sqlite}}
        case _:
            return {}


class _SqliteConnection(sqlite3.Connection):
    """Gives its locks back when it is closed: a statement that a cancellation left open would keep them."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - what sqlite3 takes
        super().__init__(*args, **options)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, *args: Any) -> Any:  # noqa: ANN401 - as in sqlite3
        cursor = super().cursor(*args)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        while self._cursors:
            self._cursors.pop().close()
        super().close()


async def _connect_sqlite(*args: Any, **options: Any) -> aiosqlite.Connection:  # noqa: ANN401 - the driver's own
    """Connect, and where that fails wait for the driver's thread, which would outlive the loop and say so."""
    connection = aiosqlite.connect(*args, factory=_SqliteConnection, **options)
    connection._thread.daemon = True  # noqa: SLF001 - as SQLAlchemy does, which this function stands in for
    try:
        return await connection
    except BaseException:
        await asyncio.to_thread(connection._thread.join)  # noqa: SLF001
        raise


def _missing_driver(url: URL) -> str:
    package = _BROUGHT_BY.get(url.drivername.partition("+")[2])
    if package is None:
        return f"There is no driver for {url.drivername}://; use sqlite://, postgresql:// or mysql://."
    return f"The driver for {url.drivername}:// isn't installed. Install it with: pip install {package}"


def _prepare_sqlite(engine: AsyncEngine) -> None:
    """Take the write lock when a writing transaction begins, not at its first write.

    The driver's default mode begins transactions late and deferred: two that read and then write lose an
    update in silence, or fail at once with SQLITE_BUSY_SNAPSHOT, which no busy timeout waits for.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's adapter is untyped
        connection.isolation_level = None
        # One row whose text isn't UTF-8 must not keep all the others from being read.
        connection.driver_connection.text_factory = _decode
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _decode(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _prepare_mysql(engine: AsyncEngine) -> None:
    """Read TIMESTAMP columns as UTC, whatever the server speaks by default, and wait no longer than a guest may."""

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: object) -> None:  # noqa: ANN401
        cursor = connection.cursor()
        cursor.execute("SELECT VERSION()")
        settings = mysql_guest_settings(str(cursor.fetchone()[0]))
        cursor.execute("SET " + ", ".join(f"{name} = %s" for name in settings), tuple(settings.values()))
        cursor.close()


async def use_write_ahead_log(engine: AsyncEngine) -> None:
    """Let readers and the writer of a SQLite file work side by side; the file remembers it."""
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        if raw.driver_connection is None:
            raise ConfigurationError("The SQLite connection closed while it was being set up.")
        await asyncio.shield(raw.driver_connection.execute("PRAGMA journal_mode = WAL"))
