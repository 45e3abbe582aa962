"""Builds the whole from settings; the only module that knows every adapter."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from unstick.api.auth import jwt_principal
from unstick.api.factory import create_app
from unstick.config import Settings, SourceSettings
from unstick.domain.errors import ConfigurationError, LedgerMissingError, SourceUnavailableError
from unstick.domain.policy import Policy
from unstick.pipeline.watched import OpenWatched, Watched
from unstick.sql import schema
from unstick.sql.connections import Connections, EngineConnections, reachable
from unstick.sql.engine import async_url, open_engine, use_write_ahead_log
from unstick.sql.inspection import Inspection, inspect_table, to_toml
from unstick.sql.ledger import SqlLedger
from unstick.sql.mapping import JobTable
from unstick.sql.source import SqlSource
from unstick.sql.unmapped import unmapped_words

_DEFAULT_SOURCE = "main"


def chosen_source(settings: Settings, name: str | None = None) -> tuple[str, SourceSettings]:
    """Return the source that is meant: the one named, or `main`, or else the first.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name is None:
        name = _DEFAULT_SOURCE if _DEFAULT_SOURCE in settings.sources else next(iter(settings.sources))
    if name not in settings.sources:
        raise ConfigurationError(f"There is no source {name!r}; configured are: {', '.join(settings.sources)}.")
    return name, settings.sources[name]


def watch(name: str, declared: JobTable, connections: Connections, policy: Policy) -> Watched:
    """Put a source, its ledger and its policy together on one database."""
    return Watched(
        source=SqlSource(name, declared, connections),
        ledger=SqlLedger(connections),
        policy=policy,
        unmapped_words=partial(unmapped_words, connections, declared),
    )


@asynccontextmanager
async def open_watched(settings: Settings, source: str | None = None) -> AsyncIterator[Watched]:
    """Open one source for use, and close it after.

    Raises:
        ConfigurationError: there is no such source, or its settings don't fit.
        LedgerMissingError: Unstick's own tables are missing or behind.
        SourceUnavailableError: the database doesn't answer.
    """
    name, chosen = chosen_source(settings, source)
    async with _open(chosen) as engine:
        await _prepare(engine, name, chosen)
        yield watch(name, JobTable.from_settings(chosen), EngineConnections(engine), settings.policy.policy())


def create_service(settings: Settings) -> FastAPI:
    """Build the service; its databases are opened and checked when it starts.

    Raises:
        ConfigurationError: there is no secret key, or it is too short.
    """
    if settings.secret_key is None:
        raise ConfigurationError("There is no secret key; set UNSTICK_SECRET_KEY to at least 32 random characters.")
    opened: dict[str, Watched] = {}

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name in settings.sources:
                opened[name] = await stack.enter_async_context(open_watched(settings, name))
            yield

    @asynccontextmanager
    async def lend(name: str) -> AsyncIterator[Watched]:
        yield opened[name]

    watched: dict[str, OpenWatched] = {name: partial(lend, name) for name in settings.sources}
    return create_app(watched=watched, principal=jwt_principal(settings.secret_key, settings.auth), lifespan=lifespan)


async def upgrade_database(settings: Settings, source: str | None = None) -> tuple[str, ...]:
    """Bring Unstick's own tables in a source's database to the newest revision, and return it."""
    _, chosen = chosen_source(settings, source)
    async with _open(chosen) as engine, reachable(engine.sync_engine):
        await schema.upgrade(engine, _branches(chosen))
        return await schema.current(engine)


async def current_revision(settings: Settings, source: str | None = None) -> tuple[str, ...]:
    """Return the revisions a source's database is at, none where it has no tables of ours."""
    _, chosen = chosen_source(settings, source)
    async with _open(chosen) as engine, reachable(engine.sync_engine):
        return await schema.current(engine)


def upgrade_sql(settings: Settings, source: str | None = None) -> str:
    """Return the statements `upgrade_database` would run on a database without tables of ours."""
    _, chosen = chosen_source(settings, source)
    dialect = async_url(chosen.url.get_secret_value()).get_backend_name()
    return schema.upgrade_script(dialect, _branches(chosen))


async def inspect_url(url: str, table: str | None = None) -> Inspection:
    """Look at a database's jobs table, the likeliest where none is named."""
    engine = open_engine(url)
    try:
        async with reachable(engine.sync_engine):
            return await inspect_table(engine, table)
    finally:
        await engine.dispose()


def proposed_toml(url: str, inspection: Inspection) -> str:
    """Return the `unstick.toml` that an inspection proposes."""
    return to_toml(_DEFAULT_SOURCE, url, inspection)


@asynccontextmanager
async def _open(chosen: SourceSettings) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(chosen.url.get_secret_value(), create=chosen.table is None)
    try:
        yield engine
    finally:
        await engine.dispose()


async def _prepare(engine: AsyncEngine, name: str, chosen: SourceSettings) -> None:
    """Make the tables of the embedded database; anywhere else refuse to work without them."""
    needed = _branches(chosen)
    try:
        async with reachable(engine.sync_engine):
            lacking = await schema.missing(engine, needed)
            if lacking and _is_embedded(engine, chosen):
                await use_write_ahead_log(engine)
                await schema.upgrade(engine, needed)
                return
    except sa.exc.DBAPIError as error:
        raise SourceUnavailableError(f"Source {name!r} can't be read: {error.orig}") from error
    if lacking:
        raise LedgerMissingError(
            f"Unstick's own tables are missing or behind in the database of source {name!r} (wanted: "
            f"{', '.join(lacking)}). Make them with: unstick db upgrade --source {name} (unstick db sql prints the "
            f"statements first)."
        )


def _branches(chosen: SourceSettings) -> tuple[str, ...]:
    return schema.branches(own_jobs=chosen.table is None)


def _is_embedded(engine: AsyncEngine, chosen: SourceSettings) -> bool:
    return chosen.table is None and engine.dialect.name == "sqlite"
