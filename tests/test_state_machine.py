"""Workers, sweepers and an administrator on one jobs table, in any order: each step is held against a model.

`UNSTICK_EXAMPLES=300 pytest tests/test_state_machine.py` tries as many lives of a table, other ones each time.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncGenerator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import sqlalchemy as sa
import time_machine
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.ext.asyncio import AsyncSession

from tests import model
from tests.jobs import make_tables
from tests.model import Asked, End, Heard, Scene, Step, Swept, Verdict
from unstick.admin import AdminService
from unstick.config import SourceSettings
from unstick.domain import policy
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.diagnosis import Reason
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import Action, Outcome
from unstick.domain.work import Beat, WorkerIdentity
from unstick.kit import enqueue
from unstick.pipeline.looking import take_look, take_scopes
from unstick.pipeline.rescue import decide_page, rescue
from unstick.pipeline.sweep import CLEANUP_CALL, SweepOrder, sweep
from unstick.pipeline.watched import Watched
from unstick.sql import tables
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import open_engine, use_write_ahead_log
from unstick.sql.ledger import SqlLedger
from unstick.sql.mapping import JobTable
from unstick.sql.queue import SqlJobQueue
from unstick.sql.source import RULED_FROM, SqlSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.servers import Database
    from unstick.domain.recovery import Ruled
    from unstick.domain.suspect import Look
    from unstick.domain.work import ClaimedJob
    from unstick.pipeline.rescue import Decided

MORE = os.environ.pop("UNSTICK_EXAMPLES", None)  # taken out, for it is no setting of the product's
SETTINGS = settings(
    max_examples=int(MORE or 10),
    stateful_step_count=25,
    derandomize=MORE is None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
OWN = JobTable.from_settings(SourceSettings())
POLICY = Policy(
    queued_after=model.QUEUED_AFTER,
    running_after=model.RUNNING_AFTER,
    max_recoveries=model.BUDGET,
    recovery_window=model.WINDOW,
    retry_backoff=model.BACKOFF,
)
AT_MOST_OPEN = 8
WORKERS = st.integers(0, 2)
CLAIMERS = st.sampled_from([[0], [1], [2], [0, 1, 2]])
SWEEPERS = st.integers(0, 1)
ACTIONS = st.sampled_from([Action.RETRY, Action.RETRY, Action.RETRY, Action.MARK_FAILED])
KEYS = st.sampled_from([None, "order-1", "order-2"])
WAITS = st.sampled_from([None, timedelta(minutes=2)])
SPANS = st.sampled_from([timedelta(minutes=minutes) for minutes in (0.7, 1.7, 7, 7, 33, 33, 4 * 24 * 60)])
"""What a lease outlives and what it doesn't; what a queued job and what a silent running one is stuck after; and what
recoveries are forgotten after."""
STATES = st.sampled_from([JobState.QUEUED, JobState.RUNNING])
PICKS = st.integers(0, 7)
DOES = st.sampled_from(["finish", "fail", "beat"])
HOW = ["finish", "fail", "requeue", "requeue for an error"]
MEANWHILE = st.sampled_from(["all beat", "a claim", "another sweep", "an end"])
NO_SKEW = timedelta(0)
SKEWS = st.sampled_from([NO_SKEW, timedelta(hours=5), timedelta(hours=-26)])
"""How far the clock of the machine that does something is off; only the database's may matter."""

T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def clock_off_by(skew: timedelta) -> Iterator[None]:
    if not skew:
        yield
        return
    with time_machine.travel(datetime.now(UTC) + skew, tick=True):
        yield


async def at_once(*works: Coroutine[Any, Any, T]) -> list[T]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


async def both(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    async with asyncio.TaskGroup() as group:
        first, second = group.create_task(one), group.create_task(other)
    return first.result(), second.result()


@dataclass(kw_only=True)
class World:
    """One database with Unstick's own tables in it, and all that works on them."""

    runner: asyncio.Runner
    engines: list[AsyncEngine]
    queue: SqlJobQueue
    sweepers: tuple[Watched, Watched]
    ruler: SqlSource
    """Gives rulings of a job each, so that it can be stopped between any two."""

    @classmethod
    async def open(cls, database: Database, runner: asyncio.Runner) -> World:
        engines = [open_engine(database.url, create=True) for _ in range(3)]
        if database.backend == "sqlite":
            await use_write_ahead_log(engines[0])
        await make_tables(engines[0], own_jobs=True)
        return cls(
            runner=runner,
            engines=engines,
            queue=SqlJobQueue("main", OWN, EngineConnections(engines[0])),
            sweepers=(watched(engines[1], ruled_from=1, batch=2), watched(engines[2])),
            ruler=source_of(engines[1], ruled_from=1, batch=1),
        )

    async def close(self) -> None:
        for engine in self.engines:
            await engine.dispose()

    async def empty(self) -> None:
        async with self.engines[0].begin() as connection:
            for table in (tables.jobs, *tables.metadata.sorted_tables):
                await connection.execute(sa.delete(table))

    async def scene(self) -> Scene:
        ledger = tables.job_recoveries
        async with EngineConnections(self.engines[0]).reading() as (connection, now):
            jobs = (await connection.execute(sa.select(tables.jobs))).mappings().all()
            leases = (await connection.execute(sa.select(tables.leases))).mappings().all()
            records = await connection.execute(sa.select(ledger).order_by(ledger.c.recovery_id, ledger.c.job_id))
            late = await connection.execute(sa.select(tables.late_finishes).order_by(tables.late_finishes.c.id))
            return Scene(
                now=now,
                jobs={row["id"]: dict(row) for row in jobs},
                leases={row["id"]: dict(row) for row in leases},
                records=tuple(records),
                late=tuple(late),
            )

    async def enqueue(self, key: str | None, wait: timedelta | None = None, most: int | None = None) -> Asked:
        values = {} if most is None else {"max_attempts": most}
        async with AsyncSession(self.engines[0]) as session:
            answer = await enqueue(session, "essay", key=key, wait=wait, values=values, jobs=OWN)
            await session.commit()
        return Asked(answer=answer, key=key, wait=wait, max_attempts=most)

    async def let_pass(self, span: timedelta, scene: Scene) -> None:
        """Make everything that is under way older, as if its times had been written so much earlier."""
        jobs = {job_id: scene.jobs[job_id] for job_id in scene.open}
        ledger = tables.recoveries
        async with self.engines[0].begin() as connection:
            records = (await connection.execute(sa.select(ledger.c.id, ledger.c.at))).mappings().all()
            for table, rows, names in (
                (tables.jobs, jobs, ("created_at", "scheduled_at", "started_at", "updated_at")),
                (tables.leases, scene.leases, ("began_at", "beat_at", "expires_at")),
                (ledger, {row["id"]: row for row in records}, ("at",)),
            ):
                for key, row in rows.items():
                    older = {name: row[name] - span for name in names if row[name] is not None}
                    await connection.execute(sa.update(table).where(table.c.id == key).values(older))

    async def say_alive(self, job_id: int) -> None:
        now = await self.sweepers[0].source.clock()
        async with self.engines[0].begin() as connection:
            await connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(updated_at=now))

    async def end(self, job: ClaimedJob, how: str) -> End:
        error = None if how in {"finish", "requeue"} else f"{how}, it said"
        match how:
            case "finish":
                accepted = await self.queue.finish(job, {"progress": 100})
            case "fail":
                accepted = await self.queue.fail(job, str(error))
            case _:
                accepted = await self.queue.requeue(job, timedelta(0), error=error, counted=error is not None)
        return End(job=job, how=how, accepted=accepted, error=error)

    async def sweep(self, sweeper: int, action: Action) -> Swept:
        report = await sweep(self.sweepers[sweeper], SweepOrder(actor="sweeper", action=action))
        assert report.failures == ()
        applied = report.tally.of(outcome=Outcome.APPLIED)
        return Swept(action=action, operation_id=report.operation_id, applied=applied)

    async def clean_up(self, minutes: int) -> Swept:
        async with AsyncSession(self.engines[0]) as session:
            done = await AdminService(session, jobs=OWN, policy=POLICY).cleanup_stuck_jobs(minutes)
        queued_after = timedelta(minutes=minutes)
        return Swept(action=Action.MARK_FAILED, queued_after=queued_after, applied=done["cleaned_jobs"]["total"])

    async def look(self, sweeper: int, action: Action) -> Looked:
        by = self.sweepers[sweeper]
        look = await take_look(by)
        scopes = await take_scopes(by, look)
        decided = [
            (scope.look, await decide_page(by, page, scope, action))
            for scope in scopes
            async for page in by.source.suspects(scope.look)
        ]
        return Looked(by=by, action=action, look=look, decided=decided)

    async def write(self, looked: Looked) -> Swept:
        operation_id = await self.begin_operation()
        rescued = [await rescue(looked.by, page, look, operation_id) for look, page in looked.decided]
        applied = sum(n for page in rescued for key, n in page.census.items() if Outcome.APPLIED in key)
        return Swept(
            action=looked.action,
            operation_id=operation_id,
            applied=applied,
            looked=looked.verdicts,
            looked_at=looked.look.taken_at,
        )

    async def begin_operation(self) -> int:
        entry = AuditEntry(actor="sweeper", call=CLEANUP_CALL, outcome=AuditOutcome.STARTED)
        return await self.sweepers[0].ledger.append(entry)

    async def begin_to_rule(self, state: JobState) -> Ruling:
        look = await take_look(self.sweepers[0])
        scopes = await take_scopes(self.sweepers[0], look)
        look = scopes[0].look if scopes else look
        waiting = scopes[0].waiting if scopes else Reason.NEVER_CLAIMED
        ruling = policy.rule(state, look, POLICY, Action.MARK_FAILED, waiting)
        assert ruling is not None
        operation_id = await self.begin_operation()
        return Ruling(operation_id=operation_id, batches=self.ruler.recover_by_rule(ruling, look, operation_id))


def source_of(engine: AsyncEngine, *, ruled_from: int, batch: int | None) -> SqlSource:
    connections = EngineConnections(engine)
    if batch is not None:
        vars(connections.dialect)["batch_size"] = batch
    return SqlSource("main", OWN, connections, ruled_from=ruled_from)


def watched(engine: AsyncEngine, *, ruled_from: int = RULED_FROM, batch: int | None = None) -> Watched:
    source = source_of(engine, ruled_from=ruled_from, batch=batch)
    return Watched(source=source, ledger=SqlLedger(EngineConnections(engine)), policy=POLICY)


@dataclass(kw_only=True)
class Looked:
    """A sweep that has looked and decided, and not yet written."""

    by: Watched
    action: Action
    look: Look
    decided: list[tuple[Look, Decided]]
    verdicts: dict[int, Verdict] = field(default_factory=dict)


@dataclass(kw_only=True)
class Ruling:
    """A ruling that is under way."""

    operation_id: int
    batches: AsyncIterator[Ruled]

    async def go_on(self, *, to_the_end: bool) -> Swept:
        applied = 0
        async for ruled in self.batches:
            applied += ruled.recovered
            if not to_the_end:
                break
        return Swept(action=Action.MARK_FAILED, operation_id=self.operation_id, applied=applied, in_part=True)

    async def stop(self) -> None:
        assert isinstance(self.batches, AsyncGenerator)
        await self.batches.aclose()


@dataclass(kw_only=True)
class Worker:
    """A process: who it is, and what it believes it runs."""

    identity: WorkerIdentity
    jobs: list[ClaimedJob] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Later:
    """Time that passes, and which workers beat in it; the others are stalled."""

    span: timedelta
    beating: frozenset[int]


LATER = st.builds(Later, span=SPANS, beating=st.frozensets(WORKERS))


class Machine(RuleBasedStateMachine):
    """What may happen, in any order; every claim ever made is kept, so that its end may come at any time later.

    What is drawn never depends on how a race ended, or Hypothesis couldn't repeat a life: claims are picked by number,
    and a rule that finds nothing to work on makes itself some work first.
    """

    looks: Bundle[Looked] = Bundle("looks")
    rulings: Bundle[Ruling] = Bundle("rulings")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.boots = 0
        self.workers = [self.boot(number) for number in range(3)]
        self.claims: list[ClaimedJob] = []
        self.under_way: list[Ruling] = []
        self.tokens: set[tuple[object, object]] = set()
        self.over: dict[int, tuple[object, ...]] = {}
        self.run(world.empty())
        self.step = Step()
        self.before = self.run(world.scene())

    def boot(self, number: int) -> Worker:
        self.boots += 1
        return Worker(identity=WorkerIdentity(host="h", pid=number, boot_id=str(self.boots)))

    def run(self, work: Coroutine[Any, Any, T], skew: timedelta = NO_SKEW) -> T:
        with clock_off_by(skew):
            return self.world.runner.run(work)

    def teardown(self) -> None:
        for ruling in self.under_way:
            self.run(ruling.stop())

    @invariant()
    def every_row_is_as_it_was_left(self) -> None:
        if self.step == Step():
            return
        after = self.run(self.world.scene())
        model.check(self.before, self.step, after)
        for job in self.step.claimed:
            assert (job.id, job.row["token"]) not in self.tokens, "two claims share a token"
            self.tokens.add((job.id, job.row["token"]))
        for end in self.step.ends:
            if end.accepted and end.how in {"finish", "fail"}:
                this = (end.how, end.job.worker, end.job.row["token"])
                assert self.over.setdefault(int(end.job.id), this) == this, "two ends of one job were accepted"
        self.before, self.step = after, Step()

    def current(self) -> list[ClaimedJob]:
        """Return the claims that still hold, of workers that still know of them."""
        claims = [job for worker in self.workers for job in worker.jobs]
        return [job for job in claims if model.is_current(self.before, job)]

    def claimed(self, pick: int, *, rather_in_time: bool = True) -> ClaimedJob:
        """Return one of the claims that still hold, or of all that were ever made."""
        if not self.claims:
            self.claims_jobs([0], 1, None, NO_SKEW)
            self.every_row_is_as_it_was_left()
        among = (rather_in_time and self.current()) or self.claims
        return among[-1 - pick % len(among)]

    def need(self, *, due: bool = False) -> None:
        """Have a job asked for where there is none to work on."""
        rows = [self.before.jobs[job_id] for job_id in self.before.open]
        if not any(model.is_due(row, self.before.now) or not due for row in rows):
            self.step.asked.append(self.run(self.world.enqueue(None)))
            self.every_row_is_as_it_was_left()

    # The application

    @initialize(jobs=st.integers(3, 5), claimed=st.integers(0, 3))
    def opens(self, jobs: int, claimed: int) -> None:
        """Two workers have leases; the third says in no way that it lives, until it joins.

        The first job has no attempts left.
        """
        for number in range(jobs):
            self.step.asked.append(self.run(self.world.enqueue(None, most=None if number else 0)))
        for worker in self.workers[:2]:
            self.join(worker)
        self.every_row_is_as_it_was_left()
        if claimed:
            self.claims_jobs([0], claimed, None, NO_SKEW)

    @rule(key=KEYS, wait=WAITS, most=st.sampled_from([None, 0, 1]), callers=st.integers(1, 2), skew=SKEWS)
    def is_asked_for_a_job(
        self, key: str | None, wait: timedelta | None, most: int | None, callers: int, skew: timedelta
    ) -> None:
        if len(self.before.open) > AT_MOST_OPEN:
            return
        self.step.asked += self.run(at_once(*(self.world.enqueue(key, wait, most) for _ in range(callers))), skew)

    @rule(later=LATER)
    def time_passes(self, later: Later) -> None:
        self.run(self.world.let_pass(later.span, self.before))
        self.before = self.run(self.world.scene())
        for number in later.beating:
            self.step.heard.append(self.run(self.beat(self.workers[number])))

    def pass_time(self, later: Later | None) -> None:
        """Let time pass as a step of its own."""
        self.need()
        if later is not None:
            self.time_passes(later)
            self.every_row_is_as_it_was_left()

    # Workers

    @rule(who=CLAIMERS, limit=st.integers(1, 3), later=st.none() | LATER, skew=SKEWS)
    def claims_jobs(self, who: list[int], limit: int, later: Later | None, skew: timedelta) -> None:
        self.need(due=True)
        self.pass_time(later)
        workers = [self.workers[number] for number in who]
        asked = at_once(*(self.world.queue.claim(worker.identity, limit=limit) for worker in workers))
        for worker, claimed in zip(workers, self.run(asked, skew), strict=True):
            worker.jobs += claimed
            self.claims += claimed
            self.step.claimed += claimed

    @rule(who=WORKERS, progress=st.sampled_from([None, 10, 20]), skew=SKEWS)
    def beats(self, who: int, progress: int | None, skew: timedelta) -> None:
        self.step.heard.append(self.run(self.beat(self.workers[who], progress), skew))

    async def beat(self, worker: Worker, progress: int | None = None) -> Heard:
        beats = [Beat(job=job, progress=progress) for job in worker.jobs]
        holds = await self.world.queue.beat(worker.identity, model.LEASE, beats)
        return Heard(worker=worker.identity.name, jobs=tuple(worker.jobs), progress=progress, holds=frozenset(holds))

    @rule(who=WORKERS, crashes=st.booleans())
    def comes_or_goes(self, who: int, crashes: bool) -> None:
        """Who crashes and starts again has forgotten its jobs, and its lease still holds for a while."""
        if crashes:
            self.workers[who] = self.boot(who)
        worker = self.workers[who]
        lease = self.before.leases.get(worker.identity.name)
        if lease is None or lease["expires_at"] <= self.before.now:
            self.join(worker)
            return
        self.run(self.world.queue.leave(worker.identity))
        self.step.left.append(worker.identity.name)

    def join(self, worker: Worker) -> None:
        self.run(self.world.queue.join(worker.identity, model.LEASE))
        self.step.joined.append(worker.identity.name)

    @rule(pick=PICKS)
    def says_in_a_jobs_own_row_that_it_lives(self, pick: int) -> None:
        job_id = int(self.claimed(pick).id)
        if self.before.jobs[job_id]["status"] == "running":
            self.run(self.world.say_alive(job_id))
            self.step.said_alive.append(job_id)

    # Ends, in time or late

    @rule(pick=PICKS, rather_in_time=st.booleans(), how=st.sampled_from(HOW), skew=SKEWS)
    def ends(self, pick: int, rather_in_time: bool, how: str, skew: timedelta) -> None:
        job = self.claimed(pick, rather_in_time=rather_in_time)
        self.step.ends.append(self.run(self.world.end(job, how), skew))

    @rule(one=PICKS, two=PICKS)
    def two_end_at_once(self, one: int, two: int) -> None:
        job, other = self.claimed(one), self.claimed(two)
        self.step.ends += self.run(at_once(self.world.end(job, "finish"), self.world.end(other, "fail")))

    # Sweeps

    @rule(by=st.sampled_from([[0], [1], [0, 1]]), actions=st.tuples(ACTIONS, ACTIONS), later=LATER, skew=SKEWS)
    def sweeps(self, by: list[int], actions: tuple[Action, Action], later: Later, skew: timedelta) -> None:
        self.pass_time(later)
        sweeps = (self.world.sweep(number, action) for number, action in zip(by, actions, strict=False))
        self.step.swept += self.run(at_once(*sweeps), skew)

    @rule(minutes=st.sampled_from([1, 5]), later=LATER)
    def is_cleaned_up_by_an_administrator(self, minutes: int, later: Later) -> None:
        self.pass_time(later)
        self.step.swept.append(self.run(self.world.clean_up(minutes)))

    @rule(pick=PICKS, who=WORKERS, does=DOES, by=SWEEPERS, action=ACTIONS, later=LATER)
    def does_something_while_a_sweep_goes_on(
        self, pick: int, who: int, does: str, by: int, action: Action, later: Later
    ) -> None:
        job = self.claimed(pick)
        self.pass_time(later)
        sweeping = self.world.sweep(by, action)
        if does == "beat":
            swept, heard = self.run(both(sweeping, self.beat(self.workers[who], progress=30)))
            self.step.heard.append(heard)
        else:
            swept, end = self.run(both(sweeping, self.world.end(job, does)))
            self.step.ends.append(end)
        self.step.swept.append(swept)

    @rule(target=looks, by=SWEEPERS, action=ACTIONS, later=LATER, skew=SKEWS)
    def looks_and_decides(self, by: int, action: Action, later: Later, skew: timedelta) -> Looked:
        self.pass_time(later)
        looked = self.run(self.world.look(by, action), skew)
        looked.verdicts = model.verdicts(self.before, looked.look.taken_at, action)
        decisions = [each for _, page in looked.decided for each in page.decisions]
        decided = {int(each.suspect.job_id): (each.action, each.reason) for each in decisions}
        due = {job_id: (each.action, each.reason) for job_id, each in looked.verdicts.items()}
        assert decided == due, "a look found other jobs stuck, or decided otherwise"
        return looked

    @rule(looked=consumes(looks), skew=SKEWS)
    def writes_what_was_decided(self, looked: Looked, skew: timedelta) -> None:
        self.step.swept.append(self.run(self.world.write(looked), skew))

    @rule(by=SWEEPERS, action=ACTIONS, later=LATER, meanwhile=MEANWHILE, how=st.sampled_from(HOW))
    def looks_and_writes_when_something_has_happened(
        self, by: int, action: Action, later: Later, meanwhile: str, how: str
    ) -> None:
        looked = self.looks_and_decides(by, action, later, NO_SKEW)
        match meanwhile:
            case "all beat":
                self.step.heard += [self.run(self.beat(worker)) for worker in self.workers]
            case "a claim":
                self.claims_jobs([0], 1, None, NO_SKEW)
            case "another sweep":
                self.step.swept.append(self.run(self.world.sweep(1 - by, action)))
            case _:
                current = self.current()
                self.step.ends += [self.run(self.world.end(job, how)) for job in current[-1:]]
        self.every_row_is_as_it_was_left()
        self.writes_what_was_decided(looked, NO_SKEW)

    @rule(target=rulings, state=STATES, later=LATER)
    def begins_to_rule(self, state: JobState, later: Later) -> Ruling:
        self.pass_time(later)
        ruling = self.run(self.world.begin_to_rule(state))
        self.under_way.append(ruling)
        self.step.swept.append(self.run(ruling.go_on(to_the_end=False)))
        return ruling

    @rule(ruling=consumes(rulings))
    def rules_on_the_rest(self, ruling: Ruling) -> None:
        self.step.swept.append(self.run(ruling.go_on(to_the_end=True)))

    @rule(state=STATES, later=LATER, by=SWEEPERS)
    def rules_on_when_another_sweep_has_been_there(self, state: JobState, later: Later, by: int) -> None:
        ruling = self.begins_to_rule(state, later)
        self.every_row_is_as_it_was_left()
        self.step.swept.append(self.run(self.world.sweep(by, Action.RETRY)))
        self.every_row_is_as_it_was_left()
        self.rules_on_the_rest(ruling)


on_each_database = pytest.mark.parametrize("database", ["sqlite", "postgres18", "mariadb"], indirect=True)


@on_each_database
@pytest.mark.timeout(120 + 10 * SETTINGS.max_examples)
def test_no_job_is_lost_ended_twice_taken_from_the_living_or_changed_unrecorded_whatever_happens(
    database: Database,
) -> None:
    """Promises 1, 2, 3, 5 and 7; R1 to R3, R5 to R7 and R9 as far as one table can show them."""
    with asyncio.Runner() as runner:
        world = runner.run(World.open(database, runner))

        class MachineHere(Machine):
            def __init__(self) -> None:
                super().__init__(world)

        # Each database has lives of its own, the same in every run.
        machine = MachineHere if MORE else seed(zlib.crc32(database.name.encode()))(MachineHere)
        try:
            run_state_machine_as_test(machine, settings=SETTINGS)
        finally:
            runner.run(world.close())


# What the machine and its making found.


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    with asyncio.Runner() as runner:
        world = runner.run(World.open(database, runner))
        yield world
        runner.run(world.close())


async def claimed_by_a_worker_that_woke_up(world: World, *, then_sleeps: bool = False) -> Scene:
    """A worker slept for seven minutes, wakes, and claims a job before it beats; then somebody sweeps."""
    worker = WorkerIdentity(host="h", pid=1, boot_id="1")
    await world.queue.join(worker, model.LEASE)
    await world.let_pass(timedelta(minutes=7), await world.scene())
    await world.enqueue(None)
    await world.queue.claim(worker, limit=1)
    if then_sleeps:
        await world.let_pass(timedelta(minutes=7), await world.scene())
    await world.sweep(0, Action.MARK_FAILED)
    return await world.scene()


# R4: a claim is a sign of life of its worker.
@on_each_database
def test_a_job_that_was_claimed_this_instant_is_not_stuck(world: World) -> None:
    scene = world.runner.run(claimed_by_a_worker_that_woke_up(world))

    assert [row["status"] for row in scene.jobs.values()] == ["running"]


@on_each_database
def test_a_lease_that_ran_out_is_told_with_the_workers_last_beat(world: World) -> None:
    scene = world.runner.run(claimed_by_a_worker_that_woke_up(world, then_sleeps=True))

    ((row,), (lease,)) = scene.jobs.values(), scene.leases.values()
    assert f"its worker last beat at {lease['beat_at']:%Y-%m-%d %H:%M:%S} UTC" in row["error_message"]
