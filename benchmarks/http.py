"""How many calls a second the service answers, beside the least that could."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.filling import Filling
from benchmarks.measures import environment
from benchmarks.report import Figure, Goal
from benchmarks.service import API, bearer, serving, unstick_serve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.databases import Site
    from benchmarks.measures import Sizes

_WRK = Path(__file__).with_name("wrk.lua")
_FEW = 20
_GOAL = Goal(bound=1, at_least=True)


class Load(NamedTuple):
    """What became of some seconds of calls."""

    rate: float
    p99: float


def http(site: Site, sizes: Sizes) -> list[Figure]:
    """Calls of `GET /jobs/stuck` a second, by 50 clients at once, each authenticated and in the audit log.

    Beside it a minimal FastAPI endpoint (asyncpg, orjson) that reads the same rows and answers with the same keys, but
    neither authenticates nor audits. Both have one process, which shares the machine with `wrk` and the database.
    """
    if site.backend != "postgresql":
        return []
    return [figure for stuck in sorted({_FEW, sizes.detected}) for figure in _http(site, sizes, stuck)]


def _http(site: Site, sizes: Sizes, stuck: int) -> list[Figure]:
    query = f"/jobs/stuck?limit={max(100, stuck)}"
    with site.fresh(Filling(finished=sizes.histories[0], stuck=stuck)) as database, ExitStack() as stack:
        ours = stack.enter_context(unstick_serve(database.config))
        command = [sys.executable, "-m", "uvicorn", "--log-level", "warning", "benchmarks.minimal:app", "--port"]
        told = environment(BENCHMARK_DATABASE=database.url.replace("+psycopg", ""))
        minimal = stack.enter_context(serving(command, told, query))
        assert json.loads(ours.read(API + query)).keys() <= json.loads(minimal.read(query)).keys()
        taken = [
            (_load(f"{ours.url}{API}{query}", sizes), _load(f"{minimal.url}{query}", sizes))
            for _ in range(sizes.rounds)
        ]
    return [*_figures(stuck, sizes, taken)]


def _figures(stuck: int, sizes: Sizes, taken: Sequence[tuple[Load, Load]]) -> list[Figure]:
    mine, theirs = zip(*taken, strict=True)
    figure = partial(Figure, database="postgresql", at=f"{stuck:,} stuck")
    rate = partial(figure, measure=f"calls a second, {sizes.clients} clients", unit="calls/s")
    slowest = partial(figure, measure=f"calls, p99, {sizes.clients} clients", unit="ms")
    return [
        rate(name="minimal FastAPI", values=[load.rate for load in theirs]),
        rate(
            name="unstick serve", values=[load.rate for load in mine], against="minimal", goal=_GOAL,
            ratios=[one.rate / other.rate for one, other in taken],
        ),
        slowest(name="minimal FastAPI", values=[median(load.p99 for load in theirs)]),
        slowest(name="unstick serve", values=[median(load.p99 for load in mine)]),
    ]  # fmt: skip


def _load(url: str, sizes: Sizes) -> Load:
    """Call as fast as answers come."""
    program = shutil.which("wrk")
    if program is None:
        raise FileNotFoundError("wrk is missing: apt-get install wrk")
    how = ["--threads", "1", "--connections", str(sizes.clients), "--duration", f"{max(1, sizes.load_seconds):.0f}s"]
    line = [program, *how, "--timeout", "30s", "--header", f"Authorization: {bearer()}", "--script", str(_WRK), url]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True, env={"PATH": os.environ["PATH"]})
    said = json.loads(done.stdout.splitlines()[-1])
    assert not said["errors"], f"{said['errors']} of {said['calls']} calls to {url} failed"
    assert said["calls"], f"no call to {url} was answered in {sizes.load_seconds} s: the machine is too busy"
    return Load(rate=said["calls"] / said["seconds"], p99=said["p99"])
