"""The guarded write: a batch is locked, compared, changed and recorded in one transaction.

A row the database refuses (a constraint, a trigger, a value too long) rolls back to a savepoint; the batch is
then split until that row stands alone, is recorded as failed with what the database said, and the others go on.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.domain.policy import Ruling
from unstick.domain.recovery import (
    LOST_RACE,
    Action,
    Batch,
    BatchResult,
    Decision,
    Deed,
    Intent,
    Outcome,
    Recovery,
)
from unstick.domain.suspect import Look
from unstick.presets.preset import Write
from unstick.sql import rulings, statements, tables, writes
from unstick.sql.dialects import Dialect
from unstick.sql.ledger import recovery_rows
from unstick.sql.mapping import MappedTable
from unstick.sql.own_writes import OwnWrite, as_foretold


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue:
    """One batch on one open transaction."""

    connection: AsyncConnection
    mapped: MappedTable
    source: str
    batch: Batch
    now: datetime
    recorded: bool
    """The ledger is in this database, and each change is recorded with it."""

    async def intend(self) -> list[Intent]:
        """Tell what carrying it out would do, job by job; what changed since the look is left out."""
        intents: list[Intent] = []
        for way, alike in self._by_way():
            statement = writes.intended(self.mapped, way, writes.by_decision(self.mapped))
            rows = await self.connection.execute(statement, self._values(alike))
            decisions = {_key(decision): decision for decision in alike}
            intents += [_intent(self.batch.action, decisions[row.job_id], row) for row in rows]
        return intents

    async def carry_out(self) -> BatchResult:
        """Write the whole batch and its records; the caller commits."""
        decisions = self.batch.decisions
        applied, refused = await self._attempt()
        lost = [d for d in decisions if _key(d) not in applied and _key(d) not in refused]
        await self._record(lost, Outcome.LOST_RACE, {})
        await self._record([d for d in decisions if _key(d) in refused], Outcome.FAILED, refused)
        done = [d for d in decisions if _key(d) in applied]
        return BatchResult(
            applied=frozenset(d.suspect.job_id for d in done),
            refused={d.suspect.job_id: refused[_key(d)] for d in decisions if _key(d) in refused},
            pre_images={} if self.recorded else {d.suspect.job_id: applied[_key(d)] for d in done},
        )

    async def _attempt(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return what was overwritten of each job that was changed, and what the database said of each it refused."""
        applied: dict[str, str] = {}
        refused: dict[str, str] = {}
        for way, alike in self._by_way():
            write = partial(self._write, way)
            done, said = await in_halves(self.connection, self.mapped.dialect, alike, write, _key)
            applied |= done
            refused |= said
        return applied, refused

    def _by_way(self) -> Iterator[tuple[writes.Way, list[Decision]]]:
        """Part the batch by how it is carried out: in one way, unless a preset tells one for each state."""
        left = self.batch.decisions
        while left:
            way = writes.way_of(self.mapped, self.batch.action, left[0].suspect.state)
            alike = [each for each in left if way.told is None or way.told.is_of(each.suspect.state)]
            yield way, alike
            left = [] if len(alike) == len(left) else [each for each in left if each not in alike]

    async def _write(self, way: writes.Way, decisions: Sequence[Decision]) -> dict[str, str]:
        """Return the pre-image of each job that was changed; an empty one where it is recorded already."""
        found = writes.by_decision(self.mapped)
        if self.mapped.dialect.one_statement and way.is_one_write and not self.mapped.looks_elsewhere:
            statement = writes.recover_in_one(self.mapped, way, found, recorded=self.recorded)
            rows = await self.connection.execute(statement, self._values(decisions))
            changed = {row[0]: row[1] for row in rows}
            await self._wake(way, decisions, changed)
            return changed
        locked = await self._lock(way, decisions)
        if self.mapped.looks_elsewhere:
            # Now that nobody else can change these rows, what other tables say of them is read anew.
            locked = await self._lock(way, [d for d in decisions if _key(d) in locked])
        if locked:
            await self._change(way, [d for d in decisions if _key(d) in locked])
            await self._wake(way, decisions, locked)
        return locked

    async def _lock(self, way: writes.Way, decisions: Sequence[Decision]) -> dict[str, str]:
        """Return what is to be overwritten of those that are as they were seen, and are ours now."""
        if not decisions:
            return {}
        lock = writes.lock(self.mapped, way, writes.by_decision(self.mapped), recorded=self.recorded)
        return {key: image for _, key, image in await self.connection.execute(lock, self._values(decisions))}

    async def _change(self, way: writes.Way, decisions: Sequence[Decision]) -> None:
        """Record locked rows and change them, all of them or none."""
        if way.told is not None:
            await self._change_as_told(way, way.told, decisions)
            return
        values, found = self._values(decisions), writes.by_decision(self.mapped)
        if self.recorded:
            await self.connection.execute(writes.record_locked(self.mapped, way, found), values)
        need_all(await self.connection.execute(writes.change_locked(self.mapped, way, found), values), len(decisions))

    async def _change_as_told(self, way: writes.Way, told: Write, decisions: Sequence[Decision]) -> None:
        """Do it as a preset tells, on rows that are ours: what it changes elsewhere may be what they were found by."""
        values, held = self._values(decisions), writes.held(self.mapped, writes.by_decision(self.mapped))
        foretold = await self._foretold(way, held, values) if told.call is not None else {}
        if self.recorded:
            await self.connection.execute(writes.record_locked(self.mapped, way, held), values)
        own = self._own(told, decisions)
        if not await own.prepare(len(decisions)):
            raise NotAllChangedError
        if told.call is None:
            changed = await self.connection.execute(writes.change_locked(self.mapped, way, held), values)
            need_all(changed, len(decisions))
            return
        await own.call(told.call)
        if not as_foretold(foretold, await self._images(told, decisions)):
            raise NotAllChangedError

    async def _foretold(self, way: writes.Way, held: writes.Found, values: statements.Values) -> dict[str, str]:
        rows = await self.connection.execute(writes.intended(self.mapped, way, held), values)
        return {row.job_id: row.post_image for row in rows}

    async def _images(self, told: Write, decisions: Sequence[Decision]) -> dict[str, str]:
        rows = [(d.suspect.seen[0], _key(d)) for d in decisions]
        found = await self.connection.execute(writes.images_now(self.mapped, tuple(told.set)), writes.bound_rows(rows))
        return {row[0]: row[1] for row in found}

    async def _wake(self, way: writes.Way, decisions: Sequence[Decision], changed: Mapping[str, str]) -> None:
        if way.told is not None and changed:
            await self._own(way.told, [d for d in decisions if _key(d) in changed]).wake()

    def _own(self, told: Write, decisions: Sequence[Decision]) -> OwnWrite:
        found, values = writes.by_decision(self.mapped), self._values(decisions)
        return OwnWrite(connection=self.connection, mapped=self.mapped, told=told, found=found, values=values)

    def _values(self, decisions: Sequence[Decision]) -> statements.Values:
        rows = [writes.seen_row(d, self._detail(d), self._due(d)) for d in decisions]
        return self._common() | writes.bound_rows(rows)

    def _common(self) -> statements.Values:
        return write_values(self.mapped, self.batch.look, self.now) | record_values(
            self.source, self.batch.action, self.batch.operation_id, self.now
        )

    def _detail(self, decision: Decision) -> str:
        if self.batch.action is Action.MARK_FAILED:
            return decision.error_message(self.batch.look, self.mapped.error_length)
        return decision.sentence

    def _due(self, decision: Decision) -> object:
        form = writes.due_form(self.mapped)
        return None if form is None or self.batch.action is not Action.RETRY else form.write(self.now + decision.wait)

    async def _record(self, decisions: Sequence[Decision], outcome: Outcome, said: dict[str, str]) -> None:
        """Record decisions that changed nothing."""
        if not decisions or not self.recorded:
            return
        recoveries = [
            Recovery(
                job_id=decision.suspect.job_id,
                state=decision.suspect.state,
                action=self.batch.action,
                reason=decision.reason,
                outcome=outcome,
                detail=said.get(_key(decision), LOST_RACE),
            )
            for decision in decisions
        ]
        rows = recovery_rows(self.source, self.batch.operation_id, recoveries, self.now)
        await self.connection.execute(sa.insert(tables.recoveries), rows)


_Item = TypeVar("_Item")


async def in_halves(
    connection: AsyncConnection,
    dialect: Dialect,
    items: Sequence[_Item],
    write: Callable[[Sequence[_Item]], Awaitable[dict[str, str]]],
    key: Callable[[_Item], str],
) -> tuple[dict[str, str], dict[str, str]]:
    """Write all items at once, or in ever smaller parts until what the database refuses stands alone.

    Returns what `write` returned of each item that was written, and what the database said of each it refused. After a
    deadlock MariaDB has neither the savepoint any more nor what stood before it: that is for the caller to do again.
    """
    savepoint = await connection.begin_nested()
    try:
        written = await write(items)
        await savepoint.commit()
    except NotAllChangedError:
        said = "the database took the write and left the row as it was"
    except DBAPIError as error:
        splits = dialect.refuses_row(error) or dialect.is_slow(error)
        if error.connection_invalidated or not splits:
            raise
        said = said_by_database(error)
    else:
        return written, {}
    await savepoint.rollback()
    if len(items) == 1:
        return {}, {key(items[0]): said}
    middle = len(items) // 2
    applied, refused = await in_halves(connection, dialect, items[:middle], write, key)
    more_applied, more_refused = await in_halves(connection, dialect, items[middle:], write, key)
    return applied | more_applied, refused | more_refused


def _intent(action: Action, decision: Decision, row: sa.Row[Any]) -> Intent:
    return Intent(
        job_id=decision.suspect.job_id,
        state=decision.suspect.state,
        action=action,
        reason=decision.reason,
        detail=row.detail,
        pre_image=row.pre_image,
        post_image=row.post_image,
    )


@dataclass(frozen=True, kw_only=True)
class RuledRescue:
    """A ruling, to be applied to one batch after another; its statements are built once."""

    mapped: MappedTable
    source: str
    ruling: Ruling
    look: Look
    operation_id: int

    async def carry_out(
        self, connection: AsyncConnection, now: datetime, batch: rulings.Alike, *, skip_held: bool
    ) -> int:
        """Write and record what the ruling holds for, and return how many jobs that is; the caller commits.

        Raises:
            NotAllChangedError: the database took the write and left some as they were.
        """
        values = self._values(now) | rulings.batch_values(self.mapped, batch)
        if self.mapped.dialect.one_statement:
            await rulings.expect_addresses(connection, waits=not skip_held)
            locks = skip_held or self.mapped.triggered
            return (await connection.execute(self._locking if locks else self._waiting, values)).scalar() or 0
        lock, record, change = self._stepwise
        locked = (await connection.execute(lock, values)).scalars().all()
        if locked:
            values |= rulings.bound_ids(locked)
            await connection.execute(record, values)
            need_all(await connection.execute(change, values), len(locked))
        return len(locked)

    @cached_property
    def _waiting(self) -> sa.Insert:
        return rulings.recover_in_one(self.mapped, self.ruling.state, lock=False)

    @cached_property
    def _locking(self) -> sa.Insert:
        return rulings.recover_in_one(self.mapped, self.ruling.state, lock=True)

    @cached_property
    def _stepwise(self) -> tuple[sa.Select[Any], sa.Insert, sa.Update]:
        mapped, state = self.mapped, self.ruling.state
        return (
            rulings.lock(mapped, state),
            rulings.record_locked(mapped, state),
            rulings.change_locked(mapped, state),
        )

    def _values(self, now: datetime) -> statements.Values:
        return (
            write_values(self.mapped, self.look, now)
            | record_values(self.source, self.ruling.action, self.operation_id, now)
            | rulings.rule_values(self.ruling)
            | rulings.post_image_values(self.mapped, self.ruling, now)
        )


def need_all(changed: sa.CursorResult[Any], number: int) -> None:
    """Refuse a write that left some of its rows as they were."""
    if changed.rowcount != number:
        raise NotAllChangedError


def write_values(mapped: MappedTable, look: Look, now: datetime) -> statements.Values:
    """Return what every guarded write is bound to: the look's horizons, and the instant it writes."""
    return statements.look_values(mapped, look) | writes.at_values(mapped, now)


def record_values(source: str, action: Deed, operation_id: int, now: datetime) -> statements.Values:
    """Return what every record is bound to."""
    return {
        "unstick_operation_id": operation_id,
        "unstick_source": source,
        "unstick_action": action.value,
        "unstick_recorded_at": now,
    }


class NotAllChangedError(Exception):
    """The database took a write and left rows as they were: a trigger or rule did."""


def _key(decision: Decision) -> str:
    return str(decision.suspect.job_id)


def said_by_database(error: DBAPIError) -> str:
    """Return the database's own first line about an error."""
    return (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
