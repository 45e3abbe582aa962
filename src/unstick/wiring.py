"""Builds the whole from settings; the only module that knows every adapter."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Literal

import sqlalchemy as sa
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from unstick.api.auth import bearer_principal, read_bearer
from unstick.api.factory import create_app
from unstick.api.metrics import metrics_router
from unstick.config import ChannelSettings, Settings, SourceSettings, secret_bytes
from unstick.console.router import console_router, link_path
from unstick.console.session import SignIn
from unstick.domain.access import Principal
from unstick.domain.errors import ConfigurationError, LedgerMissingError, SourceUnavailableError
from unstick.domain.plan import PLAN_LIFETIME, derive_key
from unstick.domain.policy import Policy
from unstick.domain.work import BEAT_EVERY, LEASE
from unstick.passwords import Argon2Passwords
from unstick.pipeline.courier import Courier
from unstick.pipeline.emitting import emit
from unstick.pipeline.ending import MOMENT_SECONDS, in_time
from unstick.pipeline.runner import Runner
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.signing_in import make_sign_in_link
from unstick.pipeline.state_words import doubts_about_words
from unstick.pipeline.watched import Access, OpenWatched, Planning, Watched
from unstick.ports import Channel, JobSource, Listener, Witness
from unstick.presets.preset import registry_of
from unstick.sql import schema
from unstick.sql.access import SqlCredentials, SqlSignInFailures, SqlUsers
from unstick.sql.alerts import SqlAlerts
from unstick.sql.backends import Backends
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import Connections, EngineConnections, reachable
from unstick.sql.doubted import doubted_words
from unstick.sql.engine import async_url, open_engine, use_write_ahead_log
from unstick.sql.event_log import SqlEventLog
from unstick.sql.guard import Guard, guard, run_statements
from unstick.sql.history import SqlHistory
from unstick.sql.inspection import Found, inspect_database, inspect_table
from unstick.sql.leaders import SqlLeaders
from unstick.sql.ledger import SqlLedger
from unstick.sql.looks import SqlLooks
from unstick.sql.mapping import JobTable
from unstick.sql.plans import SqlPlans
from unstick.sql.proposed_file import password_left_out, to_toml
from unstick.sql.queue import SqlJobQueue
from unstick.sql.records import SqlRecords
from unstick.sql.reflection import mapped_table
from unstick.sql.registry import WorkerRegistry
from unstick.sql.rescue import said_by_database
from unstick.sql.retention import SqlPruner
from unstick.sql.sightings import SqlSightings
from unstick.sql.snoozes import SqlSnoozes
from unstick.sql.source import SqlSource
from unstick.sql.story import story_readers
from unstick.sql.unmapped import unmapped_words
from unstick.sql.watches import SqlWatches
from unstick.telemetry.alerts import AlertListener
from unstick.telemetry.log import LogListener
from unstick.telemetry.messages import Templates
from unstick.telemetry.metrics import Metrics
from unstick.telemetry.scraping import listening
from unstick.telemetry.spans import SpanListener
from unstick.witnesses.progress import Progress
from unstick.worker import Heartbeats, Worker, this_process

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


def watch(
    name: str,
    declared: JobTable,
    connections: Connections,
    policy: Policy,
    ledger: Connections | None = None,
    settings: SourceSettings | None = None,
    *,
    secret: Callable[[], SecretStr | None] = lambda: None,
    plan_lifetime: timedelta = PLAN_LIFETIME,
) -> Watched:
    """Put a source, its ledger, its policy and its witnesses together.

    All are on one database unless the ledger is to be in another; there are no witnesses but those that settings name.
    The secret is asked for only when a plan is to be signed, or its signature checked.

    Raises:
        ConfigurationError: a witness needs another database, or a library that isn't installed.
    """
    source = SqlSource(name, declared, connections, records=ledger is None)
    planning = Planning(
        plans=SqlPlans(ledger or connections),
        key=lambda: plan_key(secret()),
        mapping=_fingerprint(declared),
        lifetime=plan_lifetime,
    )
    return replace(
        _recorded_in(ledger or connections, source, policy, planning),
        history=SqlHistory(declared, connections),
        unmapped_words=partial(unmapped_words, connections, declared),
        doubted_words=partial(doubted_words, connections, declared),
        witnesses=() if settings is None else tuple(_witnesses(settings, source, connections, ledger or connections)),
    )


def _recorded_in(ledger: Connections, source: JobSource, policy: Policy, planning: Planning) -> Watched:
    """Put a source and its policy together with all that the ledger's database keeps."""
    return Watched(
        source=source,
        ledger=SqlLedger(ledger),
        policy=policy,
        brakes=SqlBrakes(ledger),
        looks=SqlLooks(ledger),
        snoozes=SqlSnoozes(ledger),
        leaders=SqlLeaders(ledger),
        watches=SqlWatches(ledger),
        alerts=SqlAlerts(ledger),
        event_log=SqlEventLog(ledger),
        pruner=SqlPruner(ledger),
        records=SqlRecords(ledger),
        access=_access(ledger),
        story_readers=story_readers(ledger),
        planning=planning,
    )


def _access(ledger: Connections) -> Access:
    return Access(
        credentials=SqlCredentials(ledger),
        users=SqlUsers(ledger),
        failures=SqlSignInFailures(ledger),
        passwords=Argon2Passwords(),
    )


@asynccontextmanager
async def _open_rq(settings: Settings, name: str, ledger: Connections) -> AsyncIterator[Watched]:
    """Open the jobs that RQ keeps; its executions' leases are asked of always."""
    with _needing("redis", 'A source with `preset = "rq"`', "rq"):
        from unstick.systems.rq.broker import open_broker  # noqa: PLC0415 - of an extra
        from unstick.systems.rq.source import RqSource  # noqa: PLC0415 - the same
        from unstick.systems.rq.witness import RqExecutions  # noqa: PLC0415 - the same
    chosen = settings.sources[name]
    async with open_broker(chosen.url.get_secret_value()) as broker:
        planning = Planning(
            plans=SqlPlans(ledger),
            key=lambda: plan_key(settings.secret_key),
            mapping=RQ_MAPPING,
            lifetime=settings.sweep.plan_lifetime,
        )
        source = RqSource(name, broker, SqlSightings(ledger))
        watched = _recorded_in(ledger, source, settings.policy.policy(), planning)
        yield replace(watched, witnesses=(RqExecutions(broker), *_asked_elsewhere(chosen)))


RQ_MAPPING = "rq 3"
"""Names what a plan's fences are made of, as the fingerprint of a table's mapping does."""


def _witnesses(
    settings: SourceSettings, source: SqlSource, connections: Connections, ledger: Connections
) -> Iterator[Witness]:
    """Yield the witnesses that a source's settings name, in the order in which findings tell their words."""
    registry = registry_of(settings)
    if registry is not None:
        yield WorkerRegistry(registry, connections, settings.timezone)
    if settings.backends is not None:
        yield Backends(settings.backends, connections)
    if settings.process is not None:
        with _needing("psutil", "The witness `process`", "witnesses"):
            from unstick.witnesses.process import HostProcesses  # noqa: PLC0415 - of an extra

        yield HostProcesses(settings.process, source.clock)
    yield from _asked_elsewhere(settings)
    if settings.progress is not None:
        yield Progress(settings.progress, source.name, SqlSightings(ledger))


def _asked_elsewhere(settings: SourceSettings) -> Iterator[Witness]:
    """Yield the witness that needs nothing of where the jobs are."""
    if settings.http is not None:
        with _needing("httpx", "The witness `http`", "witnesses"):
            from unstick.witnesses.http import HttpWitness  # noqa: PLC0415 - of an extra

        yield HttpWitness(settings.http)


@contextmanager
def _needing(library: str, what: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ConfigurationError(
            f"{what} needs {library}, which isn't installed. Install it with: pip install 'unstick[{extra}]'"
        ) from error


def open_channels(settings: Settings) -> tuple[Channel, ...]:
    """Return those who are told of alerts, as the settings name them.

    Raises:
        ConfigurationError: a library isn't installed, or an address can't be understood.
    """
    if not settings.alerts.channels:
        return ()
    templates = Templates(settings.alerts)
    return tuple(_channel(name, chosen, templates) for name, chosen in settings.alerts.channels.items())


def _channel(name: str, chosen: ChannelSettings, templates: Templates) -> Channel:
    if chosen.apprise is not None:
        with _needing("apprise", f"The channel {name!r}", "alerts"):
            from unstick.telemetry.apprise import AppriseChannel  # noqa: PLC0415 - of an extra
        return AppriseChannel(name, chosen.apprise, templates)
    if chosen.url is None or chosen.secret is None:
        raise RuntimeError(f"The settings let channel {name!r} pass without an address or a secret.")
    with _needing("httpx", f"The channel {name!r}", "alerts"):
        from unstick.telemetry.webhook import Webhook  # noqa: PLC0415 - of an extra
    return Webhook(name, chosen.url, chosen.secret, templates)


def with_alerts(watched: Watched, settings: Settings, wake: Callable[[], None] = lambda: None) -> Watched:
    """Return a source whose events raise alerts; `wake` is called where somebody is to be told of one."""
    if watched.alerts is None:
        return watched
    listener = AlertListener(
        watched.alerts,
        settings.alerts.rules(),
        tuple(settings.alerts.channels),
        tell=partial(emit, watched),
        wake=wake,
    )
    return replace(watched, listeners=(*watched.listeners, listener))


def plan_key(secret: SecretStr | None) -> bytes:
    """Return the key that plans are signed with.

    Raises:
        ConfigurationError: there is no secret to derive it from, or it is too short to be one.
    """
    if secret is None:
        raise ConfigurationError(
            "There is no secret key to sign a plan with: set UNSTICK_SECRET_KEY to what `openssl rand -hex 32` prints, "
            "the same wherever plans are made and applied."
        )
    return derive_key(secret_bytes(secret))


def _fingerprint(declared: JobTable) -> str:
    """Name a mapping by all it says."""
    said: list[object] = [declared.full_name, sorted(declared.columns.items()), sorted(declared.states.items())]
    said += [declared.timezone, None if declared.preset is None else declared.preset.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@asynccontextmanager
async def open_watched(
    settings: Settings, source: str | None = None, listeners: Sequence[Listener] = ()
) -> AsyncIterator[Watched]:
    """Open one source for use, and close it after.

    Raises:
        ConfigurationError: there is no such source, or its settings don't fit.
        LedgerMissingError: Unstick's own tables are missing or behind.
        SourceUnavailableError: a database doesn't answer.
    """
    name, chosen = chosen_source(settings, source)
    async with AsyncExitStack() as stack:
        opened: list[Connections] = []
        for home in _homes(settings, name):
            engine = await stack.enter_async_context(_open(home))
            await _prepare(engine, home)
            opened.append(EngineConnections(engine))
        if chosen.is_behind_broker:
            watched = await stack.enter_async_context(_open_rq(settings, name, opened[0]))
        else:
            watched = watch(
                name,
                JobTable.from_settings(chosen),
                opened[0],
                settings.policy.policy(),
                opened[1] if len(opened) > 1 else None,
                chosen,
                secret=lambda: settings.secret_key,
                plan_lifetime=settings.sweep.plan_lifetime,
            )
        watched = replace(
            watched,
            unattended=settings.sweep.unattended(),
            retention=settings.retention.retention(),
            secret_keys=settings.payloads.redact,
            listeners=tuple(listeners),
        )
        await watched.source.clock()  # holds the mapping against the table: what doesn't fit is told now
        for witness in watched.witnesses:
            if isinstance(witness, WorkerRegistry):
                await witness.check()
        await settle_intents(watched)
        yield watched


async def check_sources(settings: Settings) -> None:
    """Find out what is wrong while it can still be said in one sentence, and not in a log; warn of what may be.

    Raises:
        ConfigurationError: something in the settings doesn't fit.
        SourceUnavailableError: no source answers; where one does, the others are only warned of.
    """
    open_channels(settings)
    silent: list[SourceUnavailableError] = []
    doubts: list[str] = []
    for name in settings.sources:
        try:
            async with open_watched(settings, name) as watched:
                doubts += await doubts_about_words(watched)
        except SourceUnavailableError as error:
            silent.append(error)
    if len(silent) == len(settings.sources):
        raise silent[0]
    for sentence in (*doubts, *(f"{away} It is tried again and again." for away in silent)):
        logging.getLogger("unstick").warning("%s", sentence)


@asynccontextmanager
async def open_worker(settings: Settings, source: str | None = None) -> AsyncIterator[Worker]:
    """Make this process a worker of one source, and cease to be one after.

    Raises:
        ConfigurationError: there is no such source, its settings don't fit, or its ledger is elsewhere.
        LedgerMissingError: Unstick's own tables are missing or behind.
        SourceUnavailableError: the database doesn't answer.
    """
    name, chosen = chosen_source(settings, source)
    if chosen.preset is not None:
        raise ConfigurationError(f"The jobs of source {name!r} are run by the workers of their own system.")
    declared = JobTable.from_settings(chosen)
    jobs, *elsewhere = _homes(settings, name)
    if elsewhere:
        raise ConfigurationError(
            f"A worker's lease and its late finishes are kept beside its jobs, but [ledger] puts the ledger of source "
            f"{name!r} in another database. Run workers with the ledger in the source's database."
        )
    async with _open(jobs) as engine:
        await _prepare(engine, jobs)
    url = chosen.url.get_secret_value()
    async with worker_on(name, url, declared, every=BEAT_EVERY, lease=LEASE) as worker:
        yield worker


@asynccontextmanager
async def worker_on(
    name: str, url: str, declared: JobTable, *, every: timedelta, lease: timedelta
) -> AsyncIterator[Worker]:
    """Make this process a worker of a jobs table; its signs of life go over connections of their own.

    Raises:
        ConfigurationError: the mapping doesn't fit the table, or a job in it can't show that it lives.
        LedgerMissingError: Unstick's own tables are missing or behind.
        SourceUnavailableError: the database doesn't answer.
    """
    engine = open_engine(url)
    try:
        async with reachable(engine.sync_engine):
            lacking = await schema.missing(engine, schema.branches(own_jobs=False))
    finally:
        await _close(engine)
    if lacking:
        raise LedgerMissingError(
            f"A worker of {declared.full_name} needs Unstick's own tables in the same database, for its lease and its "
            f"late finishes, and they are missing or behind. Make them with `unstick db upgrade`."
        )

    @asynccontextmanager
    async def opened() -> AsyncIterator[SqlJobQueue]:
        engine = open_engine(url)
        try:
            yield SqlJobQueue(name, declared, EngineConnections(engine))
        finally:
            await _close(engine)

    identity = this_process()
    heartbeats = Heartbeats(opened, identity, every=every, lease=lease)
    await asyncio.to_thread(heartbeats.start)
    try:
        async with opened() as queue:
            yield Worker(queue, heartbeats, identity)
    finally:
        await asyncio.to_thread(heartbeats.stop)


class _Sources:
    """The configured sources, each opened when it is first used and kept open."""

    def __init__(
        self, settings: Settings, listeners: Sequence[Listener], stack: AsyncExitStack, wake: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._wake = wake
        self._listeners = listeners
        self._stack = stack
        self._opened: dict[str, Watched] = {}
        self._opening = {name: asyncio.Lock() for name in settings.sources}

    @asynccontextmanager
    async def lend(self, name: str) -> AsyncIterator[Watched]:
        """Lend a source; one that could not be opened is tried anew each time."""
        async with self._opening[name]:
            if name not in self._opened:
                opening = open_watched(self._settings, name, self._listeners)
                watched = await self._stack.enter_async_context(opening)
                self._opened[name] = with_alerts(watched, self._settings, self._wake)
        yield self._opened[name]


@asynccontextmanager
async def keep_watch(
    settings: Settings, listeners: Sequence[Listener] = ()
) -> AsyncIterator[Mapping[str, OpenWatched]]:
    """Observe and sweep the sources again and again, as one replica of several, and lend them meanwhile.

    Raises:
        ConfigurationError: a channel for alerts can't be opened.
    """
    async with AsyncExitStack() as stack:
        sources: dict[str, OpenWatched] = {}
        courier = Courier(sources, open_channels(settings))
        lender = _Sources(settings, [LogListener(), SpanListener(), *listeners], stack, courier.wake)
        sources.update({name: partial(lender.lend, name) for name in settings.sources})
        runner = Runner(sources, settings.sweep.timetable(), holder=this_process().name)
        async with running(courier), running(runner):
            yield sources


@asynccontextmanager
async def keep_watch_alone(settings: Settings) -> AsyncIterator[None]:
    """Keep watch without the service, and serve its metrics where the settings say.

    Raises:
        ConfigurationError: nobody can listen there, or a channel for alerts can't be opened.
    """
    metrics = Metrics(settings.sources)
    async with AsyncExitStack() as stack:
        if settings.metrics.listen is not None:
            stack.enter_context(listening(metrics, settings.metrics.listen, settings.metrics.token))
        await stack.enter_async_context(keep_watch(settings, [metrics]))
        yield


@asynccontextmanager
async def running(loop: Runner | Courier) -> AsyncIterator[None]:
    """Run a loop meanwhile; a runner's leases are given back at the end."""
    task = asyncio.create_task(loop.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def open_unattended(
    settings: Settings, source: str | None, listeners: Sequence[Listener]
) -> AsyncIterator[tuple[Watched, Courier]]:
    """Open one source whose events raise alerts, with the courier that tells of them when it is asked to.

    Raises:
        ConfigurationError: there is no such source, its settings don't fit, or a channel can't be opened.
        LedgerMissingError: Unstick's own tables are missing or behind.
        SourceUnavailableError: a database doesn't answer.
    """
    channels = open_channels(settings)
    async with open_watched(settings, source, listeners) as opened:
        watched = with_alerts(opened, settings)

        @asynccontextmanager
        async def lend() -> AsyncIterator[Watched]:
            yield watched

        yield watched, Courier({watched.source.name: lend}, channels)


def create_service(settings: Settings) -> FastAPI:
    """Build the service; its databases are opened when it starts, or when they are there.

    Raises:
        ConfigurationError: there is no secret key, or it is too short.
    """
    if settings.secret_key is None:
        raise ConfigurationError("There is no secret key; set UNSTICK_SECRET_KEY to at least 32 random characters.")
    sources: dict[str, OpenWatched] = {}
    metrics = Metrics(settings.sources)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with keep_watch(settings, [metrics]) as kept:
            sources.update(kept)
            yield

    @asynccontextmanager
    async def lend(name: str) -> AsyncIterator[Watched]:
        async with sources[name]() as watched:
            yield watched

    watched: dict[str, OpenWatched] = {name: partial(lend, name) for name in settings.sources}
    # Who gets in is kept where a call is recorded that names no source.
    kept = watched[chosen_source(settings)[0]]
    sign_in = SignIn(opened=kept, read=read_bearer(settings.secret_key, settings.auth, kept))
    return create_app(
        watched=watched,
        principal=bearer_principal(settings.secret_key, settings.auth, kept),
        timetable=settings.sweep.timetable(),
        lifespan=lifespan,
        metrics=metrics_router(metrics, settings.metrics.token),
        console=console_router(
            watched=watched,
            principal=sign_in,
            timetable=settings.sweep.timetable(),
            read_only=settings.read_only,
        ),
        keeps_tokens=True,
        read_only=settings.read_only,
    )


async def make_sign_in_path(settings: Settings, principal: Principal) -> str:
    """Make a link by which somebody may sign in as this principal once; return its path below the service's address.

    Raises:
        LedgerMissingError: Unstick's own tables are missing or behind.
        SourceUnavailableError: a database doesn't answer.
    """
    async with open_watched(settings) as watched:
        return link_path(await make_sign_in_link(watched, principal))


async def upgrade_database(settings: Settings, source: str | None = None) -> tuple[str, ...]:
    """Bring Unstick's own tables, in a source's database or the ledger's, to the newest revision, and return it."""
    name, _ = chosen_source(settings, source)
    reached: set[str] = set()
    for home in _homes(settings, name):
        async with _open(home, create=True) as engine, reachable(engine.sync_engine):
            with _explained(f"Unstick's own tables can't be made in the database of {home.what}", _BY_ANOTHER):
                await schema.upgrade(engine, home.branches)
                reached |= set(await schema.current(engine))
    return tuple(sorted(reached))


async def current_revision(settings: Settings, source: str | None = None) -> tuple[str, ...]:
    """Return the revisions a source's database and the ledger's are at, none where they have no tables of ours."""
    name, _ = chosen_source(settings, source)
    found: set[str] = set()
    for home in _homes(settings, name):
        async with _open(home) as engine, reachable(engine.sync_engine):
            with _explained(f"The database of {home.what} can't be read"):
                found |= set(await schema.current(engine))
    return tuple(sorted(found))


def upgrade_sql(settings: Settings, source: str | None = None) -> str:
    """Return the statements `upgrade_database` would run on databases without tables of ours."""
    name, _ = chosen_source(settings, source)
    scripts = [
        (home, schema.upgrade_script(home.dialect, home.branches)) for home in _homes(settings, name) if home.branches
    ]
    if len(scripts) == 1:
        return scripts[0][1]
    return "\n".join(f"-- In the database of {home.what}:\n{script}" for home, script in scripts)


async def guard_table(
    settings: Settings, source: str | None = None, *, carry_out: Literal["install", "remove"] | None = None
) -> Guard:
    """Return the guard of a source's jobs table, and install or remove it only where told to.

    Raises:
        ConfigurationError: the mapping doesn't fit the table, or names nothing to guard by.
        SourceUnavailableError: the database doesn't answer, or refuses the guard.
    """
    name, chosen = chosen_source(settings, source)
    declared = JobTable.from_settings(chosen)
    home = _homes(settings, name)[0]
    async with _open(home) as engine:
        if home.is_embedded:
            await _prepare(engine, home)
        connections = EngineConnections(engine)
        with _explained(f"The database of {home.what} can't be read"):
            async with connections.reading() as (connection, _):
                found = guard(await mapped_table(connections, connection, declared))
        if carry_out is not None:
            with _explained(f"The database of {home.what} refuses to {carry_out} the guard"):
                await run_statements(connections, found.install if carry_out == "install" else found.remove)
        return found


async def inspect_url(url: str, table: str | None = None) -> Found:
    """Look at a database's job systems and jobs table, or at the table that is named."""
    engine = open_engine(url)
    try:
        async with reachable(engine.sync_engine):
            if table is None:
                return await inspect_database(engine)
            return Found(systems=(), inspection=await inspect_table(engine, table))
    finally:
        await _close(engine)


async def doubts_about(settings: Settings, url: str) -> tuple[str, ...]:
    """Say which words of the settings' own mappings of this database's tables are most likely mistyped.

    Raises:
        ConfigurationError: such a mapping doesn't fit its table.
        SourceUnavailableError: the database doesn't answer.
    """
    said: list[str] = []
    for name, chosen in settings.sources.items():
        if chosen.url.get_secret_value() == url and not chosen.is_behind_broker:
            async with _open(_homes(settings, name)[0]) as engine:
                declared = JobTable.from_settings(chosen)
                watched = watch(name, declared, EngineConnections(engine), settings.policy.policy())
                said += await doubts_about_words(watched)
    return tuple(said)


def proposed_toml(url: str, found: Found) -> str:
    """Return the `unstick.toml` that an inspection proposes."""
    return to_toml(_DEFAULT_SOURCE, url, found)


def proposed_passwords(url: str, found: Found) -> tuple[str, ...]:
    """Say how to give the password that the proposed file leaves out, once for each source."""
    sources = [*(each.source for each in found.systems), *([_DEFAULT_SOURCE] if found.inspection else [])]
    return tuple(said for name in sources if (said := password_left_out(name, url)) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Home:
    """A database in which Unstick's own tables are, and which of them."""

    what: str
    url: str
    branches: tuple[str, ...]
    own_jobs: bool
    source: str
    has_jobs: bool = True
    """The jobs are in it, too: where a SQLite file isn't there, its name is mistyped."""

    @property
    def dialect(self) -> str:
        return async_url(self.url).get_backend_name()

    @property
    def is_embedded(self) -> bool:
        return self.own_jobs and self.dialect == "sqlite"


def _homes(settings: Settings, name: str) -> list[_Home]:
    """Return a source's database first, if it is one, and then the ledger's, where it has one of its own."""
    chosen = settings.sources[name]
    if chosen.is_behind_broker:
        return [_ledger_home(settings, name)]
    own_jobs = chosen.own_jobs
    url, what = chosen.url.get_secret_value(), f"source {name!r}"
    if settings.ledger is None or settings.ledger.url.get_secret_value() == url:
        both = schema.branches(ledger=True, own_jobs=own_jobs)
        return [_Home(what=what, url=url, branches=both, own_jobs=own_jobs, source=name)]
    jobs = _Home(
        what=what, url=url, branches=schema.branches(ledger=False, own_jobs=own_jobs), own_jobs=own_jobs, source=name
    )
    return [jobs, _ledger_home(settings, name)]


def _ledger_home(settings: Settings, name: str) -> _Home:
    if settings.ledger is None:
        raise ConfigurationError(
            f"The jobs of source {name!r} are behind a broker, which has no place for Unstick's own record: name a "
            'database for it, as `url = "sqlite:///ledger.db"` or a PostgreSQL under [ledger].'
        )
    return _Home(
        what="the ledger",
        url=settings.ledger.url.get_secret_value(),
        branches=schema.branches(ledger=True, own_jobs=False),
        own_jobs=False,
        source=name,
        has_jobs=False,
    )


async def _close(engine: AsyncEngine) -> None:
    """Close an engine's connections, and take no leave of a server that is silent: some drivers would wait for it."""
    with suppress(TimeoutError):
        await in_time(engine.dispose(), MOMENT_SECONDS)


@asynccontextmanager
async def _open(home: _Home, *, create: bool = False) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(home.url, create=home.own_jobs or (create and not home.has_jobs))
    try:
        yield engine
    finally:
        await _close(engine)


_SHOWN_STATEMENT = 120
"""So many characters tell which statement it was."""
_BY_ANOTHER = " (unstick db sql prints the statements, for whoever may run them)"


def said_of_refusal(error: Exception) -> str | None:
    """Say what a database refused, None where it is another error; what the statement was given stays out."""
    if not isinstance(error, sa.exc.DBAPIError):
        return None
    statement = " ".join((error.statement or "").split())[:_SHOWN_STATEMENT]
    return f"The database refused a statement: {said_by_database(error)}. It was: {statement}…"


@contextmanager
def _explained(what: str, advice: str = "") -> Iterator[None]:
    """Say in one sentence what a database refused, and what it said."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise SourceUnavailableError(f"{what}: {said_by_database(error)}{advice}.") from error


async def _prepare(engine: AsyncEngine, home: _Home) -> None:
    """Make the tables of the embedded database; anywhere else refuse to work without them."""
    with _explained(f"The database of {home.what} can't be read"):
        async with reachable(engine.sync_engine):
            lacking = await schema.missing(engine, home.branches)
            if lacking and home.is_embedded:
                await use_write_ahead_log(engine)
                await schema.upgrade(engine, home.branches)
                return
    if lacking:
        raise LedgerMissingError(
            f"Unstick's own tables are missing or behind in the database of {home.what} (wanted: "
            f"{', '.join(lacking)}). Make them with: unstick db upgrade --source {home.source} (unstick db sql prints "
            f"the statements first)."
        )
