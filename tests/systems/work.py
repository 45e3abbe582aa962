"""The work that each system's jobs do: they say where they run, and go on until they are told that they may end.

This file is imported by each system's own application, in that system's own environment.
"""

import os
import time
from pathlib import Path

JOURNAL = Path(os.environ["JOURNAL"])


def work(token: str) -> None:
    """Say that a job was begun, wait for its gate, and say that it was finished."""
    note(f"began {token} {os.getpid()}")
    while not (JOURNAL / f"gate-{token}").exists():
        time.sleep(0.01)
    note(f"ended {token} {os.getpid()}")


def note(line: str) -> None:
    """Write a line of the journal."""
    with (JOURNAL / "journal").open("a") as journal:
        journal.write(f"{line}\n")
