"""RQ as its users run it: real workers in an environment of its own, and Unstick beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.servers import MissingServerError, environment_of
from unstick.config import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unstick.domain.recovery import Action

HOME = Path(__file__).parent / "systems" / "rq"
PROGRAMS = environment_of("rq") / "bin"
_PATIENCE_SECONDS = 20
_Told = TypeVar("_Told")


@dataclass(kw_only=True)
class RqSystem:
    """An application on RQ, its workers, and the settings by which it is watched."""

    url: str
    directory: Path
    hands: subprocess.Popen[str]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def do(self, name: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
        """Do something by RQ's own interface."""
        assert self.hands.stdin is not None
        assert self.hands.stdout is not None
        self.hands.stdin.write(json.dumps([name, arguments, options]) + "\n")
        self.hands.stdin.flush()
        line = self.hands.stdout.readline()
        assert line, "the application's hands have failed; stderr says why"
        return json.loads(line)

    def show(self, token: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.do("show", token)
        return shown

    def start_worker(self, *queues: str, kind: str = "QuickWorker", burst: bool = False) -> subprocess.Popen[bytes]:
        options = ["--url", self.url, "--path", str(HOME), "--worker-class", f"app.{kind}", "--quiet"]
        options += ["--job-monitoring-interval", "1", *(["--burst"] if burst else [])]
        worker = subprocess.Popen(
            [PROGRAMS / "rq", "worker", *options, *(queues or ["default"])],
            cwd=HOME,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
        self.workers.append(worker)
        return worker

    def work_off(self, *queues: str) -> None:
        """Have a worker of the usual kind do whatever waits."""
        assert self.start_worker(*queues, burst=True).wait(_PATIENCE_SECONDS) == 0

    def begin(self, token: str, **options: object) -> subprocess.Popen[bytes]:
        """Have a worker begin a job that doesn't end before it is told to."""
        self.do("enqueue", token, hold=True, **options)
        worker = self.start_worker()
        until(lambda: self.begun(token))
        return worker

    def begun(self, token: str) -> list[tuple[int, int]]:
        """Return the child and the worker of each attempt, by their process numbers."""
        told = self.directory / f"{token}.begun"
        lines = told.read_text().splitlines() if told.exists() else []
        return [(int(child), int(worker)) for child, worker in (line.split() for line in lines)]

    def ended(self, token: str) -> bool:
        return (self.directory / f"{token}.ended").exists()

    def let_end(self, token: str) -> None:
        (self.directory / f"{token}.go").touch()

    def signal(self, token: str, number: signal.Signals, *, child: bool = True) -> None:
        """Send a signal to the worker that has a job, and to its child, which does the work."""
        ((working, worker),) = self.begun(token)
        os.kill(worker, number)
        if child:
            os.kill(working, number)

    def settings(self, **said: Any) -> Settings:  # noqa: ANN401
        return Settings.model_validate(
            {
                "sources": {"rq": {"url": self.url, "preset": "rq"}},
                "ledger": {"url": f"sqlite:///{self.directory / 'ledger.db'}"},
                "policy": {"queued_after": "1s", "running_after": "1s", "retry_backoff": "0.1s"},
                **said,
            }
        )

    def acting(self, action: Action) -> Settings:
        policy = {"queued_after": "1s", "running_after": "1s", "retry_backoff": "0.1s", "action": action.value}
        return self.settings(policy=policy)

    def close(self) -> None:
        for worker in self.workers:
            for number in (signal.SIGCONT, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, number)
            worker.wait()
        for told in self.directory.glob("*.begun"):
            for child, _ in self.begun(told.stem):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        with self.hands:  # closes its pipes and waits
            self.hands.terminate()


@contextmanager
def open_rq_system(url: str, directory: Path) -> Iterator[RqSystem]:
    """Give an application a broker and a directory of its own; whatever it started is gone at the end."""
    if not (PROGRAMS / "rq").exists():
        raise MissingServerError("RQ is missing: scripts/install-systems")
    hands = subprocess.Popen(
        [PROGRAMS / "python", HOME / "app.py", url, str(directory)],
        cwd=HOME,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    )
    system = RqSystem(url=url, directory=directory, hands=hands)
    try:
        yield system
    finally:
        system.close()


def until(condition: Callable[[], _Told]) -> _Told:
    """Return what a condition comes to, once it is anything."""
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while not (told := condition()):
        assert time.monotonic() < give_up_at, "it never came about"
        time.sleep(0.02)
    return told
