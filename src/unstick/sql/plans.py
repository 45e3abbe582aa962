"""Plans in tables of Unstick's own, a page at a time: neither memory nor a statement ever holds all of one."""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from unstick.domain.audit import AuditEntry
from unstick.domain.plan import KeptPage, Plan, PlanDraft
from unstick.sql.connections import Connections
from unstick.sql.ledger import audit_row, new_id
from unstick.sql.tables import audit, plan_pages, plans


class SqlPlans:
    """Plans in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def begin(self, plan: PlanDraft, lifetime: timedelta) -> Plan:
        """Begin to keep a plan, which expires after its lifetime by the database's clock."""
        async with self._connections.writing() as (connection, now):
            begun = Plan(
                id=plan.id,
                source=plan.source,
                made_by=plan.made_by,
                made_at=now,
                expires_at=now + lifetime,
                terms=plan.terms,
            )
            await connection.execute(sa.insert(plans).values({name: getattr(begun, name) for name in _KEPT}))
        return begun

    async def add(self, plan_id: str, page: KeptPage) -> None:
        """Keep a page of a plan that is being made."""
        row = {"plan_id": plan_id, "number": page.number, "content": page.content, "signature": page.signature}
        async with self._connections.writing() as (connection, _):
            await connection.execute(sa.insert(plan_pages).values(row))

    async def finish(self, plan: Plan) -> None:
        """Keep how many jobs and pages a plan has come to, and its signature."""
        values = {"jobs": plan.jobs, "pages": plan.pages, "signature": plan.signature}
        async with self._connections.writing() as (connection, _):
            await connection.execute(sa.update(plans).where(plans.c.id == plan.id).values(values))

    async def find(self, plan_id: str) -> Plan | None:
        """Return a plan's head."""
        async with self._connections.reading() as (connection, now):
            row = (await connection.execute(sa.select(plans).where(plans.c.id == plan_id))).mappings().one_or_none()
        return None if row is None else _plan(row, now)

    async def page(self, plan_id: str, number: int) -> KeptPage | None:
        """Return a page of a plan."""
        columns = (plan_pages.c.number, plan_pages.c.content, plan_pages.c.signature)
        this = sa.and_(plan_pages.c.plan_id == plan_id, plan_pages.c.number == number)
        async with self._connections.reading() as (connection, _):
            row = (await connection.execute(sa.select(*columns).where(this))).mappings().one_or_none()
        return None if row is None else KeptPage(**row)

    async def claim(self, plan: Plan, entry: AuditEntry) -> int | None:
        """Begin the operation that applies a plan, if nobody has and it hasn't expired: a compare-and-set."""
        this = sa.and_(plans.c.id == plan.id, plans.c.applied_at.is_(None))
        async with self._connections.writing() as (connection, now):
            if plan.expires_at <= now:
                return None
            claimed = await connection.execute(
                sa.update(plans).where(this).values(applied_by=entry.actor[:255], applied_at=now)
            )
            if not claimed.rowcount:
                return None
            operation_id = new_id(await connection.execute(sa.insert(audit).values(audit_row(entry, now))))
            begun = sa.update(plans).where(plans.c.id == plan.id).values(operation_id=operation_id)
            await connection.execute(begun)
            return operation_id

    async def has_ended(self, operation_id: int) -> bool:
        """Tell whether the end of an operation is in the audit log."""
        # By the key, for an end comes after its beginning: nothing else is indexed.
        later = sa.select(audit.c.id).where(audit.c.id > operation_id, audit.c.operation_id == operation_id).limit(1)
        async with self._connections.reading() as (connection, _):
            return (await connection.execute(later)).first() is not None

    async def strike(self, older_than: timedelta, most: int) -> int:
        """Forget at most so many of the plans that expired so long ago, leaving those that another one strikes."""
        async with self._connections.writing() as (connection, now):
            old = sa.select(plans.c.id).where(plans.c.expires_at <= now - older_than).order_by(plans.c.expires_at)
            ids = list(await connection.scalars(old.limit(most).with_for_update(skip_locked=True)))
            if ids:
                await connection.execute(sa.delete(plan_pages).where(plan_pages.c.plan_id.in_(ids)))
                await connection.execute(sa.delete(plans).where(plans.c.id.in_(ids)))
        return len(ids)


_KEPT = tuple(column.name for column in plans.c)


def _plan(row: sa.RowMapping, now: datetime) -> Plan:
    kept: dict[str, Any] = {name: row[name] for name in _KEPT}
    return Plan(**kept, is_expired=row["expires_at"] <= now)
