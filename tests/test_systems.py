"""Job systems that people run, with their own workers: what Unstick finds, says and does among their jobs."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from tests.jobs import jobs_table
from tests.systems.harness import Installed, installed, wait_until
from tests.systems.known import SYSTEMS
from tests.systems.page import rows, show
from unstick.config import Settings, load_settings
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import InvalidRequestError
from unstick.domain.policy import Rule
from unstick.domain.recovery import Action, Outcome
from unstick.domain.standing import Standing
from unstick.domain.undo import IRREVERSIBLE
from unstick.pipeline.looking import take_look
from unstick.pipeline.recovering import RecoverOrder, recover_job
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.undo import UndoOrder, undo
from unstick.pipeline.verdict import judge
from unstick.presets.preset import load_preset, shipped
from unstick.sql.engine import open_engine
from unstick.sql.inspection import inspect_database
from unstick.sql.proposed_file import to_toml
from unstick.testing.conformance import batch_of
from unstick.wiring import open_watched, upgrade_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.servers import Database
    from tests.systems.harness import System
    from unstick.domain.recovery import Batch
    from unstick.pipeline.watched import Watched

EVERYWHERE = [(system, database) for system in SYSTEMS for database in system.databases]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A system in its database, watched by Unstick."""

    app: Installed
    settings: Settings
    version: str
    """Of the system that is installed."""

    @property
    def system(self) -> System:
        return self.app.system

    @property
    def reasons(self) -> set[Reason]:
        """Why jobs are stuck whose worker was killed."""
        return {Reason.NEVER_CLAIMED, Reason.UNSERVED} if self.system.returns else {Reason.WORKER_GONE, Reason.SILENT}

    @property
    def standings_of_the_healthy(self) -> set[Standing]:
        """What a job is that runs."""
        return {Standing.UNKNOWN} if self.system.ageless else {Standing.BEATING, Standing.HELD}

    @property
    def impatient(self) -> Settings:
        """Settings by which what is queued is stuck at once."""
        policy = self.settings.policy.model_copy(update={"queued_after": timedelta(milliseconds=1)})
        return self.settings.model_copy(update={"policy": policy})

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Watched]:
        async with open_watched(self.settings) as watched:
            yield watched

    def begin(self, *tokens: str) -> list[int | str]:
        """Enqueue jobs and wait until workers have begun them."""
        if self.system.hears_once:
            self.app.start_workers(*tokens)
        job_ids: list[int | str] = self.app.run("enqueue", *tokens)
        if not self.system.hears_once:
            self.app.start_workers(*tokens)
        self.app.await_line("began", tokens)
        return job_ids

    async def recover(self, watched: Watched, job_id: int | str, action: Action) -> Outcome:
        report = await recover_job(watched, RecoverOrder(actor="test", job_id=job_id, action=action))
        return report.outcome

    async def execute(self, statement: str, **values: object) -> None:
        """Do something to the tables as their owner would."""
        engine = open_engine(self.app.database.url)
        async with engine.begin() as connection:
            bound: list[sa.BindParameter[object]] = [sa.bindparam(name, expanding=True) for name in values]
            quoted = statement.replace('"', engine.dialect.identifier_preparer.initial_quote)
            await connection.execute(sa.text(quoted).bindparams(*bound), values)
        await engine.dispose()

    async def read(self, query: str) -> list[tuple[object, ...]]:
        """Read from the tables as they are."""
        engine = open_engine(self.app.database.url)
        async with engine.connect() as connection:
            rows = (await connection.execute(sa.text(query))).all()
        await engine.dispose()
        return [tuple(row) for row in rows]

    def tell(self, job_id: object) -> dict[str, object]:
        """Ask the system's own interface about a job."""
        (told,) = self.app.run("tell", str(job_id))
        assert isinstance(told, dict)
        return told

    def await_end(self, job_id: object) -> None:
        wait_until(lambda: self.tell(job_id)["state"] == self.system.retried["state"], self.app.log)


@pytest.fixture
def scene(system: System, database: Database, tmp_path: Path) -> Iterator[Scene]:
    # As if nothing else were written: what a system's users put into their configuration.
    source = {"url": database.url, "preset": system.name, **system.source}
    policy = {"queued_after": "1s", "running_after": "1h" if system.grow_old else "2s", "retry_backoff": "1s"}
    settings = Settings.model_validate({"sources": {"main": source}, "policy": policy})
    with installed(system, database, tmp_path) as app:
        yield Scene(app=app, settings=settings, version=app.run("migrate"))


def on(places: list[tuple[System, str]]) -> pytest.MarkDecorator:
    """Have a test run on these systems, each in its databases."""
    ids = [f"{system.name}-{database}" for system, database in places]
    return pytest.mark.parametrize(("system", "database"), places, indirect=["database"], ids=ids)


everywhere = on(EVERYWHERE)


@everywhere
async def test_what_a_killed_worker_left_is_recovered_and_what_lives_is_left_alone(scene: Scene) -> None:
    """A job is marked failed so that its own system says so, another runs again to its end; a healthy one does, too."""
    app = scene.app
    failed, retried, healthy = scene.begin("failed", "retried", "healthy")
    await upgrade_database(scene.settings)
    app.kill_worker_of("failed")
    app.kill_worker_of("retried")
    if scene.system.grow_old is not None:
        await scene.execute(scene.system.grow_old, ids=[failed, retried])

    async with scene.watched() as watched:
        await _found_stuck(scene, watched, failed, retried)
        assert await scene.recover(watched, failed, Action.MARK_FAILED) is Outcome.APPLIED
        await _undone_or_not_at_all(scene, watched, failed)
        assert (await _standing(watched, healthy)) in scene.standings_of_the_healthy

        told = scene.tell(failed)
        assert told.items() >= scene.system.failed.items()
        assert "error" not in told or "Job stuck in running" in str(told["error"])
        await _runs_again_or_not_at_all(scene, watched, retried)
        await _finishing_wins(scene, watched, healthy)
        if scene.system.unknown is not None:
            await _only_read_in_another_version(scene, watched, scene.system.unknown)
    workers = "SQL in their place, on its published schema" if scene.system.stands_in else "its own"
    found = "found when queued again" if scene.system.returns else "found"
    retried_too = ("retried",) if scene.system.retries else ()
    version = () if scene.system.unknown is None else ("version",)
    seen = (found, "failed", *retried_too, "healthy left alone", "finish wins", *version)
    show(
        load_preset(scene.system.name), scene.system.name, scene.version, app.database.backend, workers, seen,
        undoable=scene.system.undoable,
    )  # fmt: skip


async def _found_stuck(scene: Scene, watched: Watched, *job_ids: int | str) -> None:
    """Wait until all of them are found stuck, and no others."""
    async with asyncio.timeout(30):
        for job_id in job_ids:
            while (verdict := await judge(watched, job_id)) is None or verdict.standing is not Standing.STUCK:
                pass
            assert verdict.reason in scene.reasons
    report = await sweep(watched, SweepOrder(actor="test", dry_run=True))
    assert report.tally.of(outcome=Outcome.APPLIED) == len(job_ids)


async def _undone_or_not_at_all(scene: Scene, watched: Watched, job_id: int | str) -> None:
    """What changed nothing but the job's row is taken back, and done again; of anything else it is said why not."""
    before = scene.tell(job_id)
    report = await undo(watched, UndoOrder(actor="test", job_id=job_id))
    if scene.system.undoable:
        assert report.of(outcome=Outcome.APPLIED) == 1
        assert await _standing(watched, job_id) is Standing.STUCK
        assert await scene.recover(watched, job_id, Action.MARK_FAILED) is Outcome.APPLIED
    else:
        assert [each.detail for each in report.left] == [IRREVERSIBLE]
        assert scene.tell(job_id) == before


async def _runs_again_or_not_at_all(scene: Scene, watched: Watched, job_id: int | str) -> None:
    """What is retried is run to its end by a worker of the system's; where that can't be, it is said."""
    app = scene.app
    if not scene.system.retries:
        with pytest.raises(InvalidRequestError, match="can't retry its jobs"):
            await scene.recover(watched, job_id, Action.RETRY)
        ruled = replace(watched.policy, action=Action.RETRY, rules=(Rule(source="main", action=Action.MARK_FAILED),))
        swept = await sweep(replace(watched, policy=ruled), SweepOrder(actor="test", dry_run=True))
        assert swept.action is Action.MARK_FAILED, "its own rule goes before what others do"
        return
    if scene.system.hears_once:
        app.start_workers("retried")
    assert await scene.recover(watched, job_id, Action.RETRY) is Outcome.APPLIED
    if not scene.system.hears_once:
        app.start_workers("retried")
    wait_until(lambda: sum(line.startswith("began retried ") for line in app.lines()) == 2, app.log)
    app.release("retried")
    scene.await_end(job_id)
    assert scene.tell(job_id).items() >= scene.system.retried.items()


async def _standing(watched: Watched, job_id: int | str) -> Standing:
    verdict = await judge(watched, job_id)
    assert verdict is not None
    return verdict.standing


async def _finishing_wins(scene: Scene, watched: Watched, job_id: int | str) -> None:
    """A job that finishes after it was looked at, and before it is written to, stays as its worker left it."""
    batch = await _suspected(watched, job_id)
    if scene.system.ageless:
        # A worker that may takes it again at once, until it has its hands full.
        async with asyncio.timeout(30):
            while not batch.decisions:
                await scene.execute(str(scene.system.grow_old), ids=[job_id])
                batch = await _suspected(watched, job_id)
    assert [decision.suspect.job_id for decision in batch.decisions] == [job_id]
    scene.app.release("healthy")
    scene.await_end(job_id)
    result = await watched.source.recover(replace(batch, operation_id=1))
    assert (result.applied, result.refused) == (frozenset(), {})
    assert scene.tell(job_id)["state"] == scene.system.retried["state"]


async def _suspected(watched: Watched, job_id: int | str) -> Batch:
    """Look at a job as if a minute had passed: a lock that is held may be a sign of life of this very moment."""
    look = replace(await take_look(watched), running_after=timedelta(minutes=-1), only=frozenset({job_id}))
    suspects = [suspect async for page in watched.source.suspects(look) for suspect in page.suspects]
    return batch_of(suspects, look)


async def _only_read_in_another_version(scene: Scene, watched: Watched, made_by: str) -> None:
    await scene.execute(made_by)
    with pytest.raises(InvalidRequestError, match=r"only read: its tables of .* are of version"):
        await sweep(watched, SweepOrder(actor="test"))
    assert (await watched.source.usage()).window_jobs > 0


def test_the_page_tells_of_every_preset_and_of_nothing_else() -> None:
    told = {row.split(" | ")[1].strip("`") for row in rows()}
    assert told == set(shipped())
    assert {(row.split(" | ")[1].strip("`")) for row in rows()} == {system.name for system in SYSTEMS}
    assert len(rows()) == len(EVERYWHERE)


@pytest.mark.parametrize(
    ("system", "database"), [pytest.param(SYSTEMS[0], "postgres18", id="procrastinate")], indirect=["database"]
)
async def test_locks_keep_jobs_waiting_and_refuse_a_retry_but_stop_nobody_else(scene: Scene) -> None:
    """A queueing lock has room for one queued job, so that a retry is refused by it; the rest of the batch goes on."""
    keyed, taken, other, locks, locked = scene.app.run("enqueue", "keyed", "taken", "other", "locks", "locked")
    await scene.execute("UPDATE procrastinate_jobs SET status = 'doing' WHERE id IN :ids", ids=[keyed, other, locks])
    await scene.execute("UPDATE procrastinate_jobs SET queueing_lock = 'once' WHERE id IN :ids", ids=[keyed, taken])
    await scene.execute("UPDATE procrastinate_jobs SET lock = 'one' WHERE id IN :ids", ids=[locks, locked])
    await scene.execute("UPDATE procrastinate_events SET at = at - interval '1 hour'")
    await upgrade_database(scene.settings)

    async with scene.watched() as watched:
        holds, waits = await judge(watched, locks), await judge(watched, locked)
        assert holds is not None
        assert holds.sentence.endswith(f"; jobs that can't be claimed before it is over: {locked}.")
        assert waits is not None
        assert (waits.standing, waits.sentence) == (
            Standing.BLOCKED,
            f"Job {locked} is queued and can't be claimed: job {locks} comes first with its lock one; it isn't stuck.",
        )
        report = await sweep(watched, SweepOrder(actor="test", action=Action.RETRY))

    assert report.tally.of(outcome=Outcome.APPLIED) == len((taken, other, locks))
    ((refused, why),) = [(each.job_id, each.detail) for each in report.failures]
    assert (refused, "procrastinate_jobs_queueing_lock_idx" in why) == (keyed, True)
    assert [scene.tell(job_id)["state"] for job_id in (keyed, other)] == ["doing", "todo"]


async def test_several_systems_in_one_database_are_recognised_and_swept(
    postgres_database: Database, tmp_path: Path
) -> None:
    """Each by its tables, under whatever schema and prefix; the application's own table is proposed beside them."""
    # Oban's two make tables of the same names.
    presets = [(load_preset(each.name), each) for each in SYSTEMS]
    there = {preset.table: each for preset, each in presets if "postgresql" in preset.databases}.values()
    for system in there:
        with installed(system, postgres_database, tmp_path) as app:
            app.run("migrate")
    engine = open_engine(postgres_database.url)
    async with engine.begin() as connection:
        await connection.run_sync(jobs_table().metadata.create_all)
        await connection.execute(sa.text("CREATE SCHEMA eu"))
        for name in ("pgqueuer", "pgqueuer_log"):
            await connection.execute(sa.text(f"CREATE TABLE eu.my_{name} (LIKE public.{name} INCLUDING ALL)"))
        await connection.execute(sa.text("ALTER TABLE eu.my_pgqueuer ADD COLUMN shard text"))

    found = await inspect_database(engine)
    await engine.dispose()
    assert {each.preset for each in found.systems} == {system.name for system in there}
    (foreign,) = (each for each in found.systems if not each.is_plain)
    assert (foreign.source, foreign.table) == ("pgqueuer_2", "eu.my_pgqueuer")
    assert [each.source for each in found.systems if each.problem is not None] == ["pgqueuer_2"]
    assert found.inspection is not None
    assert found.inspection.facts.name == "ai_generation_jobs"

    file = tmp_path / "unstick.toml"
    file.write_text(to_toml("main", postgres_database.url, found))
    settings = load_settings(file)
    assert set(settings.sources) == {"main", *(each.source for each in found.systems)}
    await upgrade_database(settings, "main")
    for name in settings.sources.keys() - {"pgqueuer_2"}:
        async with open_watched(settings, name) as watched:
            await sweep(watched, SweepOrder(actor="test"))
    async with open_watched(settings, "pgqueuer_2") as watched:
        with pytest.raises(InvalidRequestError, match="only read"):
            await sweep(watched, SweepOrder(actor="test"))


@on([(system, database) for system, database in EVERYWHERE if system.waits])
async def test_a_job_that_waits_with_good_reason_is_not_stuck(scene: Scene) -> None:
    """It says what it waits for; and where that is a stuck job, that one says whom it blocks."""
    waits, other = scene.app.run("enqueue", "waits", "other")
    await upgrade_database(scene.settings)
    async with open_watched(scene.impatient) as watched:
        assert await _standing(watched, waits) is Standing.STUCK
        for wait in scene.system.waits:
            for statement in wait.made_by:
                await scene.execute(statement)
            verdict = await judge(watched, waits)
            assert verdict is not None
            assert (verdict.standing, wait.words in verdict.sentence) == (wait.standing, True), verdict.sentence
            if wait.blocks:
                blocking = await judge(watched, other)
                assert blocking is not None
                assert f"jobs that can't be claimed before it is over: {waits}" in blocking.sentence


def _tells_of_queued_jobs(system: System) -> bool:
    preset = load_preset(system.name)
    return any(write.of == "queued" for write in (*preset.fail, *preset.retry))


@on([each for each in EVERYWHERE if _tells_of_queued_jobs(each[0])])
async def test_a_job_that_nobody_claimed_is_failed_or_queued_again(scene: Scene) -> None:
    failed, retried = scene.app.run("enqueue", "failed", "retried")
    await upgrade_database(scene.settings)
    async with open_watched(scene.impatient) as watched:
        assert await scene.recover(watched, failed, Action.MARK_FAILED) is Outcome.APPLIED
        assert await scene.recover(watched, retried, Action.RETRY) is Outcome.APPLIED
        assert await _standing(watched, failed) is Standing.OVER
    assert scene.tell(failed)["state"] == scene.system.failed["state"]
    scene.app.start_workers("retried")
    scene.app.release("retried")
    scene.await_end(retried)


@on([each for each in EVERYWHERE if each[0].name == "pgboss"])
async def test_a_job_of_the_same_id_in_another_queue_is_left_alone(scene: Scene) -> None:
    """pg-boss's ids are unique within a queue: whoever gives them may give one twice."""
    (job_id,) = scene.app.run("enqueue", "failed")
    began = "now() - interval '2 hours'"
    await scene.execute(f"UPDATE pgboss.job SET state = 'active', started_on = {began}, heartbeat_on = {began}")
    await upgrade_database(scene.settings)
    async with scene.watched() as watched:
        look = await take_look(watched)
        suspects = [suspect async for page in watched.source.suspects(look) for suspect in page.suspects]
        other = "jsonb_populate_record(job, jsonb_build_object('name', 'lost', 'dead_letter', NULL))"
        await scene.execute(f"INSERT INTO pgboss.job SELECT ({other}).* FROM pgboss.job")
        result = await watched.source.recover(replace(batch_of(suspects, look), operation_id=1))
    assert ({str(each) for each in result.applied}, result.refused) == ({job_id}, {})
    jobs = await scene.read(f"SELECT name, state FROM pgboss.job WHERE id = '{job_id}' ORDER BY name")
    assert jobs == [("held", "failed"), ("lost", "active")]


@on([each for each in EVERYWHERE if each[0].name == "good_job"])
async def test_a_job_whose_advisory_lock_somebody_has_is_alive_and_is_not_written_to(scene: Scene) -> None:
    """GoodJob's worker has the lock before it says so in the row: one that comes after the look is heeded, too."""
    (job_id,) = scene.app.run("enqueue", "failed")
    ago = "timezone('UTC', now()) - interval '2 hours'"
    await scene.execute(f"UPDATE good_jobs SET performed_at = {ago}, locked_by_id = gen_random_uuid()")
    await upgrade_database(scene.settings)
    key = f"('x' || substr(md5('good_jobs-{job_id}'), 1, 16))::bit(64)::bigint"
    worker = open_engine(scene.app.database.url)
    async with scene.watched() as watched, worker.connect() as holding:
        look = await take_look(watched)
        suspects = [suspect async for page in watched.source.suspects(look) for suspect in page.suspects]
        await holding.execute(sa.text(f"SELECT pg_advisory_lock({key})"))
        assert await _standing(watched, job_id) is Standing.BEATING
        result = await watched.source.recover(replace(batch_of(suspects, look), operation_id=1))
        assert (result.applied, result.refused) == (frozenset(), {})
    await worker.dispose()
    assert await scene.read("SELECT finished_at FROM good_jobs") == [(None,)]
