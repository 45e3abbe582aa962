"""Who leads each source, in a table of Unstick's own: one row a source, compared and set by the database's clock.

No session lock is held, so that it works behind a pooler that gives each transaction another connection.
"""

from datetime import timedelta

import sqlalchemy as sa

from unstick.domain.leadership import Leadership
from unstick.sql.connections import Connections
from unstick.sql.tables import leaders
from unstick.sql.upserting import upsert


class SqlLeaders:
    """Leases of sources in a SQL database."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def claim(self, source: str, holder: str, lasting: timedelta) -> Leadership | None:
        """Take a source's lease if nobody holds it, or renew one's own."""
        async with self._connections.writing() as (connection, now):
            none_yet = {"source": source, "holder": None, "term": 0, "expires_at": now}
            stays = {"source": source}
            await connection.execute(upsert(self._connections.dialect.name, leaders, "source", none_yet, stays))
            mine = sa.and_(leaders.c.holder == holder, leaders.c.expires_at > now)
            over = sa.or_(leaders.c.holder.is_(None), leaders.c.expires_at <= now)
            taken = sa.update(leaders).where(leaders.c.source == source, sa.or_(mine, over))
            # The term first: MariaDB and MySQL set columns one after another, and it is told by the old holder.
            done = await connection.execute(
                taken.ordered_values(
                    (leaders.c.term, leaders.c.term + sa.case((mine, 0), else_=1)),
                    (leaders.c.holder, holder),
                    (leaders.c.expires_at, now + lasting),
                )
            )
            if not done.rowcount:
                return None
            term = (await connection.execute(sa.select(leaders.c.term).where(leaders.c.source == source))).scalar_one()
        return Leadership(source=source, holder=holder, term=term)

    async def release(self, leadership: Leadership) -> None:
        """Give a lease back."""
        held = sa.and_(
            leaders.c.source == leadership.source,
            leaders.c.holder == leadership.holder,
            leaders.c.term == leadership.term,
        )
        async with self._connections.writing() as (connection, now):
            await connection.execute(sa.update(leaders).where(held).values(holder=None, expires_at=now))
