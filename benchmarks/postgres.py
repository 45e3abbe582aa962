"""PostgreSQL to measure on: a private server that survives a power cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.servers import MissingServerError, PackagedPostgres, Postgres

from benchmarks.databases import Database, Site
from benchmarks.drivers import connected
from benchmarks.filling import TABLE

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.filling import Backend

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


class PostgresSite(Site):
    backend: Backend = "postgresql"

    def __init__(self, directory: Path, server: Postgres) -> None:
        super().__init__(directory)
        self._server = server

    @property
    def facts(self) -> dict[str, str]:
        with connected(self.backend, self._raw("postgres")) as run:
            [(version,)] = run("SHOW server_version")
        return {"PostgreSQL": f"{version}, " + ", ".join(f"{name} {value}" for name, value in SETTINGS.items())}

    def _url(self, name: str) -> str:
        return self._server.url("psycopg", name)

    def _raw(self, name: str) -> str:
        return f"host={self._server.directory} user=postgres dbname={name}"

    def _create(self, name: str) -> None:
        self._server.create(name)

    def _finish(self, database: Database) -> None:
        with database.connected() as run:
            run("VACUUM (FREEZE, ANALYZE)")

    def _copy(self, source: str, name: str) -> None:
        self._server.execute(f"CREATE DATABASE {name} TEMPLATE {source} STRATEGY file_copy")

    def _warm(self, database: Database) -> None:
        with database.connected() as run:
            run(f"SELECT count(*), count(attempt) FROM {TABLE}")
            run("SET enable_seqscan = off")
            run(f"SELECT count(*) FROM {TABLE} WHERE id > 0")

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


def start_postgres(run: Path, version: str | None) -> Postgres:
    """Start the version asked for; without one 15, which the goals were set with, or 18 where that isn't installed."""
    servers: dict[str, Postgres] = {
        "15": DurablePostgres(run, "postgres15"),
        "18": DurablePackagedPostgres(run, "postgres18"),
    }
    if version is not None:
        servers[version].start()
        return servers[version]
    try:
        return start_postgres(run, "15")
    except MissingServerError:
        return start_postgres(run, "18")
