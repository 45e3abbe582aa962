"""The processes of this host as a witness: a job's `worker` names its host and its process's number.

Guarantee: a process that began after the job was taken is another one that got its number (item 13), by the source's
own clock, which is read beside this host's. Where numbers may mean another process than they did to the worker, it
says UNKNOWN: on another host, and wherever a container is between the two.
Known weakness: two hosts of one name are taken for one, and a worker in a container that bears its host's name is taken
for gone once no process in any container has its number.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from unstick.config import ProcessSettings
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId
from unstick.domain.naming import NamePattern
from unstick.domain.tenure import held_since, say_another, say_unclear
from unstick.domain.wording import Phrase

_OUR_WORKERS = ("{host}:{pid}:{any}", "{host}:{pid}")
_LONGEST_HOST = 200
"""Our workers' names have no room for more of it."""
_FIRST_NAMESPACE = 0xEFFFFFFC
"""The number that Linux gives the namespace of processes that all others are in (PROC_PID_INIT_INO)."""
_OVER = frozenset({psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})


class HostProcesses:
    """The processes that run beside Unstick.

    Args:
        settings: what a worker's name looks like.
        clock: reads the source's clock.
        host: this host's name as workers know it; the system's own where nothing is said.
    """

    name = "process"

    def __init__(
        self, settings: ProcessSettings, clock: Callable[[], Awaitable[datetime]], host: str | None = None
    ) -> None:
        patterns = _OUR_WORKERS if settings.worker is None else (settings.worker,)
        self._patterns = [NamePattern(pattern) for pattern in patterns]
        self._same_namespace = settings.same_namespace
        self._clock = clock
        self._host = socket.gethostname()[:_LONGEST_HOST] if host is None else host

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Look their processes up, once each; the one statement reads the clock."""
        del now
        named = {job.id: worker for job in jobs if (worker := self._worker(job)) is not None}
        here = {worker.pid for worker in named.values() if worker.host == self._host}
        if not here:
            return {job_id: self._elsewhere(worker) for job_id, worker in named.items()}
        before = time.time()
        source_now = await self._clock()
        ahead = source_now.timestamp() - (before + time.time()) / 2
        view = await asyncio.to_thread(_look, here, same_namespace=self._same_namespace)
        return {
            job.id: self._word(job, worker, view, source_now, ahead)
            for job in jobs
            if (worker := named.get(job.id)) is not None
        }

    def _worker(self, job: Job) -> "_Worker | None":
        for pattern in self._patterns:
            read = pattern.read(job.worker) if job.worker else None
            if read is not None and int(read["pid"]) > 0:
                return _Worker(read["host"], int(read["pid"]))
        return None

    def _word(self, job: Job, worker: "_Worker", view: "_View", now: datetime, ahead: float) -> Evidence:
        what = Phrase("process %(pid)s", pid=worker.pid)
        if worker.host != self._host or worker.host in _NO_NAMES:
            return self._elsewhere(worker)
        if (doubt := view.doubt_of(worker.pid)) is not None:
            return self._says(Holding.UNKNOWN, None, Phrase("%(process)s %(what)s", process=what, what=doubt))
        process = view.processes.get(worker.pid)
        if process is None or process.status in _OVER:
            return self._says(Holding.RELEASED, now, _gone(what, process))
        began_at = datetime.fromtimestamp(process.began + ahead, UTC)
        match held_since(began_at, job):
            case Holding.HELD:
                return self._says(
                    Holding.HELD, now, Phrase("%(process)s is %(status)s", process=what, status=process.status)
                )
            case Holding.RELEASED:
                return self._says(Holding.RELEASED, began_at, say_another(what, began_at))
            case unclear:
                return self._says(unclear, None, say_unclear(what, began_at))

    def _elsewhere(self, worker: "_Worker") -> Evidence:
        said = Phrase("its host %(host)s is not known to be this one, %(here)s", host=worker.host, here=self._host)
        return self._says(Holding.UNKNOWN, None, said)

    def _says(self, holding: Holding, at: datetime | None, value: str) -> Evidence:
        return Evidence(witness=self.name, holding=holding, at=at, value=value)


_NO_NAMES = frozenset({"localhost", "localhost.localdomain"})
"""What every host is called that was given no name."""


@dataclass(frozen=True, slots=True)
class _Worker:
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class _Process:
    began: float
    """When, by this host's clock."""
    status: str


@dataclass(frozen=True, slots=True)
class _View:
    """What could be seen of this host's processes."""

    processes: Mapping[int, _Process]
    hidden: Collection[int]
    """Those that are there, and of which no more is told."""
    doubt: Phrase | None
    """Why no number here says anything of a worker's process."""
    in_containers: Collection[int]
    """The numbers that processes of this host have within a container, beside those they have here."""

    def doubt_of(self, pid: int) -> Phrase | None:
        """Return why a number says nothing, None where it does."""
        if self.doubt is not None:
            return self.doubt
        if pid in self.in_containers:
            return Phrase("is one in a container of this host, too")
        return Phrase("may not be looked at") if pid in self.hidden else None


def _gone(what: Phrase, process: _Process | None) -> Phrase:
    if process is None:
        return Phrase("%(process)s is not there any more", process=what)
    return Phrase("%(process)s is a %(status)s process", process=what, status=process.status)


def _look(pids: Collection[int], *, same_namespace: bool) -> _View:
    processes: dict[int, _Process] = {}
    hidden: set[int] = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            processes[pid] = _Process(process.create_time(), str(process.status()))
        except psutil.ZombieProcess:
            processes[pid] = _Process(0, str(psutil.STATUS_ZOMBIE))
        except psutil.NoSuchProcess:
            if _exists(pid):
                hidden.add(pid)
        except psutil.AccessDenied:
            hidden.add(pid)
    trusts = same_namespace or sys.platform != "linux"
    doubt = None if trusts or _sees_all() else _in_a_container()
    return _View(processes, hidden, doubt, frozenset() if trusts or doubt else _numbers_in_containers())


def _in_a_container() -> Phrase:
    return Phrase("can't be told from others of its number: Unstick is in a container")


def _exists(pid: int) -> bool:
    """Ask the kernel, which tells of processes that `/proc` hides."""
    try:
        return psutil.pid_exists(pid)
    except OverflowError:
        return False


def _sees_all() -> bool:
    """Tell whether this process sees every other one of its host, under the number by which that knows itself."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        Path("/proc/1/status").read_bytes()  # which `hidepid` would hide
    except OSError:
        return False
    return namespace == _FIRST_NAMESPACE


def _numbers_in_containers() -> frozenset[int]:
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_bytes().splitlines()
        except OSError:  # it ended meanwhile
            continue
        numbers = next((line.split() for line in lines if line.startswith(b"NSpid:")), [])
        found.update(int(number) for number in numbers[2:])
    return frozenset(found)
