"""Every reason comes about by real processes on a real database, and its page says what the user reads of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.rq_system import RqSystem, open_rq_system
from tests.servers import MissingServerError
from tests.systems.harness import Installed, installed
from tests.systems.known import SYSTEMS
from tests.workers import Workers, open_workers
from unstick.cli import main
from unstick.config import SourceSettings, load_settings
from unstick.domain.diagnosis import Reason
from unstick.domain.sighting import Sighted
from unstick.domain.tenure import CLOCKS_APART
from unstick.kit import enqueue
from unstick.pipeline.looking import take_look
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine
from unstick.sql.mapping import JobTable
from unstick.sql.sightings import SqlSightings
from unstick.systems.rq.accusing import LOST_AFTER, _sighted
from unstick.systems.rq.source import RqSource
from unstick.wiring import open_watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.servers import Database
    from unstick.domain.job import JobId

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "reasons.md"
RECORD = "RECORD_REASONS"
"""With this variable set, the blocks of the page are written anew from the run."""

OWN = JobTable.from_settings(SourceSettings())
THRESHOLD = 2
SHORT_LEASE, LONG_LEASE = 1, 10
EARLIER = timedelta(seconds=40)
PAGES = 100

_Told = TypeVar("_Told")

COLUMNS = """
    columns.id = "id"
    columns.state = "status"
    columns.kind = "job_type"
    columns.enqueued_at = "created_at"
    columns.started_at = "started_at"
    columns.heartbeat_at = "updated_at"
    columns.completed_at = "completed_at"
    columns.error = "error_message"
    states = { queued = "queued", running = "running", failed = "failed", succeeded = "completed" }
"""
BROKER = "redis://broker"
QUEUE = "postgresql://queue"
CONFIGURATION = f"""
    [policy]
    queued_after = "{THRESHOLD}s"
    running_after = "{THRESHOLD}s"
    hung_after = "{THRESHOLD}s"

    [[policy.rules]]
    kind = "poison"
    action = "retry"
    max_recoveries = 1
    retry_backoff = "0.1s"

    [sources.main]
    url = "sqlite:///jobs.db"
    [sources.main.progress]

    [sources.app]
    url = "sqlite:///jobs.db"
    table = "ai_generation_jobs"
    {COLUMNS}

    [sources.host]
    url = "sqlite:///jobs.db"
    table = "renders"
    {COLUMNS}
    columns.worker = "worker"
    [sources.host.process]
    worker = "{{host}}:{{pid}}"
    same_namespace = true

    [ledger]
    url = "sqlite:///jobs.db"

    [sources.mail]
    url = "{BROKER}"
    preset = "rq"

    [sources.billing]
    url = "{QUEUE}"
    preset = "procrastinate"
    [sources.billing.registry]
    table = "procrastinate_workers"
    columns = {{ id = "id", heartbeat_at = "last_heartbeat" }}
    alive_for = "{THRESHOLD}s"

    [sources.unasked]
    url = "sqlite:///jobs.db"
    table = "renders"
    {COLUMNS}
"""
TABLE = """
    CREATE TABLE {} (
        id INTEGER PRIMARY KEY, job_type VARCHAR(50) NOT NULL, status VARCHAR(20) NOT NULL, worker VARCHAR(120),
        created_at DATETIME NOT NULL, started_at DATETIME, updated_at DATETIME, completed_at DATETIME,
        error_message TEXT
    )
"""
NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
LONG_AGO = f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-{THRESHOLD} seconds')"


@dataclass
class Stage:
    """One database, the commands that a person gives, and what each reason's reader has read so far."""

    workers: Workers
    rq: RqSystem
    queue: Installed
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    file: str
    read: dict[Reason, list[str]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"sqlite:///{self.file}"

    # What a person does

    def run(self, *arguments: str) -> str:
        self.monkeypatch.setattr(sys, "argv", ["unstick", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self.capsys.readouterr()
        assert ended.value.code in (None, 0, 1), said.err
        return said.out

    def see_stuck(self, source: str, jobs: Mapping[JobId, Reason]) -> None:
        """Read the lines of these jobs."""
        lines = self.stuck(source, jobs)
        for job_id, reason in jobs.items():
            self.note(reason, "$ unstick stuck", lines[job_id])

    def stuck(self, source: str, jobs: Mapping[JobId, Reason]) -> dict[JobId, str]:
        """Return the lines of these jobs, once they all are there for these reasons."""

        def told() -> dict[JobId, str] | None:
            # In this order: who gets stuck in between is missing from what is waited for, not from what is read.
            document, lines = self.stuck_document(source), self.run("stuck", "--source", source)
            found = {job["id"]: job for job in (*document["queued_jobs"], *document["running_jobs"])}
            if {job_id: found.get(job_id, {}).get("reason") for job_id in jobs} != dict(jobs):
                return None
            read = {job_id: cells(lines, job_id) for job_id in jobs}
            said = {
                job_id: "; ".join(filter(None, (found[job_id][key] for key in ("sentence", "outlook"))))
                for job_id in jobs
            }
            # Some tell for how long, which may be another second by now.
            return read if all(plain(read[job_id]).endswith(plain(said[job_id])) for job_id in jobs) else None

        return until(told)

    def stuck_document(self, source: str) -> Any:  # noqa: ANN401
        return json.loads(self.run("stuck", "--source", source, "--json"))

    def see_job(self, source: str, job_id: JobId, reason: Reason, standing: str) -> None:
        """Read the first two lines of a job's story, once it stands so."""

        def stands() -> bool:
            document = json.loads(self.run("job", str(job_id), "--source", source, "--json"))
            return bool(document["diagnosis"]["standing"] == standing)

        def told() -> list[str] | None:
            before, said = stands(), self.run("job", str(job_id), "--source", source)
            return said.splitlines()[:2] if before and stands() else None

        self.note(reason, f"$ unstick job {job_id}", *until(told))

    def see_sweep(
        self, source: str, table: str, jobs: Mapping[JobId, Reason], note: Mapping[JobId, Reason] | None = None
    ) -> None:
        """Sweep, see that these jobs and no others were recovered, and read what became of them, or of some."""
        before = self.recovered(source)
        self.run("sweep", "--source", source)
        after = self.recovered(source)
        assert {job_id: reason for job_id, reason in after.items() if before.get(job_id) != reason} == dict(jobs)
        for job_id, reason in (jobs if note is None else note).items():
            ((status, message),) = self.rows(f"SELECT status, error_message FROM {table} WHERE id = ?", job_id)
            self.note(reason, "$ unstick sweep", f"{status}: {message}")

    def note(self, reason: Reason, *lines: str) -> None:
        self.read.setdefault(reason, []).extend(lines)

    # What is in the database

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.file, timeout=20)) as database, database:
            return database.execute(query, values).fetchall()

    def recovered(self, source: str) -> dict[JobId, str]:
        """Return the newest recovery's reason of each job."""
        query = "SELECT job_id, reason FROM unstick_job_recoveries WHERE source = ? ORDER BY recovery_id"
        return {int(each) if each.isdecimal() else each: reason for each, reason in self.rows(query, source)}

    def put(self, table: str, kind: str) -> JobId:
        """Commit a row, as an application does."""
        ((job_id,),) = self.rows(
            f"INSERT INTO {table} (job_type, status, created_at) VALUES (?, 'queued', {NOW}) RETURNING id", kind
        )
        return int(job_id)

    def enqueue(self, kind: str, number: int = 1, **options: Any) -> list[JobId]:  # noqa: ANN401
        """Enqueue jobs by the kit, in one transaction."""

        async def put() -> list[JobId]:
            engine = open_engine(self.url)
            async with AsyncSession(engine) as session:
                queued = [await enqueue(session, kind, jobs=OWN, **options) for _ in range(number)]
                await session.commit()
            await engine.dispose()
            return [each.job_id for each in queued]

        return asyncio.run(put())

    def until_rows(self, query: str, *values: object) -> None:
        until(lambda: self.rows(query, *values))

    def until_running(self, table: str, job_id: JobId) -> None:
        self.until_rows(f"SELECT 1 FROM {table} WHERE id = ? AND status = 'running'", job_id)

    def until_silent(self, table: str, *job_ids: JobId) -> None:
        """Wait until no job of these has shown any life for as long as it may."""
        said = f"SELECT 1 FROM {table} WHERE id = ? AND coalesce(updated_at, started_at, created_at) < {LONG_AGO}"
        for job_id in job_ids:
            self.until_rows(said, job_id)

    def until_no_worker_lives(self) -> None:
        leases = f"SELECT count(*) FROM unstick_leases WHERE expires_at > {NOW} OR beat_at > {LONG_AGO}"
        self.until_rows(f"SELECT 1 WHERE ({leases}) = 0")


def until(condition: Callable[[], _Told | None]) -> _Told:
    """Return what a condition comes to, once it is anything."""
    give_up_at = time.monotonic() + 20
    while not (told := condition()):
        assert time.monotonic() < give_up_at, "it never came about"
        time.sleep(0.02)
    return told


def cells(table: str, job_id: JobId) -> str:
    """Return a job's line of a table, whatever the width of its columns."""
    rows, _, _ = table.partition("\n\n")
    (line,) = (line for line in rows.splitlines() if line.split(" ", 1)[0] == str(job_id))
    return re.sub(" {2,}", "  ", line)


@pytest.fixture
def rq(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RqSystem]:
    try:
        with open_rq_system(broker, tmp_path_factory.mktemp("rq")) as opened:
            yield opened
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON RQ: {missing}")


@pytest.fixture
def queue(postgres_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    (system,) = (each for each in SYSTEMS if each.name == "procrastinate")
    with installed(system, postgres_database, tmp_path_factory.mktemp("queue")) as app:
        app.run("migrate")
        yield app


@pytest.fixture
def stage(
    rq: RqSystem,
    queue: Installed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Stage]:
    for name in os.environ:
        if name.upper().startswith("UNSTICK_"):
            monkeypatch.delenv(name)
    with open_workers() as workers:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "unstick.toml").write_text(CONFIGURATION.replace(BROKER, rq.url).replace(QUEUE, queue.database.url))
        stage = Stage(workers, rq, queue, capsys, monkeypatch, str(tmp_path / "jobs.db"))
        stage.run("db", "upgrade")
        for table in ("ai_generation_jobs", "renders"):
            stage.rows(TABLE.format(table))
        yield stage


def test_the_page_says_what_is_read_of_each_reason_and_of_each_there_is(stage: Stage) -> None:
    play_an_application_without_a_kit(stage)
    play_workers_beside_a_witness(stage)
    play_workers_that_die(stage)
    play_a_worker_that_lives(stage)
    play_workers_behind_a_broker(stage)
    play_a_worker_that_dies_with_a_lock(stage)

    if RECORD in os.environ:
        PAGE.write_text(with_blocks(PAGE.read_text(), stage.read))
    assert blocks(PAGE.read_text()) == {reason: plain("\n".join(lines)) for reason, lines in stage.read.items()}
    assert set(stage.read) == set(Reason)


def play_an_application_without_a_kit(stage: Stage) -> None:
    """A row that nobody takes, a worker that was killed, and one that beats in its row."""
    table = "ai_generation_jobs"
    web = stage.workers.request(stage.file, table, kind="summary")
    busy = stage.workers.plain(stage.file, table, kind="export")
    stage.workers.plain(stage.file, table, kind="import", beats=True)
    exported, imported = stage.put(table, "export"), stage.put(table, "import")
    until(lambda: stage.workers.killed(web))
    ((requested,),) = stage.rows(f"SELECT id FROM {table} WHERE job_type = 'summary'")
    for job_id in (exported, imported):
        stage.until_running(table, job_id)
    stage.workers.kill(busy)
    stage.until_silent(table, requested, exported)
    stage.until_rows(f"SELECT 1 FROM {table} WHERE id = ? AND started_at < {LONG_AGO}", imported)

    stuck = {requested: Reason.NEVER_CLAIMED, exported: Reason.SILENT}
    stage.see_stuck("app", stuck)
    for job_id, reason in stuck.items():
        stage.see_job("app", job_id, reason, "stuck")
    stage.see_job("app", imported, Reason.BEATING, "beating")
    stage.see_sweep("app", table, stuck)


def play_workers_beside_a_witness(stage: Stage) -> None:
    """Two that write nothing more into their rows: one is dead, and one is at work."""
    killed, living = (stage.workers.plain(stage.file, "renders", kind=kind) for kind in ("clip", "film"))
    # A process that is about as old as its job might be another one of its number.
    youngest = max(psutil.Process(pid).create_time() for pid in (killed, living))
    until(lambda: time.time() > youngest + CLOCKS_APART.total_seconds())
    clip, film = stage.put("renders", "clip"), stage.put("renders", "film")
    for job_id in (clip, film):
        stage.until_running("renders", job_id)
    stage.workers.kill(killed)
    stage.until_silent("renders", clip, film)

    of_age = stage.stuck("unasked", {clip: Reason.SILENT, film: Reason.SILENT})
    stage.see_stuck("host", {clip: Reason.WORKER_GONE})
    stage.see_job("host", clip, Reason.WORKER_GONE, "stuck")
    stage.see_sweep("host", "renders", {clip: Reason.WORKER_GONE})
    stage.note(Reason.HELD, "$ unstick stuck  # without the witness", of_age[film])
    stage.note(Reason.HELD, "$ unstick stuck  # with it", stage.run("stuck", "--source", "host").splitlines()[0])
    stage.see_job("host", film, Reason.HELD, "held")
    document = stage.stuck_document("host")
    assert (document["stuck_jobs"]["total"], document["undecided_jobs"]) == (0, 0)
    assert stage.rows("SELECT status FROM renders WHERE id = ?", film) == [("running",)]


def play_workers_that_die(stage: Stage) -> None:
    """The only worker of a kind, killed in the middle of a job; and a job that kills whoever takes it."""
    (essay,), (poison,) = stage.enqueue("essay"), stage.enqueue("poison")
    writer = stage.workers.kit(stage.url, "essay", lease=SHORT_LEASE)
    victim = stage.workers.kit(stage.url, "poison", lease=SHORT_LEASE)
    stage.until_running("jobs", essay)
    stage.workers.kill(writer)
    until(lambda: stage.workers.killed(victim))
    (waiting,), (later,) = stage.enqueue("essay"), stage.enqueue("essay", wait=timedelta(hours=1))
    stage.until_no_worker_lives()
    stage.until_silent("jobs", waiting)

    stuck = {essay: Reason.LEASE_EXPIRED, waiting: Reason.UNSERVED}
    stage.see_stuck("main", stuck)
    for job_id, reason in stuck.items():
        stage.see_job("main", job_id, reason, "stuck")
    stage.see_job("main", later, Reason.SCHEDULED, "scheduled")
    stage.see_sweep("main", "jobs", stuck | {poison: Reason.LEASE_EXPIRED}, note=stuck)

    victim = stage.workers.kit(stage.url, "poison", lease=SHORT_LEASE)
    until(lambda: stage.workers.killed(victim))
    stage.until_no_worker_lives()
    stage.note(Reason.POISON, "$ unstick stuck", stage.stuck("main", {poison: Reason.LEASE_EXPIRED})[poison])
    stage.see_job("main", poison, Reason.POISON, "stuck")
    stage.see_sweep("main", "jobs", {poison: Reason.POISON})


def play_a_worker_that_lives(stage: Stage) -> None:
    """It works through a queue in which one job is of a kind that it doesn't know, and has one that comes to a halt."""
    (wedged,) = stage.enqueue("wedged")
    stage.workers.kit(stage.url, "wedged", "page", lease=LONG_LEASE)
    stage.until_running("jobs", wedged)
    (lost,) = stage.enqueue("report")
    *_, last = stage.enqueue("page", PAGES)
    stage.until_rows("SELECT 1 FROM jobs WHERE id = ? AND progress = 40", wedged)
    asyncio.run(see_it_a_while_ago(wedged))
    stage.until_silent("jobs", lost, last)
    stage.until_rows(f"SELECT 1 FROM jobs WHERE id = ? AND started_at < {LONG_AGO}", wedged)

    stage.see_job("main", last, Reason.BACKLOG, "backlog")
    stage.see_stuck("main", {lost: Reason.OVERTAKEN, wedged: Reason.HUNG})
    stage.see_job("main", lost, Reason.OVERTAKEN, "stuck")
    stage.see_job("main", wedged, Reason.HUNG, "stuck")
    stage.see_sweep("main", "jobs", {lost: Reason.OVERTAKEN, wedged: Reason.HUNG})


def play_workers_behind_a_broker(stage: Stage) -> None:
    """One that is killed with a job in its hands, and then all of them suspended."""
    stage.rq.do("enqueue", "letter")
    stage.rq.start_worker(kind="DiesWithAJobInHand").wait()
    until_as_long_as_it_may(time.monotonic())
    asyncio.run(see_it_taken_a_while_ago())

    lost: dict[JobId, Reason] = {"letter": Reason.MESSAGE_LOST}
    stage.see_stuck("mail", lost)
    stage.see_job("mail", "letter", Reason.MESSAGE_LOST, "stuck")
    stage.run("sweep", "--source", "mail")
    assert stage.recovered("mail") == lost
    shown = stage.rq.show("letter")
    stage.note(Reason.MESSAGE_LOST, "$ unstick sweep", f"{shown['status']}: {shown['error']}")

    stage.rq.do("enqueue", "parcel")
    until_as_long_as_it_may(time.monotonic())
    stage.stuck("mail", {"parcel": Reason.NEVER_CLAIMED})  # RQ keeps an idle worker for eight minutes after it died
    stage.rq.do("suspend")
    stage.see_job("mail", "parcel", Reason.PAUSED, "paused")
    stage.run("sweep", "--source", "mail")
    assert (stage.recovered("mail"), stage.rq.show("parcel")["status"]) == (lost, "queued")


def play_a_worker_that_dies_with_a_lock(stage: Stage) -> None:
    """Another job waits for the lock, and gets it when the dead worker's job is over."""
    queue = stage.queue
    charge, refund = queue.run("lock", "account", "charge", "refund")
    queue.start_workers("charge")
    queue.await_line("began", ["charge"])
    queue.kill_worker_of("charge")

    stage.stuck("billing", {charge: Reason.WORKER_GONE})
    stage.see_job("billing", refund, Reason.BLOCKED, "blocked")
    stage.see_job("billing", charge, Reason.BLOCKED, "stuck")
    stage.run("sweep", "--source", "billing")
    assert stage.recovered("billing") == {charge: Reason.WORKER_GONE}
    queue.start_workers("refund")
    queue.await_line("began", ["refund"])


def until_as_long_as_it_may(since: float) -> None:
    """Wait until what has waited since then has waited for longer than it may."""
    until(lambda: time.monotonic() > since + THRESHOLD)


async def see_it_taken_a_while_ago() -> None:
    """Write down that a job is in no queue as if that had been seen earlier: jobs pass through there."""
    async with open_watched(load_settings(), "mail") as watched:
        assert isinstance(watched.source, RqSource)
        taken = await watched.source._reader.taken(["default"])
        earlier = await watched.source.clock() - LOST_AFTER
        await watched.source._accuser._sightings.note("mail", [_sighted(each) for each in taken], earlier)


async def see_it_a_while_ago(job_id: JobId) -> None:
    """Write down how a job looks as if that had been seen earlier: looks within half a minute count as one."""
    async with open_watched(load_settings(), "main") as watched:
        look = await take_look(watched)
        jobs = await watched.source.describe(look, [job_id])
        engine = open_engine("sqlite:///jobs.db")
        await SqlSightings(EngineConnections(engine)).note("main", [Sighted.of(jobs[job_id])], look.taken_at - EARLIER)
        await engine.dispose()


# The page

_BLOCK = re.compile(r"^### (\w+)$(.*?)^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> dict[Reason, str]:
    """Return what the page says is read of each reason."""
    return {Reason(name): plain(read) for name, _, read in _BLOCK.findall(page)}


def with_blocks(page: str, read: Mapping[Reason, list[str]]) -> str:
    """Return the page with what was read now."""

    def anew(found: re.Match[str]) -> str:
        lines = "".join(f"{line}\n" for line in read[Reason(found[1])])
        return f"{found[0][: found.start(3) - found.start()]}{lines}```"

    return _BLOCK.sub(anew, page)


def plain(said: str) -> str:
    """Return what is read with a word in place of whatever differs from run to run."""
    for pattern, word in _DIFFERS.items():
        said = re.sub(pattern, word, said, flags=re.MULTILINE)
    return said.rstrip("\n")


_UNIT = r"\d+ (?:second|minute|hour|day)s?"
_DIFFERS = {
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC": "TIME",
    rf"{_UNIT} ago|just now": "AGO",
    rf"{_UNIT}(?: {_UNIT})?": "DURATION",
    r"process \d+": "process PID",
    r"^\d+  ": "ID  ",
    r"(?<=[Jj]ob )\d+": "ID",
}
