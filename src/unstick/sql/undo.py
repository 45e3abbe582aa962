"""The undo: rows are put back as a recovery found them, if they still are exactly as it left them.

Guarantee: each column that the recovery wrote is compared, to the letter, in the statement that writes it back, and
the undo is recorded in the same transaction. Known weakness: on MariaDB and SQLite, and after a ruling, what a host's
trigger made of our write is taken for a change of somebody else's, and left alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.job import JobId, JobState
from unstick.domain.recovery import Action, Intent, Outcome, Undo
from unstick.domain.undo import (
    CLAIMED,
    GONE,
    HELD,
    IRREVERSIBLE,
    OVERTAKEN,
    UNDONE,
    UNFIT,
    UNRECORDED,
    Undoable,
    UndoBatch,
    UndoResult,
    images,
)
from unstick.sql import tables, undone
from unstick.sql.ledger import recovery_rows
from unstick.sql.mapping import MappedTable
from unstick.sql.rescue import in_halves, need_all, record_values
from unstick.sql.statements import Predicate, Values, is_bound, rows_first, typed_id
from unstick.sql.writes import FOR_ALL, as_stored, bound_rows, recorded_for_all, way_of

_TEXT = sa.Text()
_RECORDED = ("job_id", "state", "reason", "detail", "undoes", "pre_image", "post_image")


@dataclass(frozen=True, slots=True)
class _Known:
    """A recovery whose record fits the table as it is now."""

    undoable: Undoable
    key: object
    """Its job's id, in the type of its column."""
    was: tuple[object, ...]
    left: tuple[object, ...]

    def row(self) -> tuple[object, ...]:
        """Return it as `_given` wants it."""
        it = self.undoable
        said = (str(it.job_id), it.recovery_id, it.state.value, it.reason.value, it.detail)
        return (self.key, *said, *self.was, *self.left)


_Alike = dict[tuple[str, ...], list[_Known]]
"""Recoveries by the columns that they wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undoing:
    """One batch of undos on one open transaction."""

    connection: AsyncConnection
    mapped: MappedTable
    source: str
    batch: UndoBatch
    now: datetime
    recorded: bool
    """The ledger is in this database, and each undo is recorded with it."""

    async def carry_out(self) -> UndoResult:
        """Put back the whole batch and record it; the caller commits."""
        alike, lost = self._sorted()
        applied: set[str] = set()
        refused: dict[str, str] = {}
        for names, known in alike.items():
            write = partial(self._write, names)
            done, said = await in_halves(self.connection, self.mapped.dialect, known, write, _key)
            left = [each for each in known if _key(each) not in done and _key(each) not in said]
            lost |= await self._why(names, left)
            applied |= done.keys()
            refused |= said
        lost |= await self._why_on_record([each for each in self.batch.recoveries if str(each.job_id) in lost])
        await self._record(Outcome.LOST_RACE, lost)
        await self._record(Outcome.FAILED, refused)
        by_text: dict[str, JobId] = {str(each.job_id): each.job_id for each in self.batch.recoveries}
        return UndoResult(
            applied=frozenset(by_text[key] for key in applied),
            refused={by_text[key]: said for key, said in refused.items()},
            lost={by_text[key]: said for key, said in lost.items()},
        )

    async def intend(self) -> tuple[list[Intent], Mapping[JobId, str]]:
        """Tell what carrying it out would do, and why each other job would be left alone."""
        alike, lost = self._sorted()
        intents: list[Intent] = []
        for names, known in alike.items():
            rows = await self.connection.execute(_found(self.mapped, names), self._values(known))
            there = {row.job_id: row for row in rows}
            intents += [_intent(each.undoable, row) for each in known if (row := there.get(_key(each))) is not None]
            lost |= await self._why(names, [each for each in known if _key(each) not in there])
        return intents, {
            each.job_id: lost[str(each.job_id)] for each in self.batch.recoveries if str(each.job_id) in lost
        }

    def _sorted(self) -> tuple[_Alike, dict[str, str]]:
        """Sort recoveries by the columns they wrote, and say why some can't be undone at all."""
        alike: _Alike = {}
        lost: dict[str, str] = {}
        for each in self.batch.recoveries:
            if not way_of(self.mapped, each.action, each.state).is_one_write:
                lost[str(each.job_id)] = IRREVERSIBLE
                continue
            found = images(each)
            if found is None or found[0].keys() - self.mapped.table.c.keys():
                lost[str(each.job_id)] = UNRECORDED if found is None else UNFIT
                continue
            names = tuple(sorted(found[0]))
            was, left = (tuple(image[name] for name in names) for image in found)
            try:
                key = typed_id(self.mapped, each.job_id)
            except ValueError:
                lost[str(each.job_id)] = GONE
                continue
            alike.setdefault(names, []).append(_Known(each, key, was, left))
        return alike, lost

    async def _write(self, names: tuple[str, ...], known: Sequence[_Known]) -> dict[str, str]:
        """Put back those that are as they were left; returns them by job."""
        mapped, values = self.mapped, self._values(known)
        if mapped.dialect.one_statement:
            statement = _put_back_in_one(mapped, names, recorded=self.recorded)
            return {row.job_id: "" for row in await self.connection.execute(statement, values)}
        locked = {row.job_id: "" for row in await self.connection.execute(_lock(mapped, names), values)}
        if locked:
            values = self._values([each for each in known if _key(each) in locked])
            if self.recorded:
                await self.connection.execute(_record(_found(mapped, names).subquery("found")), values)
            need_all(await self.connection.execute(_put_back_locked(mapped, names), values), len(locked))
        return locked

    async def _why(self, names: tuple[str, ...], left: Sequence[_Known]) -> dict[str, str]:
        """Say of jobs that were left alone what stood in the way, by their rows as they stand now."""
        if not left:
            return {}
        rows = await self.connection.execute(_standing(self.mapped, names), self._values(left))
        now = {row.job_id: row for row in rows}
        return {_key(each): _sentence(self.mapped, names, each, now.get(_key(each))) for each in left}

    async def _why_on_record(self, lost: Sequence[Undoable]) -> dict[str, str]:
        """Say what the ledger knows better, where it is in this database: it was read some time ago."""
        if not lost or not self.recorded:
            return {}
        again = await undone.standing(self.connection, self.source, lost)
        return {
            key: UNDONE if each.undone else OVERTAKEN for key, each in again.items() if each.undone or each.overtaken
        }

    async def _record(self, outcome: Outcome, said: Mapping[str, str]) -> None:
        """Record undos that changed nothing."""
        nothing = [
            each.came_to(outcome, said[str(each.job_id)]) for each in self.batch.recoveries if str(each.job_id) in said
        ]
        if nothing and self.recorded:
            rows = recovery_rows(self.source, self.batch.operation_id, nothing, self.now)
            await self.connection.execute(sa.insert(tables.recoveries), rows)

    def _values(self, known: Sequence[_Known]) -> Values:
        return bound_rows([each.row() for each in known]) | record_values(
            self.source, Undo.UNDO, self.batch.operation_id, self.now
        )


def _key(known: _Known) -> str:
    return str(known.undoable.job_id)


def _intent(undoable: Undoable, row: sa.Row[Any]) -> Intent:
    return Intent(
        job_id=undoable.job_id,
        state=undoable.state,
        action=Undo.UNDO,
        reason=undoable.reason,
        detail=undoable.detail,
        pre_image=row.pre_image,
        post_image=row.post_image,
        undoes=undoable.recovery_id,
    )


def _sentence(mapped: MappedTable, names: Sequence[str], known: _Known, row: sa.Row[Any] | None) -> str:
    if row is None:
        return GONE
    others = [name for place, name in enumerate(names) if not row[place + 2]]
    state = mapped.declared.columns.get("state")
    if not others:
        return HELD
    if state is not None and state not in others:
        return f"it was changed since: {others[0]} is another"
    word = str(row.word).rstrip()
    if known.undoable.action is Action.RETRY and mapped.state_of(word) is JobState.RUNNING:
        return CLAIMED
    return f"it was changed since: {state or others[0]} is now {word}"


# The statements. `given` are the rows of a batch, with what was there before the recovery (`was`) and what it `left`.


def _given(mapped: MappedTable, names: Sequence[str]) -> sa.Subquery:
    types = {"id": mapped.column("id").type, "job_id": _TEXT, "undoes": sa.BigInteger()}
    types |= {"state": _TEXT, "reason": _TEXT, "detail": _TEXT}
    for image in ("was", "left"):
        types |= {f"{image}_{place}": _type(mapped, name) for place, name in enumerate(names)}
    return mapped.dialect.rows(types).subquery("given")


def _type(mapped: MappedTable, name: str) -> sa.types.TypeEngine[Any]:
    type_ = mapped.table.c[name].type
    # SQLite's times are text, and stay as they were spelt.
    return sa.String() if mapped.dialect.name == "sqlite" and isinstance(type_, sa.DateTime) else type_


def _is(mapped: MappedTable, name: str, value: sa.ColumnElement[Any]) -> Predicate:
    """Hold where a column holds a value, to the letter."""
    column = mapped.dialect.unindexed(sa.type_coerce(mapped.table.c[name], _type(mapped, name)))
    if isinstance(column.type, sa.String):
        return mapped.dialect.exact(column).is_not_distinct_from(mapped.dialect.exact(value))
    stored = as_stored(mapped, name, value)
    return mapped.dialect.comparable(column).is_not_distinct_from(mapped.dialect.comparable(stored))


def _as_left(mapped: MappedTable, names: Sequence[str], given: sa.FromClause) -> Predicate:
    same = [_is(mapped, name, given.c[f"left_{place}"]) for place, name in enumerate(names)]
    return sa.and_(is_bound(mapped, given), *same)


def _before(mapped: MappedTable, names: Sequence[str], given: sa.FromClause) -> dict[str, sa.ColumnElement[Any]]:
    """Return what is written back, by the table's own column names."""
    values: dict[str, sa.ColumnElement[Any]] = {name: given.c[f"was_{place}"] for place, name in enumerate(names)}
    if "token" in mapped.declared.columns and (token := mapped.stored("token")).name in values:
        # Whoever holds the old one is the attempt that gets its job back. A queued job has none: there it goes on.
        runs = given.c.state == JobState.RUNNING.value
        values[token.name] = sa.case((runs, values[token.name]), else_=token)
    if mapped.leases:
        # A worker that lost its job runs it no longer, for all it knows: its lease would vouch for nobody's work.
        worker = mapped.stored("worker")
        there = values.get(worker.name, worker)
        nobody = sa.null() if worker.nullable else sa.literal("", worker.type)
        values[worker.name] = sa.case((_has_lease(mapped, there), nobody), else_=there)
    return values


def _has_lease(mapped: MappedTable, worker: sa.ColumnElement[Any]) -> Predicate:
    lease = tables.leases
    return sa.exists().where(lease.c.id == mapped.dialect.as_name(worker)).correlate_except(lease)


def _found(mapped: MappedTable, names: Sequence[str]) -> sa.Select[Any]:
    """Read what is recorded of those that are as they were left: what is overwritten now, and what is written."""
    given = _given(mapped, names)
    written = {name: as_stored(mapped, name, value) for name, value in _before(mapped, names, given).items()}
    columns = [given.c[name] for name in ("job_id", "state", "reason", "detail", "undoes")]
    overwritten = mapped.dialect.json_object({name: mapped.table.c[name] for name in written})
    image = mapped.dialect.json_object(written)
    read = sa.select(*columns, overwritten.label("pre_image"), image.label("post_image"))
    joined = read.select_from(given.join(mapped.table, mapped.column("id") == given.c.id))
    return rows_first(joined.where(_as_left(mapped, names, given)))


def _put_back_in_one(mapped: MappedTable, names: Sequence[str], *, recorded: bool) -> sa.Select[Any]:
    """Lock, compare, put back and record a batch in one statement, and return which jobs those were (PostgreSQL)."""
    given, key = _given(mapped, names), mapped.column("id")
    overwritten = mapped.dialect.json_object({name: mapped.table.c[name] for name in _before(mapped, names, given)})
    locked = (
        sa.select(*given.c, overwritten.label("pre_image"), mapped.table.c.ctid.label("locked_at"))
        .select_from(given.join(mapped.table, key == given.c.id))
        .where(_as_left(mapped, names, given))
        .with_for_update(skip_locked=True, key_share=True)
        .cte("locked")
    )
    values = _before(mapped, names, locked)
    # Where no column is the state, any that was written tells whether a trigger kept the row as it was.
    told_by = mapped.declared.columns.get("state", names[0])
    put_back = (
        sa.update(mapped.table)
        .where(key == locked.c.id, mapped.table.c.ctid == locked.c.locked_at)
        .values(values)
        .returning(
            *(locked.c[name] for name in _RECORDED[:-1]),
            mapped.dialect.json_object({name: mapped.table.c[name] for name in values}).label("post_image"),
            mapped.dialect.exact(mapped.table.c[told_by]).label("now_is"),
            mapped.dialect.exact(locked.c[f"was_{names.index(told_by)}"]).label("was"),
        )
        .cte("put_back")
    )
    # A trigger that keeps a row as it was leaves nothing to be recorded.
    kept = sa.select(put_back).where(put_back.c.now_is.is_not_distinct_from(put_back.c.was)).cte("kept")
    if not recorded:
        return sa.select(kept.c.job_id)
    return sa.select(kept.c.job_id).add_cte(_record(kept).returning(tables.recoveries.c.job_id).cte("recorded"))


def _lock(mapped: MappedTable, names: Sequence[str]) -> sa.Select[Any]:
    """Lock those that are as they were left, skipping what somebody holds."""
    given = _given(mapped, names)
    joined = sa.select(given.c.job_id).select_from(given.join(mapped.table, mapped.column("id") == given.c.id))
    return rows_first(joined.where(_as_left(mapped, names, given))).with_for_update(skip_locked=True)


def _put_back_locked(mapped: MappedTable, names: Sequence[str]) -> sa.Update:
    """Put them back: the whole comparison once more, in the write itself."""
    given = _given(mapped, names)
    return sa.update(mapped.table).where(_as_left(mapped, names, given)).values(_before(mapped, names, given))


def _record(found: sa.FromClause) -> sa.Insert:
    row = sa.select(
        *recorded_for_all(), *(found.c[name] for name in _RECORDED), sa.literal(Outcome.APPLIED.value, sa.String())
    )
    return sa.insert(tables.recoveries).from_select([*FOR_ALL, *_RECORDED, "outcome"], row)


def _standing(mapped: MappedTable, names: Sequence[str]) -> sa.Select[Any]:
    """Read the rows as they stand now: the state's word, and which columns are as they were left."""
    given = _given(mapped, names)
    same = [_is(mapped, name, given.c[f"left_{place}"]).label(f"same_{place}") for place, name in enumerate(names)]
    read = sa.select(given.c.job_id, mapped.dialect.exact(mapped.column("state")).label("word"), *same)
    joined = read.select_from(given.join(mapped.table, mapped.column("id") == given.c.id))
    return rows_first(joined)
