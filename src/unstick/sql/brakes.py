"""Held brakes and the last pass over each source, in tables of Unstick's own: they outlive every process."""

import sqlalchemy as sa

from unstick.domain.brake import Brake, Pass
from unstick.domain.wording import keep_phrase, read_phrase
from unstick.sql.connections import Connections
from unstick.sql.tables import brakes, passes
from unstick.sql.upserting import upsert


class SqlBrakes:
    """Brakes and passes in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def find(self, source: str) -> Brake | None:
        """Return the brake of a source, released or not."""
        async with self._connections.reading() as (connection, _):
            row = (
                (await connection.execute(sa.select(brakes).where(brakes.c.source == source))).mappings().one_or_none()
            )
        return None if row is None else _read(row)

    async def pull(self, brake: Brake) -> Brake:
        """Hold a source, unless it is held already, and return the brake that holds."""
        row = {column.name: getattr(brake, column.name) for column in brakes.c} | {"cause": keep_phrase(brake.cause)}
        async with self._connections.writing() as (connection, _):
            released = sa.delete(brakes).where(brakes.c.source == brake.source, brakes.c.released_at.is_not(None))
            await connection.execute(released)
            # Where one holds already it stays as it is.
            held = {"source": brake.source}
            await connection.execute(upsert(self._connections.dialect.name, brakes, "source", row, held))
            there = await connection.execute(sa.select(brakes).where(brakes.c.source == brake.source))
            return _read(there.mappings().one())

    async def release(self, source: str, by: str) -> Brake | None:
        """Release the brake of a source, and return it; None where none was held."""
        held = sa.and_(brakes.c.source == source, brakes.c.released_at.is_(None))
        async with self._connections.writing() as (connection, now):
            done = await connection.execute(sa.update(brakes).where(held).values(released_at=now, released_by=by))
            if not done.rowcount:
                return None
            row = (await connection.execute(sa.select(brakes).where(brakes.c.source == source))).mappings().one()
        return _read(row)

    async def strike(self, brake: Brake) -> None:
        """Forget a released brake: what it let through has been done."""
        this = sa.and_(brakes.c.source == brake.source, brakes.c.released_at == brake.released_at)
        async with self._connections.writing() as (connection, _):
            await connection.execute(sa.delete(brakes).where(this))

    async def last_pass(self, source: str) -> Pass | None:
        """Return the last unattended pass over a source."""
        async with self._connections.reading() as (connection, _):
            chosen = sa.select(passes.c.at, passes.c.back_at).where(passes.c.source == source)
            row = (await connection.execute(chosen)).mappings().one_or_none()
        return None if row is None else Pass(**row)

    async def note_pass(self, source: str, this: Pass) -> None:
        """Keep a pass as the last one."""
        row = {"source": source, "at": this.at, "back_at": this.back_at}
        async with self._connections.writing() as (connection, _):
            await connection.execute(upsert(self._connections.dialect.name, passes, "source", row, row))


def _read(row: sa.RowMapping) -> Brake:
    return Brake(**{**row, "cause": read_phrase(row["cause"])})
