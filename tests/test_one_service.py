"""One service over five job systems, four in one database and RQ beside it, and nobody who asks for anything."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import httpx
import pytest
from pydantic import SecretStr

from tests.rq_system import RqSystem, open_rq_system
from tests.servers import MissingServerError
from tests.systems.harness import Installed, installed, wait_until
from tests.systems.known import SYSTEMS
from tests.systems.page import configuration, show_service
from unstick.api.auth import mint_token
from unstick.config import AuthSettings, load_settings
from unstick.domain.access import Role
from unstick.domain.recovery import Action
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.servers import Database
    from unstick.config import Settings

SECRET = "a secret of thirty-two bytes or more"
IN_DATABASE = ("chancy", "pgboss", "pgqueuer", "procrastinate")
KILLED, HEALTHY = JOBS = ("killed", "healthy")
SILENT_AFTER = 3.5
"""When all leases and heartbeats of a worker that was killed have run out, in seconds."""
_PATIENCE = 30.0
_Told = TypeVar("_Told")


class Application(Protocol):
    """A job system's application. One of its workers is killed in the middle of a job, the other's job goes on."""

    @property
    def place(self) -> str:
        """Where its jobs are."""

    @property
    def succeeded(self) -> str:
        """What it says of a job that came to its end."""

    def begin(self) -> None:
        """Make what the system needs, enqueue both jobs, and have a worker begin each."""

    def kill(self) -> None:
        """Kill the worker that has the one."""

    def word(self, job: str) -> str:
        """Ask the system's own interface what it says of a job."""

    def begun(self, job: str) -> int:
        """Count how often a job was begun."""

    def let_end(self, job: str) -> None:
        """Let a job come to its end."""

    def start_worker(self) -> None:
        """Start a worker for what waits."""


@dataclass(frozen=True, kw_only=True)
class InDatabase:
    """An application whose jobs are in tables."""

    app: Installed
    ids: dict[str, object] = field(default_factory=dict)
    place: str = "PostgreSQL"

    @property
    def succeeded(self) -> str:
        return str(self.app.system.retried["state"])

    def begin(self) -> None:
        self.app.run("migrate")
        self.ids.update(zip(JOBS, self.app.run("enqueue", *JOBS), strict=True))
        self.app.start_workers(*JOBS)
        self.app.await_line("began", JOBS)

    def kill(self) -> None:
        self.app.kill_worker_of(KILLED)

    def word(self, job: str) -> str:
        (told,) = self.app.run("tell", str(self.ids[job]))
        return str(told["state"])

    def begun(self, job: str) -> int:
        return sum(line.startswith(f"began {job} ") for line in self.app.lines())

    def let_end(self, job: str) -> None:
        self.app.release(job)

    def start_worker(self) -> None:
        self.app.start_workers(KILLED)


@dataclass(frozen=True, kw_only=True)
class BehindBroker:
    """The application on RQ."""

    rq: RqSystem
    place: str = "Valkey"
    succeeded: str = "finished"

    def begin(self) -> None:
        for job in JOBS:
            self.rq.begin(job)

    def kill(self) -> None:
        self.rq.signal(KILLED, signal.SIGKILL)

    def word(self, job: str) -> str:
        return str(self.rq.show(job)["status"])

    def begun(self, job: str) -> int:
        return len(self.rq.begun(job))

    def let_end(self, job: str) -> None:
        self.rq.let_end(job)

    def start_worker(self) -> None:
        self.rq.start_worker()


@contextmanager
def applications(database: Database, broker: str, directory: Path) -> Iterator[Mapping[str, Application]]:
    """Lend the five applications; whatever they started is gone at the end."""
    with ExitStack() as stack:
        found: dict[str, Application] = {}
        for system in SYSTEMS:
            if system.name in IN_DATABASE:
                (journal := directory / system.name).mkdir()
                found[system.name] = InDatabase(app=stack.enter_context(installed(system, database, journal)))
        (journal := directory / "rq").mkdir()
        found["rq"] = BehindBroker(rq=stack.enter_context(open_rq_system(broker, journal)))
        yield found


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running `unstick serve`, and a person's and a monitor's calls of it."""

    client: httpx.Client
    token: str

    def checks(self, name: str) -> dict[str, dict[str, Any]]:
        """Return one check of each source."""
        told = self.client.get("/health/jobs").raise_for_status().json()["checks"]
        return {check["componentId"]: check for check in told.get(f"source:{name}", [])}

    def events_until_recovered(self, source: str) -> list[dict[str, Any]]:
        """Return all that happened to a source until a sweep has changed a job of it."""
        give_up_at = time.monotonic() + _PATIENCE
        headers = {"Authorization": f"Bearer {self.token}", "Last-Event-ID": "0"}
        told: list[dict[str, Any]] = []
        with self.client.stream("GET", f"/api/v1/admin/events?source={source}", headers=headers) as answer:
            for line in answer.raise_for_status().iter_lines():
                if not line.startswith("data: "):
                    continue
                told.append(json.loads(line.removeprefix("data: ")))
                if "applied" in told[-1].get("outcomes", {}):
                    break
                assert time.monotonic() < give_up_at, told
        return told

    def metrics(self) -> list[str]:
        return self.client.get("/metrics").raise_for_status().text.splitlines()

    def page(self, path: str) -> str:
        """Return a page of the console."""
        if not self.client.cookies:
            here = {"Origin": str(self.client.base_url)}
            self.client.post("/console/sign-in", data={"token": self.token}, headers=here).raise_for_status()
        return self.client.get(f"/console{path}").raise_for_status().text


@contextmanager
def serving(directory: Path) -> Iterator[Service]:
    """Start the service as an operator would, in the directory of its configuration; it must stop as it is told to."""
    environment = os.environ | {"UNSTICK_SECRET_KEY": SECRET}
    token = mint_token(
        SecretStr(SECRET), role=Role.ADMIN, subject="ci", lifetime=timedelta(hours=1), auth=AuthSettings()
    )
    log = directory / "serve.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "unstick", "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: address_in(log) is not None, log.read_text)
        with httpx.Client(base_url=str(address_in(log)), follow_redirects=True, timeout=30) as client:
            yield Service(client=client, token=token)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    complaints = [told for line in log.read_text().splitlines() if (told := json.loads(line))["level"] != "info"]
    assert [told for told in complaints if not told["event"].startswith("Alert opened: ")] == []


def address_in(log: Path) -> str | None:
    found = re.search(r"Listening on (http://\S+);", log.read_text())
    return None if found is None else found[1]


def side_by_side(do: Callable[..., _Told], *several: Any) -> list[_Told]:  # noqa: ANN401
    """Do the same to several, all at once."""
    with ThreadPoolExecutor(len(several)) as threads:
        return list(threads.map(do, several))


def configure(directory: Path, database: Database, broker: str) -> Settings:
    """Write the configuration that the page shows, with the addresses of these servers."""
    file = directory / "unstick.toml"
    said = configuration().replace("redis://broker/0", broker)
    file.write_text(said.replace("postgresql://db/app", database.url))
    return load_settings(file)


@pytest.fixture
def five(postgres_database: Database, broker: str, tmp_path: Path) -> Iterator[Mapping[str, Application]]:
    try:
        with applications(postgres_database, broker, tmp_path) as found:
            yield found
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON RQ: {missing}")


def test_one_service_finds_and_recovers_what_killed_workers_of_five_systems_left(
    five: Mapping[str, Application], postgres_database: Database, broker: str, tmp_path: Path
) -> None:
    """Each by its system's own rule, at the second look at the earliest; whatever lives is left alone."""
    settings = configure(tmp_path, postgres_database, broker)
    assert set(settings.sources) == set(five)
    side_by_side(lambda each: each.begin(), *five.values())
    side_by_side(lambda each: each.kill(), *five.values())
    silent_at = time.monotonic() + SILENT_AFTER
    asyncio.run(upgrade_database(settings))
    wait_until(lambda: time.monotonic() > silent_at)

    with serving(tmp_path) as service:
        said = said_of_stuck_jobs(service, five)
        told = dict(zip(five, side_by_side(service.events_until_recovered, *five), strict=True))
        for name in five:
            assert swept_at(told[name]) >= asyncio.run(end_of_grace(settings, name)), "the first pass only observes"
        side_by_side(partial(run_to_the_end, settings), *five.items())
        assert_told_by_every_face(service, settings, five)

    show_service([row_of(settings, name, application, said[name]) for name, application in sorted(five.items())])


def said_of_stuck_jobs(service: Service, names: Collection[str]) -> Mapping[str, str]:
    """Return what a monitor reads of each source once it warns."""
    said: dict[str, str] = {}

    def all_said() -> bool:
        warns = {name: check["output"] for name, check in service.checks("stuck").items() if check["status"] == "warn"}
        said.update({name: output.partition(";")[0] for name, output in warns.items()})
        return said.keys() == set(names)

    wait_until(all_said, lambda: str(said))
    return said


def swept_at(told: Sequence[Mapping[str, Any]]) -> datetime:
    """Return when the sweep began that recovered a source's stuck job."""
    assert told[-1]["kind"] == "swept"
    return datetime.fromisoformat(told[-1]["at"])


async def end_of_grace(settings: Settings, name: str) -> datetime:
    """Return until when running jobs had a grace after the first pass, by the clock of their source."""
    async with open_watched(settings, name) as watched:
        assert watched.brakes is not None
        last = await watched.brakes.last_pass(name)
    assert last is not None
    assert last.back_at is not None
    return last.back_at + settings.policy.running_after


def run_to_the_end(settings: Settings, each: tuple[str, Application]) -> None:
    """Have a new worker do what was queued again, and the old one what it has had all the time."""
    name, application = each
    if settings.policy.policy().action_for(name) is Action.RETRY:
        application.start_worker()
        wait_until(lambda: application.begun(KILLED) == 2)
        application.let_end(KILLED)
        wait_until(lambda: application.word(KILLED) == application.succeeded)
    assert application.begun(HEALTHY) == 1
    application.let_end(HEALTHY)
    wait_until(lambda: application.word(HEALTHY) == application.succeeded)


def assert_told_by_every_face(service: Service, settings: Settings, names: Collection[str]) -> None:
    """Health, metrics, audit log and overview tell of each source, and of one recovery each."""
    wait_until(lambda: [each["status"] for each in service.checks("stuck").values()] == ["pass"] * len(names))
    metrics, entries = service.metrics(), [json.loads(line) for line in service.page("/audit/json").splitlines()]
    for name in names:
        action = settings.policy.policy().action_for(name).value
        assert f'unstick_source_up{{source="{name}"}} 1.0' in metrics
        labels = f'source="{name}",trigger="unattended"'
        recoveries = [line for line in metrics if line.startswith("unstick_recoveries_total{") and labels in line]
        changed = [line for line in recoveries if 'outcome="left"' not in line]
        assert changed == [f'unstick_recoveries_total{{action="{action}",outcome="applied",{labels}}} 1.0']
        assert len(recoveries) == 2, "a pass has left it alone before"
        (entry,) = [each for each in entries if each["parameters"].get("source") == name and each["outcome"] == "done"]
        assert (entry["actor"], entry["call"], entry["parameters"]["action"]) == ("runner", "jobs.cleanup", action)
        assert (entry["result"]["applied"], entry["result"]["lost_race"]) == (1, 0)
    wait_until(lambda: all(f"<b>{name}</b>" in page for page in [service.page("/")] for name in names))


def row_of(settings: Settings, name: str, application: Application, said: str) -> Sequence[str]:
    """Return what was seen of a system as its row on the page."""
    failed = settings.policy.policy().action_for(name) is Action.MARK_FAILED
    did = "marked it failed" if failed else "queued it again, and a new worker ran it to its end"
    return f"`{name}`", application.place, said, did, f"`{application.word(KILLED)}`"
