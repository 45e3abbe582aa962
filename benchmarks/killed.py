"""How soon a job runs again when its worker has been killed."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Self

from benchmarks.measures import ROOT, environment, task_command
from benchmarks.report import Figure, Goal
from unstick.config import load_settings
from unstick.wiring import upgrade_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.databases import Database, Site
    from benchmarks.measures import Sizes

_GOAL = Goal(bound=5, unit=" s")
_WITHIN = 120
_CONFIG = """
[sources.main]
url = {url}

[policy]
action = "retry"
retry_backoff = "0.1s"
running_after = "3s"

[sweep]
observe_every = "1s"
clean_every = "1s"
"""


def killed(site: Site, sizes: Sizes) -> list[Figure]:
    """Seconds from the SIGKILL of a worker to its job running again elsewhere.

    Workers on the kit with a lease of 3 s that beat every second and ask for jobs every second, beside an
    `unstick watch` that looks every second and has a job retried after a tenth of one.
    """
    if site.backend != "postgresql":
        return []
    with site.empty(_CONFIG) as database, _watch(database), _Workers(database) as workers:
        workers.start()
        # While the watch is new it leaves jobs alone for a moment: the first kill tells nothing.
        seconds = [_killed(database, workers) for _ in range(sizes.kills + 1)][1:]
    return [
        Figure(
            measure="a killed worker's job runs again", database=site.backend, name=name, unit="s", values=values,
            goal=_GOAL,
        )
        for name, values in (("median", seconds), (f"longest of {len(seconds)}", [max(seconds)]))
    ]  # fmt: skip


@contextmanager
def _watch(database: Database) -> Iterator[None]:
    asyncio.run(upgrade_database(load_settings(database.config)))
    command = [sys.executable, "-m", "unstick", "--config", str(database.config), "watch"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _killed(database: Database, workers: _Workers) -> float:
    """Have a job begun, kill its worker, and return the seconds until another begins it."""
    workers.start()
    database.execute("INSERT INTO jobs (job_type, status, created_at) VALUES ('essay', 'queued', now())")
    worker, _ = workers.begun()
    at = workers.kill(worker)
    _, again = workers.begun()
    return again - at


class _Workers:
    """Worker processes, which tell when they begin a job."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        reading, self._write = os.pipe()
        self._said: IO[bytes] = os.fdopen(reading, "rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        os.close(self._write)
        self._said.close()

    def start(self) -> None:
        command = task_command("worker", self._database.url)
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=self._write)
        self._processes[process.pid] = process

    def begun(self) -> tuple[int, float]:
        """Wait until a job is begun; return by which process and when."""
        assert select.select([self._said], [], [], _WITHIN)[0], "no worker began the job"
        worker, at = json.loads(self._said.readline())
        return worker, at

    def kill(self, worker: int) -> float:
        process, at = self._processes.pop(worker), time.monotonic()
        process.kill()
        process.wait()
        return at
