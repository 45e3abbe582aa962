"""Words that open jobs hold and the mapping gives no meaning: a mistyped one would hide every job in it.

Known weakness: only the newest jobs are looked at, so that finished ones cost nothing however many there are; where
the mapping knows no order by which jobs are new, a sample by their key.
"""

from typing import Any

import sqlalchemy as sa

from unstick.domain.job import JobState
from unstick.sql.connections import Connections
from unstick.sql.mapping import JobTable, MappedTable
from unstick.sql.reflection import mapped_table

NEWEST_JOBS = 10_000
_MOST_WORDS = 5
"""More than this nobody reads; the commonest are told."""


async def unmapped_words(connections: Connections, declared: JobTable) -> tuple[str, ...]:
    """Return the words of the newest open jobs that no state is mapped to, the commonest first."""
    async with connections.reading() as (connection, _):
        mapped = await mapped_table(connections, connection, declared)
        words = (await connection.execute(unmapped(mapped))).scalars()
        return tuple(str(word) for word in words)


def unmapped(mapped: MappedTable) -> sa.Select[Any]:
    """Read the words, compared as the database compares them: where it tells capitals apart, so must this."""
    newest, _ = mapped.newest_first
    columns = mapped.columns(("state", "completed_at"))
    labelled = (column.label(key) for key, column in columns.items())
    rows = sa.select(*labelled).select_from(mapped.table)
    sample = rows.order_by(newest.desc()).limit(NEWEST_JOBS).subquery("newest")
    is_open = sample.c.completed_at.is_(None) if "completed_at" in columns else sa.true()
    state = sample.c.state
    return (
        sa.select(state)
        .where(is_open, state.not_in(mapped.words(*JobState)))
        .group_by(state)
        .order_by(sa.func.count().desc(), state)
        .limit(_MOST_WORDS)
    )
