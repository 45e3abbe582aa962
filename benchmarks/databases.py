"""Databases to measure on: filled once, copied for every run, so that each starts from the same bytes."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import sqlite3
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa
from tests.jobs import COLUMNS, STATES, jobs_table
from tests.servers import MissingServerError, PackagedPostgres, Postgres

from benchmarks.filling import TABLE, Backend, Filling, insert
from unstick.config import load_settings
from unstick.wiring import upgrade_database

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",  # each run starts from a checkpoint; none comes in the middle of one
    "autovacuum": "on",
}


@dataclass(frozen=True, kw_only=True)
class Database:
    """One database and the configuration file that points Unstick at it."""

    backend: Backend
    url: str
    raw: str
    """How the driver itself is told: a connection string, or a path."""
    config: Path

    def execute(self, *statements: str) -> float:
        """Run statements in one transaction through the driver itself; return the seconds until it is committed."""
        begin = time.perf_counter()
        if self.backend == "postgresql":
            with psycopg.connect(self.raw, autocommit=True) as connection:
                begin = time.perf_counter()
                with connection.transaction():
                    for statement in statements:
                        connection.execute(statement.encode())
                return time.perf_counter() - begin
        with closing(sqlite3.connect(self.raw, isolation_level=None)) as connection:
            begin = time.perf_counter()
            for statement in ("BEGIN IMMEDIATE", *statements, "COMMIT"):
                connection.execute(statement)
            return time.perf_counter() - begin

    def count(self, query: str) -> int:
        if self.backend == "postgresql":
            with psycopg.connect(self.raw) as connection:
                row = connection.execute(query.encode()).fetchone()
        else:
            with closing(sqlite3.connect(self.raw)) as file:
                row = file.execute(query).fetchone()
        assert row is not None
        return int(row[0])


class Site(ABC):
    """Where databases of one kind are made."""

    backend: Backend

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filled: set[str] = set()
        self._prefix = f"bench_{os.getpid()}"  # a server may be shared
        self._numbers = itertools.count()

    @property
    @abstractmethod
    def facts(self) -> dict[str, str]: ...

    @contextmanager
    def fresh(self, filling: Filling) -> Iterator[Database]:
        """Lend a copy of a database filled like this."""
        source = self._name(filling)
        if source not in self._filled:
            self._fill(source, filling)
            self._filled.add(source)
        name = f"{self._prefix}_copy_{next(self._numbers)}"
        self._copy(source, name)
        database = self._database(name)
        try:
            self._warm(database)
            yield database
        finally:
            self._drop(name)

    def forget(self, filling: Filling) -> None:
        """Make room."""
        source = self._name(filling)
        if source in self._filled:
            self._filled.remove(source)
            self._drop(source)

    def forget_all(self) -> None:
        while self._filled:
            self._drop(self._filled.pop())

    def _name(self, filling: Filling) -> str:
        return f"{self._prefix}_{filling.finished}_{filling.stuck}_{filling.placement}"

    def _fill(self, name: str, filling: Filling) -> None:
        self._create(name)
        database = self._database(name)
        engine = sa.create_engine(database.url.replace("+aiosqlite", ""))
        with engine.begin() as connection:
            jobs_table(name=TABLE).metadata.create_all(connection)
        engine.dispose()
        asyncio.run(upgrade_database(load_settings(database.config)))
        database.execute(insert(self.backend, filling))
        self._finish(database)

    def _database(self, name: str) -> Database:
        config = self.directory / f"{name}.toml"
        config.write_text(_toml(self._url(name)))
        return Database(backend=self.backend, url=self._url(name), raw=self._raw(name), config=config)

    @abstractmethod
    def _url(self, name: str) -> str: ...

    @abstractmethod
    def _raw(self, name: str) -> str: ...

    @abstractmethod
    def _create(self, name: str) -> None: ...

    @abstractmethod
    def _finish(self, database: Database) -> None:
        """Leave a filled database as one that has been in use for a while."""

    @abstractmethod
    def _copy(self, source: str, name: str) -> None: ...

    @abstractmethod
    def _warm(self, database: Database) -> None:
        """Bring a copy into the cache it would be in after a while."""

    @abstractmethod
    def _drop(self, name: str) -> None: ...


class SqliteSite(Site):
    backend: Backend = "sqlite"

    @property
    def facts(self) -> dict[str, str]:
        return {"SQLite": f"{sqlite3.sqlite_version}, journal_mode WAL, synchronous FULL, no ANALYZE"}

    def _url(self, name: str) -> str:
        return f"sqlite+aiosqlite:///{self._raw(name)}"

    def _raw(self, name: str) -> str:
        return str(self.directory / f"{name}.db")

    def _create(self, name: str) -> None:
        with closing(sqlite3.connect(self._raw(name))) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    def _finish(self, database: Database) -> None:
        with closing(sqlite3.connect(database.raw)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _copy(self, source: str, name: str) -> None:
        shutil.copyfile(self._raw(source), self._raw(name))
        with Path(self._raw(name)).open("rb") as file:
            os.fsync(file.fileno())  # or a run would pay for writing its copy

    def _warm(self, database: Database) -> None:
        """The copy has just been written, so the system has it cached."""

    def _drop(self, name: str) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(self._raw(name) + suffix).unlink(missing_ok=True)


class PostgresSite(Site):
    backend: Backend = "postgresql"

    def __init__(self, directory: Path, server: Postgres) -> None:
        super().__init__(directory)
        self._server = server

    @property
    def facts(self) -> dict[str, str]:
        with psycopg.connect(self._raw("postgres")) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return {"PostgreSQL": f"{row[0]}, " + ", ".join(f"{name} {value}" for name, value in SETTINGS.items())}

    def _url(self, name: str) -> str:
        return self._server.url("psycopg", name)

    def _raw(self, name: str) -> str:
        return f"host={self._server.directory} user=postgres dbname={name}"

    def _create(self, name: str) -> None:
        self._server.create(name)

    def _finish(self, database: Database) -> None:
        with psycopg.connect(database.raw, autocommit=True) as connection:
            connection.execute("VACUUM (FREEZE, ANALYZE)")

    def _copy(self, source: str, name: str) -> None:
        self._server.execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")

    def _warm(self, database: Database) -> None:
        with psycopg.connect(database.raw, autocommit=True) as connection:
            connection.execute(f"SELECT count(*), count(attempt) FROM {TABLE}")
            connection.execute("SET enable_seqscan = off")
            connection.execute(f"SELECT count(*) FROM {TABLE} WHERE id > 0")

    def _drop(self, name: str) -> None:
        self._server.drop(name)


class DurablePostgres(Postgres):
    """The tests' private server, but one that survives a power cut."""

    def command(self) -> list[str]:
        return [*super().command(), *_durable()]  # the last one given is in force


class DurablePackagedPostgres(PackagedPostgres):
    def command(self) -> list[str]:
        return [*super().command(), *_durable()]


def _durable() -> list[str]:
    return [f"--{name}={value}" for name, value in SETTINGS.items()]


@contextmanager
def open_sites(wanted: set[Backend], directory: Path | None, postgres: str | None) -> Iterator[list[Site]]:
    """Open the places databases are made at, PostgreSQL's server among them; all of it is gone afterwards."""
    # Short, for a socket's path has room for 107 characters, and open to the user that a server runs as.
    run = Path(tempfile.mkdtemp(prefix="unstick-bench-", dir=directory))
    run.chmod(0o755)
    sites: list[Site] = []
    try:
        with (run / "alive").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)  # the server's guard stops it when this lock is released
            if "postgresql" in wanted:
                sites.append(PostgresSite(run, _start_postgres(run, postgres)))
            if "sqlite" in wanted:
                sites.append(SqliteSite(run))
            yield sites
        _wait_for_guard(run)
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _start_postgres(run: Path, version: str | None) -> Postgres:
    """Start the version asked for; without one 15, which the goals were set with, or 18 where that isn't installed."""
    servers: dict[str, Postgres] = {
        "15": DurablePostgres(run, "postgres15"),
        "18": DurablePackagedPostgres(run, "postgres18"),
    }
    if version is not None:
        servers[version].start()
        return servers[version]
    try:
        return _start_postgres(run, "15")
    except MissingServerError:
        return _start_postgres(run, "18")


def _wait_for_guard(run: Path) -> None:
    deadline = time.monotonic() + 30
    while [path for path in run.iterdir() if path.is_dir()]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"The server in {run} did not stop.")
        time.sleep(0.05)


def _toml(url: str) -> str:
    """Say what a user's `unstick.toml` says; JSON's text and lists are TOML's too."""
    lines = ["[sources.main]", f"url = {json.dumps(url)}", f'table = "{TABLE}"', "[sources.main.columns]"]
    lines += [f"{key} = {json.dumps(name)}" for key, name in COLUMNS.items()]
    lines += ["[sources.main.states]"]
    lines += [f"{state.value} = {json.dumps(list(words))}" for state, words in STATES.items()]
    return "\n".join(lines) + "\n"
