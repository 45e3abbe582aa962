"""A jobs table as a queue for workers: claims, signs of life, and ends that are conditional on the claim.

Guarantee: a claim is exclusive (locked, or under the database's one write lock), and an end is written only to the
attempt that was claimed. Known weakness: a table without `token`, `attempt` and `worker` tells two attempts apart by
their `started_at` alone.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.config import ColumnKey
from unstick.domain.aftermath import How
from unstick.domain.errors import ConfigurationError, SourceUnavailableError
from unstick.domain.job import JobId, JobState
from unstick.domain.work import LEASE, Beat, ClaimedJob, WorkerIdentity
from unstick.sql import endings, tables
from unstick.sql.aftermath import cut_kind, newest_recovery
from unstick.sql.connections import Connections
from unstick.sql.mapping import JobTable, MappedTable
from unstick.sql.reading import plain_id
from unstick.sql.reflection import mapped_table
from unstick.sql.rescue import said_by_database
from unstick.sql.statements import typed_id
from unstick.sql.writes import bound_rows

_SPARE = 20
"""How many jobs are looked at beyond those wanted, where the database refuses to have one claimed."""

_log = logging.getLogger("unstick")


class SqlJobQueue:
    """Jobs in a SQL table, for the workers that run them."""

    def __init__(self, name: str, declared: JobTable, connections: Connections) -> None:
        self._name = name
        self._declared = declared
        self._connections = connections

    async def join(self, worker: WorkerIdentity, lease: timedelta) -> None:
        """Make the worker's lease, where the table's jobs can point at one.

        Old leases are struck first, and by themselves: MariaDB locks the gaps a search went through, and workers that
        begin together would wait for each other's.

        Raises:
            ConfigurationError: the table has neither a column for leases nor one for heartbeats.
        """
        async with self._writing() as (connection, mapped, now):
            if not mapped.leases:
                _need_heartbeats(mapped)
                return
            await connection.execute(endings.forget_workers(now))
        async with self._writing() as (connection, _, now):
            known = (await connection.execute(endings.has_lease(worker.name))).scalar()
            made = endings.renew(worker.name, now, now + lease) if known else endings.lease(worker, now, now + lease)
            await connection.execute(made)

    async def leave(self, worker: WorkerIdentity) -> None:
        """Have the worker's lease run out now; its row stays for a while, and tells that there was a worker."""
        async with self._writing() as (connection, mapped, now):
            if mapped.leases:
                await connection.execute(endings.renew(worker.name, now, now))

    async def claim(
        self, worker: WorkerIdentity, *, limit: int, kinds: Sequence[str] | None = None, job_id: JobId | None = None
    ) -> Sequence[ClaimedJob]:
        """Lock jobs that are due, skipping what others hold, and make them this worker's.

        Where the database refuses one of them (a trigger, a constraint), the others are claimed one by one.
        """
        try:
            return await self._claim(worker, limit=limit, kinds=kinds, only=job_id)
        except DBAPIError as error:
            if job_id is not None:
                raise SourceUnavailableError(said_by_database(error)) from error
        async with self._writing() as (connection, mapped, now):
            due = endings.due(mapped, now, limit=limit + _SPARE, kinds=kinds, only=None)
            ids = [plain_id(each) for each in (await connection.execute(due)).scalars()]
        claimed: list[ClaimedJob] = []
        for each in ids:
            if len(claimed) < limit:
                claimed += await self._claim_willing(worker, each)
        return claimed

    async def _claim_willing(self, worker: WorkerIdentity, job_id: JobId) -> Sequence[ClaimedJob]:
        try:
            return await self._claim(worker, limit=1, kinds=None, only=job_id)
        except DBAPIError as error:
            _log.error("Job %s can't be claimed, and is left queued: %s", job_id, said_by_database(error))
            return ()

    async def _claim(
        self, worker: WorkerIdentity, *, limit: int, kinds: Sequence[str] | None, only: JobId | None
    ) -> Sequence[ClaimedJob]:
        async with self._writing() as (connection, mapped, now):
            chosen = None if only is None else typed_id(mapped, only)
            due = endings.due(mapped, now, limit=limit, kinds=kinds, only=chosen)
            ids = (await connection.execute(due)).scalars().all()
            if not ids:
                return ()
            await connection.execute(endings.claim(mapped, ids, worker.name, now))
            await self._vouch(connection, mapped, worker, now)
            rows = (await connection.execute(endings.claimed(mapped, ids))).mappings().all()
            return [_claimed(mapped, row, worker) for row in rows]

    async def _vouch(
        self, connection: AsyncConnection, mapped: MappedTable, worker: WorkerIdentity, now: datetime
    ) -> None:
        """Renew the worker's lease for as long as it was: a claim is a sign of life, and must not be taken at once."""
        if not mapped.leases:
            return
        lease = (await connection.execute(endings.lease_of(worker.name))).one_or_none()
        if lease is not None:
            # Who had left, and claims all the same, is believed for as long as any worker is.
            length = lease.expires_at - lease.beat_at or LEASE
            await connection.execute(endings.renew(worker.name, now, now + length))

    async def beat(self, worker: WorkerIdentity, lease: timedelta, beats: Sequence[Beat]) -> frozenset[JobId]:
        """Say that the worker lives, and then that its jobs do; return which of them it still holds.

        The lease is renewed first and by itself. A job whose row is held, by its own long transaction perhaps, is not
        waited for: its sign of life comes with a later beat, and meanwhile nobody can take it either.
        """
        async with self._writing() as (connection, mapped, now):
            if mapped.leases:
                await _vouch_for(connection, worker, now, lease)
        if not beats:
            return frozenset()
        async with self._writing() as (connection, mapped, now):
            moved = [beat for beat in beats if beat.progress is not None] if mapped.leases else beats
            if moved and (not mapped.leases or mapped.has("progress")):
                free = set((await connection.execute(endings.held(mapped, free=True), _bound(mapped, moved))).scalars())
                shown = [beat for beat in moved if str(beat.job.id) in free]
                statement = endings.progress(mapped) if mapped.leases else endings.heartbeat(mapped, now)
                if shown:
                    await connection.execute(statement, _bound(mapped, shown))
            held = set((await connection.execute(endings.held(mapped), _bound(mapped, beats))).scalars())
            return frozenset(beat.job.id for beat in beats if str(beat.job.id) in held)

    async def disown(self, jobs: Sequence[ClaimedJob]) -> None:
        """Strike the worker from its jobs' rows, where a lease would go on to vouch for them."""
        async with self._writing() as (connection, mapped, _):
            if mapped.leases:
                await connection.execute(endings.disown(mapped), _bound(mapped, [Beat(job=job) for job in jobs]))

    async def finish(self, job: ClaimedJob, values: Mapping[str, object]) -> bool:
        """End a job as succeeded, with its results by column name."""
        async with self._writing() as (connection, mapped, now):
            _need_columns(mapped, values)
            ended = await connection.execute(endings.finish(mapped, job, now, values))
            if ended.rowcount or await _stands(connection, endings.is_finished(mapped, job)):
                return True
            return await self._late(connection, mapped, job, JobState.SUCCEEDED, None, now)

    async def fail(self, job: ClaimedJob, error: str) -> bool:
        """End a job as failed."""
        async with self._writing() as (connection, mapped, now):
            ended = await connection.execute(endings.fail(mapped, job, now, error))
            if ended.rowcount or await _stands(connection, endings.is_failed(mapped, job, error)):
                return True
            return await self._late(connection, mapped, job, JobState.FAILED, error, now)

    async def requeue(self, job: ClaimedJob, wait: timedelta, *, error: str | None, counted: bool) -> bool:
        """Queue a job again, as a new attempt if `counted`."""
        async with self._writing() as (connection, mapped, now):
            statement = endings.requeue(mapped, job, now, wait=wait, error=error, counted=counted)
            return bool((await connection.execute(statement)).rowcount)

    async def _late(
        self,
        connection: AsyncConnection,
        mapped: MappedTable,
        job: ClaimedJob,
        ended: JobState,
        detail: str | None,
        now: datetime,
    ) -> bool:
        row = {
            "source": self._name,
            "job_id": str(job.id),
            "kind": cut_kind(job.kind),
            "how": How.REFUSED.value,
            "recovery_id": newest_recovery(self._name, job.id),
            "worker": job.worker,
            "attempt": job.attempt,
            "ended": ended.value,
            "ran_seconds": _ran_seconds(mapped, job, now),
            "detail": detail,
            "at": now,
        }
        await connection.execute(sa.insert(tables.late_finishes).values(row))
        return False

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[tuple[AsyncConnection, MappedTable, datetime]]:
        """Open a transaction; what no row's content caused, a deadlock for example, may well succeed the next time."""
        try:
            async with self._connections.writing() as (connection, now):
                yield connection, await mapped_table(self._connections, connection, self._declared), now
        except DBAPIError as error:
            if self._connections.dialect.refuses_row(error):
                raise
            raise SourceUnavailableError(said_by_database(error)) from error


async def _vouch_for(connection: AsyncConnection, worker: WorkerIdentity, now: datetime, lease: timedelta) -> None:
    """Renew a worker's lease, or make it."""
    renewed = await connection.execute(endings.renew(worker.name, now, now + lease))
    if not renewed.rowcount:
        await connection.execute(endings.lease(worker, now, now + lease))


async def _stands(connection: AsyncConnection, end: sa.Select[Any]) -> bool:
    """Tell whether an end is written already: it was committed, and the word on that was lost on the way."""
    return bool((await connection.execute(end)).scalar())


def _need_heartbeats(mapped: MappedTable) -> None:
    if not mapped.has("heartbeat_at"):
        raise ConfigurationError(
            f"{mapped.declared.full_name} has no column in which a job could show that it lives: map `worker`, a text "
            f"column of 100 characters or more, or `heartbeat_at`."
        )


def _need_columns(mapped: MappedTable, values: Mapping[str, object]) -> None:
    unknown = [name for name in values if name not in mapped.table.c]
    if unknown:
        raise ConfigurationError(f"{mapped.declared.full_name} has no column {unknown[0]!r} to write a result to.")


def _claimed(mapped: MappedTable, row: sa.RowMapping, worker: WorkerIdentity) -> ClaimedJob:
    def value(key: ColumnKey) -> Any:  # noqa: ANN401 - a column of any type
        return row[mapped.column(key)] if mapped.has(key) else None

    kind, queue = value("kind"), value("queue")
    return ClaimedJob(
        id=plain_id(value("id")),
        kind=None if kind is None else str(kind),
        queue=None if queue is None else str(queue),
        payload=_payload(value("payload")),
        attempt=value("attempt"),
        max_attempts=value("max_attempts"),
        worker=worker.name,
        row={column.name: row[column] for column in endings.own_columns(mapped)},
        fence=tuple(row[f"fence_{key}"] for key in endings.fence_keys(mapped)),
    )


def _ran_seconds(mapped: MappedTable, job: ClaimedJob, now: datetime) -> float | None:
    """Return how long a claimed job has run, where its claim wrote when that was."""
    if not mapped.has("started_at"):
        return None
    began = mapped.times["started_at"].read(job.row[mapped.stored("started_at").name])
    return None if began is None else (now - began).total_seconds()


def _payload(raw: object) -> object:
    """Read a payload that is stored as text."""
    if not isinstance(raw, str):
        return raw
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _bound(mapped: MappedTable, beats: Sequence[Beat]) -> dict[str, Any]:
    return bound_rows(
        [(typed_id(mapped, beat.job.id), str(beat.job.id), beat.progress, *beat.job.fence) for beat in beats]
    )
