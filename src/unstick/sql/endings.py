"""The statements of a worker: claim, sign of life, and ends with the claim's fence in the statement itself."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from unstick.config import ColumnKey
from unstick.domain.job import JobState
from unstick.domain.work import ClaimedJob, WorkerIdentity
from unstick.sql import tables
from unstick.sql.mapping import MappedTable
from unstick.sql.statements import Predicate, is_bound, is_open, rows_first, time_type, typed_id

_TEXT = sa.Text()
_FORGOTTEN_AFTER = timedelta(days=7)


def fence_keys(mapped: MappedTable) -> tuple[ColumnKey, ...]:
    """Return what tells this attempt from every other one: a token that grows with each, or else its start."""
    keys: tuple[ColumnKey, ...] = tuple(key for key in ("state", "attempt", "token", "worker") if key in mapped.fence)
    grows = "token" in keys and isinstance(mapped.column("token").type, sa.Integer)
    return keys if grows or "started_at" not in mapped.fence else (*keys, "started_at")


def own_columns(mapped: MappedTable) -> list[sa.Column[Any]]:
    """Return the table's columns, without those the system adds."""
    return [column for column in mapped.table.c if not column.system]


def due(
    mapped: MappedTable, now: datetime, *, limit: int, kinds: Sequence[str] | None, only: object | None
) -> sa.Select[Any]:
    """Lock queued jobs that are due, the oldest ids first, skipping those that somebody holds."""
    key = mapped.column("id")
    jobs = sa.select(key).where(is_open(mapped), mapped.column("state").in_(mapped.words(JobState.QUEUED)))
    if mapped.has("scheduled_at"):
        form, column = mapped.times["scheduled_at"], mapped.column("scheduled_at")
        at, utc = (
            sa.literal(value, time_type(mapped, "scheduled_at")) for value in (form.horizon(now), form.horizon_utc(now))
        )
        jobs = jobs.where(sa.or_(column.is_(None), form.before(column, at, utc)))
    if kinds is not None and mapped.has("kind"):
        jobs = jobs.where(mapped.column("kind").in_(kinds))
    if only is not None:
        jobs = jobs.where(key == only)
    return jobs.order_by(key).limit(limit).with_for_update(skip_locked=True, key_share=True)


def claim(mapped: MappedTable, ids: Sequence[Any], worker: str, now: datetime) -> sa.Update:
    """Make locked jobs a worker's, under a new fencing token."""
    values: dict[ColumnKey, Any] = {"state": mapped.word(JobState.RUNNING)}
    values |= {key: at(mapped, key, now) for key in ("started_at", "heartbeat_at") if mapped.has(key)}
    if mapped.has("worker"):
        values["worker"] = worker
    return _update(mapped, values | _next_token(mapped)).where(mapped.column("id").in_(ids))


def claimed(mapped: MappedTable, ids: Sequence[Any]) -> sa.Select[Any]:
    """Read the rows of jobs that were just claimed, and what fences them, as it is stored."""
    fence = [_raw(mapped, key).label(f"fence_{key}") for key in fence_keys(mapped)]
    return sa.select(*own_columns(mapped), *fence).where(mapped.column("id").in_(ids)).order_by(mapped.column("id"))


def lease_of(worker: str) -> sa.Select[Any]:
    """Read a worker's lease, and keep it as it is until it is renewed."""
    lease = tables.leases
    return sa.select(lease.c.beat_at, lease.c.expires_at).where(lease.c.id == worker).with_for_update()


def has_lease(worker: str) -> sa.Select[tuple[bool]]:
    """Tell whether a worker has a lease, locking nothing."""
    return sa.select(sa.exists().where(tables.leases.c.id == worker))


def renew(worker: str, now: datetime, expires_at: datetime) -> sa.Update:
    """Say that a worker lives until then, or has left now; a lease that ran out is good again until it is struck."""
    return sa.update(tables.leases).where(tables.leases.c.id == worker).values(beat_at=now, expires_at=expires_at)


def lease(worker: WorkerIdentity, now: datetime, expires_at: datetime) -> sa.Insert:
    """Begin to vouch for a worker."""
    row = {"id": worker.name, "host": worker.host, "pid": worker.pid, "began_at": now, "beat_at": now}
    return sa.insert(tables.leases).values(**row, expires_at=expires_at)


def forget_workers(now: datetime) -> sa.Delete:
    """Strike leases that ran out so long ago that whatever they held was recovered since, or is judged by its age."""
    return sa.delete(tables.leases).where(tables.leases.c.expires_at < now - _FORGOTTEN_AFTER)


def disown(mapped: MappedTable) -> sa.Update:
    """Strike the worker from the bound jobs that are still its own, so that its lease holds them no longer."""
    return _update(mapped, {"worker": _nobody(mapped)}).where(_still_held(mapped, _given(mapped)))


def heartbeat(mapped: MappedTable, now: datetime) -> sa.Update:
    """Say of all bound jobs that are still the worker's that they live, with their progress, in one statement."""
    given = _given(mapped)
    values: dict[ColumnKey, Any] = {"heartbeat_at": at(mapped, "heartbeat_at", now)}
    if mapped.has("progress"):
        values["progress"] = sa.func.coalesce(given.c.progress, mapped.column("progress"))
    return _update(mapped, values).where(_still_held(mapped, given))


def progress(mapped: MappedTable) -> sa.Update:
    """Write the progress of all bound jobs that are still the worker's."""
    given = _given(mapped)
    return _update(mapped, {"progress": given.c.progress}).where(_still_held(mapped, given))


def held(mapped: MappedTable, *, free: bool = False) -> sa.Select[Any]:
    """Read which of the bound jobs are still the worker's; with `free` lock them, and skip those held by others."""
    given = _given(mapped)
    joined = given.join(mapped.table, mapped.column("id") == given.c.id)
    found = rows_first(sa.select(given.c.job_id).select_from(joined).where(_still_held(mapped, given)))
    return found.with_for_update(skip_locked=True, key_share=True) if free else found


def finish(mapped: MappedTable, job: ClaimedJob, now: datetime, results: Mapping[str, object]) -> sa.Update:
    """End a job as succeeded, if it is still this attempt's."""
    values = _over(mapped, job, JobState.SUCCEEDED, now)
    if mapped.has("error") and mapped.nullable("error"):
        values["error"] = None
    return _update(mapped, values, results).where(_is_this_attempt(mapped, job))


def fail(mapped: MappedTable, job: ClaimedJob, now: datetime, error: str) -> sa.Update:
    """End a job as failed, if it is still this attempt's."""
    values = _over(mapped, job, JobState.FAILED, now)
    return _update(mapped, values | _error(mapped, error)).where(_is_this_attempt(mapped, job))


def is_finished(mapped: MappedTable, job: ClaimedJob) -> sa.Select[Any]:
    """Read whether a job stands as `finish` left it for this attempt."""
    return sa.select(sa.exists().where(_is_attempt(mapped, job, JobState.SUCCEEDED)))


def is_failed(mapped: MappedTable, job: ClaimedJob, error: str) -> sa.Select[Any]:
    """Read whether a job stands as `fail` left it; where no error is kept, nothing tells it from a recovery."""
    said = [mapped.column(key) == value for key, value in _error(mapped, error).items()]
    told = sa.and_(*said) if said else sa.false()
    return sa.select(sa.exists().where(_is_attempt(mapped, job, JobState.FAILED), told))


def requeue(
    mapped: MappedTable, job: ClaimedJob, now: datetime, *, wait: timedelta, error: str | None, counted: bool
) -> sa.Update:
    """Queue a job again, if it is still this attempt's, and take the fencing token from it."""
    values: dict[ColumnKey, Any] = {"state": mapped.word(JobState.QUEUED)}
    if mapped.has("scheduled_at"):
        values["scheduled_at"] = at(mapped, "scheduled_at", now + wait)
    if mapped.has("started_at"):
        waits = mapped.has("scheduled_at") and mapped.nullable("started_at")
        values["started_at"] = None if waits else at(mapped, "started_at", now)
    values |= {key: None for key in ("worker", "heartbeat_at") if mapped.has(key) and mapped.nullable(key)}
    if counted and mapped.has("attempt"):
        values["attempt"] = sa.func.coalesce(mapped.column("attempt"), 0) + 1
    if error is not None:
        values |= _error(mapped, error)
    return _update(mapped, values | _next_token(mapped)).where(_is_this_attempt(mapped, job))


def _over(mapped: MappedTable, job: ClaimedJob, state: JobState, now: datetime) -> dict[ColumnKey, Any]:
    values: dict[ColumnKey, Any] = {"state": mapped.word(state)}
    if mapped.has("worker"):
        values["worker"] = job.worker  # who ended it, though it had disowned it before
    if mapped.has("success"):
        values["success"] = mapped.column("success").type.python_type(state is JobState.SUCCEEDED)
    if mapped.has("completed_at"):
        values["completed_at"] = at(mapped, "completed_at", now)
    return values


def _error(mapped: MappedTable, error: str) -> dict[ColumnKey, Any]:
    # PostgreSQL stores no NUL, and a job that failed must not be refused its end for one.
    return {"error": error.replace("\0", "")[: mapped.error_length]} if mapped.has("error") else {}


def _next_token(mapped: MappedTable) -> dict[ColumnKey, Any]:
    if not mapped.has("token") or not isinstance(mapped.column("token").type, sa.Integer):
        return {}
    return {"token": sa.func.coalesce(mapped.column("token"), 0) + 1}


def _update(
    mapped: MappedTable, values: Mapping[ColumnKey, Any], results: Mapping[str, object] | None = None
) -> sa.Update:
    return sa.update(mapped.table).values(
        {mapped.stored(key).name: value for key, value in values.items()} | dict(results or {})
    )


def at(mapped: MappedTable, key: ColumnKey, instant: datetime) -> sa.ColumnElement[Any]:
    """Return an instant as a column stores it."""
    return sa.literal(mapped.times[key].write(instant), time_type(mapped, key))


def _raw(mapped: MappedTable, key: ColumnKey) -> sa.ColumnElement[Any]:
    column = mapped.column(key)
    return sa.type_coerce(column, time_type(mapped, key)) if key in mapped.times else column


def _is_this_attempt(mapped: MappedTable, job: ClaimedJob) -> Predicate:
    """Hold while a job is this attempt's to end: nobody took it, though its worker may have disowned it."""
    return sa.and_(_is_attempt(mapped, job, JobState.RUNNING), is_open(mapped))


def _is_attempt(mapped: MappedTable, job: ClaimedJob, state: JobState) -> Predicate:
    fence = dict(zip(fence_keys(mapped), job.fence, strict=True)) | {"state": mapped.word(state)}
    same = [_is(mapped, column, value) for column, value in fence.items() if column != "worker"]
    if "worker" in fence:
        same.append(sa.or_(_is(mapped, "worker", fence["worker"]), _is(mapped, "worker", _nobody(mapped))))
    key = mapped.column("id")
    return sa.and_(key == sa.literal(typed_id(mapped, job.id), key.type), *same)


def _is(mapped: MappedTable, key: ColumnKey, value: object) -> Predicate:
    return _raw(mapped, key).is_not_distinct_from(sa.literal(value, _raw(mapped, key).type))


def _nobody(mapped: MappedTable) -> str | None:
    return None if mapped.nullable("worker") else ""


def _given(mapped: MappedTable) -> sa.Subquery:
    fence = {f"held_{key}": _raw(mapped, key).type for key in fence_keys(mapped)}
    types = {"id": mapped.column("id").type, "job_id": _TEXT, "progress": sa.Integer(), **fence}
    return mapped.dialect.rows(types).subquery("given")


def _still_held(mapped: MappedTable, given: sa.Subquery) -> Predicate:
    same = [
        mapped.dialect.unindexed(_raw(mapped, key)).is_not_distinct_from(given.c[f"held_{key}"])
        for key in fence_keys(mapped)
    ]
    return sa.and_(is_bound(mapped, given), is_open(mapped, bound=True), *same)
