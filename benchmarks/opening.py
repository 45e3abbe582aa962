"""The places databases are made at, with their servers; all of it is gone afterwards."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.mariadb import DurableMariaDB, MariaSite
from benchmarks.postgres import PostgresSite, start_postgres
from benchmarks.sqlite import SqliteSite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.databases import Site
    from benchmarks.filling import Backend


@contextmanager
def open_sites(wanted: set[Backend], directory: Path | None, postgres: str | None) -> Iterator[list[Site]]:
    """Open the places databases of the wanted kinds are made at."""
    # Short, for a socket's path has room for 107 characters, and open to the user that a server runs as.
    run = Path(tempfile.mkdtemp(prefix="unstick-bench-", dir=directory))
    run.chmod(0o755)
    sites: list[Site] = []
    try:
        with (run / "alive").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)  # the server's guard stops it when this lock is released
            if "postgresql" in wanted:
                sites.append(PostgresSite(run, start_postgres(run, postgres)))
            if "sqlite" in wanted:
                sites.append(SqliteSite(run))
            if "mariadb" in wanted:
                sites.append(MariaSite(run, DurableMariaDB.started(run)))
            yield sites
        _wait_for_guard(run)
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _wait_for_guard(run: Path) -> None:
    deadline = time.monotonic() + 30
    while [path for path in run.iterdir() if path.is_dir()]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"The server in {run} did not stop.")
        time.sleep(0.05)
