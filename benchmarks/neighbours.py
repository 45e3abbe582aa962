"""Databases beside one that a site lends, on its server, for tables that aren't the host's."""

from __future__ import annotations

import itertools
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks.databases import Database
from benchmarks.filling import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Makes databases beside a lent one, which must be PostgreSQL's."""

    lent: Database

    @contextmanager
    def empty(self) -> Iterator[Database]:
        """Lend a database with nothing in it."""
        with self._made("template0") as database:
            yield database

    @contextmanager
    def without_jobs(self) -> Iterator[Database]:
        """Lend a copy of the lent database in which the host has no table yet."""
        with self.copy(self.lent) as database:
            database.execute(f"DROP TABLE {TABLE}")
            yield database

    @contextmanager
    def copy(self, of: Database) -> Iterator[Database]:
        """Lend a copy, which starts from the same bytes as every other."""
        with self._made(_name(of)) as database:
            with psycopg.connect(database.raw, autocommit=True) as connection:
                for (table,) in connection.execute(_TABLES).fetchall():
                    connection.execute(f"SELECT count(*) FROM {table}".encode())  # into the cache
            yield database

    @contextmanager
    def _made(self, template: str) -> Iterator[Database]:
        name = f"bench_{os.getpid()}_beside_{next(_numbers)}"
        # From elsewhere: a database that somebody is connected to can't be copied.
        with psycopg.connect(make_conninfo(self.lent.raw, dbname="postgres"), autocommit=True) as host:
            host.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy".encode())
            try:
                yield self._database(name)
            finally:
                host.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def _database(self, name: str) -> Database:
        return Database(
            backend="postgresql",
            url=sa.make_url(self.lent.url).set(database=name).render_as_string(hide_password=False),
            raw=make_conninfo(self.lent.raw, dbname=name),
            config=self.lent.config.with_name(f"{name}.toml"),
        )


_TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind = 'r' AND relnamespace <> ALL (ARRAY['pg_catalog', 'information_schema']::regnamespace[])
"""


def settle(database: Database) -> None:
    """Leave a database as one that has been in use for a while."""
    with psycopg.connect(database.raw, autocommit=True) as connection:
        connection.execute("VACUUM (FREEZE, ANALYZE)")


def address(database: Database) -> str:
    """Return a database's address as every driver of PostgreSQL reads it, of whatever language."""
    told = conninfo_to_dict(database.raw)
    return f"postgresql://{told['user']}@/{told['dbname']}?host={told['host']}"


def write_config(config: Path, source: Mapping[str, Any], **sections: Mapping[str, Any]) -> None:
    """Say what a user's `unstick.toml` says; JSON's text and numbers are TOML's, too."""
    lines = [
        line
        for section, values in {"sources.main": source, **sections}.items()
        for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    ]
    config.write_text("\n".join(lines) + "\n")


def _name(database: Database) -> str:
    return str(conninfo_to_dict(database.raw)["dbname"])
