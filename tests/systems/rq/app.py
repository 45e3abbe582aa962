"""An application on RQ: its jobs, workers whose leases are short, and the hands of whoever owns it.

Run as a program it reads one call a line, as JSON, and writes what it came to.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.job import Dependency, Job
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.suspension import resume, suspend

LEASE_SECONDS = 2


def work(journal: str, token: str, *, hold: bool = False) -> str:
    """Tell that it began, wait until it may go on, and tell that it ended."""
    with Path(journal, f"{token}.begun").open("a") as begun:
        begun.write(f"{os.getpid()} {os.getppid()}\n")
    while hold and not Path(journal, f"{token}.go").exists():
        time.sleep(0.02)
    Path(journal, f"{token}.ended").touch()
    return token


class QuickWorker(Worker):
    """Gives its executions and itself seconds to live where RQ gives them a minute and a half."""

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return LEASE_SECONDS

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:  # noqa: ANN401
        super().heartbeat(timeout and LEASE_SECONDS, pipeline)


class DiesWithAJobInHand(QuickWorker):
    """Is killed after it took a job and before it said so."""

    def prepare_execution(self, job: Job) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class DiesBeforeItBegins(QuickWorker):
    """Is killed after it said that it has a job and before it began."""

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hands:
    """What the application's owner does by RQ's own interface."""

    def __init__(self, url: str, journal: str) -> None:
        self.redis = Redis.from_url(url)
        self.journal = journal

    def enqueue(
        self,
        token: str,
        *,
        hold: bool = False,
        queue: str = "default",
        wait: float | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Put a job into a queue; its id is its token."""
        target = Queue(queue, connection=self.redis)
        arguments = {"args": (self.journal, token), "kwargs": {"hold": hold}, "job_id": token, **options}
        if wait is None:
            target.enqueue("app.work", **arguments)
        else:
            target.enqueue_in(timedelta(seconds=wait), "app.work", **arguments)

    def depend(self, token: str, on: str, *, allow_failure: bool = False) -> None:
        """Put a job after another one."""
        self.enqueue(token, depends_on=Dependency(jobs=[on], allow_failure=allow_failure))

    def show(self, token: str) -> dict[str, object]:
        """Tell how a job stands, by nothing but RQ's own interface."""
        job = Job.fetch(token, connection=self.redis)
        latest = job.latest_result()
        return {
            "status": job.get_status().value,
            "failed": token in FailedJobRegistry(job.origin, connection=self.redis).get_job_ids(cleanup=False),
            "started": token in StartedJobRegistry(job.origin, connection=self.redis).get_job_ids(cleanup=False),
            "queued": Queue(job.origin, connection=self.redis).get_job_ids().count(token),
            "result": None if latest is None else latest.type.name,
            "error": None if latest is None else latest.exc_string,
            "returned": job.return_value(),
            "retries": job.number_of_retries,
            "executions": job.execution_registry.get_job_count(cleanup=False),
            "ended": job.ended_at is not None,
        }

    def requeue(self, token: str) -> None:
        Job.fetch(token, connection=self.redis).requeue()

    def delete(self, token: str) -> None:
        Job.fetch(token, connection=self.redis).delete()

    def suspend(self) -> None:
        suspend(self.redis)

    def resume(self) -> None:
        resume(self.redis)


def main() -> None:
    hands = Hands(*sys.argv[1:])
    for line in sys.stdin:
        name, arguments, options = json.loads(line)
        print(json.dumps(getattr(hands, name)(*arguments, **options)), flush=True)


if __name__ == "__main__":
    main()
