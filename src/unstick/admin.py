"""For host apps: the contract's service on the app's own session, and its HTTP calls as a router to include."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import sqlalchemy as sa
from fastapi import APIRouter
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from unstick.api import health, router
from unstick.api.auth import bearer_principal
from unstick.console import router as pages
from unstick.domain.errors import ConfigurationError, LedgerMissingError
from unstick.domain.policy import Policy, requested_action, requested_threshold
from unstick.hosting import host_settings, hosted
from unstick.pipeline.courier import Courier
from unstick.pipeline.report import DEFAULT_LIMIT, report_stats, report_stuck
from unstick.pipeline.runner import Runner
from unstick.pipeline.shapes import CleanupShape, StatsShape, StuckShape, cleanup_shape, stats_shape, stuck_shape
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.watched import OpenWatched, Watched
from unstick.sql import schema
from unstick.sql.connections import SessionConnections
from unstick.sql.engine import PLACEHOLDER, url_without_secrets
from unstick.sql.mapping import JobTable
from unstick.telemetry.log import LogListener
from unstick.wiring import open_channels, running, watch, with_alerts
from unstick.worker import this_process

Sessions = Callable[[], AbstractAsyncContextManager[AsyncSession]]
"""A session factory, such as `async_sessionmaker(engine)`."""

_migrated: WeakSet[sa.Engine] = WeakSet()


class AdminService:
    """Monitors, cleans up and counts the jobs of the database a session belongs to.

    It commits its own work. A session in which the caller has only read is fine, and what was loaded stays
    loaded; one that holds changes of the caller's is refused.

    Args:
        db: the session.
        jobs: the table, where it is not the one `configure` or the configuration names.
        policy: likewise.
        actor: who is asking, for the audit log.
    """

    def __init__(
        self,
        db: AsyncSession,
        *,
        jobs: JobTable | None = None,
        policy: Policy | None = None,
        actor: str = "AdminService",
    ) -> None:
        host = hosted(jobs, policy)
        self._table = host.jobs.full_name
        self._connections = SessionConnections(db)
        self._watched = watch(host.source, host.jobs, self._connections, host.policy, secret=_secret)
        self._actor = actor

    async def monitor_stuck_jobs(
        self, stuck_threshold_minutes: int = 5, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> StuckShape:
        """Tell what is stuck now; the counts are exact, each list holds at most `limit` jobs.

        Raises:
            InvalidRequestError: the threshold, limit or cursor means nothing.
            ConfigurationError: the mapping doesn't fit the table.
        """
        after = requested_threshold(stuck_threshold_minutes)
        return stuck_shape(await report_stuck(self._watched, queued_after=after, limit=limit, cursor=cursor))

    async def cleanup_stuck_jobs(
        self, stuck_threshold_minutes: int = 5, action: str = "mark_failed", *, dry_run: bool = False
    ) -> CleanupShape:
        """Recover what is stuck; with `dry_run`, tell what would be done and change nothing.

        Raises:
            InvalidRequestError: the threshold or action means nothing; nothing was changed.
            PendingChangesError: the session holds changes of the caller's; nothing was changed.
            LedgerMissingError: Unstick's own tables are missing; nothing was changed.
            RecoveryStoppedError: a batch was rolled back; it tells how many jobs of earlier ones stay recovered.
        """
        order = SweepOrder(
            actor=self._actor,
            queued_after=requested_threshold(stuck_threshold_minutes),
            action=requested_action(action),
            dry_run=dry_run,
        )
        await self._need_ledger()
        report = await sweep(self._watched, order)
        self._connections.expire(self._table)
        return cleanup_shape(report)

    async def get_platform_stats(self) -> StatsShape:
        """Tell the platform's figures and what is stuck now.

        Raises:
            LedgerMissingError: Unstick's own tables are missing.
        """
        await self._need_ledger()
        return stats_shape(await report_stats(self._watched))

    async def _need_ledger(self) -> None:
        await need_ledger(self._connections, self._table)


async def need_ledger(connections: SessionConnections, table: str) -> None:
    """Refuse to go on where a database lacks Unstick's own tables; what was found once is kept with the engine."""
    if connections.engine in _migrated:
        return
    async with connections.reading() as (connection, _):
        lacking = await connection.run_sync(schema.missing_from, schema.branches(own_jobs=False))
    if lacking:
        url, has_secret = url_without_secrets(connections.engine.url)
        secret = f"with what the app's own URL says in place of {PLACEHOLDER}; " if has_secret else ""
        raise LedgerMissingError(
            f"Unstick's own tables are missing or behind in the database of {table}. Make them with: "
            f"UNSTICK_SOURCES__MAIN__URL='{url}' UNSTICK_SOURCES__MAIN__TABLE={table} unstick db upgrade "
            f"({secret}unstick db sql prints the statements first)."
        )
    _migrated.add(connections.engine)


def admin_router(
    sessions: Sessions,
    *,
    auth: Callable[..., Any] | None = None,
    jobs: JobTable | None = None,
    policy: Policy | None = None,
) -> APIRouter:
    """Return the contract's HTTP calls, to include in a FastAPI app: `app.include_router(admin_router(…))`.

    In the app's lifespan the table is observed and swept by itself, as `[sweep]` says, by one of the app's replicas,
    and alerts are raised and told, as `[alerts]` says.

    Args:
        sessions: the app's own session factory, such as `AsyncSessionLocal`.
        auth: a FastAPI dependency of the app's that returns a `Principal` or refuses the caller by raising
            `HTTPException`; without it, bearer tokens signed with `UNSTICK_SECRET_KEY`, or made by its `/tokens`.
        jobs: the table, where it is not the one `configure` or the configuration names.
        policy: likewise.

    Raises:
        ConfigurationError: there is neither `auth` nor a secret key, no table, or a channel for alerts can't be opened.
    """
    watched: dict[str, OpenWatched] = {}
    courier = Courier(watched, open_channels(host_settings()))
    watched.update(_watched(sessions, jobs, policy, courier.wake))

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        runner = Runner(watched, host_settings().sweep.timetable(), holder=this_process().name)
        async with running(courier), running(runner):
            yield

    return router.admin_router(
        watched=watched,
        principal=auth or _token_auth(watched),
        lifespan=lifespan,
        keeps_tokens=auth is None,
        read_only=host_settings().read_only,
        timetable=host_settings().sweep.timetable(),
    )


def console_router(
    sessions: Sessions,
    *,
    auth: Callable[..., Any],
    jobs: JobTable | None = None,
    policy: Policy | None = None,
    prefix: str = pages.PREFIX,
) -> APIRouter:
    """Return the web console, to include in a FastAPI app beside `admin_router`, which keeps the watch.

    Args:
        sessions: the app's own session factory, such as `AsyncSessionLocal`.
        auth: a FastAPI dependency of the app's that returns a `Principal` or refuses the caller by raising
            `HTTPException`. Forms from elsewhere are refused, as `Sec-Fetch-Site` or `Origin` tells.
        jobs: the table, where it is not the one `configure` or the configuration names.
        policy: likewise.
        prefix: where the pages are.

    Raises:
        ConfigurationError: there is no table.
    """
    return pages.console_router(
        watched=_watched(sessions, jobs, policy),
        principal=auth,
        timetable=host_settings().sweep.timetable(),
        prefix=prefix,
        read_only=host_settings().read_only,
    )


def health_router(sessions: Sessions, *, jobs: JobTable | None = None, policy: Policy | None = None) -> APIRouter:
    """Return `/health/live`, `/health/ready` and `/health/jobs`, to include in a FastAPI app; they need no token.

    Args:
        sessions: the app's own session factory, such as `AsyncSessionLocal`.
        jobs: the table, where it is not the one `configure` or the configuration names.
        policy: likewise.
    """
    return health.health_router(_watched(sessions, jobs, policy), host_settings().sweep.timetable())


def _watched(
    sessions: Sessions, jobs: JobTable | None, policy: Policy | None, wake: Callable[[], None] = lambda: None
) -> dict[str, OpenWatched]:
    """Return what is watched, opened on a session of the app's for each use."""
    log = LogListener()

    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        host = hosted(jobs, policy)
        async with sessions() as session:
            connections = SessionConnections(session)
            await need_ledger(connections, host.jobs.full_name)
            watched = watch(host.source, host.jobs, connections, host.policy, secret=_secret)
            watched = replace(
                watched,
                unattended=host_settings().sweep.unattended(),
                retention=host_settings().retention.retention(),
                secret_keys=host_settings().payloads.redact,
                listeners=(log,),
            )
            yield with_alerts(watched, host_settings(), wake)

    return {hosted(jobs, policy).source: opened}


def _secret() -> SecretStr | None:
    return host_settings().secret_key


def _token_auth(watched: Mapping[str, OpenWatched]) -> Callable[..., Any]:
    secret = _secret()
    if secret is None:
        raise ConfigurationError(
            "Nothing says who may call: pass the app's own dependency as `auth`, or set UNSTICK_SECRET_KEY."
        )
    return bearer_principal(secret, host_settings().auth, *watched.values())
