"""Scenes of a platform's life, by real processes on real databases: who lives is never touched, and what died is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import sqlalchemy as sa

from tests.workers import Workers, open_workers
from unstick.cli import main
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.tables import job_recoveries, jobs, leases, passes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Database, MortalPostgres

everywhere = pytest.mark.parametrize("database", ["sqlite", "postgres18", "mariadb"], indirect=True)
on_two = pytest.mark.parametrize("database", ["sqlite", "postgres18"], indirect=True)
on_servers = pytest.mark.parametrize("database", ["postgres18", "mariadb"], indirect=True)
HELD = 3
"""The exit code of a sweep that the brake holds."""
LONG_LEASE = 20
"""A lease that no slowness of this machine lets run out."""

_Told = TypeVar("_Told")


@dataclass
class Scene:
    """A platform: one database with Unstick's own jobs table, its workers, and whoever types commands."""

    workers: Workers
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    url: str

    def configure(self, *, threshold: float, brake: int = 50, action: str = "mark_failed", budget: int = 3) -> None:
        """Write `unstick.toml`: both thresholds are the same, and so is the grace."""
        Path("unstick.toml").write_text(
            f"""
            [sources.main]
            url = "{self.url}"
            [policy]
            queued_after = "{threshold}s"
            running_after = "{threshold}s"
            action = "{action}"
            max_recoveries = {budget}
            retry_backoff = "0.1s"
            [sweep.brake]
            share = 0.2
            jobs = {brake}
            """
        )
        self.run("db", "upgrade")

    def run(self, *arguments: str) -> tuple[int, str]:
        """Give a command, and return its exit code and what it said."""
        self.monkeypatch.setattr(sys, "argv", ["unstick", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self.capsys.readouterr()
        assert ended.value.code in (None, 0, 1, HELD), said.err
        return int(ended.value.code or 0), said.out

    def sweep(self, *options: str) -> Any:  # noqa: ANN401
        return json.loads(self.run("sweep", "--json", *options)[1])

    def stuck(self) -> Any:  # noqa: ANN401
        return json.loads(self.run("stuck", "--json")[1])

    # What is in the database

    def execute(self, *statements: sa.Executable) -> list[sa.RowMapping]:
        """Run statements in a transaction, and return the rows of the last."""

        async def run() -> list[sa.RowMapping]:
            engine = open_engine(self.url)
            try:
                async with EngineConnections(engine).writing() as (connection, _):
                    results = [await connection.execute(each) for each in statements]
                    return list(results[-1].mappings()) if results[-1].returns_rows else []
            finally:
                await engine.dispose()

        return asyncio.run(run())

    def clock(self) -> datetime:
        async def read() -> datetime:
            engine = open_engine(self.url)
            try:
                async with EngineConnections(engine).reading() as (_, now):
                    return now
            finally:
                await engine.dispose()

        return asyncio.run(read())

    def put(self, kind: str, number: int = 1) -> None:
        """Enqueue jobs of a kind."""
        now = self.clock()
        self.execute(*(sa.insert(jobs).values(job_type=kind, status="queued", created_at=now) for _ in range(number)))

    def in_state(self, *states: str, kind: str | None = None) -> list[int]:
        """Return the ids of the jobs in these states, as their rows say it."""
        chosen = sa.select(jobs.c.id).where(jobs.c.status.in_(states)).order_by(jobs.c.id)
        return [row["id"] for row in self.execute(chosen if kind is None else chosen.where(jobs.c.job_type == kind))]

    def recovered(self) -> list[tuple[int, str, str]]:
        """Return who was recovered, by what and why, in that order."""
        done = sa.select(job_recoveries).where(job_recoveries.c.outcome == "applied")
        rows = self.execute(done.order_by(job_recoveries.c.recovery_id, job_recoveries.c.job_id))
        return [(int(row["job_id"]), row["action"], row["reason"]) for row in rows]

    def no_lease_holds(self, *workers: int) -> bool:
        """Tell whether the leases of all these processes have run out."""
        holds = sa.select(leases.c.pid).where(leases.c.expires_at > self.clock(), leases.c.pid.in_(workers))
        return not self.execute(holds)


def until(condition: Callable[[], _Told | None]) -> _Told:
    """Return what a condition comes to, once it is anything."""
    give_up_at = time.monotonic() + 30
    while not (told := condition()):
        assert time.monotonic() < give_up_at, "it never came about"
        time.sleep(0.02)
    return told


@pytest.fixture(scope="module")
def forked() -> Iterator[Workers]:
    with open_workers() as workers:
        yield workers


@pytest.fixture
def workers(forked: Workers) -> Iterator[Workers]:
    yield forked
    forked.end()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without any configuration."""
    for name in os.environ:
        if name.upper().startswith("UNSTICK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scene(
    database: Database,
    workers: Workers,
    place: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Scene:
    return Scene(workers, capsys, monkeypatch, database.url)


@everywhere
def test_a_job_that_beats_is_never_touched_though_it_runs_for_ten_thresholds(scene: Scene) -> None:
    """Beside it a job whose worker died is recovered by the same sweeps, so they do see what there is."""
    threshold = 0.2
    scene.configure(threshold=threshold)
    scene.sweep("--unattended")
    for kind in ("essay", "wedged"):
        scene.put(kind)
    scene.workers.kit(scene.url, "essay", lease=LONG_LEASE)
    victim = scene.workers.kit(scene.url, "wedged", lease=1)
    until(lambda: len(scene.in_state("running")) == 2)
    scene.workers.kill(victim)
    (healthy,) = scene.in_state("running", kind="essay")

    began = scene.clock()
    while scene.clock() < began + timedelta(seconds=10 * threshold) or not scene.recovered():
        scene.sweep()
        scene.sweep("--unattended")
    assert scene.in_state("running") == [healthy]
    assert [job_id for job_id, _, _ in scene.recovered()] == scene.in_state("failed", kind="wedged")
    assert scene.stuck()["stuck_jobs"]["total"] == 0


@on_servers
def test_a_backlog_that_drains_is_never_touched_and_once_its_worker_is_dead_told_once(scene: Scene) -> None:
    """Ten thousand jobs, all of which have waited for longer than they may: from an hour to a minute and a half."""
    threshold, backlog = 1.5, 10_000
    scene.configure(threshold=threshold)
    oldest = scene.clock() - timedelta(hours=1)
    rows = [
        {"job_type": "page", "status": "queued", "created_at": oldest + timedelta(seconds=0.35 * number)}
        for number in range(backlog)
    ]
    scene.execute(*(sa.insert(jobs).values(rows[first : first + 1_000]) for first in range(0, backlog, 1_000)))
    worker = scene.workers.kit(scene.url, "page", lease=1.5)
    until(lambda: len(scene.in_state("completed")) >= 5)

    began = scene.clock()
    while scene.clock() < began + timedelta(seconds=1.5 * threshold):
        assert scene.sweep()["cleaned_jobs"]["total"] == 0
        assert sum(scene.sweep("--unattended")["outcomes"].values()) == 0
    stuck = scene.stuck()
    assert (stuck["stuck_jobs"]["total"], stuck["unserved_queues"]) == (0, [])
    assert scene.recovered() == []

    scene.workers.kill(worker)
    until(lambda: scene.no_lease_holds(worker))
    waiting = scene.in_state("queued")
    assert len(waiting) > 0.9 * backlog
    told = until(lambda: found if len((found := scene.stuck())["unserved_queues"]) else None)
    assert told["unserved_queues"] == [{"queues": None, "jobs": len(waiting)}]
    said = [line for line in scene.run("stuck")[1].splitlines() if line.startswith("No worker lives")]
    assert said == [f"No worker lives that could take the {len(waiting)} queued jobs: start one."]

    report = until(lambda: found if (found := scene.sweep("--unattended"))["cleaned_jobs"]["total"] else None)
    assert (report["cleaned_jobs"]["queued"], report["brake"]) == (0, None)
    assert scene.in_state("queued") == waiting
    assert {reason for _, _, reason in scene.recovered()} == {"lease_expired"}


@on_two
def test_a_job_that_kills_its_worker_ends_as_poison_and_is_touched_no_more(scene: Scene) -> None:
    budget = 2
    scene.configure(threshold=60, action="retry", budget=budget)
    scene.put("poison")
    for _ in range(budget + 1):
        victim = scene.workers.kit(scene.url, "poison", lease=0.5)
        until(lambda pid=victim: scene.workers.killed(pid))  # type: ignore[misc]
        until(lambda pid=victim: scene.no_lease_holds(pid))  # type: ignore[misc]
        assert scene.sweep()["cleaned_jobs"]["total"] == 1
    (job_id,) = scene.in_state("failed")
    ended = [(job_id, "retry", "lease_expired")] * budget + [(job_id, "mark_failed", "poison")]
    assert scene.recovered() == ended

    row = scene.execute(sa.select(jobs))
    survivor = scene.workers.kit(scene.url, "poison", "page", lease=LONG_LEASE)
    scene.put("page")
    until(lambda: scene.in_state("completed"))
    for options in ((), ("--unattended",), ("--action", "retry")):
        assert scene.sweep(*options)["cleaned_jobs"]["total"] == 0
    assert not scene.workers.killed(survivor)
    assert scene.execute(sa.select(jobs).where(jobs.c.id == job_id)) == row
    assert scene.recovered() == ended


@on_two
def test_a_deploy_that_kills_all_workers_is_held_until_a_person_lets_exactly_that_through(scene: Scene) -> None:
    scene.configure(threshold=1, brake=5)
    scene.sweep("--unattended")
    scene.put("essay", 12)
    old = [scene.workers.kit(scene.url, "essay", lease=1, concurrency=4) for _ in range(3)]
    until(lambda: len(scene.in_state("running")) == 12)
    cut_off = scene.in_state("running")
    for worker in old:
        scene.workers.kill(worker)
    scene.put("essay", 3)
    new = [scene.workers.kit(scene.url, "essay", lease=LONG_LEASE, concurrency=4) for _ in range(2)]
    until(lambda: len(scene.in_state("running")) == 15)
    until(lambda: scene.stuck()["stuck_jobs"]["running_stuck"] == len(cut_off))

    brakes = [until(lambda: scene.sweep("--unattended")["brake"])]
    for _ in range(2):
        code, said = scene.run("sweep", "--unattended", "--json")
        assert code == HELD
        brakes.append(json.loads(said)["brake"])
    assert brakes == [brakes[0]] * 3
    assert (brakes[0]["suspects"], brakes[0]["open_jobs"]) == (12, 15)
    assert brakes[0]["cause"].startswith("a deploy: 3 workers stopped together at ")
    assert len(scene.in_state("running")) == 15
    assert scene.recovered() == []

    assert scene.run("brake", "--release")[0] == 0
    assert scene.sweep("--unattended")["cleaned_jobs"] == {"queued": 0, "running": 12, "total": 12}
    assert scene.recovered() == [(job_id, "mark_failed", "lease_expired") for job_id in cut_off]
    assert len(scene.in_state("running")) == 3
    assert scene.run("brake") == (0, "No brake holds it.\n")
    assert not any(scene.workers.killed(pid) for pid in new)


def test_after_a_database_was_away_who_lives_is_never_touched_and_who_died_with_it_is_recovered_after_the_grace(
    mortal: MortalPostgres, workers: Workers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """M1: the database is away for longer than the threshold, and then all jobs look dead at once."""
    mortal.create("scene")
    scene = Scene(workers, capsys, monkeypatch, mortal.url("psycopg", "scene"))
    threshold = 2.5
    scene.configure(threshold=threshold)
    scene.sweep("--unattended")
    for kind in ("essay", "wedged", "steady", "doomed"):
        scene.put(kind)
    workers.kit(scene.url, "essay", lease=LONG_LEASE)
    cut_off = workers.kit(scene.url, "wedged", lease=2)
    workers.steady(scene.url, kind="steady")
    doomed = workers.steady(scene.url, kind="doomed")
    until(lambda: len(scene.in_state("running")) == 4)
    last_beats = {row["id"]: row["updated_at"] for row in scene.execute(sa.select(jobs))}

    mortal.die()
    died = time.monotonic()
    for worker in (cut_off, doomed):
        workers.kill(worker)
    until(lambda: time.monotonic() > died + 1.2 * threshold)  # the outage itself: nothing can be asked meanwhile
    mortal.begin()

    first = scene.sweep("--unattended")
    assert first["cleaned_jobs"]["total"] == 0
    assert first["outcomes"]["left"] >= 2
    dead = sorted(scene.in_state("running", kind="wedged") + scene.in_state("running", kind="doomed"))
    alive = sorted(scene.in_state("running", kind="essay") + scene.in_state("running", kind="steady"))
    while len(scene.recovered()) < len(dead):
        assert scene.sweep("--unattended")["brake"] is None
    for _ in range(3):
        scene.sweep("--unattended")
        scene.sweep()

    (last,) = scene.execute(sa.select(passes))
    at = scene.execute(sa.select(job_recoveries.c.at))
    assert all(row["at"] >= last["back_at"] + timedelta(seconds=threshold) for row in at)
    assert sorted(job_id for job_id, _, _ in scene.recovered()) == dead
    assert scene.in_state("running") == alive
    beats = {row["id"]: row["updated_at"] for row in scene.execute(sa.select(jobs).where(jobs.c.job_type == "steady"))}
    assert all(beat > last["back_at"] > last_beats[job_id] for job_id, beat in beats.items())
    held = scene.execute(sa.select(leases.c.beat_at).where(leases.c.expires_at > scene.clock()))
    assert [row["beat_at"] > last["back_at"] for row in held] == [True]
