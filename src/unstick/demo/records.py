"""What the demo reads in the database itself, as anybody may: what Unstick recorded of late results."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple


class LateFinish(NamedTuple):
    """A result that was refused."""

    job_id: str
    worker: str
    attempt: int
    ended: str


class Records:
    """The platform's database file."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def late_finishes(self) -> list[LateFinish]:
        """Return the results that were refused, the oldest first."""
        with self._opened() as connection:
            rows = connection.execute("SELECT job_id, worker, attempt, ended FROM unstick_late_finishes ORDER BY id")
            return [LateFinish(*row) for row in rows]

    def can_be_written(self) -> bool:
        """Tell whether nobody holds the one write lock that a SQLite database has."""
        with self._opened() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
            return True

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._database, timeout=1, isolation_level=None)) as connection:
            yield connection
