"""One job by its id, whatever its state: all that its row and its worker's lease say."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from unstick.config import ColumnKey
from unstick.domain.job import Job, JobState
from unstick.domain.redaction import LONGEST_PAYLOAD
from unstick.domain.story import JobRow, Lease, Waits
from unstick.domain.wording import Phrase
from unstick.sql import statements, tables
from unstick.sql.mapping import MappedTable
from unstick.sql.reading import UNDERSTOOD, JobReader, plain_id
from unstick.sql.statements import Values

_SAID: tuple[ColumnKey, ...] = ("progress", "success", "error")
_LEASE = ("began_at", "beat_at", "expires_at")


def one_job(mapped: MappedTable) -> sa.Select[Any]:
    """Read the bound job, with its worker's lease whether that holds or not."""
    key, lease = mapped.column("id"), tables.leases
    columns = statements.raw_columns(mapped, statements.job_columns(mapped))
    source: sa.FromClause = mapped.table
    if mapped.leases:
        columns += [statements.lease_beat(mapped), *(lease.c[name].label(f"worker_{name}") for name in _LEASE)]
        source = mapped.table.outerjoin(lease, lease.c.id == mapped.dialect.as_name(mapped.column("worker")))
    columns += [column.label(f"said_{name}") for name, column in mapped.columns(_SAID).items()]
    columns.append(_payload(mapped).label("said_payload"))
    columns += [told.label(f"waits_{place}") for place, (_, told) in enumerate(statements.waits(mapped))]
    columns += [told.label("blocks") for told in _blocks(mapped)]
    return sa.select(*columns).select_from(source).where(key == sa.bindparam("unstick_id", type_=key.type))


def _payload(mapped: MappedTable) -> sa.ColumnElement[str | None]:
    """Read the payload as text, whatever it is but bytes, and no more of it than would be shown."""
    column = mapped.columns(("payload",)).get("payload")
    if column is None or isinstance(column.type, sa.LargeBinary):
        return sa.cast(sa.null(), sa.Text)
    return sa.func.substr(sa.cast(column, sa.Text), 1, LONGEST_PAYLOAD + 1)


def one_job_values(job_id: object, now: datetime) -> Values:
    """Return what `one_job` is bound to."""
    return {"unstick_id": job_id, "unstick_looked_at": now}


def read_job(mapped: MappedTable, row: sa.Row[Any], now: datetime) -> JobRow:
    """Return the job a row is, with the problem where it can't be understood."""
    place = {key: at for at, key in enumerate(statements.job_columns(mapped))}
    word, state = str(row[place["state"]]).rstrip(), mapped.state_of(row[place["state"]])
    found = JobRow(job_id=plain_id(row[place["id"]]), read_at=now, status=word, job=None)
    if state is None:
        return replace(found, problem=_unmapped(word))
    try:
        job = JobReader(mapped, state).understand(row)
    except UNDERSTOOD as error:
        return replace(found, problem=Phrase("its row can't be read: %(problem)s", problem=str(error)))
    said = {key: getattr(row, f"said_{key}") for key in mapped.columns(_SAID)}
    return replace(
        found,
        job=job,
        progress=_text(said.get("progress")),
        success=None if said.get("success") is None else bool(said["success"]),
        error=_text(said.get("error")),
        payload=_text(row.said_payload),
        lease=_lease(mapped, row, job),
        waits=_waits(mapped, row, job),
        blocks=_text(getattr(row, "blocks", None)) if job.state is JobState.RUNNING else None,
    )


def _unmapped(word: str) -> Phrase:
    text = repr(word)
    return Phrase("its state %(word)s has no meaning under `states`, so no look sees it", word=text)


def _blocks(mapped: MappedTable) -> list[sa.ColumnElement[Any]]:
    """Return what says who waits for a running job, where the preset tells it."""
    preset = mapped.declared.preset
    return [] if preset is None or preset.blocks is None else [mapped.told(preset.blocks, sa.Text())]


def _waits(mapped: MappedTable, row: sa.Row[Any], job: Job) -> Waits | None:
    if job.state is not JobState.QUEUED:
        return None
    said = ((each.reason, getattr(row, f"waits_{n}")) for n, (each, _) in enumerate(statements.waits(mapped)))
    return next((Waits(reason, value) for reason, value in said if value is not None), None)


def _lease(mapped: MappedTable, row: sa.Row[Any], job: Job) -> Lease | None:
    if not mapped.leases or job.worker is None or job.state is not JobState.RUNNING or row.worker_beat_at is None:
        return None
    return Lease(
        worker=job.worker, began_at=row.worker_began_at, beat_at=row.worker_beat_at, expires_at=row.worker_expires_at
    )


def _text(raw: object) -> str | None:
    return None if raw is None else str(raw)
