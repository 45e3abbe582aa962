"""Each system where it is measured: filled once, and its jobs stuck anew for each run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from tests.servers import Valkey

from benchmarks.neighbours import address, settle, write_config
from unstick.config import load_settings
from unstick.wiring import upgrade_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.databases import Database
    from benchmarks.neighbours import Neighbours
    from benchmarks.others.systems import InTables, Other

_LONGEST = 300
"""Seconds; what takes longer doesn't end."""
POLICY = {"action": "retry", "running_after": "30m"}
"""What the others do, too: whatever is stuck is queued again."""


class MissingSystemError(Exception):
    """A system is not on this machine; the message tells how to get it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A system's jobs, where its own program and Unstick find them."""

    other: Other
    address: str
    config: Path

    def looks(self) -> list[float]:
        """Return the milliseconds of some checks of the system's own."""
        taken: list[float] = self.ask("look")
        return taken

    def recover(self) -> float:
        """Have the system recover its jobs; return the seconds."""
        return float(self.ask("recover")["seconds"])

    def ask(self, command: str, *arguments: int) -> Any:  # noqa: ANN401
        """Run a command of the system's program in its own environment, and return what it says."""
        return ask(self.other, self.address, command, *arguments)


class Arena(ABC):
    """A system with its finished jobs."""

    @contextmanager
    @abstractmethod
    def with_stuck(self, jobs: int) -> Iterator[Place]:
        """Lend it with so many stuck jobs; none where 0."""
        yield from ()

    @abstractmethod
    def left(self, place: Place) -> int:
        """Count the jobs that are still stuck."""


class Tables(Arena):
    """In PostgreSQL each run has a copy of its own."""

    def __init__(self, other: InTables, neighbours: Neighbours, filled: Database) -> None:
        self._other = other
        self._neighbours = neighbours
        self._filled = filled

    @contextmanager
    def with_stuck(self, jobs: int) -> Iterator[Place]:
        with self._neighbours.copy(self._filled) as copy:
            if jobs:
                copy.execute(*(each.format(rows=jobs) for each in self._other.stuck), "ANALYZE")
            _configure(self._other, copy)
            yield Place(other=self._other, address=address(copy), config=copy.config)

    def left(self, place: Place) -> int:
        with psycopg.connect(place.address) as connection:
            row = connection.execute(self._other.left.encode()).fetchone()
        assert row is not None
        return int(row[0])


class Brokers(Arena):
    """On Valkey there is one for all runs: each leaves its jobs queued, and the next one clears them away."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextmanager
    def with_stuck(self, jobs: int) -> Iterator[Place]:
        self._place.ask("stick", jobs)
        yield self._place

    def left(self, place: Place) -> int:
        return int(place.ask("left"))


@contextmanager
def filled_tables(other: InTables, neighbours: Neighbours, finished: int) -> Iterator[Tables]:
    """Lend a system in PostgreSQL, its tables made by itself and filled with so many finished jobs."""
    with neighbours.empty() as database:
        ask(other, address(database), "migrate")
        _configure(other, database)
        asyncio.run(upgrade_database(load_settings(database.config)))
        database.execute(*(each.format(rows=finished) for each in other.finished))
        settle(database)
        yield Tables(other, neighbours, database)


@contextmanager
def filled_broker(other: Other, directory: Path, finished: int) -> Iterator[Brokers]:
    """Lend a system on Valkey, filled with so many finished jobs."""
    server = Valkey(directory, f"valkey-{other.name}")
    server.start()
    config = directory / f"{other.name}.toml"
    place = Place(other=other, address=server.url(), config=config)
    if other.preset is not None:
        ledger = f"sqlite+aiosqlite:///{directory}/{other.name}.db"
        policy = POLICY | {"running_after": "1s"}  # leases that have run out can't be made old
        write_config(config, {"url": place.address, "preset": other.preset}, ledger={"url": ledger}, policy=policy)
        asyncio.run(upgrade_database(load_settings(config)))
    place.ask("fill", finished)
    yield Brokers(place)
    server.drop("0")


def ask(other: Other, where: str, command: str, *arguments: int) -> Any:  # noqa: ANN401
    """Run a command of a system's program in its own environment, and return what it says."""
    if not (other.environment / "installed").exists():
        raise MissingSystemError(f"{other.says} is missing: scripts/install-systems")
    done = subprocess.run(
        [*other.command, command, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "DATABASE": where, "ENVIRONMENT": str(other.environment)},
        capture_output=True,
        text=True,
        check=False,
        timeout=_LONGEST,
    )
    if done.returncode:
        raise RuntimeError(f"{other.says}: {command} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _configure(other: Other, database: Database) -> None:
    write_config(database.config, {"url": database.url, "preset": other.preset}, policy=POLICY)
