"""Databases to measure on: filled once, copied for every run, so that each starts from the same bytes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from tests.jobs import COLUMNS, STATES, jobs_table

from benchmarks.drivers import BEGIN, Run, connected
from benchmarks.filling import TABLE, Backend, Filling, insert
from unstick.config import load_settings
from unstick.wiring import upgrade_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Database:
    """One database and the configuration file that points Unstick at it."""

    backend: Backend
    url: str
    raw: str
    """How the driver itself is told: a connection string, or a path."""
    config: Path

    def connected(self) -> AbstractContextManager[Run]:
        """Connect as somebody without Unstick does."""
        return connected(self.backend, self.raw)

    def execute(self, *statements: str) -> float:
        """Run statements in one transaction through the driver itself; return the seconds until it is committed."""
        with self.connected() as run:
            begin = time.perf_counter()
            for statement in (BEGIN[self.backend], *statements, "COMMIT"):
                run(statement)
            return time.perf_counter() - begin

    def count(self, query: str) -> int:
        with self.connected() as run:
            return int(run(query)[0][0])


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
        source = self._filled_like(filling)
        name = f"{self._prefix}_copy_{next(self._numbers)}"
        self._copy(source, name)
        database = self._database(name)
        try:
            self._warm(database)
            yield database
        finally:
            self._drop(name)

    @contextmanager
    def empty(self, config: str) -> Iterator[Database]:
        """Lend an empty database under a configuration with `{url}` in it."""
        name = f"{self._prefix}_empty_{next(self._numbers)}"
        self._create(name)
        try:
            yield self._configured(name, config.format(url=json.dumps(self._url(name))))
        finally:
            self._drop(name)

    def original(self, filling: Filling) -> Database:
        """Return the filled database itself, which is too large to copy; whoever changes it has it forgotten after."""
        source = self._filled_like(filling)
        database = self._database(source)
        self._warm(database)
        return database

    def forget(self, filling: Filling) -> None:
        """Make room."""
        source = self._name(filling)
        if source in self._filled:
            self._filled.remove(source)
            self._drop(source)

    def forget_all(self) -> None:
        while self._filled:
            self._drop(self._filled.pop())

    def _filled_like(self, filling: Filling) -> str:
        source = self._name(filling)
        if source not in self._filled:
            self._fill(source, filling)
            self._filled.add(source)
        return source

    def _name(self, filling: Filling) -> str:
        return f"{self._prefix}_{filling.finished}_{filling.stuck}_{filling.healthy}_{filling.placement}"

    def _fill(self, name: str, filling: Filling) -> None:
        self._create(name)
        database = self._database(name)
        table = jobs_table(name=TABLE)
        self.prepare(database, sa.schema.CreateTable(table))
        asyncio.run(upgrade_database(load_settings(database.config)))
        database.execute(insert(self.backend, filling))
        self.prepare(database, *(sa.schema.CreateIndex(index) for index in table.indexes))  # faster than row by row
        self._finish(database)

    def prepare(self, database: Database, *changes: sa.schema.ExecutableDDLElement) -> None:
        """Make what belongs to the host."""
        dialect = sa.make_url(database.url).get_dialect()()
        database.execute(*(str(change.compile(dialect=dialect)) for change in changes))

    def _database(self, name: str) -> Database:
        return self._configured(name, toml(self._url(name)))

    def _configured(self, name: str, said: str) -> Database:
        config = self.directory / f"{name}.toml"
        config.write_text(said)
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


def toml(url: str, table: str = TABLE, source: str = "main") -> str:
    """Say what a user's `unstick.toml` says of a jobs table; JSON's text and lists are TOML's too."""
    lines = [f"[sources.{source}]", f"url = {json.dumps(url)}", f'table = "{table}"', f"[sources.{source}.columns]"]
    lines += [f"{key} = {json.dumps(name)}" for key, name in COLUMNS.items()]
    lines += [f"[sources.{source}.states]"]
    lines += [f"{state.value} = {json.dumps(list(words))}" for state, words in STATES.items()]
    return "\n".join(lines) + "\n"
