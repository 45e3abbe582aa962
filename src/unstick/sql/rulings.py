"""Rulings: one decision for many suspects, carried out and recorded by the database without reading them one by one.

Guarantee: the whole rule is tested on each row as it stands when it is written, so that nothing lies between look and
write; and what is overwritten is known, for the jobs of a batch are alike in it and the write demands that they still
are. So one record serves a whole batch, with each job's id and sign of life in it.
Known weakness: jobs that are alike with few others are left to be looked at one by one, which is slower.
"""

import json
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from unstick.config import ColumnKey
from unstick.domain.job import JobState
from unstick.domain.policy import SINCE, Ruling
from unstick.domain.recovery import Action, Outcome
from unstick.sql import tables, writes
from unstick.sql.dialects import Address
from unstick.sql.mapping import TIME_KEYS, MappedTable
from unstick.sql.statements import Predicate, Values, has_lease, is_bound, is_suspect, rows_first, since_expression

_TEXT = sa.Text()
_OVERWRITTEN: tuple[ColumnKey, ...] = ("state", "success", "error")
"""What a ruling overwrites besides the completion time, which is null for every suspect."""


@dataclass(frozen=True, slots=True)
class Alike:
    """A batch of suspects of one state that hold the same in every column a ruling overwrites."""

    count: int
    rows: Any
    """Which rows: a list of ids, or on PostgreSQL their addresses, as the database itself wrote them."""
    held: Mapping[ColumnKey, Any]
    """What they hold, by the columns of `_OVERWRITTEN` that the table has."""


def addresses(mapped: MappedTable, state: JobState, size: int) -> sa.Select[Any]:
    """Read suspects by where they lie, in batches of those alike: only text crosses, no row does (PostgreSQL)."""
    stored = _stored(mapped)
    at = mapped.table.c.ctid.label("at")
    suspects = (
        sa.select(at, *_labelled(stored))
        .where(is_suspect(mapped, state), _age_alone(mapped))
        .order_by(at)
        .limit(_STRIDE)
    )
    found = suspects.subquery("suspects")
    everywhere = sa.func.array_agg(found.c.at, type_=ARRAY(Address())).label("everywhere")
    alike = sa.select(everywhere, *(found.c[key] for key in stored)).group_by(*(found.c[key] for key in stored))
    groups = alike.subquery("groups")
    number = sa.func.cardinality(groups.c.everywhere, type_=sa.Integer())
    first = sa.func.generate_series(1, number, size, type_=sa.Integer()).table_valued("first").render_derived()
    rows = sa.cast(groups.c.everywhere[slice(first.c.first, first.c.first + (size - 1))], _TEXT)
    count = sa.func.least(size, number - first.c.first + 1, type_=sa.Integer())
    return sa.select(count, rows, *(groups.c[key] for key in stored)).select_from(groups.join(first, sa.true()))


def ids(mapped: MappedTable, state: JobState) -> sa.Select[Any]:
    """Read the ids of suspects, with what a ruling would overwrite of each."""
    key = mapped.column("id")
    found = sa.select(key, *_labelled(_stored(mapped))).where(is_suspect(mapped, state), _age_alone(mapped))
    return found.order_by(key).limit(_STRIDE)


_STRIDE = sa.bindparam("stride", type_=sa.Integer())


def batches_of_addresses(mapped: MappedTable, found: Iterable[Sequence[Any]]) -> list[Alike]:
    """Read what `addresses` returned."""
    return [Alike(count, rows, _by_key(mapped, alike)) for count, rows, *alike in found]


async def batches_of_ids(mapped: MappedTable, found: AsyncIterable[Sequence[Any]], size: int) -> list[Alike]:
    """Group what `ids` yields, at most `size` together and only those alike; no more than the ids is kept."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    async for key, *alike in found:
        groups.setdefault(tuple(alike), []).append(key)
    return [
        Alike(len(rows := keys[start : start + size]), rows, _by_key(mapped, alike))
        for alike, keys in groups.items()
        for start in range(0, len(keys), size)
    ]


def _by_key(mapped: MappedTable, alike: Sequence[Any]) -> dict[ColumnKey, Any]:
    return dict(zip(_stored(mapped), alike, strict=True))


def recover_in_one(mapped: MappedTable, state: JobState, *, skip_held: bool) -> sa.Insert:
    """Change and record a batch in one statement, and return how many jobs that were (PostgreSQL).

    A row that changed after the statement's snapshot is read again, and the whole guard tested on what it is then.
    With `skip_held` rows are locked first, and those that somebody holds left out; without, they are waited for.
    """
    guard = sa.and_(mapped.dialect.is_at(mapped.table, "unstick_rows"), _guard(mapped, state))
    change = sa.update(mapped.table).where(guard).values(_changes(mapped, state))
    if skip_held:
        free = sa.select(mapped.table.c.ctid.label("at")).where(guard)
        locked = free.with_for_update(key_share=True, skip_locked=True).cte("locked")
        change = change.where(mapped.table.c.ctid == locked.c.at)
    told = change.returning(mapped.column("id").label("id"), _since(mapped, state).label("since")).cte("changed")
    return _record(mapped, state, told).returning(tables.recoveries.c.job_count)


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


def _stored(mapped: MappedTable) -> dict[ColumnKey, sa.ColumnElement[Any]]:
    """Return what a ruling overwrites, to be compared to the letter."""
    return {
        key: column if key == "success" or isinstance(column.type, sa.Integer) else mapped.dialect.exact(column)
        for key, column in mapped.columns(_OVERWRITTEN).items()
    }


def _labelled(columns: Mapping[ColumnKey, sa.ColumnElement[Any]]) -> list[sa.Label[Any]]:
    return [column.label(key) for key, column in columns.items()]


def _guard(mapped: MappedTable, state: JobState) -> Predicate:
    alike = [
        mapped.dialect.unindexed(column).is_not_distinct_from(sa.bindparam(f"unstick_held_{key}", type_=column.type))
        for key, column in _stored(mapped).items()
    ]
    readable = [mapped.dialect.is_time(column) for column in mapped.columns(TIME_KEYS).values()]
    return sa.and_(is_suspect(mapped, state, bound=True), _age_alone(mapped), *alike, *readable)


def _age_alone(mapped: MappedTable) -> Predicate:
    """Hold where no lease has a say: what a worker let run out is said of each job by itself."""
    return sa.not_(has_lease(mapped)) if mapped.leases else sa.true()


def _changes(mapped: MappedTable, state: JobState) -> dict[str, Any]:
    return writes.changes(mapped, Action.MARK_FAILED, {"detail": _message(mapped, state)})


def _record(mapped: MappedTable, state: JobState, changed: sa.FromClause) -> sa.Insert:
    """Record all jobs that were changed in one row, which isn't written where there is none."""
    number = sa.func.count()
    row = sa.select(
        *writes.recorded_for_all(),
        sa.literal(state.value, _TEXT),
        _bound("reason"),
        sa.literal(Outcome.APPLIED.value, _TEXT),
        _bound("sentence"),
        _bound("pre_image"),
        number,
        mapped.dialect.json_rows(changed.c.id, changed.c.since),
    ).select_from(changed)
    columns = (*writes.FOR_ALL, "state", "reason", "outcome", "detail", "pre_image", "job_count", "jobs")
    return sa.insert(tables.recoveries).from_select(list(columns), row.having(number > 0))


def _pre_image(mapped: MappedTable, batch: Alike) -> str:
    """Return what is overwritten, as a JSON object by the table's own column names."""
    held = {mapped.column(key).name: value for key, value in batch.held.items()}
    if mapped.has("completed_at"):
        held[mapped.column("completed_at").name] = None
    return json.dumps(held)


def _since(mapped: MappedTable, state: JobState) -> sa.ColumnElement[Any]:
    return mapped.dialect.without_zone(since_expression(mapped, state))


def _message(mapped: MappedTable, state: JobState) -> sa.ColumnElement[str]:
    """Say in SQL what `Decision.error_message` says in Python; a test holds the two together."""
    return _bound("before_since") + mapped.dialect.said(since_expression(mapped, state)) + _bound("after_since")


def _bound(name: str) -> sa.ColumnElement[str]:
    return sa.bindparam(f"unstick_{name}", type_=_TEXT)
