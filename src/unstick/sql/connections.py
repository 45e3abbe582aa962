"""Where a source's transactions run: on an engine of our own, or on a session the host app lends."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidRequestError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from unstick.domain.errors import ConfigurationError, PendingChangesError, SourceUnavailableError
from unstick.domain.wording import Phrase
from unstick.sql.dialects import Dialect, dialect_for
from unstick.sql.engine import WRITES, shown_url

_WROTE = "unstick_wrote"


class Connections(Protocol):
    """Transactions on one database. Both contexts yield the database's clock beside the connection."""

    @property
    def dialect(self) -> Dialect:
        """The database's dialect."""

    @property
    def engine(self) -> sa.Engine:
        """The engine behind, which what is known of the database's tables is kept by."""

    @property
    def side_by_side(self) -> bool:
        """Two transactions may be open at once."""

    def reading(self) -> AbstractAsyncContextManager[tuple[AsyncConnection, datetime]]:
        """Open a short read-only transaction."""

    def writing(self) -> AbstractAsyncContextManager[tuple[AsyncConnection, datetime]]:
        """Open a transaction that commits at the end, or rolls back whole where an error leaves it."""


class EngineConnections:
    """Transactions on an engine of our own."""

    side_by_side = True

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.engine = engine.sync_engine
        self.dialect = dialect_for(engine.dialect)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[tuple[AsyncConnection, datetime]]:
        """Open a short read-only transaction."""
        async with reachable(self.engine), _answering(self), self._engine.connect() as connection:
            yield connection, await self.dialect.enter(connection)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[tuple[AsyncConnection, datetime]]:
        """Open a transaction that commits at the end."""
        async with reachable(self.engine), self._engine.connect() as connection:
            await connection.execution_options(**{WRITES: True})
            async with connection.begin():
                yield connection, await self.dialect.enter(connection)


class SessionConnections:
    """Transactions on a host app's own session, one after another.

    What the caller only read keeps its loaded objects. What the caller changed and did not commit is refused.
    """

    side_by_side = False

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        bind = session.get_bind()
        self.engine = bind if isinstance(bind, sa.Engine) else bind.engine
        self.dialect = dialect_for(self.engine.dialect)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[tuple[AsyncConnection, datetime]]:
        """Read within the caller's transaction, or one of our own where there is none."""
        joined = self._session.in_transaction()
        async with reachable(self.engine), _answering(self), self._borrowed() as connection:
            yield connection, await self.dialect.enter(connection)
        if not joined:
            await self._end()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[tuple[AsyncConnection, datetime]]:
        """End the caller's read transaction, then work in one of our own and commit it."""
        await self._refuse_pending()
        if self._session.in_transaction():
            await self._end()
        try:
            async with reachable(self.engine), self._borrowed() as connection:
                await self.dialect.take_write_lock(connection)
                await self._need_transaction(connection)
                yield connection, await self.dialect.enter(connection)
            await self._end()
        except BaseException:
            await self._session.rollback()
            raise

    def expire(self, table: str) -> None:
        """Have the caller's loaded rows of a table read anew, where its session does so after a commit at all."""
        session = self._session.sync_session
        if not session.expire_on_commit:
            return
        for instance in session.identity_map.values():
            if sa.inspect(instance).mapper.local_table.fullname == table:
                session.expire(instance)

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[AsyncConnection]:
        try:
            connection = await self._session.connection()
        except InvalidRequestError as error:
            raise PendingChangesError(
                "The session given to AdminService is inside a `session.begin()` or `begin_nested()` block, which a "
                "cleanup would end. Call it outside of the block, or give it another session."
            ) from error
        restore = await self.dialect.borrow(connection)
        try:
            yield connection
        except BaseException:
            if not self.dialect.settings_end_with_a_failure:
                # What is told is what went wrong, not that it spoilt the connection: else a cancellation was lost.
                with suppress(Exception):
                    await restore()
            raise
        await restore()

    async def _need_transaction(self, connection: AsyncConnection) -> None:
        """Refuse a connection on which nothing can be taken back: each of our statements would stand alone."""
        if not await self.dialect.is_in_transaction(connection):
            raise ConfigurationError(
                "The session given to AdminService is in AUTOCOMMIT mode, where a change and its record can't be one "
                "transaction. Give it a session with transactions."
            )

    async def _end(self) -> None:
        """Commit without expiring what the caller has loaded, which an async session couldn't load again by itself."""
        session = self._session.sync_session
        expires, session.expire_on_commit = session.expire_on_commit, False
        try:
            await self._session.commit()
        finally:
            session.expire_on_commit = expires

    async def _refuse_pending(self) -> None:
        session = self._session.sync_session
        modified = any(session.is_modified(instance) for instance in session.dirty)
        wrote = session.in_transaction() and (await self._session.connection()).info.get(_WROTE, False)
        if session.new or session.deleted or modified or wrote:
            raise PendingChangesError(
                "The session given to AdminService holds changes that are not committed, and a cleanup commits. "
                "Commit or roll them back first, or give it a session of its own."
            )


@asynccontextmanager
async def reachable(engine: sa.Engine) -> AsyncIterator[None]:
    """Say which database doesn't answer, where that is what happened."""
    try:
        yield
    except (OperationalError, InterfaceError, OSError) as error:
        if isinstance(error, DBAPIError) and not error.connection_invalidated and _was_connected(error):
            raise
        raise SourceUnavailableError(
            Phrase(
                "The database %(url)s doesn't answer: %(problem)s",
                url=shown_url(engine.url),
                problem=_first_line(error),
            )
        ) from error


@asynccontextmanager
async def _answering(connections: Connections) -> AsyncIterator[None]:
    """Say that a read was given up, where somebody's lock or its own length kept the answer back."""
    try:
        yield
    except DBAPIError as error:
        if not connections.dialect.keeps_waiting(error):
            raise
        url = shown_url(connections.engine.url)
        raise SourceUnavailableError(
            Phrase(
                "The database %(url)s gave no answer in the time a guest waits: %(problem)s. Try again when what "
                "holds it up is over.",
                url=url,
                problem=_first_line(error),
            )
        ) from error


def _was_connected(error: DBAPIError) -> bool:
    """Tell whether a statement was under way: an error of connecting carries none."""
    return error.statement is not None


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


@event.listens_for(sa.Engine, "after_cursor_execute")
def _executed(
    connection: sa.Connection, _cursor: object, statement: str, _parameters: object, _context: object, _many: bool
) -> None:
    """Note what writes on any connection: a flush, a bulk insert, or a statement on a session's own connection."""
    if _may_write(statement):
        connection.info[_WROTE] = True


def _may_write(statement: str) -> bool:
    """Take a statement for a write unless it begins like a read: refusing too much loses nothing, committing does."""
    text = statement.lstrip(" \t\r\n(").lower()
    if text.startswith("with"):
        return any(word in text for word in _WRITES)
    return not text.startswith(_READS)


_READS = (
    "select", "values", "show", "describe", "set ", "pragma", "explain", "begin", "savepoint", "release", "rollback",
)  # fmt: skip
_WRITES = ("insert", "update", "delete", "merge")


@event.listens_for(sa.Engine, "commit")
@event.listens_for(sa.Engine, "rollback")
def _ended(connection: sa.Connection) -> None:
    if not connection.invalidated:  # to ask one that is would connect anew
        connection.info.pop(_WROTE, None)
