"""What a PostgreSQL server spends: its processor's time, and what it writes ahead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg


def processor_seconds(watcher: psycopg.Connection[Any]) -> float:
    """Return how long the server has computed so far for the watcher's database, and in its background."""
    at_work = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() OR datname IS NULL"
    pids = [pid for (pid,) in watcher.execute(at_work.encode()) if pid != watcher.info.backend_pid]
    files = [Path(f"/proc/{pid}/schedstat") for pid in pids]
    return sum(int(file.read_text().split()[0]) for file in files if file.exists()) / 1e9


def bytes_written(watcher: psycopg.Connection[Any]) -> int:
    """Return how many bytes the server has written ahead so far."""
    row = watcher.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])
