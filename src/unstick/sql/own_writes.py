"""What a preset has done to a batch besides one write: other tables, the system's own function, a word to its workers.

Guarantee: the jobs' rows are locked and were found as they were seen, and all of it is in one transaction with the
record; what a function left in them is compared with what its preset says of it. Known weakness: what it did to other
tables is not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unstick.presets.preset import Write
from unstick.sql.mapping import MappedTable, text_clause
from unstick.sql.statements import Values
from unstick.sql.writes import SEEN, Found, said_places, seen_types


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnWrite:
    """A preset's write on the locked rows of a batch."""

    connection: AsyncConnection
    mapped: MappedTable
    told: Write
    found: Found
    values: Values
    """What the rows are bound to: those that are written, and no others."""

    async def prepare(self, number: int) -> bool:
        """Change other tables; tell whether each statement that is for every job changed a row for each."""
        for sql in self.told.each:
            if (await self.connection.execute(self._statement(sql), self.values)).rowcount != number:
                return False
        for sql in self.told.also:
            await self.connection.execute(self._statement(sql), self.values)
        return True

    async def call(self, sql: str) -> None:
        """Have the system's function write the jobs' rows."""
        await self.connection.execute(self._statement(sql), self.values)

    async def wake(self) -> None:
        """Tell the system's workers."""
        for sql in self.told.wake:
            await self.connection.execute(self._statement(sql), self.values)

    def _statement(self, sql: str) -> sa.TextClause:
        mapped = self.mapped
        rows, places = mapped.dialect.rows(seen_types(mapped)).element, said_places(mapped, self.found.said)
        parted = {mapped.quoted(mapped.stored(by).name): f"seen_{by}" for by in mapped.declared.parted_by}
        same = [f"{mapped.places['jobs']}.{name} = {SEEN}.{seen}" for name, seen in parted.items()]
        found = " AND ".join([f"{places['id']} = {SEEN}.id", *same])
        stuck = f"({rows}) AS {SEEN} JOIN {mapped.places['jobs']} ON {found}"
        return text_clause(sql, {**places, **mapped.places, "stuck": stuck})


def as_foretold(foretold: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Tell whether rows are as it was said that they would be."""
    return foretold.keys() == now.keys() and all(json.loads(foretold[key]) == json.loads(now[key]) for key in now)
