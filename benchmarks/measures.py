"""What measures share: how much they measure, and how they run something in a process of its own.

A measure is a function that is given a site and the sizes and returns figures, none where it has nothing to say of that
site. In each the contenders take turns, and a ratio is between neighbours in time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from benchmarks.report import Figure

if TYPE_CHECKING:
    from benchmarks.databases import Site
    from benchmarks.filling import Backend, Placement

ROOT = Path(__file__).parents[1]
_LONGEST_TASK = 600  # seconds; what takes longer doesn't end


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    finished: int = 1_000_000
    histories: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    """How many finished jobs stuck ones are found among; the last on PostgreSQL alone."""
    stuck: int = 100_000
    fewer_stuck: int = 10_000
    memory_stuck: int = 1_000_000
    orm_stuck: int = 10_000
    detected: int = 1_000
    rounds: int = 3
    """On PostgreSQL; one less elsewhere."""
    write_rounds: int = 2
    """Likewise."""
    calls: int = 20
    warm_up: int = 3
    """Calls before, which reflect the table and fill caches."""
    baseline_seconds: float = 5
    load_seconds: float = 5
    clients: int = 50
    sources: int = 100
    idle_seconds: float = 60
    starts: int = 5
    kills: int = 6
    placement: Placement = "even"

    def on(self, backend: Backend) -> Sizes:
        """Return how much is measured there: the goals are PostgreSQL's, and all of it is to take half an hour."""
        if backend == "postgresql":
            return self
        return replace(
            self,
            histories=self.histories[:-1],
            memory_stuck=self.stuck,
            rounds=max(1, self.rounds - 1),
            write_rounds=max(1, self.write_rounds - 1),
        )


QUICK = Sizes(
    finished=2_000,
    histories=(200, 2_000),
    stuck=600,
    fewer_stuck=60,
    memory_stuck=1_000,
    orm_stuck=50,
    detected=20,
    rounds=1,
    write_rounds=1,
    calls=2,
    warm_up=1,
    baseline_seconds=0.2,
    load_seconds=0.3,
    clients=4,
    sources=2,
    idle_seconds=0.2,
    starts=1,
    kills=1,
)
"""To see that it works."""

Measure = Callable[["Site", Sizes], list[Figure]]


@dataclass(kw_only=True)
class Taken:
    """Values of one contender, one a round."""

    values: list[float] = field(default_factory=list)

    def over(self, other: Taken) -> list[float]:
        return [one / two for one, two in zip(self.values, other.values, strict=True)]


def run_task(*task: str) -> dict[str, Any]:
    """Run a task of `benchmarks.child` in a process of its own."""
    done = subprocess.run(
        task_command(*task),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=_LONGEST_TASK,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def task_command(*task: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.child", *task]


def environment(**more: str) -> dict[str, str]:
    """Return our own environment without what it says about Unstick."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UNSTICK_")} | more


def percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]
