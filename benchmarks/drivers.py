"""The databases' own drivers, as somebody without Unstick would use them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.filling import Backend

Run = Callable[[str], list[tuple[Any, ...]]]
"""Runs one statement, each of which is committed at once unless a transaction was begun, and returns its rows."""

BEGIN = {"postgresql": "BEGIN", "sqlite": "BEGIN IMMEDIATE", "mariadb": "BEGIN"}


@contextmanager
def connected(backend: Backend, raw: str) -> Iterator[Run]:
    """Lend a connection to a database, by how its driver itself is told which."""
    lend = {"postgresql": _postgresql, "sqlite": _sqlite, "mariadb": _mariadb}[backend]
    with lend(raw) as run:
        yield run


@contextmanager
def _postgresql(raw: str) -> Iterator[Run]:
    with psycopg.connect(raw, autocommit=True) as connection:

        def run(statement: str) -> list[tuple[Any, ...]]:
            cursor = connection.execute(statement.encode())
            return [] if cursor.description is None else cursor.fetchall()

        yield run


@contextmanager
def _sqlite(raw: str) -> Iterator[Run]:
    with closing(sqlite3.connect(raw, isolation_level=None, timeout=30)) as connection:
        yield lambda statement: connection.execute(statement).fetchall()


@contextmanager
def _mariadb(raw: str) -> Iterator[Run]:
    """Its driver is Unstick's own, for there is no other here, run on a loop of its own."""
    import asyncmy  # noqa: PLC0415 - a child that measures memory loads only what it needs

    socket, _, name = raw.partition("?")
    with asyncio.Runner() as runner:
        connecting = asyncmy.connect(unix_socket=socket, user="root", db=name, autocommit=True, charset="utf8mb4")
        connection = runner.run(_awaited(connecting))

        async def execute(statement: str) -> list[tuple[Any, ...]]:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
                return [] if cursor.description is None else list(await cursor.fetchall())

        try:
            yield lambda statement: runner.run(execute(statement))
        finally:
            connection.close()


async def _awaited(connecting: Any) -> Any:  # noqa: ANN401 - the driver has no types
    return await connecting
