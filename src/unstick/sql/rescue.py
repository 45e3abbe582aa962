"""The guarded write: a batch is locked, compared, changed and recorded in one transaction.

A row the database refuses (a constraint, a trigger, a value too long) rolls back to a savepoint; the batch is
then split until that row stands alone, is recorded as failed with what the database said, and the others go on.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
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
from unstick.sql import rulings, statements, tables, writes
from unstick.sql.dialects import Dialect
from unstick.sql.ledger import recovery_rows
from unstick.sql.mapping import MappedTable


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
        statement = writes.intended(self.mapped, self.batch.action, writes.by_decision(self.mapped))
        rows = await self.connection.execute(statement, self._values(self.batch.decisions))
        decisions = {_key(decision): decision for decision in self.batch.decisions}
        return [_intent(self.batch.action, decisions[row.job_id], row) for row in rows]

    async def carry_out(self) -> BatchResult:
        """Write the whole batch and its records; the caller commits."""
        decisions = self.batch.decisions
        applied, refused = await self._attempt(decisions)
        lost = [d for d in decisions if _key(d) not in applied and _key(d) not in refused]
        await self._record(lost, Outcome.LOST_RACE, {})
        await self._record([d for d in decisions if _key(d) in refused], Outcome.FAILED, refused)
        done = [d for d in decisions if _key(d) in applied]
        return BatchResult(
            applied=frozenset(d.suspect.job_id for d in done),
            refused={d.suspect.job_id: refused[_key(d)] for d in decisions if _key(d) in refused},
            pre_images={} if self.recorded else {d.suspect.job_id: applied[_key(d)] for d in done},
        )

    async def _attempt(self, decisions: Sequence[Decision]) -> tuple[dict[str, str], dict[str, str]]:
        """Return what was overwritten of each job that was changed, and what the database said of each it refused."""
        return await in_halves(self.connection, self.mapped.dialect, decisions, self._write, _key)

    async def _write(self, decisions: Sequence[Decision]) -> dict[str, str]:
        """Return the pre-image of each job that was changed; an empty one where it is recorded already."""
        found, values = writes.by_decision(self.mapped), self._values(decisions)
        action, recorded = self.batch.action, self.recorded
        if self.mapped.dialect.one_statement:
            statement = writes.recover_in_one(self.mapped, action, found, recorded=recorded)
            return {row[0]: row[1] for row in await self.connection.execute(statement, values)}
        lock = writes.lock(self.mapped, action, found, recorded=recorded)
        locked = {key: image for _, key, image in await self.connection.execute(lock, values)}
        if locked:
            values = self._values([d for d in decisions if _key(d) in locked])
            if recorded:
                await self.connection.execute(writes.record_locked(self.mapped, action, found), values)
            need_all(
                await self.connection.execute(writes.change_locked(self.mapped, action, found), values), len(locked)
            )
        return locked

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
        if not self.mapped.has("scheduled_at") or self.batch.action is not Action.RETRY:
            return None
        return self.mapped.times["scheduled_at"].write(self.now + decision.wait)

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
