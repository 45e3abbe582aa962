"""A process of this host says whether a job's worker lives; real ones are started, stopped and killed here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.witnessing import word, words
from unstick.config import ProcessSettings
from unstick.domain.evidence import Holding
from unstick.testing.witnesses import WitnessConformance, running_job
from unstick.witnesses.process import HostProcesses
from unstick.worker import this_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unstick.domain.job import Job

HOST = "box"
NOBODYS = 2**22 + 1
"""Linux gives no process a number like this."""


class Host:
    """This host under a name of its own, and a source whose clock may differ from its."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._last = 0
        self.ahead = timedelta(0)
        self.read = 0
        self.witness = self.reading(same_namespace=True)

    def reading(self, *, host: str = HOST, **section: Any) -> HostProcesses:  # noqa: ANN401
        return HostProcesses(ProcessSettings.model_validate(section), self.clock, host)

    async def clock(self) -> datetime:
        self.read += 1
        return datetime.now(UTC) + self.ahead

    def start(self) -> subprocess.Popen[bytes]:
        """Start a process that does nothing until it is ended."""
        process = subprocess.Popen(["sleep", "600"])
        self._stack.callback(_end, process)
        return process

    async def job(self, worker: str | None, *, age: timedelta = timedelta(0)) -> Job:
        self._last += 1
        return running_job(self._last, await self.clock(), worker=worker, age=age)

    # As `WitnessStand`:

    async def held(self) -> Job:
        return await self.job(f"{HOST}:{os.getpid()}:a1b2")

    async def released(self) -> Job:
        process = self.start()
        job = await self.job(f"{HOST}:{process.pid}:a1b2")
        process.kill()
        process.wait()
        return job

    async def strange(self, number: int) -> Sequence[Job]:
        return [running_job(f"strange-{each}", await self.clock(), worker="otherhost:1") for each in range(number)]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Kill or stop a process, and wait until it is so; a killed one stays a zombie until somebody asks how it ended."""
    os.kill(process.pid, number)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)


@pytest.fixture
def host() -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(stack)


class TestHostProcesses(WitnessConformance):
    @pytest.fixture
    def stand(self, host: Host) -> Host:
        return host


async def test_a_worker_is_held_until_it_is_killed(host: Host) -> None:
    """First it lives, then it is dead and not buried, then it is gone."""
    process = host.start()
    job = await host.job(f"{HOST}:{process.pid}", age=timedelta(0))
    job = replace(job, started_at=_began(process) + timedelta(seconds=5))
    holding, said = await word(host.witness, job)
    assert (holding, (said or "").partition(" is ")[0]) == (Holding.HELD, f"process {process.pid}")

    _signal(process, signal.SIGKILL)
    assert await word(host.witness, job) == (Holding.RELEASED, f"process {process.pid} is a zombie process")

    process.wait()
    assert await word(host.witness, job) == (Holding.RELEASED, f"process {process.pid} is not there any more")


async def test_a_stopped_worker_holds_its_job_still(host: Host) -> None:
    """L9: whoever continues it lets its job go on; that it is stopped is told."""
    process = host.start()
    job = replace(await host.job(f"{HOST}:{process.pid}"), started_at=_began(process) + timedelta(seconds=5))
    _signal(process, signal.SIGSTOP)
    assert await word(host.witness, job) == (Holding.HELD, f"process {process.pid} is stopped")


def _began(process: subprocess.Popen[bytes]) -> datetime:
    return datetime.fromtimestamp(psutil.Process(process.pid).create_time(), UTC)


async def test_a_number_that_is_used_anew_is_another_worker(host: Host) -> None:
    """Item 13: the process that has the number now began after the job."""
    process = host.start()
    job = await host.job(f"{HOST}:{process.pid}", age=timedelta(hours=1))
    holding, said = await word(host.witness, job)
    assert (holding, (said or "")[-37:]) == (Holding.RELEASED, "UTC, after the job: it is another one")


async def test_a_process_that_began_about_when_the_job_did_is_unknown(host: Host) -> None:
    process = host.start()
    job = replace(await host.job(f"{HOST}:{process.pid}"), started_at=_began(process) - timedelta(seconds=1))
    assert (await word(host.witness, job))[0] is Holding.UNKNOWN


@pytest.mark.parametrize("ahead", [timedelta(hours=3), -timedelta(hours=3)])
async def test_what_the_sources_clock_is_ahead_is_measured(host: Host, ahead: timedelta) -> None:
    """C1: by this host's clock alone, a healthy worker would have begun after its job, or a new one before it."""
    host.ahead = ahead
    process = host.start()
    began = _began(process) + ahead
    held = replace(await host.job(f"{HOST}:{process.pid}"), started_at=began + timedelta(seconds=5))
    another = replace(await host.job(f"{HOST}:{process.pid}"), started_at=began - timedelta(minutes=1))
    assert await words(host.witness, [held, another]) == [Holding.HELD, Holding.RELEASED]


async def test_another_host_is_unknown(host: Host) -> None:
    job = await host.job(f"otherbox:{NOBODYS}")
    value = "its host otherbox is not known to be this one, box"
    assert await word(host.witness, job) == (Holding.UNKNOWN, value)
    beside = await host.job(f"{HOST}:{NOBODYS}")
    assert await words(host.witness, [job, beside]) == [Holding.UNKNOWN, Holding.RELEASED]


async def test_a_host_that_has_no_name_of_its_own_is_unknown(host: Host) -> None:
    """Every one without a name is called so."""
    witness = host.reading(host="localhost", same_namespace=True)
    assert (await word(witness, await host.job(f"localhost:{NOBODYS}")))[0] is Holding.UNKNOWN


async def test_the_kits_own_workers_are_known_as_they_call_themselves(host: Host) -> None:
    witness = HostProcesses(ProcessSettings(same_namespace=True), host.clock)
    us = this_process()
    assert us.host == socket.gethostname()[:200]
    assert (await word(witness, await host.job(us.name)))[0] is Holding.HELD
    gone = replace(us, pid=NOBODYS)
    assert (await word(witness, await host.job(gone.name)))[0] is Holding.RELEASED


@pytest.mark.parametrize("worker", [None, "", "celery", "box:", "box:0", "box:-1", "box:12x", "box:1.5"])
async def test_a_name_that_says_no_process_is_left_out(host: Host, worker: str | None) -> None:
    job = await host.job(worker)
    assert await host.witness.ask([job], await host.clock()) == {}


async def test_a_number_that_no_process_can_have_is_nobodys(host: Host) -> None:
    job = await host.job(f"{HOST}:9999999999")
    assert (await word(host.witness, job))[0] is Holding.RELEASED


async def test_a_pattern_of_the_operators_own(host: Host) -> None:
    witness = host.reading(worker="celery({pid})@{host}", same_namespace=True)
    jobs = [await host.job(f"celery({os.getpid()})@{HOST}"), await host.job(f"celery({NOBODYS})@{HOST}")]
    assert await words(witness, jobs) == [Holding.HELD, Holding.RELEASED]


async def test_ten_thousand_jobs_read_the_clock_once(host: Host) -> None:
    """It is the only statement there is."""
    first = await host.job(f"{HOST}:{os.getpid()}")
    jobs = [first, *(replace(first, id=-at, worker=f"{HOST}:{NOBODYS + at}") for at in range(9_999))]
    host.read = 0
    said = await words(host.witness, jobs)
    assert said == [Holding.HELD, *[Holding.RELEASED] * 9_999]
    assert host.read == 1


# Containers

INSIDE = """
import asyncio, json, os, sys
from datetime import UTC, datetime
from unstick.config import ProcessSettings
from unstick.testing.witnesses import running_job
from unstick.witnesses.process import HostProcesses

async def clock():
    return datetime.now(UTC)

async def main():
    said = []
    for same in (False, True):
        witness = HostProcesses(ProcessSettings(same_namespace=same), clock, "box")
        now = await clock()
        jobs = [running_job(1, now, worker=f"box:{os.getpid()}", age=now - now), running_job(2, now, worker="box:4000")]
        words = await witness.ask(jobs, now)
        said.append([words[1].holding.value, words[2].holding.value, words[2].value])
    print(json.dumps(said))

asyncio.run(main())
"""
UNSHARE = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--pid", "--fork", "--mount-proc"]


def _need_containers() -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("NOT TESTED: this machine lets nobody make a namespace of processes")


def test_inside_a_container_numbers_say_nothing_unless_the_workers_are_in_it_too() -> None:
    """In a pod, a sidecar shares its worker's host name, and not its numbers: number 7 there is another here."""
    _need_containers()
    ran = subprocess.run([*UNSHARE, sys.executable, "-c", INSIDE], check=True, capture_output=True, text=True)
    unsure, sure = json.loads(ran.stdout)
    doubt = "process 4000 can't be told from others of its number: Unstick is in a container"
    assert unsure == ["unknown", "unknown", doubt]
    assert sure == ["held", "released", "process 4000 is not there any more"]


async def test_a_number_that_is_in_a_container_of_this_host_is_unknown(host: Host) -> None:
    """The worker may be that one, if its container bears this host's name."""
    _need_containers()
    with _in_a_container():
        witness = host.reading()  # the process is number 1 in there, as init is here
        assert (await word(witness, await host.job(f"{HOST}:1")))[0] is Holding.UNKNOWN


@contextmanager
def _in_a_container() -> Iterator[None]:
    command = [*UNSHARE, "sh", "-c", "echo there; exec sleep 600"]
    inside = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert inside.stdout is not None
        assert inside.stdout.readline() == b"there\n"
        yield
    finally:
        os.killpg(inside.pid, signal.SIGKILL)
        inside.communicate()
