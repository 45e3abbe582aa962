"""Rulings: one decision for many suspects, carried out and recorded by the database without reading them one by one.

Guarantee: the whole rule is tested on each row as it stands when it is written, so that nothing lies between look and
write; and what is overwritten is known, for the jobs of a batch are alike in it and the write demands that they still
are. So one record serves a whole batch, with each job's id and sign of life in it.
Known weakness: jobs that are alike with few others are left to be looked at one by one, which is slower.
"""

import json
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.config import ColumnKey
from unstick.domain.job import JobState
from unstick.domain.policy import SINCE, Ruling
from unstick.domain.recovery import Action, Outcome
from unstick.sql import tables, writes
from unstick.sql.dialects import LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, Address
from unstick.sql.mapping import MappedTable
from unstick.sql.statements import (
    Predicate,
    Values,
    has_lease,
    is_bound,
    is_suspect,
    rows_first,
    signs,
    since_expression,
)

_TEXT = sa.Text()
_OVERWRITTEN: tuple[ColumnKey, ...] = ("state", "success", "error")
"""What a ruling overwrites besides the completion time, which is null for every suspect."""


LONGEST_HELD = 255
"""Jobs whose error is longer are looked at one by one: a stride of them would hold all those texts in memory."""


@dataclass(frozen=True, slots=True)
class Alike:
    """A batch of suspects of one state that hold the same in every column a ruling overwrites."""

    count: int
    rows: Any
    """Which rows: a list of ids, or on PostgreSQL their addresses, as the database itself wrote them."""
    held: Mapping[ColumnKey, Any]
    """What they hold, by the columns of `_OVERWRITTEN` that the table has."""


@dataclass(frozen=True, slots=True)
class Stride:
    """So many suspects as are read at once, in batches of those alike."""

    count: int
    last: object
    """Where the next stride begins: the last id or address, None where there was no suspect."""
    batches: Sequence[Alike]
    """Those that are large enough; who is in none of them is left."""


def addresses(mapped: MappedTable, state: JobState, *, after: bool) -> sa.Select[Any]:
    """Read a stride of suspects by where they lie: only text crosses, no row does (PostgreSQL)."""
    at, stored = mapped.table.c.ctid.label("at"), _stored(mapped)
    reached = sa.cast(sa.bindparam("after", type_=_TEXT), Address())
    suspects = _suspects(mapped, state, at, reached if after else None).cte("suspects")
    whole = sa.select(sa.func.count().label("count"), sa.func.max(suspects.c.at).label("last")).subquery("whole")
    everywhere = sa.func.array_agg(suspects.c.at, type_=ARRAY(Address())).label("everywhere")
    keys = [suspects.c[key] for key in stored]
    enough = sa.and_(sa.func.count() >= _LEAST, sa.not_(suspects.c.unlike))
    groups = sa.select(everywhere, *keys).group_by(*keys, suspects.c.unlike).having(enough).subquery("groups")
    size, number = _SIZE, sa.func.cardinality(groups.c.everywhere, type_=sa.Integer())
    first = sa.func.generate_series(1, number, size, type_=sa.Integer()).table_valued("first").render_derived()
    rows = sa.cast(groups.c.everywhere[slice(first.c.first, first.c.first + size - 1)], _TEXT)
    count = sa.func.least(size, number - first.c.first + 1, type_=sa.Integer())
    batches = sa.select(count.label("batch"), rows.label("rows"), *(groups.c[key] for key in stored))
    found = batches.select_from(groups.join(first, sa.true())).subquery("batches")
    return sa.select(whole.c.count, sa.cast(whole.c.last, _TEXT), found).select_from(whole.outerjoin(found, sa.true()))


def ids(mapped: MappedTable, state: JobState, *, after: bool) -> sa.Select[Any]:
    """Read a stride of suspects' ids, with what a ruling would overwrite of each."""
    key = mapped.column("id")
    return _suspects(mapped, state, key, sa.bindparam("after", type_=key.type) if after else None)


_STRIDE = sa.bindparam("stride", type_=sa.Integer())
_SIZE = sa.bindparam("size", type_=sa.Integer())
_LEAST = sa.bindparam("least", type_=sa.Integer())


def _suspects(
    mapped: MappedTable, state: JobState, key: sa.ColumnElement[Any], after: sa.ColumnElement[Any] | None
) -> sa.Select[Any]:
    stored = [column.label(name) for name, column in _stored(mapped).items()]
    found = sa.select(key, *stored, _unlike(mapped).label("unlike")).where(
        is_suspect(mapped, state), _age_alone(mapped)
    )
    if after is not None:
        found = found.where(key > after)
    return found.order_by(key).limit(_STRIDE)


def _unlike(mapped: MappedTable) -> Predicate:
    """Hold for jobs that can't be held against others: what they hold is too long, or no text at all."""
    if not mapped.has("error"):
        return sa.false()
    error = mapped.column("error")
    return sa.func.coalesce(
        sa.or_(sa.func.length(error) > LONGEST_HELD, sa.not_(mapped.dialect.is_text(error))), sa.false()
    )


def stride_of_addresses(mapped: MappedTable, found: Sequence[Sequence[Any]]) -> Stride:
    """Read what `addresses` returned."""
    batches = [Alike(count, rows, _by_key(mapped, alike)) for _, _, count, rows, *alike in found if count is not None]
    return Stride(found[0][0], found[0][1], batches)


async def stride_of_ids(mapped: MappedTable, found: AsyncIterable[Sequence[Any]], *, size: int, least: int) -> Stride:
    """Group what `ids` yields, at most `size` together and only those alike; no more than the ids is kept."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    count, last = 0, None
    async for last, *alike, unlike in found:
        count += 1
        if not unlike:
            groups.setdefault(tuple(alike), []).append(last)
    batches = [
        Alike(len(rows := keys[start : start + size]), rows, _by_key(mapped, alike))
        for alike, keys in groups.items()
        for start in range(0, len(keys), size)
        if len(keys) >= least
    ]
    return Stride(count, last, batches)


def _by_key(mapped: MappedTable, alike: Sequence[Any]) -> dict[ColumnKey, Any]:
    return dict(zip(_stored(mapped), alike, strict=True))


def recover_in_one(mapped: MappedTable, state: JobState, *, lock: bool) -> sa.Insert:
    """Change and record a batch in one statement, and return how many jobs that were (PostgreSQL).

    A row that changed after the statement's snapshot is read again, and the whole guard tested on what it is then.
    With `lock` rows are locked first, and those that somebody holds left out; without, they are waited for. A trigger
    may move the sign of life with the write: then it is taken from the rows as they were locked.
    """
    table = mapped.table
    since: sa.ColumnElement[Any] = _since(mapped, state).label("since")
    guard = sa.and_(_is_at(mapped), _guard(mapped, state))
    change = sa.update(table).where(guard).values(_changes(mapped, state))
    if lock:
        free = sa.select(table.c.ctid.label("at"), since).where(guard)
        locked = free.with_for_update(key_share=True, skip_locked=True).cte("locked")
        there = sa.func.array(sa.select(locked.c.at).scalar_subquery())
        change = change.where(table.c.ctid == sa.any_(there), table.c.ctid == locked.c.at)
        since = locked.c.since
    # A trigger that keeps a row as it was leaves nothing to be recorded.
    now_is = mapped.dialect.exact(mapped.column("state")).label("now_is")
    changed = change.returning(mapped.column("id").label("id"), since, now_is).cte("changed")
    failed = changed.c.now_is == str(mapped.word(JobState.FAILED))
    return _record(mapped, state, changed, failed).returning(tables.recoveries.c.job_count)


def _is_at(mapped: MappedTable) -> Predicate:
    rows = sa.cast(sa.bindparam("unstick_rows", type_=_TEXT), ARRAY(Address()))
    return mapped.table.c.ctid == sa.any_(rows)


async def expect_addresses(connection: AsyncConnection, *, waits: bool) -> None:
    """Prepare a transaction for `recover_in_one`: bound what it waits for, and rule out every other way to its rows.

    The planner takes thousands of addresses for dearer than a scan of all open jobs.
    """
    limits = (_MOMENT_MS, _WAITING_MS) if waits else (LOCK_TIMEOUT_MS, STATEMENT_TIMEOUT_MS)
    await connection.execute(_BY_ADDRESS, {"lock": f"{limits[0]}ms", "statement": f"{limits[1]}ms"})


_MOMENT_MS = 100
_WAITING_MS = 5_000
_BY_ADDRESS = sa.text(
    "SELECT set_config('lock_timeout', CAST(:lock AS text), true),"
    " set_config('statement_timeout', CAST(:statement AS text), true), set_config(name, 'off', true)"
    " FROM unnest(ARRAY['enable_seqscan', 'enable_indexscan', 'enable_indexonlyscan', 'enable_bitmapscan', 'jit'])"
    " AS s(name)"
)


def lock(mapped: MappedTable, state: JobState) -> sa.Select[Any]:
    """Lock the rows of a batch that the ruling holds for, skipping what somebody holds."""
    return _found(mapped, state, mapped.column("id")).with_for_update(skip_locked=True)


def record_locked(mapped: MappedTable, state: JobState) -> sa.Insert:
    """Record the rows about to be changed."""
    told = (mapped.column("id").label("id"), _since(mapped, state).label("since"))
    return _record(mapped, state, _found(mapped, state, *told).subquery("found"))


def change_locked(mapped: MappedTable, state: JobState) -> sa.Update:
    """Change the rows of a batch: the whole guard once more, in the write itself."""
    guard = sa.and_(is_bound(mapped, _given(mapped)), _guard(mapped, state))
    return sa.update(mapped.table).where(guard).values(_changes(mapped, state))


def _found(mapped: MappedTable, state: JobState, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    given = _given(mapped)
    joined = sa.select(*columns).select_from(given.join(mapped.table, mapped.column("id") == given.c.id))
    return rows_first(joined.where(is_bound(mapped, given), _guard(mapped, state)))


def _given(mapped: MappedTable) -> sa.Subquery:
    return mapped.dialect.rows({"id": mapped.column("id").type}).subquery("given")


def batch_values(mapped: MappedTable, batch: Alike) -> Values:
    """Return what a batch's statements are bound to: its rows, and what they hold."""
    held = {f"unstick_held_{key}": value for key, value in batch.held.items()}
    if mapped.dialect.one_statement:
        return held | {"unstick_rows": batch.rows, "unstick_pre_image": _pre_image(mapped, batch)}
    return held | bound_ids(batch.rows) | {"unstick_pre_image": _pre_image(mapped, batch)}


def bound_ids(ids: Sequence[object]) -> Values:
    """Return the rows of a batch by their ids."""
    return writes.bound_rows([(key,) for key in ids])


def rule_values(ruling: Ruling) -> Values:
    """Return what a ruling's statements are bound to besides the rows."""
    before_since, after_since = ruling.message.split(SINCE)
    return {
        "unstick_reason": ruling.reason.value,
        "unstick_sentence": ruling.sentence,
        "unstick_before_since": before_since,
        "unstick_after_since": after_since,
    }


def post_image_values(mapped: MappedTable, ruling: Ruling, at: datetime) -> Values:
    """Return what is recorded as written to all of them, with `SINCE` where each one's sign of life is said."""
    written: dict[ColumnKey, object] = {"state": mapped.word(JobState.FAILED), "error": ruling.message}
    if mapped.has("success"):
        written["success"] = mapped.column("success").type.python_type(False)
    if mapped.has("completed_at"):
        written["completed_at"] = mapped.times["completed_at"].write(at)
    image = {mapped.stored(key).name: value for key, value in written.items() if mapped.has(key)}
    return {"unstick_post_image": json.dumps(image, default=str)}


def _stored(mapped: MappedTable) -> dict[ColumnKey, sa.ColumnElement[Any]]:
    """Return what a ruling overwrites, to be compared to the letter."""
    return {
        key: column if key == "success" or isinstance(column.type, sa.Integer) else mapped.dialect.exact(column)
        for key, column in mapped.columns(_OVERWRITTEN).items()
    }


def _guard(mapped: MappedTable, state: JobState) -> Predicate:
    alike = [
        mapped.dialect.unindexed(column).is_not_distinct_from(sa.bindparam(f"unstick_held_{key}", type_=column.type))
        for key, column in _stored(mapped).items()
    ]
    readable = [mapped.dialect.is_time(column) for column in mapped.columns(signs(state)).values()]
    return sa.and_(is_suspect(mapped, state, bound=True), _age_alone(mapped), *alike, *readable)


def _age_alone(mapped: MappedTable) -> Predicate:
    """Hold where no lease has a say: what a worker let run out is said of each job by itself."""
    return sa.not_(has_lease(mapped)) if mapped.leases else sa.true()


def _changes(mapped: MappedTable, state: JobState) -> dict[str, Any]:
    return writes.changes(mapped, writes.Way(Action.MARK_FAILED), {"detail": _message(mapped, state)})


def _record(
    mapped: MappedTable, state: JobState, changed: sa.FromClause, condition: Predicate | None = None
) -> sa.Insert:
    """Record all jobs that were changed in one row, which isn't written where there is none."""
    number = sa.func.count()
    row = sa.select(
        *writes.recorded_for_all(),
        sa.literal(state.value, _TEXT),
        _bound("reason"),
        sa.literal(Outcome.APPLIED.value, _TEXT),
        _bound("sentence"),
        _bound("pre_image"),
        _bound("post_image"),
        number,
        mapped.dialect.json_rows(changed.c.id, changed.c.since),
    ).select_from(changed)
    columns = (*writes.FOR_ALL, "state", "reason", "outcome", "detail", "pre_image", "post_image", "job_count", "jobs")
    if condition is not None:
        row = row.where(condition)
    return sa.insert(tables.recoveries).from_select(list(columns), row.having(number > 0))


def _pre_image(mapped: MappedTable, batch: Alike) -> str:
    """Return what is overwritten, as a JSON object by the table's own column names."""
    held = {mapped.stored(key).name: value for key, value in batch.held.items()}
    if mapped.has("completed_at"):
        held[mapped.stored("completed_at").name] = None
    return json.dumps(held)


def _since(mapped: MappedTable, state: JobState) -> sa.ColumnElement[Any]:
    return mapped.dialect.without_zone(since_expression(mapped, state))


def _message(mapped: MappedTable, state: JobState) -> sa.ColumnElement[str]:
    """Say in SQL what `Decision.error_message` says in Python; a test holds the two together."""
    return _bound("before_since") + mapped.dialect.said(since_expression(mapped, state)) + _bound("after_since")


def _bound(name: str) -> sa.ColumnElement[str]:
    return sa.bindparam(f"unstick_{name}", type_=_TEXT)
