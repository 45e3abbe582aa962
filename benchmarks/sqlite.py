"""SQLite files to measure on."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.databases import Database, Site

if TYPE_CHECKING:
    from benchmarks.filling import Backend


class SqliteSite(Site):
    backend: Backend = "sqlite"

    @property
    def facts(self) -> dict[str, str]:
        return {"SQLite": f"{sqlite3.sqlite_version}, journal_mode WAL, synchronous FULL, no ANALYZE"}

    def _url(self, name: str) -> str:
        return f"sqlite+aiosqlite:///{self._raw(name)}"

    def _raw(self, name: str) -> str:
        return str(self.directory / f"{name}.db")

    def _create(self, name: str) -> None:
        with closing(sqlite3.connect(self._raw(name))) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    def _finish(self, database: Database) -> None:
        with closing(sqlite3.connect(database.raw)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _copy(self, source: str, name: str) -> None:
        shutil.copyfile(self._raw(source), self._raw(name))
        with Path(self._raw(name)).open("rb") as file:
            os.fsync(file.fileno())  # or a run would pay for writing its copy

    def _warm(self, database: Database) -> None:
        """The copy has just been written, so the system has it cached."""

    def _drop(self, name: str) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(self._raw(name) + suffix).unlink(missing_ok=True)
