"""Real replicas of the service's runner for tests: processes that watch one source, and say on a file what they heard.

Run as a program it forks as many as it is told, says their numbers, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from unstick.config import SourceSettings
from unstick.domain.audit import AuditOutcome
from unstick.domain.brake import BrakeLimits, Unattended
from unstick.domain.events import LeadershipChanged, PipelineEvent, Swept
from unstick.domain.policy import Policy
from unstick.domain.schedule import Every, Timetable
from unstick.pipeline.runner import Runner
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.mapping import JobTable
from unstick.wiring import running, watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from datetime import datetime

    from unstick.pipeline.watched import Watched

ROOT = Path(__file__).parent.parent
STUCK_AFTER = timedelta(milliseconds=300)
OBSERVED = timedelta(milliseconds=200)
SWEPT = timedelta(milliseconds=400)
_PR_SET_PDEATHSIG = 1


@dataclass
class Replicas:
    """The replicas of a test, by their process numbers."""

    pids: list[int]
    said: Path

    def heard(self, pid: int | None = None) -> list[dict[str, Any]]:
        """Return what replicas, or one, have said so far, in the order in which they did."""
        lines = self.said.read_text().splitlines() if self.said.exists() else []
        told = [json.loads(line) for line in lines]
        return [each for each in told if pid in (None, each["pid"])]

    def leads(self, pid: int) -> int | None:
        """Return the term in which a replica leads, as far as it has said."""
        changes = [each for each in self.heard(pid) if each["event"] == "LeadershipChanged"]
        return int(changes[-1]["term"]) if changes and changes[-1]["leads"] else None

    def leader(self, besides: int | None = None) -> int | None:
        """Return a replica that leads, as far as it has said."""
        return next((pid for pid in self.pids if pid != besides and self.leads(pid) is not None), None)


def late_ends(rows: Sequence[Any]) -> dict[int, tuple[int, datetime]]:
    """Return sweeps of the audit log that ended after another had begun, with that one and when it began.

    A leader that is stopped for longer than its lease can't say that its sweep is over before it goes on.
    """
    begun = {row.id: row.at for row in rows if row.outcome == AuditOutcome.STARTED}
    ended = {row.operation_id: row.at for row in rows if row.outcome != AuditOutcome.STARTED}
    spans = sorted((at, ended.get(operation), operation) for operation, at in begun.items())
    return {
        earlier: (later, start)
        for (_, end, earlier), (start, _, later) in pairwise(spans)
        if end is not None and end > start
    }


def acted_late(late: Mapping[int, tuple[int, datetime]], records: Sequence[Any]) -> list[str]:
    """Say which of them went on to recover jobs then; a batch that was under way bears the time it began at."""
    return [
        f"sweep {record.operation_id} recovered job {record.job_id} when {late[record.operation_id][0]} had begun"
        for record in records
        if record.operation_id in late and record.at > late[record.operation_id][1]
    ]


@contextmanager
def open_replicas(number: int, url: str, directory: Path, *, leads_for: timedelta) -> Iterator[Replicas]:
    """Start replicas on Unstick's own jobs table; when the block ends, however it does, so do they."""
    said = directory / "replicas.jsonl"
    command = [sys.executable, "-m", "tests.replicas", str(number), url, str(said), str(leads_for.total_seconds())]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Replicas(json.loads(process.stdout.readline()), said)
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


# In the processes


def main() -> None:
    """Fork the replicas, and kill whoever still lives when there is no more input."""
    number, url, said, leads_for = sys.argv[1:]
    pids = [_fork(url, said, timedelta(seconds=float(leads_for))) for _ in range(int(number))]
    sys.stdout.write(f"{json.dumps(pids)}\n")
    sys.stdout.flush()
    sys.stdin.read()
    for pid in pids:
        _end(pid)


def _end(pid: int) -> None:
    for number in (signal.SIGCONT, signal.SIGKILL):
        os.kill(pid, number)
    os.waitpid(pid, 0)


def _fork(url: str, said: str, leads_for: timedelta) -> int:
    parent = os.getpid()
    if pid := os.fork():
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        if os.getppid() == parent:
            with Path(said).open("a") as file:
                asyncio.run(_watch(url, file, leads_for))
            os._exit(0)
    except BaseException:  # noqa: BLE001 - whatever it is, it ends here and not in the parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


class _Telling:
    """Says what it hears, a line at a time, which the kernel appends whole."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    async def hear(self, event: PipelineEvent) -> None:
        told: dict[str, Any] = {"pid": os.getpid(), "event": type(event).__name__, "at": time.monotonic()}
        match event:
            case LeadershipChanged():
                told |= {"leads": event.leads, "term": event.term}
            case Swept():
                told |= {"operation": event.operation_id, "recovered": event.recovered}
            case _:
                pass
        print(json.dumps(told), file=self._file, flush=True)


async def _watch(url: str, said: IO[str], leads_for: timedelta) -> None:
    engine = open_engine(url)
    declared, policy = JobTable.from_settings(SourceSettings()), Policy(queued_after=STUCK_AFTER)
    watched = replace(
        watch("main", declared, EngineConnections(engine), policy),
        unattended=Unattended(every=SWEPT, brake=BrakeLimits(jobs=10**6)),
        listeners=(_Telling(said),),
    )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    timetable, name = Timetable(observe=Every(OBSERVED), clean=Every(SWEPT)), f"test:{os.getpid()}:boot"
    async with running(Runner({"main": partial(_lend, watched)}, timetable, holder=name, leads_for=leads_for)):
        await stopped.wait()
    await engine.dispose()


@asynccontextmanager
async def _lend(watched: Watched) -> AsyncIterator[Watched]:
    yield watched


if __name__ == "__main__":
    main()
