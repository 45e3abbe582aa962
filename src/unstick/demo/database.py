"""The demo platform's own database: its jobs table, and sessions that neither lose updates nor hide errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from sqlite3 import Connection as SqliteConnection
from typing import Any

from sqlalchemy import DateTime, Dialect, Index, String, Text, TypeDecorator, event, func, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Sessions = async_sessionmaker[AsyncSession]

_UNFINISHED = text("completed_at IS NULL")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC instant, also in databases that store none (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Turn an aware instant into UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Read what was stored without a zone as UTC."""
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


def now() -> datetime:
    """Return this instant, aware and in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """The platform's tables."""

    type_annotation_map = {datetime: UtcDateTime()}  # noqa: RUF012 - SQLAlchemy's own declaration


class AIGenerationJob(Base):
    """A text that a user asked for, from the request to the result."""

    __tablename__ = "ai_generation_jobs"
    __table_args__ = (
        Index(
            "ix_ai_generation_jobs_open",
            "status",
            "started_at",
            sqlite_where=_UNFINISHED,
            postgresql_where=_UNFINISHED,
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64))
    job_type: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16), default="queued")
    prompt: Mapped[str] = mapped_column(Text)
    size: Mapped[int]
    result: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[int] = mapped_column(server_default="0")
    attempt: Mapped[int] = mapped_column(server_default="0")
    worker: Mapped[str | None] = mapped_column(String(255))
    fencing_token: Mapped[int] = mapped_column(server_default="0")
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    tokens_used: Mapped[int] = mapped_column(server_default="0")
    cost: Mapped[float] = mapped_column(server_default="0")
    success: Mapped[bool | None]
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    scheduled_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(default=now, server_default=func.now())
    completed_at: Mapped[datetime | None]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Sessions]:
    """Open the database at a URL, make its tables where they are missing, and close it at the end."""
    engine = _engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield async_sessionmaker(engine, expire_on_commit=False)
    finally:
        await engine.dispose()


def _engine(url: str) -> AsyncEngine:
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
    return engine


def _prepare_sqlite(connection: SqliteConnection, _record: Any) -> None:  # noqa: ANN401 - a pool's private type
    connection.isolation_level = None  # else the driver begins transactions itself, and only at the first write
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA busy_timeout = 5000")


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and writes later would find, too late, that somebody else has written since.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
