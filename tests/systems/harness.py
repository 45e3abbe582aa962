"""Job systems as their users run them: real workers, in an environment of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import make_url

from tests.servers import environment_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.servers import Database
    from unstick.domain.standing import Standing

ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent
_PATIENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A good reason to wait for ever, and what is said of it."""

    made_by: tuple[str, ...]
    """Statements that give it to the job `waits`, and put an end to the one before."""
    standing: Standing
    words: str
    """Of what is said of the job."""
    blocks: bool = False
    """It waits for the job `other`, which then looks as if it had begun two hours ago."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A job system, and what a test has to know to play through its scenarios."""

    name: str
    """Of its preset, its folder beside this file and its environment."""
    stands_in: bool = False
    """It can't be installed, and its application has SQL in the workers' place, in the tests' own environment."""
    databases: tuple[str, ...] = ("postgres18",)
    source: Mapping[str, Any] = field(default_factory=dict)
    """Settings that make its workers' silence tell sooner than in earnest."""
    grow_old: str | None = None
    """Where age is the only witness: makes the jobs of `:ids` look as if they had begun two hours ago."""
    unknown: str | None = None
    """Makes its schema one that nobody has tried, where that can be told."""
    failed: Mapping[str, object]
    """What its own interface tells of a job that was marked failed, of what is the same each time."""
    retried: Mapping[str, object]
    """And of a job that was retried and has succeeded since."""
    ageless: bool = False
    """Nothing tells since when a healthy job has run."""
    retries: bool = True
    """What it takes to run a job again is there."""
    returns: bool = False
    """Jobs whose worker is gone are queued again by themselves, and only then can be found stuck."""
    hears_once: bool = False
    """Its workers take nothing that they weren't listening for."""
    waits: tuple[Wait, ...] = ()
    """In this order."""
    undoable: bool = True
    """What was done to a job can be undone."""


@dataclass(kw_only=True)
class Installed:
    """A system with a database of its own, its application's commands, and its workers."""

    system: System
    database: Database
    journal: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> Path:
        """Where the system is installed."""
        return environment_of(self.system.name)

    def run(self, command: str, *arguments: str) -> Any:  # noqa: ANN401
        """Run a command of the application's to its end and return what it tells."""
        done = subprocess.run(
            self._line(command, *arguments), env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.system.name} {command} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def start_workers(self, *tokens: str) -> None:
        """Start a worker for each of these jobs, and wait until they hear of what there is to do where they must."""
        before = len(self.lines())
        with (self.journal / "workers.log").open("a") as log:
            self.workers += [
                subprocess.Popen(
                    self._line("work", token), env=self._environment(), stdout=log, stderr=log, start_new_session=True
                )
                for token in tokens
            ]
        if self.system.hears_once:
            wait_until(
                lambda: sum(line.startswith("hears ") for line in self.lines()[before:]) == len(tokens), self.log
            )

    def kill_worker_of(self, token: str) -> None:
        """Kill the worker that runs a job, with all its processes, as the kernel does when memory runs out."""
        os.killpg(os.getpgid(self.process_of(token)), signal.SIGKILL)

    def process_of(self, token: str) -> int:
        """Return the process that began a job last."""
        return int([line.split()[2] for line in self.lines() if line.startswith(f"began {token} ")][-1])

    def release(self, *tokens: str) -> None:
        """Let these jobs come to their end."""
        for token in tokens:
            (self.journal / f"gate-{token}").touch()

    def await_line(self, what: str, tokens: Sequence[str]) -> None:
        """Wait until these jobs have begun or ended."""
        wait_until(lambda: all(any(line.startswith(f"{what} {t} ") for line in self.lines()) for t in tokens), self.log)

    def lines(self) -> list[str]:
        journal = self.journal / "journal"
        return journal.read_text().splitlines() if journal.exists() else []

    def log(self) -> str:
        log = self.journal / "workers.log"
        return f"{self.lines()}\n{log.read_text()[-3000:] if log.exists() else ''}"

    def stop(self) -> None:
        for worker in self.workers:
            try:
                os.killpg(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for worker in self.workers:
            worker.wait()

    def _line(self, command: str, *arguments: str) -> list[str]:
        app = _HERE / self.system.name / "app.py"
        if self.system.stands_in:
            return [sys.executable, "-m", f"tests.systems.{self.system.name}.app", command, *arguments]
        if app.exists():
            return [str(self.environment / "bin" / "python"), str(app), command, *arguments]
        return ["node", str(app.with_suffix(".mjs")), command, *arguments]

    def _environment(self) -> dict[str, str]:
        plain = make_url(self.database.url).set(drivername=self.database.backend)
        return {
            "PATH": os.environ["PATH"],
            "DATABASE": plain.render_as_string(hide_password=False),
            "JOURNAL": str(self.journal),
            "ENVIRONMENT": "" if self.system.stands_in else str(self.environment),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


@contextmanager
def installed(system: System, database: Database, journal: Path) -> Iterator[Installed]:
    """Lend a system in a database, and kill its workers after."""
    app = Installed(system=system, database=database, journal=journal)
    if not system.stands_in and not (app.environment / "installed").exists():
        raise RuntimeError(f"{system.name} isn't installed; run scripts/install-systems")
    try:
        yield app
    finally:
        app.stop()


def wait_until(holds: Callable[[], bool], explain: Callable[[], str] = lambda: "") -> None:
    """Wait for something that other processes do."""
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(explain())
        time.sleep(0.02)
