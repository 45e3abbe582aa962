"""Promise 6: every recovery can be undone while its job is still as we left it, and no other job is touched by it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql

from tests.jobs import COLUMNS, NAIVE, STATES, SqlBench, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from tests.test_clocks import TOKYO, in_zone
from tests.test_guards import partition
from tests.test_ledger_elsewhere import Apart, ProcessEndedError, apart, killed_before
from tests.test_races import (
    CLAIM,
    HOUR,
    POSTGRES,
    ROW_LOCKING,
    STEPWISE,
    after_first,
    bench,
    commits,
    elsewhere,
    host,
    on_databases,
    say,
    statuses,
    stuck,
)
from tests.test_rulings import REFUSING as REFUSING_ANY
from unstick.domain.errors import (
    InvalidRequestError,
    NothingToUndoError,
    RecoveryStoppedError,
    UnknownRecoveryError,
)
from unstick.domain.job import JobState
from unstick.domain.policy import Policy
from unstick.domain.recovery import CHANGES, Action, Outcome
from unstick.domain.undo import CLAIMED, GONE, HELD, OVERTAKEN, UNDONE, UNFIT, UNRECORDED
from unstick.domain.work import WorkerIdentity
from unstick.pipeline import undo as undo_module
from unstick.pipeline.settling import settle_intents
from unstick.pipeline.undo import UndoOrder, UndoReport, undo
from unstick.pipeline.watched import Watched
from unstick.sql import undone
from unstick.sql.connections import EngineConnections
from unstick.sql.engine import use_write_ahead_log
from unstick.sql.ledger import SqlLedger
from unstick.sql.queue import SqlJobQueue
from unstick.sql.source import SqlSource
from unstick.sql.tables import LongText

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from tests.servers import Database

    Opening = Callable[..., Coroutine[Any, Any, SqlBench]]

DATABASES = EACH_KIND

__all__ = ["apart", "bench"]

ACTIONS = pytest.mark.parametrize("action", CHANGES)
RICH: dict[str, Any] = {"token": sa.Integer(), "worker": sa.String(40), "progress": sa.Integer()}


@pytest.fixture
async def opening(database: Database) -> AsyncIterator[Opening]:
    """Opens benches on one database, and closes them whatever happens."""
    opened: list[SqlBench] = []

    async def bench_on(*said: Any, **options: Any) -> SqlBench:  # noqa: ANN401
        opened.append(await open_bench(database, *said, **options))
        return opened[-1]

    yield bench_on
    for each in opened:
        await each.close()


def order(operation_id: int | None = None, **said: Any) -> UndoOrder:  # noqa: ANN401
    return UndoOrder(actor="test", operation_id=operation_id, **said)


async def undo_it(bench: SqlBench, operation_id: int | None, **said: Any) -> UndoReport:  # noqa: ANN401
    return await undo(bench.watched(), order(operation_id, **said))


async def recovered(bench: SqlBench, action: Action = Action.MARK_FAILED) -> int:
    """Sweep, and return the operation."""
    operation_id = (await bench.sweep(action)).operation_id
    assert operation_id is not None
    return operation_id


def numbers(report: UndoReport) -> tuple[int, int, int]:
    return (
        report.of(outcome=Outcome.APPLIED),
        report.of(outcome=Outcome.LOST_RACE),
        report.of(outcome=Outcome.FAILED),
    )


def told(report: UndoReport) -> dict[str, str]:
    return {str(each.job_id): each.detail for each in report.left}


async def undos(bench: SqlBench) -> list[tuple[str, str]]:
    """Return the recorded undos, by job and outcome."""
    return [(r.job_id, r.outcome) for r in await bench.recoveries() if r.action == "undo"]


# What is put back is what was there.


@pytest.fixture
async def rich(database: Database) -> AsyncIterator[SqlBench]:
    """A table with all the columns that a recovery writes, and a few that it doesn't."""
    table = jobs_table(*(sa.Column(name, type_) for name, type_ in RICH.items()))
    table.c.error_message.type = LongText
    bench = await open_bench(database, table, declared(table, columns=COLUMNS | {name: name for name in RICH}))
    yield bench
    await bench.close()


ODD = "it's \"quoted\", {since} — ünï\n\t\\ 'x' \N{PILE OF POO} %s :a $1"
HELD_ROWS: list[dict[str, Any]] = [
    {"token": 7, "worker": "one", "progress": 50, "attempt": 3},
    {"error_message": ODD, "success": False, "attempt": 2**31 - 2},
    {"error_message": "", "worker": ODD[:30], "success": True},
    {"error_message": "x" * 200_000},
    {"status": "pending", "started_at": None, "token": None},
    {"error_message": "Timeout"},
]


@ACTIONS
async def test_undo_puts_back_every_column_exactly_as_it_was(rich: SqlBench, action: Action) -> None:
    """By ruling, and one by one: text of any kind and length, numbers, truths, nulls, times."""
    now = await rich.source.clock()
    times = {"updated_at": rich.store(now - HOUR), "scheduled_at": rich.store(now - 3 * HOUR)}
    await rich.put(*HELD_ROWS, *({} for _ in range(5)), *({**row, **times} for row in HELD_ROWS[:3]))
    before = await rich.rows()
    operation_id = await recovered(rich, action)
    changed = await rich.rows()

    report = await undo_it(rich, operation_id)

    assert all(one["status"] != other["status"] for one, other in zip(before, changed, strict=True))
    expected = [dict(row) for row in before]
    if action is Action.RETRY:
        expected[4]["token"] = 1  # it is queued, so nobody's: a token that was given out doesn't come back
    assert [dict(row) for row in await rich.rows()] == expected
    assert numbers(report) == (len(before), 0, 0)
    assert Counter(await undos(rich)) == Counter((str(row["id"]), "applied") for row in before)


@ACTIONS
async def test_an_undo_is_recorded_with_what_it_overwrote_and_what_it_wrote(bench: SqlBench, action: Action) -> None:
    """Promise 2: and with the recovery that it took back; the audit log has its beginning and end, and why."""
    await bench.put({}, {})
    operation_id = await recovered(bench, action)
    recoveries = {r.job_id: r for r in await bench.recoveries()}

    report = await undo_it(bench, operation_id, reason="their workers were only slow", role="operator")

    records = [r for r in await bench.recoveries() if r.action == "undo"]
    assert {r.operation_id for r in records} == {report.operation_id}
    assert {r.detail for r in records} == {f"put back as operation {operation_id} found it"}
    for record in records:
        recovery = recoveries[record.job_id]
        assert (record.undoes, record.state, record.reason) == (recovery.recovery_id, "running", "silent")
        assert json.loads(record.post_image)["status"] == json.loads(recovery.pre_image)["status"] == "running"
        assert json.loads(record.pre_image)["status"] == json.loads(recovery.post_image)["status"]
        assert "{since}" not in record.pre_image + recovery.post_image
    started, ended = (await bench.audit())[2:]
    asked = {"source": "main", "operation": operation_id, "reason": "their workers were only slow"}
    assert [(e.call, e.actor, e.role, e.parameters) for e in (started, ended)] == [
        ("jobs.undo", "test", "operator", asked)
    ] * 2
    assert (started.outcome, ended.outcome, ended.operation_id) == ("started", "done", started.id)
    assert ended.result == {"applied": 2, "lost_race": 0, "failed": 0, "left": 0, "braked": 0, "already": 0}


def with_enum(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    table = jobs_table()
    words = [word for each in STATES.values() for word in each]
    table.c.status.type = sa.Enum(*words, name="job_status", metadata=table.metadata)
    return table, {}


def with_uuids(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    return jobs_table(key=sa.Column("id", sa.Uuid(), primary_key=True, default=uuid.uuid4)), {}


def with_text_keys(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    key = sa.Column("id", sa.String(60), primary_key=True, default=lambda: f'job "{uuid.uuid4()}" é')
    return jobs_table(key=key), {}


def with_large_keys(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    count = iter(range(2**63 - 20, 2**63))
    return jobs_table(key=sa.Column("id", sa.BigInteger(), primary_key=True, default=lambda: next(count))), {}


def with_whole_seconds(backend: str) -> tuple[sa.Table, dict[str, Any]]:
    form = {
        "postgresql": postgresql.TIMESTAMP(timezone=True, precision=0),
        "mysql": mysql.DATETIME(),
        "sqlite": sa.DateTime(),
    }
    return jobs_table(time=form[backend]), {}


def with_timestamps(backend: str) -> tuple[sa.Table, dict[str, Any]]:
    return jobs_table(time=mysql.TIMESTAMP() if backend == "mysql" else sa.DateTime()), {}


def with_naive_local_times(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    return jobs_table(time=NAIVE), {"timezone": TOKYO}


def with_padded_and_narrow_text(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    table = jobs_table(sa.Column("said", sa.String(60)))
    table.c.status.type = sa.CHAR(12)
    return table, {"columns": COLUMNS | {"error": "said"}}


def with_numbers_for_states(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    table = jobs_table()
    table.c.status.type = sa.SmallInteger()
    table.c.success.type = sa.SmallInteger()
    words = {state: (number,) for number, state in enumerate(STATES)}
    return table, {"states": words}


def with_text_tokens(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    return jobs_table(sa.Column("token", sa.String(40))), {"columns": COLUMNS | {"token": "token"}}


def with_two_columns(_backend: str) -> tuple[sa.Table, dict[str, Any]]:
    columns = {key: COLUMNS[key] for key in ("id", "state", "started_at")}
    return jobs_table(), {"columns": columns}


HOSTS = (
    with_enum, with_uuids, with_text_keys, with_large_keys, with_whole_seconds, with_timestamps,
    with_naive_local_times, with_padded_and_narrow_text, with_numbers_for_states, with_text_tokens, with_two_columns,
)  # fmt: skip


@pytest.mark.parametrize("ruled_from", [1, 100], ids=["ruled", "decided"])
@pytest.mark.parametrize("kind", HOSTS)
async def test_undo_puts_back_the_rows_of_any_host_table(
    database: Database,
    opening: Opening,
    kind: Any,  # noqa: ANN401
    ruled_from: int,
) -> None:
    """Types of keys, states, times, text and tokens that hosts have; failed and retried, one after the other."""
    table, mapping = kind(database.backend)
    store: Callable[[Any], object] = lambda instant: instant.replace(microsecond=0, tzinfo=None)  # noqa: E731
    if kind is with_naive_local_times:
        store = in_zone(TOKYO)
    bench = await opening(table, declared(table, **mapping), store, ruled_from=ruled_from)
    running, queued = (1, 0) if kind is with_numbers_for_states else ("running", "queued")
    token = {"token": "a4c1"} if "token" in table.c else {}
    began = {"status": running, "attempt": 4, **token}
    waits = {"status": queued, "attempt": 0}
    no = 0 if kind is with_numbers_for_states else False
    await bench.put(began, {**began, "success": no}, began, waits, waits)
    before = await bench.rows()

    failed = await undo_it(bench, await recovered(bench))
    after_failure = await bench.rows()
    retried = await undo_it(bench, await recovered(bench, Action.RETRY))
    after_retry = await bench.rows()

    assert after_failure == before
    assert after_retry == before
    assert numbers(failed) == numbers(retried) == (5, 0, 0)


# What changed since is left alone, and named.

NOW = "CURRENT_TIMESTAMP"
IT = "it was changed since:"
SINCE = {
    "claimed": (Action.RETRY, f"status = 'running', started_at = {NOW}", CLAIMED),
    "finished": (Action.MARK_FAILED, "status = 'completed', success = true", f"{IT} status is now completed"),
    "requeued": (Action.MARK_FAILED, "status = 'queued', completed_at = NULL", f"{IT} status is now queued"),
    "failed by the app": (Action.MARK_FAILED, "error_message = 'mine'", f"{IT} error_message is another"),
    "in another case": (Action.MARK_FAILED, "error_message = UPPER(error_message)", f"{IT} error_message is another"),
    "ended again": (Action.MARK_FAILED, "completed_at = created_at", f"{IT} completed_at is another"),
    "taken for good": (Action.MARK_FAILED, "success = true", f"{IT} success is another"),
    "attempt": (Action.RETRY, "attempt = attempt + 1", f"{IT} attempt is another"),
    "token": (Action.RETRY, "token = token + 1", f"{IT} token is another"),
    "worker": (Action.RETRY, "worker = 'other'", f"{IT} worker is another"),
    "start": (Action.RETRY, "started_at = created_at", f"{IT} started_at is another"),
    "beat": (Action.RETRY, "updated_at = created_at", f"{IT} updated_at is another"),
    "due": (Action.RETRY, "scheduled_at = created_at", f"{IT} scheduled_at is another"),
}  # fmt: skip


@pytest.mark.parametrize("ruled_from", [1, 100], ids=["ruled", "decided"])
@ACTIONS
async def test_a_job_of_which_anything_changed_since_is_left_alone_and_named(
    opening: Opening, action: Action, ruled_from: int
) -> None:
    """Each column that a recovery wrote by itself; half of the operation is undone all the same."""
    table = jobs_table(*(sa.Column(name, type_) for name, type_ in RICH.items()))
    mapping = declared(table, columns=COLUMNS | {name: name for name in RICH})
    bench = await opening(table, mapping, ruled_from=ruled_from)
    moves = {name: (change, said) for name, (its, change, said) in SINCE.items() if its is action}
    row = {"token": 7, "worker": "one", "attempt": 2}
    await bench.put(*(row for _ in range(2 * len(moves) + 1)))
    before = await bench.rows()
    operation_id = await recovered(bench, action)
    async with host(bench) as app, app.begin() as connection:
        for number, (change, _) in enumerate(moves.values(), start=1):
            await connection.execute(sa.text(f"UPDATE ai_generation_jobs SET {change} WHERE id = {number}"))
        await connection.execute(sa.text(f"DELETE FROM ai_generation_jobs WHERE id = {len(moves) + 1}"))
    changed = await bench.rows()

    report = await undo_it(bench, operation_id)

    after = await bench.rows()
    records = await undos(bench)
    gone = len(moves) + 1
    sentences = {str(number): said for number, (_, said) in enumerate(moves.values(), start=1)} | {str(gone): GONE}
    assert told(report) == sentences
    assert numbers(report) == (len(moves), gone, 0)
    assert after == changed[: len(moves)] + before[gone:]
    assert {job_id for job_id, outcome in records if outcome == "lost_race"} == sentences.keys()


@ACTIONS
async def test_what_changes_between_our_reading_and_our_write_is_left(bench: SqlBench, action: Action) -> None:
    """R1: the comparison is made by the write itself, on the row as it stands then."""
    if bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(bench.engine)
    ids = await stuck(bench, 3)
    before = await bench.rows()
    operation_id = await recovered(bench, action)
    change = "UPDATE ai_generation_jobs SET status = 'running', attempt = attempt + 1 WHERE id = :id AND :attempt = 1"

    def act() -> None:
        async def claim() -> None:
            async with host(bench) as app:
                assert await commits(app, change, ids[1]) == 1

        elsewhere(claim)

    with after_first(bench.engine, "unstick_recoveries.post_image", act) as seen:
        report = await undo_it(bench, operation_id)

    assert seen
    assert numbers(report) == (2, 1, 0)
    assert list(told(report)) == [str(ids[1])]
    rows = await bench.rows()
    assert [rows[0], rows[2]] == [before[0], before[2]]
    assert rows[1]["attempt"] == before[1]["attempt"] + (1 if action is Action.MARK_FAILED else 2)


@on_databases(*ROW_LOCKING)
async def test_what_somebody_holds_is_left_at_once(bench: SqlBench) -> None:
    """R4: a claim in flight; nothing of ours waits for it, and what is left can be undone when it went back."""
    ids = await stuck(bench, 3)
    before = await bench.rows()
    operation_id = await recovered(bench, Action.RETRY)
    async with host(bench) as app, app.connect() as worker:
        assert await say(worker, CLAIM, ids[1], attempt=2) == 1
        held = await undo_it(bench, operation_id)
        await worker.rollback()
    free = await undo_it(bench, operation_id)

    assert (numbers(held), told(held)) == ((2, 1, 0), {str(ids[1]): HELD})
    assert (numbers(free), free.already) == ((1, 0, 0), 2)
    assert await bench.rows() == before


@on_databases(*POSTGRES)
async def test_a_row_that_only_a_foreign_key_holds_is_put_back(bench: SqlBench) -> None:
    """K4: a host that writes a line about a job holds the job's key, which no undo changes."""
    [job_id] = await stuck(bench, 1)
    before = await bench.rows()
    operation_id = await recovered(bench)
    await bench.execute("CREATE TABLE lines (job_id int REFERENCES ai_generation_jobs)")
    async with host(bench) as app, app.connect() as worker:
        await worker.execute(sa.text(f"INSERT INTO lines VALUES ({job_id})"))
        report = await undo_it(bench, operation_id)
        await worker.rollback()

    assert numbers(report) == (1, 0, 0)
    assert await bench.rows() == before


@ACTIONS
async def test_in_partitions_where_rows_share_an_address_only_the_one_asked_for_is_put_back(
    postgres_database: Database, action: Action
) -> None:
    """R1: `ctid` tells rows of one partition apart, and no more."""
    bench = await open_bench(postgres_database)
    await partition(bench)
    await bench.put(*({"id": number} for number in range(1, 9)))
    operation_id = await recovered(bench, action)
    async with host(bench, isolation_level="AUTOCOMMIT") as app, app.connect() as connection:
        await connection.execute(
            sa.text("VACUUM FULL ai_generation_jobs")
        )  # each partition's first row lies at its start
        pairs = (
            "SELECT a.id FROM ai_generation_jobs AS a JOIN ai_generation_jobs AS b ON a.ctid = b.ctid AND a.id < b.id"
        )
        one = (await connection.execute(sa.text(f"{pairs} ORDER BY 1 LIMIT 1"))).scalar_one()

    report = await undo_it(bench, operation_id, job_id=one)

    running = [row["id"] for row in await bench.rows() if row["status"] == "running"]
    await bench.close()
    assert numbers(report) == (1, 0, 0)
    assert running == [one]


@on_databases(*STEPWISE)
async def test_a_job_that_changes_while_its_undo_is_being_recorded_is_not_overwritten(bench: SqlBench) -> None:
    """R1: the write repeats the whole comparison; here a trigger on our own records claims a job."""
    ids = await stuck(bench, 3)
    operation_id = await recovered(bench, Action.RETRY)
    claim = f"UPDATE ai_generation_jobs SET status = 'delayed' WHERE id = {ids[1]};"
    recorded = f"NEW.job_id = '{ids[1]}' AND NEW.outcome = 'applied'"
    when = {
        "sqlite": f"WHEN {recorded} BEGIN {claim} END",
        "mysql": f"FOR EACH ROW BEGIN IF {recorded} THEN {claim} END IF; END",
    }[bench.engine.dialect.name.replace("mariadb", "mysql")]
    await bench.execute(f"CREATE TRIGGER recorded AFTER INSERT ON unstick_recoveries {when}")

    report = await undo_it(bench, operation_id)

    assert await statuses(bench) == ["running", "queued", "running"]
    assert numbers(report) == (2, 0, 1)
    assert (str(ids[1]), "applied") not in await undos(bench)


REFUSING = {
    "sqlite": "CREATE TRIGGER kept BEFORE UPDATE ON ai_generation_jobs WHEN NEW.id = 2 AND NEW.status = 'running' "
              "BEGIN SELECT RAISE(ABORT, 'legal hold'); END",
    "postgresql": "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                  "IF NEW.id = 2 AND NEW.status = 'running' THEN RAISE 'legal hold'; END IF; RETURN NEW; END $$",
    "mysql": "CREATE TRIGGER kept BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW BEGIN IF NEW.id = 2 AND "
             "NEW.status = 'running' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'legal hold'; END IF; END",
}  # fmt: skip


BEFORE_UPDATE = "CREATE TRIGGER kept BEFORE UPDATE ON ai_generation_jobs FOR EACH ROW EXECUTE FUNCTION {}()"


async def test_a_row_that_the_database_refuses_is_recorded_as_failed_and_the_others_put_back(bench: SqlBench) -> None:
    """P2: with what the database said."""
    await stuck(bench, 5)
    operation_id = await recovered(bench)
    name = bench.engine.dialect.name.replace("mariadb", "mysql")
    await bench.execute(REFUSING[name], *([BEFORE_UPDATE.format("keep")] if name == "postgresql" else []))

    report = await undo_it(bench, operation_id)

    assert numbers(report) == (4, 0, 1)
    assert "legal hold" in told(report)["2"]
    assert await statuses(bench) == ["running", "failed", "running", "running", "running"]
    assert ("2", "failed") in await undos(bench)


@on_databases("sqlite", "postgres18")
async def test_a_trigger_that_drops_the_write_in_silence_is_not_counted_as_an_undo(bench: SqlBench) -> None:
    """R7: the database took the write and did nothing."""
    await stuck(bench, 3)
    operation_id = await recovered(bench)
    sqlite = bench.engine.dialect.name == "sqlite"
    if sqlite:
        ignore = "BEFORE UPDATE ON ai_generation_jobs WHEN NEW.id = 2 BEGIN SELECT RAISE(IGNORE); END"
        await bench.execute(f"CREATE TRIGGER deaf {ignore}")
    else:
        keep = "$$ BEGIN IF NEW.id = 2 THEN RETURN OLD; END IF; RETURN NEW; END $$"
        await bench.execute(f"CREATE FUNCTION deaf() RETURNS trigger LANGUAGE plpgsql AS {keep}")
        await bench.execute(BEFORE_UPDATE.format("deaf"))

    report = await undo_it(bench, operation_id)

    assert report.of(outcome=Outcome.APPLIED) == 2
    assert await statuses(bench) == ["running", "failed", "running"]
    assert ("2", "applied") not in await undos(bench)


async def test_a_record_that_does_not_fit_the_table_any_more_undoes_nothing(bench: SqlBench) -> None:
    """Nothing is put back by halves: a column that was dropped, or a record that tells too little."""
    await stuck(bench, 3)
    operation_id = await recovered(bench)
    await bench.execute(
        *(
            "INSERT INTO unstick_recoveries "
            "(operation_id, source, job_id, state, action, reason, outcome, detail, pre_image, post_image, at) VALUES "
            f"({operation_id}, 'main', '{job}', 'running', 'mark_failed', 'silent', 'applied', '', {images}, {NOW})"
            for job, images in (
                ("4", """'{"status": "running", "gone": 1}', '{"status": "failed", "gone": 2}'"""),
                ("5", """'{"status": "running"}', NULL"""),
                ("no number", """'{"status": "running"}', '{"status": "failed"}'"""),
            )
        ),
    )

    report = await undo_it(bench, operation_id)

    assert numbers(report) == (3, 3, 0)
    assert told(report) == {"4": UNFIT, "5": UNRECORDED, "no number": GONE}


# Twice, at once, and in the middle.


async def test_undoing_twice_undoes_once(bench: SqlBench) -> None:
    """And undoing an undo isn't offered; what was never done, or by nobody, is told apart."""
    await stuck(bench, 2)
    operation_id = await recovered(bench)
    first = await undo_it(bench, operation_id)
    before = await bench.rows()

    with pytest.raises(NothingToUndoError, match="undone already"):
        await undo_it(bench, operation_id)
    with pytest.raises(NothingToUndoError, match="was undone"):
        await undo_it(bench, None, job_id=1)
    with pytest.raises(InvalidRequestError, match="is an undo"):
        await undo_it(bench, first.operation_id)
    with pytest.raises(UnknownRecoveryError, match="no operation 999"):
        await undo_it(bench, 999)
    with pytest.raises(UnknownRecoveryError, match="job 77"):
        await undo_it(bench, None, job_id=77)
    with pytest.raises(UnknownRecoveryError, match="job 77 in operation"):
        await undo_it(bench, operation_id, job_id=77)
    empty = (await bench.sweep(policy=Policy(running_after=timedelta(days=9)))).operation_id
    with pytest.raises(NothingToUndoError, match="recovered no job"):
        await undo_it(bench, empty)

    assert await bench.rows() == before
    assert len(await undos(bench)) == 2
    assert [entry.call for entry in await bench.audit()].count("jobs.undo") == 2


@pytest.mark.parametrize("ruled_from", [1, 100], ids=["ruled", "decided"])
async def test_what_tells_too_little_is_not_undone_after_it_was_undone_or_recovered_again(
    opening: Opening, ruled_from: int
) -> None:
    """A table whose rows say no more than `failed`: then the ledger says whether that is the failure we left."""
    table = jobs_table()
    columns = {key: COLUMNS[key] for key in ("id", "state", "started_at")}
    bench = await opening(table, declared(table, columns=columns), ruled_from=ruled_from)
    await bench.put({}, {})
    first = await recovered(bench)
    await bench.execute("UPDATE ai_generation_jobs SET status = 'running' WHERE id = 1")
    second = await recovered(bench)

    of_first = await undo_it(bench, first)
    of_second = await undo_it(bench, second)
    again = await undo_it(bench, first, dry_run=True)  # as it is, the first recovery is the last one that stands
    await bench.execute("UPDATE ai_generation_jobs SET status = 'failed'")  # by its own doing
    with pytest.raises(NothingToUndoError):
        await undo_it(bench, second)

    rows = await statuses(bench)
    assert (numbers(of_first), told(of_first)) == ((1, 1, 0), {"1": OVERTAKEN})
    assert numbers(of_second) == (1, 0, 0)
    assert (again.of(outcome=Outcome.APPLIED), again.already) == (0, 1)
    assert rows == ["failed", "failed"]


@pytest.mark.parametrize("ruled_from", [1, 100], ids=["ruled", "decided"])
async def test_recoveries_of_one_job_are_undone_from_the_last_to_the_first(opening: Opening, ruled_from: int) -> None:
    """A later recovery that was undone stands in nobody's way; one that stands does, by the job's row and on record."""
    bench = await opening(ruled_from=ruled_from)
    await bench.put({})
    began = await bench.rows()
    retry = await recovered(bench, Action.RETRY)
    queued = await bench.rows()
    failure = (await bench.sweep(policy=Policy(queued_after=-HOUR))).operation_id

    too_early = await undo_it(bench, retry)
    of_failure = await undo_it(bench, None, job_id=1)  # the last one is meant
    between = await bench.rows()
    of_retry = await undo_it(bench, retry)

    assert (numbers(too_early), told(too_early)) == ((0, 1, 0), {"1": OVERTAKEN})
    assert (numbers(of_failure), of_failure.undoes, numbers(of_retry)) == ((1, 0, 0), failure, (1, 0, 0))
    assert between == queued
    assert await bench.rows() == began


async def test_of_two_undos_at_once_each_job_is_put_back_once(bench: SqlBench) -> None:
    """R7: what either says it undid is what is recorded of it, and the other says why it didn't."""
    ids = await stuck(bench, 40)
    before = await bench.rows()
    operation_id = await recovered(bench)
    replica = bench.another()
    other = Watched(source=replica, ledger=SqlLedger(EngineConnections(bench.other_engines[0])), policy=Policy())

    async def attempt(watched: Watched) -> UndoReport | None:
        try:
            return await undo(watched, order(operation_id))
        except NothingToUndoError:
            return None

    reports = await asyncio.gather(attempt(bench.watched()), attempt(other))

    counted = [numbers(report) for report in reports if report is not None]
    applied = Counter(job_id for job_id, outcome in await undos(bench) if outcome == "applied")
    assert await bench.rows() == before
    assert applied == Counter(str(job_id) for job_id in ids)
    assert sum(undone for undone, _, _ in counted) == len(ids)
    assert {said for report in reports if report is not None for said in told(report).values()} <= {UNDONE, HELD}


async def test_whoever_comes_second_is_told_that_it_was_undone_already(bench: SqlBench) -> None:
    """It was read before the other one's undo, and is written after."""
    if bench.engine.dialect.name == "sqlite":
        await use_write_ahead_log(bench.engine)
    await stuck(bench, 2)
    operation_id = await recovered(bench)
    replica = bench.another()
    other = Watched(source=replica, ledger=SqlLedger(EngineConnections(bench.other_engines[0])), policy=Policy())

    def act() -> None:
        async def first() -> None:
            await undo(other, order(operation_id))
            await bench.other_engines[0].dispose()

        elsewhere(first)

    with after_first(bench.engine, "unstick_recoveries.job_id IS NULL", act) as seen:
        report = await undo_it(bench, operation_id)

    assert seen
    assert (numbers(report), told(report)) == ((0, 2, 0), {"1": UNDONE, "2": UNDONE})


@contextmanager
def ended_before_commit(bench: SqlBench, number: int) -> Iterator[None]:
    """End the process right before the commit that follows this many writes of jobs."""
    written = 0

    def wrote(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        nonlocal written
        written += "UPDATE ai_generation_jobs" in statement

    def commit(_connection: Any) -> None:  # noqa: ANN401
        if written == number:
            raise ProcessEndedError

    event.listen(bench.engine.sync_engine, "after_cursor_execute", wrote)
    event.listen(bench.engine.sync_engine, "commit", commit)
    try:
        yield
    finally:
        event.remove(bench.engine.sync_engine, "after_cursor_execute", wrote)
        event.remove(bench.engine.sync_engine, "commit", commit)


@ACTIONS
async def test_an_undo_killed_in_the_middle_leaves_each_job_undone_and_recorded_or_neither(
    bench: SqlBench, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 2: the process ends when the second of three batches is written, but not committed."""
    monkeypatch.setattr(undo_module, "BATCH", 2)
    await stuck(bench, 6)
    before = await bench.rows()
    operation_id = await recovered(bench, action)
    left = await bench.rows()

    with ended_before_commit(bench, 2), pytest.raises(ProcessEndedError):
        await undo_it(bench, operation_id)
    middle, recorded = await bench.rows(), await undos(bench)
    rest = await undo_it(bench, operation_id)

    assert middle == before[:2] + left[2:]
    assert sorted(recorded) == [("1", "applied"), ("2", "applied")]
    assert (numbers(rest), rest.already) == ((4, 0, 0), 2)
    assert await bench.rows() == before


async def test_a_batch_whose_record_cannot_be_written_is_not_undone(bench: SqlBench) -> None:
    """Promise 2: what the database refuses to record isn't done, and the error says what stays."""
    await stuck(bench, 3)
    operation_id = await recovered(bench)
    left = await bench.rows()

    def fail(_c: Any, _cursor: Any, statement: str, _p: Any, _context: Any, _many: Any) -> None:  # noqa: ANN401
        if "INTO unstick_recoveries" in statement:
            raise OSError("the disk is full")

    event.listen(bench.engine.sync_engine, "before_cursor_execute", fail)
    with pytest.raises(RecoveryStoppedError, match=r"0 job\(s\) undone before it stay undone") as stopped:
        await undo_it(bench, operation_id)
    event.remove(bench.engine.sync_engine, "before_cursor_execute", fail)

    assert stopped.value.recovered == 0
    assert await bench.rows() == left
    started, failed = (await bench.audit())[2:]
    assert (started.outcome, failed.outcome, failed.operation_id) == ("started", "failed", started.id)


async def test_an_undo_that_is_cancelled_ends_the_batch_under_way_and_counts_it(
    bench: SqlBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 2: the operation's end tells as many as there are records."""
    monkeypatch.setattr(undo_module, "BATCH", 2)
    await stuck(bench, 8)
    operation_id = await recovered(bench)
    tasks: list[asyncio.Task[UndoReport]] = []

    def cancel(done: int) -> None:
        if done == 2:
            asyncio.get_running_loop().call_soon(tasks[0].cancel)

    tasks.append(asyncio.create_task(undo(bench.watched(), order(operation_id), cancel)))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]

    ended = (await bench.audit())[-1]
    recorded = await undos(bench)
    assert (ended.call, ended.outcome, ended.result["problem"]) == ("jobs.undo", "failed", "interrupted")
    assert ended.result["applied"] == len(recorded)
    assert 2 <= len(recorded) < 8


# Part of an operation, page by page.


@pytest.mark.parametrize("ruled_from", [1, 100], ids=["ruled", "decided"])
async def test_one_job_of_an_operation_can_be_undone_by_itself(opening: Opening, ruled_from: int) -> None:
    """By operation and job, and by the job alone, whose last recovery is meant."""
    bench = await opening(ruled_from=ruled_from)
    await stuck(bench, 4)
    before = await bench.rows()
    operation_id = await recovered(bench)

    by_both = await undo_it(bench, operation_id, job_id=2)
    by_job = await undo_it(bench, None, job_id="3")
    middle = await statuses(bench)
    rest = await undo_it(bench, operation_id)

    rows = await bench.rows()
    assert (numbers(by_both), numbers(by_job), by_job.undoes) == ((1, 0, 0), (1, 0, 0), operation_id)
    assert middle == ["failed", "running", "running", "failed"]
    assert (numbers(rest), rest.already) == ((2, 0, 0), 2)
    assert rows == before


@pytest.mark.parametrize(
    ("ruled_from", "pages"), [(1, [4, 4, 4, 4, 4, 3]), (100, [5, 5, 5, 5, 3])], ids=["ruled", "decided"]
)
async def test_a_large_operation_is_read_page_by_page(
    opening: Opening, ruled_from: int, pages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: no more than a page is held, whether a record is of one job or of two; none is left out or met twice."""
    bench = await opening(ruled_from=ruled_from)
    bench.batches_of(2)
    await bench.put(*({} for _ in range(23)))
    before = await bench.rows()
    operation_id = await recovered(bench)
    monkeypatch.setattr(undone, "_ROWS", 5)
    sizes = []
    ledger, after = bench.ledger, 0
    while True:
        page = await ledger.undoable("main", operation_id, after=after)
        sizes.append(len(page.recoveries))
        if page.last is None:
            break
        after = page.last

    report = await undo_it(bench, operation_id)

    rows = await bench.rows()
    assert sizes == pages
    assert numbers(report) == (23, 0, 0)
    assert rows == before


async def test_a_dry_run_changes_nothing_and_says_what_would_be_undone(bench: SqlBench) -> None:
    ids = await stuck(bench, 3)
    operation_id = await recovered(bench)
    async with host(bench) as app:
        await commits(app, "UPDATE ai_generation_jobs SET success = true WHERE id = :id AND :attempt = 1", ids[0])
    left, audit = await bench.rows(), await bench.audit()

    report = await undo_it(bench, operation_id, dry_run=True)

    assert (numbers(report), report.operation_id) == ((2, 1, 0), None)
    assert told(report) == {str(ids[0]): "it was changed since: success is another"}
    assert await bench.rows() == left
    assert await undos(bench) == []
    assert await bench.audit() == audit


# Budget, workers, statistics.


async def test_an_undone_retry_gives_its_share_of_the_budget_back(bench: SqlBench) -> None:
    """B2: it counts as if it had never been; one that stands goes on counting."""
    one, other = await stuck(bench, 2)
    operation_id = await recovered(bench, Action.RETRY)
    since = await bench.source.clock() - HOUR
    assert await bench.ledger.spent("main", [one, other], since) == {one: 1, other: 1}

    await undo_it(bench, operation_id, job_id=one)

    assert await bench.ledger.spent("main", [one, other], since) == {other: 1}
    assert (await bench.ledger.recoveries("main", HOUR)).by_outcome == {Outcome.APPLIED: 2}
    only_one = Policy(max_recoveries=1)
    assert (await bench.sweep(Action.RETRY, policy=only_one)).tally.of(action=Action.RETRY) == 1
    assert (await bench.row(one))["status"] == "queued"
    assert await bench.ledger.spent("main", [one, other], since) == {one: 1, other: 1}


async def test_an_undo_that_came_too_late_gives_nothing_back(bench: SqlBench) -> None:
    """B2: what is recorded of it is that it lost the race."""
    [one] = await stuck(bench, 1)
    operation_id = await recovered(bench, Action.RETRY)
    since = await bench.source.clock() - HOUR
    await bench.execute("UPDATE ai_generation_jobs SET attempt = attempt + 1")

    report = await undo_it(bench, operation_id)

    assert numbers(report) == (0, 1, 0)
    assert await bench.ledger.spent("main", [one], since) == {one: 1}


async def test_what_was_done_to_another_sources_jobs_of_the_same_ids_is_in_no_undos_way(bench: SqlBench) -> None:
    """Ids are a table's own; several sources may share a ledger."""
    await stuck(bench, 2)
    before = await bench.rows()
    operation_id = await recovered(bench)
    columns = "operation_id, source, job_id, job_count, jobs, state, action, reason, outcome, detail, at"
    theirs = f"'running', 'mark_failed', 'silent', 'applied', '', {NOW}"
    await bench.execute(
        f"INSERT INTO unstick_recoveries ({columns}) VALUES (77, 'other', '1', 1, NULL, {theirs})",
        f"INSERT INTO unstick_recoveries ({columns}) VALUES (78, 'other', NULL, 1, '[[2, null]]', {theirs})",
    )

    report = await undo_it(bench, operation_id)

    assert (numbers(report), told(report)) == ((2, 0, 0), {})
    assert await bench.rows() == before


async def test_what_a_sweep_could_not_do_is_no_part_of_its_undo(bench: SqlBench) -> None:
    """A job that the database refused stands in the operation's record, and nothing of it is to be put back."""
    await stuck(bench, 3)
    before = await bench.rows()
    name = bench.engine.dialect.name.replace("mariadb", "mysql")
    await bench.execute(*REFUSING_ANY[name])
    operation_id = await recovered(bench)
    await bench.execute("DROP TRIGGER kept" + (" ON ai_generation_jobs" if name == "postgresql" else ""))
    swept = await bench.rows()

    report = await undo_it(bench, operation_id)

    assert [row["status"] for row in swept] == ["failed", "running", "failed"]
    assert (numbers(report), told(report)) == ((2, 0, 0), {})
    assert await bench.rows() == before


async def test_of_two_operations_at_once_what_came_before_is_in_no_undos_way(opening: Opening) -> None:
    """Both recovered the second job, ours after the other: that one's record lies between our two."""
    bench = await opening(ruled_from=100)
    await stuck(bench, 2)
    before = await bench.rows()
    operation_id = await recovered(bench)
    await bench.execute(
        "UPDATE unstick_recoveries SET id = 9 WHERE id = 2",
        "INSERT INTO unstick_recoveries (id, operation_id, source, job_id, state, action, reason, outcome, detail, at) "
        f"VALUES (5, 77, 'main', '2', 'running', 'mark_failed', 'silent', 'applied', '', {NOW})",
    )

    report = await undo_it(bench, operation_id)

    assert (numbers(report), told(report)) == ((2, 0, 0), {})
    assert await bench.rows() == before


async def test_the_entry_that_ended_an_operation_is_none(bench: SqlBench) -> None:
    """An operation is named by the entry that began it; another number must undo nothing."""
    await stuck(bench, 1)
    operation_id = await recovered(bench)
    _, ended = await bench.audit()

    with pytest.raises(UnknownRecoveryError, match=f"no operation {ended.id}"):
        await undo_it(bench, ended.id)

    assert ended.id != operation_id
    assert await statuses(bench) == ["failed"]


KIT = COLUMNS | {"token": "token", "worker": "worker"}


async def working(bench: SqlBench) -> tuple[SqlJobQueue, WorkerIdentity, Any]:
    """A worker of the kit that has claimed the one job there is, and been silent since."""
    queue = SqlJobQueue("main", bench.jobs, EngineConnections(bench.engine))
    worker = WorkerIdentity(host="here", pid=1, boot_id="b")
    await queue.join(worker, HOUR)
    [claimed] = await queue.claim(worker, limit=1)
    return queue, worker, claimed


@pytest.fixture
async def kit(database: Database) -> AsyncIterator[SqlBench]:
    table = jobs_table(sa.Column("token", sa.Integer, server_default="0"), sa.Column("worker", sa.String(100)))
    bench = await open_bench(database, table, declared(table, columns=KIT))
    await bench.put({"status": "queued"}, started=timedelta(0))
    yield bench
    await bench.close()


AT_ONCE = Policy(queued_after=timedelta(microseconds=1), running_after=timedelta(microseconds=1))


@ACTIONS
async def test_an_attempt_that_gets_its_job_back_may_end_it(kit: SqlBench, action: Action) -> None:
    """R12: whoever ran it runs it again, and nobody else has had its token; before the undo its end is refused."""
    queue, worker, claimed = await working(kit)
    await kit.execute("UPDATE unstick_leases SET expires_at = beat_at")
    operation_id = await recovered(kit, action)
    assert not await queue.finish(claimed, {})

    await undo_it(kit, operation_id)

    assert (await kit.row(1))["token"] == 1
    assert await queue.finish(claimed, {})
    assert await statuses(kit) == ["completed"]
    assert worker.name == claimed.worker


async def test_a_job_that_gets_back_into_the_queue_keeps_the_token_it_was_given(kit: SqlBench) -> None:
    """R4: a queued job is nobody's; whoever holds an older token is a zombie, and stays one."""
    queue, _, claimed = await working(kit)
    # Its application queues it again, and takes no token from anybody.
    await kit.execute("UPDATE ai_generation_jobs SET status = 'queued', worker = NULL")
    operation_id = (await kit.sweep(Action.RETRY, policy=AT_ONCE)).operation_id

    await undo_it(kit, operation_id)

    row = await kit.row(1)
    assert (row["status"], row["token"]) == ("queued", 2)
    await kit.execute("UPDATE ai_generation_jobs SET status = 'running'")  # claimed by one that takes it as it is
    assert not await queue.finish(claimed, {})


@ACTIONS
async def test_a_lease_does_not_vouch_for_a_job_that_its_worker_was_told_is_lost(kit: SqlBench, action: Action) -> None:
    """L10: the worker lives, and runs the job no longer; the job must not be held by its lease for ever."""
    queue, worker, claimed = await working(kit)
    await kit.execute("UPDATE unstick_leases SET expires_at = beat_at")
    operation_id = await recovered(kit, action)
    await queue.beat(worker, HOUR, [])  # it is back, and vouches for whatever is in its name

    await undo_it(kit, operation_id)

    assert (await kit.row(1))["worker"] is None
    assert (await kit.sweep(policy=AT_ONCE)).tally.of(outcome=Outcome.APPLIED) == 1
    assert claimed.worker == worker.name


async def test_a_worker_that_never_had_a_lease_is_named_again(kit: SqlBench) -> None:
    """The application's own workers: the name is theirs, and vouches for nothing, whoever else has a lease."""
    queue = SqlJobQueue("main", kit.jobs, EngineConnections(kit.engine))
    await queue.join(WorkerIdentity(host="here", pid=1, boot_id="b"), HOUR)
    await kit.execute("UPDATE ai_generation_jobs SET status = 'running', worker = 'theirs'")
    operation_id = (await kit.sweep(Action.RETRY, policy=AT_ONCE)).operation_id
    assert (await kit.row(1))["worker"] is None

    await undo_it(kit, operation_id)

    assert (await kit.row(1))["worker"] == "theirs"


# Where the ledger is elsewhere.


async def undo_apart(apart: Apart, operation_id: int) -> UndoReport:
    return await undo(apart.watched, order(operation_id))


@ACTIONS
async def test_with_a_ledger_elsewhere_jobs_are_put_back_and_the_rest_named(apart: Apart, action: Action) -> None:
    """0008: the intent first, the change, then what came of it."""
    await stuck(apart.bench, 4)
    before = await apart.bench.rows()
    operation_id = (await apart.sweep(action)).operation_id
    await apart.bench.execute("UPDATE ai_generation_jobs SET attempt = 9, success = true WHERE id = 2")

    report = await undo_apart(apart, operation_id)

    rows = await apart.bench.rows()
    assert numbers(report) == (3, 1, 0)
    assert [rows[0], *rows[2:]] == [before[0], *before[2:]]
    assert list(told(report)) == ["2"]
    assert await apart.intents() == []
    records = [r for r in await apart.recoveries() if r.action == "undo"]
    assert sorted((r.job_id, r.outcome) for r in records) == [
        ("1", "applied"), ("2", "lost_race"), ("3", "applied"), ("4", "applied")
    ]  # fmt: skip
    assert (await undo_again(apart, operation_id)) == (0, 1, 0)


async def undo_again(apart: Apart, operation_id: int) -> tuple[int, int, int]:
    return numbers(await undo_apart(apart, operation_id))


@ACTIONS
@pytest.mark.parametrize("moment", ["before the change", "after the change"])
async def test_with_a_ledger_elsewhere_a_crash_is_made_good(apart: Apart, action: Action, moment: str) -> None:
    """0008: whether it was put back is told by its row, and a second undo undoes what is left."""
    await stuck(apart.bench, 2)
    before = await apart.bench.rows()
    operation_id = (await apart.sweep(action)).operation_id
    left = await apart.bench.rows()
    early = moment == "before the change"
    place = (
        killed_before(apart.bench.engine, "UPDATE ai_generation_jobs")
        if early
        else killed_before(apart.ledger, "DELETE FROM unstick_intents")
    )
    with place, pytest.raises(ProcessEndedError):
        await undo_apart(apart, operation_id)
    assert await apart.bench.rows() == (left if early else before)
    assert len(await apart.intents()) == 2
    await apart.time_passes()

    assert await settle_intents(apart.watched) == 2

    undos = [(r.outcome, r.undoes is not None) for r in await apart.recoveries() if r.action == "undo"]
    assert undos == [("failed" if early else "applied", True)] * 2
    spent = await apart.watched.ledger.spent("main", [1, 2], await apart.bench.source.clock() - HOUR)
    assert spent == ({1: 1, 2: 1} if early and action is Action.RETRY else {})
    if early:
        assert await undo_again(apart, operation_id) == (2, 0, 0)
    else:
        with pytest.raises(NothingToUndoError):
            await undo_apart(apart, operation_id)
    assert await apart.bench.rows() == before


async def test_with_a_ledger_elsewhere_what_is_no_row_of_the_source_is_another_sources(apart: Apart) -> None:
    """Two sources may share a ledger: an operation is undone in its own source only."""
    await stuck(apart.bench, 1)
    operation_id = (await apart.sweep()).operation_id
    other = SqlSource("other", apart.bench.jobs, EngineConnections(apart.bench.engine), records=False)
    watched = Watched(source=other, ledger=apart.watched.ledger, policy=Policy())

    with pytest.raises(UnknownRecoveryError, match="'other'"):
        await undo(watched, order(operation_id))

    assert await apart.statuses() == ["failed"]


async def test_a_queued_job_goes_back_into_the_queue_as_it_was(bench: SqlBench) -> None:
    """And is found again: it is as stuck as it was."""
    await stuck(bench, 2, JobState.QUEUED)
    before = await bench.rows()
    report = await undo_it(bench, await recovered(bench))

    assert report.of(state=JobState.QUEUED, outcome=Outcome.APPLIED) == 2
    assert await bench.rows() == before
    assert (await bench.source.count_suspects((await bench.sweep(None, policy=Policy())).look)).total == 0
