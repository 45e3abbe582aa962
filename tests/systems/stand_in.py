"""SQL in the place of a system's workers, for those that can't be installed here.

Its tables are written anew from what its own schema says of them, and its workers' statements from what they do to
them. `app.py migrate | enqueue TOKEN… | work TOKEN | tell ID…`.
"""

import asyncio
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tests.systems.work import work

_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+asyncmy", "sqlite": "sqlite+aiosqlite"}
_PAUSE = 0.2

Time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")
"""A time without a zone, in UTC, as Rails stores it."""


def now() -> datetime:
    """Tell the time as such a column holds it."""
    return datetime.now(UTC).replace(tzinfo=None)


class StandIn(ABC):
    """What a system's workers do, on a connection with a transaction."""

    version: str
    tables: sa.MetaData

    async def migrate(self, connection: AsyncConnection) -> None:
        """Make the system's tables."""
        await connection.run_sync(self.tables.create_all)

    async def register(self, connection: AsyncConnection) -> None:
        """Show that this worker is there, where its system knows that."""
        del connection

    async def beat(self, connection: AsyncConnection) -> None:
        """Show that this worker lives."""
        del connection

    @abstractmethod
    async def enqueue(self, connection: AsyncConnection, token: str) -> int | str: ...

    @abstractmethod
    async def claim(self, connection: AsyncConnection, token: str) -> int | str | None:
        """Take the job of a token, where it is to be had."""

    @abstractmethod
    async def finish(self, connection: AsyncConnection, job_id: int | str) -> None: ...

    @abstractmethod
    async def tell(self, connection: AsyncConnection, job_id: str) -> Mapping[str, object]:
        """Say what the system's own interface would say of a job, by its own rules."""

    def run(self) -> str:
        """Do what the command line says, and return what is to be printed."""
        return json.dumps(asyncio.run(self._run(*sys.argv[1:])))

    async def _run(self, command: str, *arguments: str) -> object:
        async with _connected() as connection:
            match command:
                case "migrate":
                    await self.migrate(connection)
                    await connection.commit()
                    return self.version
                case "enqueue":
                    ids = [await self.enqueue(connection, token) for token in arguments]
                    await connection.commit()
                    return ids
                case "tell":
                    return [await self.tell(connection, job_id) for job_id in arguments]
                case _:
                    await self._work(connection, *arguments)
                    return None

    async def _work(self, connection: AsyncConnection, token: str) -> None:
        await self.register(connection)
        await connection.commit()
        while (job_id := await self.claim(connection, token)) is None:
            await connection.commit()
            await asyncio.sleep(_PAUSE)
        await connection.commit()
        working = asyncio.create_task(asyncio.to_thread(work, token))
        while not (await asyncio.wait([working], timeout=_PAUSE))[0]:
            await self.beat(connection)
            await connection.commit()
        await self.finish(connection, job_id)
        await connection.commit()


class InStatements(StandIn):
    """A system on PostgreSQL of which `schema.sql` makes the tables, and a statement says all that a worker does."""

    schema: Path
    enqueued: str
    """Adds the job of `:token` and returns its id."""
    due: str
    """Makes the job of `:token` available as soon as it may run again."""
    taken: str
    """Takes the job of `:token` where it is available, and returns its id."""
    finished: str
    """Ends the job of `:id`."""
    told: str
    """Reads the job of `:id`."""

    async def migrate(self, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(self.schema.read_text())

    async def enqueue(self, connection: AsyncConnection, token: str) -> int:
        return int((await connection.execute(sa.text(self.enqueued), {"token": token})).scalar_one())

    async def claim(self, connection: AsyncConnection, token: str) -> int | None:
        await connection.execute(sa.text(self.due), {"token": token})
        return (await connection.execute(sa.text(self.taken), {"token": token})).scalar_one_or_none()

    async def finish(self, connection: AsyncConnection, job_id: int | str) -> None:
        await connection.execute(sa.text(self.finished), {"id": job_id})

    async def tell(self, connection: AsyncConnection, job_id: str) -> Mapping[str, object]:
        return dict((await connection.execute(sa.text(self.told), {"id": int(job_id)})).mappings().one())


@asynccontextmanager
async def _connected() -> AsyncIterator[AsyncConnection]:
    url = make_url(os.environ["DATABASE"])
    engine = create_async_engine(url.set(drivername=_DRIVERS[url.drivername]))
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()
