"""The demo's processes: started on a leash, killed on purpose, and gone when the demo ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

_GRACE = 5
_SAID = 2000
"""How many characters of a log an error quotes."""


class ChildError(Exception):
    """A process of the demo's ended, or refused, when it shouldn't have."""


class Child:
    """A Python module run as a process, with its output in a log of its own."""

    def __init__(self, name: str, module: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._module = module
        self._directory = directory
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The number of the running process."""
        return self._running().pid

    def start(self) -> None:
        """Start the process; it may take a while until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", "unstick.demo.leash", *self._module],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the demo alone; it stops its processes in order. When the demo is killed, the kernel
                # sends a stopped group of its session SIGHUP; in a session of its own it would stay for ever.
                process_group=0,
            )

    def kill(self) -> int:
        """End the process with SIGKILL, in the middle of whatever it does; return its exit status."""
        process = self._running()
        process.kill()
        return self._reap(process)

    def suspend(self) -> None:
        """Stop the process with SIGSTOP, and return when it stands still."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise ChildError(f"The {self.name} ended before it could be stopped. It said:\n{self.last_said()}")

    def resume(self) -> None:
        """Continue a stopped process with SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask the process to end, and make it end when it doesn't."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)  # one that is stopped doesn't hear
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap(self._process)

    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        return self._running().poll() is not None

    def check(self) -> None:
        """Raise an error with the end of the log if the process has ended by itself."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise ChildError(f"The {self.name} ended by itself (status {status}). It said:\n{self.last_said()}")

    def last_said(self) -> str:
        """Return the end of the log."""
        return self._log.read_text(errors="replace")[-_SAID:].strip()

    @property
    def _log(self) -> Path:
        return self._directory / f"{self.name}.log"

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise ChildError(f"The {self.name} isn't running.")
        return self._process

    def _reap(self, process: "subprocess.Popen[bytes]") -> int:
        status = process.wait()
        if process.stdin is not None:
            process.stdin.close()
        self._process = None
        return status


def run(module: Sequence[str], directory: Path, environment: Mapping[str, str]) -> str:
    """Run a module to its end and return what it printed."""
    done = subprocess.run(  # noqa: S603 - our own modules
        [sys.executable, "-m", *module],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout)[-_SAID:].strip()
        raise ChildError(f"`{' '.join(module)}` ended with status {done.returncode}. It said:\n{said}")
    return done.stdout.strip()
