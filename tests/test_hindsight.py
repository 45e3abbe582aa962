"""What finished jobs tell: percentiles and replays are what Python would have worked out from the same rows."""

from __future__ import annotations

import random
import statistics
import tomllib
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests.jobs import AWARE, COLUMNS, NAIVE, SqlBench, declared, jobs_table, open_bench
from tests.servers import EACH_KIND
from unstick.domain.aftermath import LateRuns
from unstick.domain.errors import ConfigurationError, InvalidRequestError
from unstick.domain.history import Durations, Figures
from unstick.domain.policy import Policy, Rule
from unstick.domain.recovery import Action
from unstick.domain.suggestion import FEWEST_JOBS, as_setting, propose, suggest
from unstick.pipeline.aftermath import follow_up
from unstick.pipeline.hindsight_shapes import replay_shape, suggestions_shape
from unstick.pipeline.history import ReplayOrder, ReplayReport, replay, report_suggestions
from unstick.pipeline.watched import Watched
from unstick.sql import history
from unstick.sql.connections import EngineConnections
from unstick.sql.history import SqlHistory
from unstick.testing.conformance import MINUTE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from tests.servers import Database
    from unstick.pipeline.history import SuggestionReport

DATABASES = EACH_KIND

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
QUEUED_COLUMNS = {**COLUMNS, "queue": "lane"}


@dataclass
class Past:
    """A table of jobs that ended, made of what a test says of each."""

    bench: SqlBench

    @property
    def watched(self) -> Watched:
        source = SqlHistory(self.bench.jobs, EngineConnections(self.bench.engine))
        return Watched(source=self.bench.source, ledger=self.bench.ledger, policy=Policy(), history=source)

    async def put(self, *jobs: dict[str, Any], ended: timedelta = DAY) -> None:
        """Insert jobs: `ran` and `waited` are durations, `ended` how long ago, None for a time that isn't known."""
        now = await self.bench.source.clock()
        rows = [self._row(now, {"ended": ended, **each}) for each in jobs]
        names = {name for row in rows for name in row}
        async with self.bench.engine.begin() as connection:
            for row in rows:
                await connection.execute(sa.insert(self.bench.table).values({name: row.get(name) for name in names}))

    def _row(self, now: datetime, said: dict[str, Any]) -> dict[str, object]:
        ended, ran, waited = said.pop("ended"), said.pop("ran", None), said.pop("waited", None)
        over = None if ended is None else now - ended
        began = None if over is None or ran is None else over - ran
        ready = None if waited is None else (began or over or now) - waited
        times = {"completed_at": over, "started_at": began, "created_at": ready}
        stored = {name: None if at is None else self.bench.store(at) for name, at in times.items()}
        return {"status": "completed", "job_type": "essay", "attempt": 0, **stored, **said}

    async def suggestions(self) -> SuggestionReport:
        return await report_suggestions(self.watched)

    async def replay(self, **order: Any) -> ReplayReport:  # noqa: ANN401
        return await replay(self.watched, ReplayOrder(**order))


def past_table(time: Any = AWARE) -> sa.Table:  # noqa: ANN401
    table = jobs_table(sa.Column("lane", sa.String(20)), time=time)
    table.c.job_type.nullable = True
    return table


@pytest.fixture
async def past(database: Database) -> AsyncIterator[Past]:
    table = past_table()
    bench = await open_bench(database, table, declared(table, columns=QUEUED_COLUMNS))
    yield Past(bench)
    await bench.close()


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


# Percentiles


@pytest.mark.parametrize("number", [1, 2, 3, 20, 101, 257])
async def test_percentiles_are_those_of_pythons_statistics(past: Past, number: int) -> None:
    """By kind, and by kind and queue, whatever their number; waits all together."""
    chance = random.Random(number)  # noqa: S311
    jobs = [
        {
            "job_type": chance.choice(["essay", "quiz"]) if number > 1 else "essay",
            "lane": chance.choice(["slow", "fast"]),
            "ran": seconds(chance.randrange(1, 10**7) / 1000),
            "waited": seconds(chance.randrange(1, 10**6) / 1000),
        }
        for _ in range(number)
    ]
    await past.put(*(dict(job) for job in jobs))
    assert past.watched.history is not None

    found = await past.watched.history.durations()

    assert_figures(found.runs, jobs, "ran", ("job_type",))
    assert_figures(found.runs_by_queue, jobs, "ran", ("job_type", "lane"))
    assert found.waits is not None
    assert_figures([found.waits], jobs, "waited", ())


def assert_figures(found: Sequence[Figures], jobs: list[dict[str, Any]], what: str, by: tuple[str, ...]) -> None:
    groups: dict[tuple[str, ...], list[float]] = {}
    for job in jobs:
        groups.setdefault(tuple(job[key] for key in by), []).append(job[what].total_seconds())
    told = {tuple(word for word in (each.kind, each.queue) if word is not None): each for each in found}
    assert told.keys() == groups.keys()
    assert [each.jobs for each in found] == sorted((each.jobs for each in found), reverse=True)
    for key, lengths in groups.items():
        figures = told[key]
        assert figures.jobs == len(lengths)
        cuts = statistics.quantiles(lengths, n=100, method="inclusive") if len(lengths) > 1 else lengths * 99
        expected = [cuts[49], cuts[94], cuts[98], max(lengths)]
        measured = [each.total_seconds() for each in (figures.p50, figures.p95, figures.p99, figures.longest)]
        assert measured == pytest.approx(expected, abs=0.002)


async def test_only_jobs_that_succeeded_and_whose_times_make_sense_are_measured(past: Past) -> None:
    await past.put(
        {"ran": seconds(10)},
        {"ran": seconds(500), "status": "failed"},
        {"ran": seconds(500), "status": "cancelled"},
        {"ran": seconds(-500)},
        {"ran": None},
        {"ended": None, "status": "running"},
    )

    [figures] = (await past.watched.history.durations()).runs  # type: ignore[union-attr]

    assert (figures.jobs, figures.longest) == (1, seconds(10))


async def test_a_bad_time_spoils_no_figure(past: Past) -> None:
    """A time of day in SQLite, zeros in MariaDB, and in PostgreSQL what is later than any time."""
    await past.put({"ran": seconds(10)}, {"ran": seconds(20)})
    bad = {"sqlite": "'12:30'", "postgresql": "'infinity'", "mysql": "'2026-00-00'"}[past.bench.engine.dialect.name]
    mode = ["SET SESSION sql_mode = ''"] if past.bench.engine.dialect.name == "mysql" else []
    await past.bench.execute(*mode, f"UPDATE ai_generation_jobs SET started_at = {bad} WHERE id = 2")

    [figures] = (await past.watched.history.durations()).runs  # type: ignore[union-attr]
    report = await past.replay(running_after=seconds(5), queued_after=seconds(5))

    assert (figures.jobs, figures.longest) == (1, seconds(10))
    assert (report.replayed.total.ended, report.replayed.total.running) == (2, 1)


@pytest.mark.parametrize("limit", [5, 10])
async def test_the_sample_is_bounded_and_of_the_newest_jobs(
    past: Past, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(history, "USAGE_JOBS", limit)
    monkeypatch.setattr(history, "REPLAYED_JOBS", limit)
    await past.put(*({"ran": seconds(1000)} for _ in range(10)), *({"ran": seconds(7)} for _ in range(limit)))

    [figures] = (await past.suggestions()).suggestions.items[:1]
    report = await past.replay(running_after=seconds(500))

    assert (figures.figures.jobs, figures.figures.longest) == (limit, seconds(7))
    assert (report.replayed.sample, report.replayed.complete) == (limit, False)
    assert (report.replayed.total.ended, report.replayed.total.recovered) == (limit, 0)
    shape = replay_shape(report)
    assert f"at most {limit} jobs, newest by id; older ones were not looked at" in shape["message"]


async def test_naive_and_aware_times_are_measured_against_each_other(postgres_database: Database) -> None:
    """In a zone of its own: a start without one means the mapping's, an end with one is what it says."""
    table = jobs_table(time=NAIVE)
    table.c.completed_at.type = sa.DateTime(timezone=True)
    bench = await open_bench(postgres_database, table, declared(table, timezone="Asia/Tokyo"))
    try:
        await bench.execute(
            "INSERT INTO ai_generation_jobs (status, created_at, started_at, completed_at) VALUES "
            "('completed', '2026-11-01 09:00:00', '2026-11-01 09:01:00', '2026-11-01 00:03:00+00')"
        )
        durations = await SqlHistory(bench.jobs, EngineConnections(bench.engine)).durations()
    finally:
        await bench.close()

    assert [each.longest for each in durations.runs] == [2 * MINUTE]
    assert durations.waits is not None
    assert durations.waits.longest == MINUTE


# Suggestions


def figures(p99: timedelta, longest: timedelta, jobs: int = 3912, kind: str | None = "essay") -> Figures:
    return Figures(kind, None, jobs, p99 / 4, p99 / 2, p99, longest)


@pytest.mark.parametrize(
    ("p99", "longest", "late", "expected"),
    [
        (20, 25, None, 30),
        (20, 40, None, 40),
        (20, 61, None, 30),  # an outlier
        (20, 25, 31, 40),  # a late finish is no outlier
        (0.1, 0.1, None, 1),
        (41, 45, None, 75),
        (200, 200, None, 300),
    ],
)
def test_a_threshold_is_clear_of_p99_the_longest_job_and_late_finishes(
    p99: float, longest: float, late: float | None, expected: float
) -> None:
    runs = None if late is None else LateRuns("essay", 1, late * MINUTE)
    assert propose(figures(p99 * MINUTE, longest * MINUTE), runs) == expected * MINUTE


def test_it_says_with_numbers_why_and_prints_what_the_settings_would_take() -> None:
    durations = Durations(
        basis="all",
        runs=(figures(41 * MINUTE, 45 * MINUTE),),
        runs_by_queue=(),
        waits=figures(MINUTE, MINUTE, 50, None),
    )
    found = suggest(durations, [LateRuns("essay", 12, 52 * MINUTE)], Policy(), "main")

    assert found.items[0].why == (
        "p99 of 3,912 jobs is 41 minutes, the longest ran 45 minutes; 12 recovered job(s) finished after all, after up "
        "to 52 minutes; running_after is 30m now"
    )
    assert tomllib.loads(found.toml) == {
        "policy": {"queued_after": "2m", "rules": [{"kind": "essay", "running_after": "75m"}]}
    }


def test_too_few_jobs_give_no_proposal_and_that_is_said() -> None:
    enough, few = (figures(MINUTE, MINUTE, jobs) for jobs in (FEWEST_JOBS, FEWEST_JOBS - 1))
    assert propose(enough, None) is not None
    found = suggest(Durations(basis="all", runs=(few,), runs_by_queue=(), waits=None), [], Policy(), "main")
    assert (found.items[0].proposed, found.items[0].changes, found.toml) == (None, False, "")
    assert found.items[0].why == "only 19 succeeded in the sample, too few to propose anything from: 20 tell"


def test_what_fits_already_is_not_proposed_again() -> None:
    found = suggest(
        Durations(basis="all", runs=(figures(20 * MINUTE, 20 * MINUTE),), runs_by_queue=(), waits=None),
        [],
        Policy(),
        "main",
    )
    assert (found.items[0].proposed, found.toml) == (30 * MINUTE, "")
    assert found.items[0].why.endswith("running_after is 30m now, which fits")


@pytest.mark.parametrize("slow", [10, 13, 14, 60])
def test_queues_get_thresholds_of_their_own_where_that_matters(slow: int) -> None:
    """Where one would be twice another; the narrower rule comes first, for the first match wins."""
    by_queue = tuple(
        Figures("essay", queue, 100, p99, p99, p99, p99) for queue, p99 in (("a", 4 * MINUTE), ("b", slow * MINUTE))
    )
    durations = Durations(
        basis="all", runs=(figures(slow * MINUTE, slow * MINUTE),), runs_by_queue=by_queue, waits=None
    )
    rules = tomllib.loads(suggest(durations, [], Policy(), "main").toml).get("policy", {}).get("rules", [])
    assert [rule.get("queue") for rule in rules] == ["a", "b", None]


def test_queues_that_differ_little_share_a_threshold() -> None:
    by_queue = tuple(
        Figures("essay", queue, 100, p99, p99, p99, p99) for queue, p99 in (("a", 6 * MINUTE), ("b", 7 * MINUTE))
    )
    durations = Durations(basis="all", runs=(figures(7 * MINUTE, 7 * MINUTE),), runs_by_queue=by_queue, waits=None)
    rules = tomllib.loads(suggest(durations, [], Policy(), "main").toml)["policy"]["rules"]
    assert rules == [{"kind": "essay", "running_after": "15m"}]


def test_a_kind_that_a_rule_governs_is_compared_with_its_rule_and_proposed_one_that_keeps_the_rest_of_it() -> None:
    """Where the base policy fits it already, its own rule may not; and the first rule that matches wins."""
    policy = Policy(
        rules=(
            Rule(source="elsewhere", kind="essay", running_after=3 * MINUTE),
            Rule(kind="ess*", running_after=4 * MINUTE, action=Action.RETRY, max_recoveries=2, recovery_window=DAY),
        )
    )
    runs = (figures(20 * MINUTE, 20 * MINUTE), figures(20 * MINUTE, 20 * MINUTE, kind="mail"))
    found = suggest(Durations(basis="all", runs=runs, runs_by_queue=(), waits=None), [], policy, "main")

    assert [(each.kind, each.current, each.proposed) for each in found.items] == [
        ("essay", 4 * MINUTE, 30 * MINUTE), ("mail", 30 * MINUTE, 30 * MINUTE)
    ]  # fmt: skip
    assert "running_after is 4m now" in found.items[0].why
    assert found.toml.startswith("# Before rule 2,")
    written = {"action": "retry", "max_recoveries": 2, "recovery_window": "24h"}
    assert tomllib.loads(found.toml)["policy"]["rules"] == [{"kind": "essay", "running_after": "30m", **written}]


def test_a_kind_all_of_whose_queues_are_under_one_rule_is_compared_with_that() -> None:
    policy = Policy(rules=(Rule(queue="slow*", running_after=2 * HOUR, ask=True),))
    minute = 20 * MINUTE
    by_queue = tuple(Figures("essay", queue, 100, minute, minute, minute, minute) for queue in ("slow", "slowest"))
    durations = Durations(basis="all", runs=(figures(minute, minute),), runs_by_queue=by_queue, waits=None)
    found = suggest(durations, [], policy, "main")
    assert [(each.queue, each.current) for each in found.items] == [(None, 2 * HOUR)]
    assert tomllib.loads(found.toml)["policy"]["rules"] == [
        {"kind": "essay", "running_after": "30m", "queue": "slow*", "ask": True}
    ]


@pytest.mark.parametrize("kind", ['say "x"', "back\\slash", "a\nb", "\x7f", "naïve 😀", "what?", "[a]*"])
def test_any_kind_is_written_as_toml_that_names_it_alone(kind: str) -> None:
    from fnmatch import fnmatchcase  # noqa: PLC0415

    runs = (figures(MINUTE, MINUTE, kind=kind),)
    [rule] = tomllib.loads(
        suggest(Durations(basis="all", runs=runs, runs_by_queue=(), waits=None), [], Policy(), "main").toml
    )["policy"]["rules"]
    assert fnmatchcase(kind, rule["kind"])
    assert not fnmatchcase("whatx", rule["kind"])
    assert not fnmatchcase("ab", rule["kind"])


@pytest.mark.parametrize("said", ["45s", "1m", "90s", "75m", "2h", "0.5s", "24h", "100001s"])
def test_durations_are_written_as_the_settings_read_them(said: str) -> None:
    from unstick.config import parse_duration  # noqa: PLC0415

    assert as_setting(parse_duration(said)) == said
    assert parse_duration(as_setting(parse_duration(said))) == parse_duration(said)


async def test_late_finishes_of_a_kind_raise_its_threshold(past: Past) -> None:
    """From the table to the proposal: what was recovered too early is what tells that it was."""
    await past.put(*({"ran": 10 * MINUTE} for _ in range(30)))
    before = (await past.suggestions()).suggestions
    began = past.bench.store(await past.bench.source.clock() - 58 * MINUTE)
    await past.bench.put({"job_type": "essay", "started_at": began})
    await past.bench.sweep()
    over = past.bench.store(await past.bench.source.clock())
    async with past.bench.engine.begin() as connection:
        table = past.bench.table
        await connection.execute(
            sa.update(table).where(table.c.status == "failed").values(status="completed", completed_at=over)
        )
    assert (await follow_up(past.watched)).late == 1

    after = (await past.suggestions()).suggestions

    assert before.items[0].proposed == 15 * MINUTE
    assert after.items[0].proposed == 75 * MINUTE
    assert "1 recovered job(s) finished after all, after up to 58 minutes" in after.items[0].why
    shape = suggestions_shape(await past.suggestions())
    assert shape["suggestions"][0]["late_finishes"] == {"jobs": 1, "longest_seconds": pytest.approx(58 * 60, abs=60)}


async def test_a_table_without_kinds_gets_one_threshold_for_all(database: Database) -> None:
    table = past_table()
    columns = {key: name for key, name in COLUMNS.items() if key != "kind"}
    bench = await open_bench(database, table, declared(table, columns=columns))
    try:
        past = Past(bench)
        await past.put(*({"ran": 50 * MINUTE, "waited": SECOND} for _ in range(25)))
        found = (await past.suggestions()).suggestions
    finally:
        await bench.close()

    assert tomllib.loads(found.toml) == {"policy": {"running_after": "75m", "queued_after": "1m"}}


async def test_nothing_succeeded_and_nothing_is_proposed(past: Past) -> None:
    found = (await past.suggestions()).suggestions
    assert (found.items, found.toml) == ((), "")


# Replays


@pytest.mark.parametrize("queued_after", [None, 5 * MINUTE])
@pytest.mark.parametrize("pattern", [None, "essay.*", "*z*"])
async def test_a_replay_counts_what_python_counts_over_the_same_rows(
    past: Past, queued_after: timedelta | None, pattern: str | None
) -> None:
    chance = random.Random(5)  # noqa: S311
    jobs: list[dict[str, Any]] = [
        {
            "job_type": chance.choice(["essay.long", "essay.short", "quiz", None]),
            "status": chance.choice(["completed", "failed", "cancelled"]),
            "ran": chance.choice([None, seconds(chance.randrange(0, 7200) + 0.5)]),
            "waited": chance.choice([None, seconds(chance.randrange(0, 900) + 0.5)]),
            "ended": chance.choice([DAY, 9 * DAY, 11 * DAY, None]),
        }
        for _ in range(300)
    ]
    await past.put(*(dict(job) for job in jobs))
    matching: dict[str | None, set[str | None]] = {
        None: {"essay.long", "essay.short", "quiz", None},
        "essay.*": {"essay.long", "essay.short"},
    }

    report = await past.replay(days=10, running_after=30 * MINUTE, queued_after=queued_after, kind=pattern)

    expected: Counter[tuple[str, Any]] = Counter()
    for job in jobs:
        if job["ended"] is None or job["ended"] > 10 * DAY or job["job_type"] not in matching.get(pattern, {"quiz"}):
            continue
        waited = queued_after is not None and job["waited"] is not None and job["waited"] > queued_after
        ran = not waited and job["ran"] is not None and job["ran"] > 30 * MINUTE
        kind = job["job_type"]
        expected["ended", kind] += 1
        expected["queued", kind] += waited
        expected["running", kind] += ran
        expected["succeeded", kind] += (waited or ran) and job["status"] == "completed"
    found = Counter({
        (name, each.kind): getattr(each, name)
        for each in report.replayed.kinds
        for name in ("ended", "queued", "running", "succeeded")
    })  # fmt: skip
    assert found == +expected
    assert report.replayed.sample == 300
    assert report.replayed.complete
    total = replay_shape(report)["total"]
    assert total["recovered"] == sum(found[name, kind] for name, kind in found if name in ("queued", "running"))
    assert total["recovered"] > 0


async def test_a_job_that_was_due_later_did_not_wait_before(past: Past) -> None:
    now = await past.bench.source.clock()
    times = {"created_at": 600, "scheduled_at": 62, "started_at": 60, "completed_at": 50}
    await past.put({"ended": None, **{name: past.bench.store(now - ago * MINUTE) for name, ago in times.items()}})

    report = await past.replay(queued_after=3 * MINUTE)

    assert (report.replayed.total.ended, report.replayed.total.queued) == (1, 0)
    assert (await past.replay(queued_after=MINUTE)).replayed.total.queued == 1


async def test_a_replay_says_at_most_and_what_it_looked_at(past: Past) -> None:
    await past.put({"ran": 40 * MINUTE}, {"ran": 40 * MINUTE, "status": "failed"}, {"ran": MINUTE})
    shape = replay_shape(await past.replay())
    assert (shape["running_after_seconds"], shape["queued_after_seconds"]) == (1800, None)
    assert "Of 3 job(s) that ended since " in shape["message"]
    assert ", at most 2 would have been recovered with running_after 30m, and 1 of those succeeded" in shape["message"]
    assert "Looked at 3 jobs: all there are." in shape["message"]
    assert "one that beat meanwhile would have been left alone" in shape["message"]


async def test_what_cannot_be_replayed_is_refused(past: Past, sqlite_database: Database) -> None:
    for days in (0, 366):
        with pytest.raises(InvalidRequestError, match="days must be from 1 to 365"):
            await past.replay(days=days)
    without = Watched(source=past.bench.source, ledger=past.bench.ledger, policy=Policy())
    with pytest.raises(InvalidRequestError, match="'main' keeps no history"):
        await replay(without, ReplayOrder())
    table = jobs_table(name="others")
    columns = {key: name for key, name in COLUMNS.items() if key != "completed_at"}
    jobs = declared(table, columns=columns)
    async with past.bench.engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
    with pytest.raises(ConfigurationError, match="map `completed_at`"):
        await SqlHistory(jobs, EngineConnections(past.bench.engine)).replay(DAY, running_after=DAY, queued_after=None)


async def test_a_sample_is_read_once_and_a_replay_is_counted_in_the_database(past: Past) -> None:
    """However many jobs there are, only figures cross of a replay, and lengths once for all percentiles."""
    await past.put(*({"ran": seconds(number), "waited": SECOND} for number in range(200)))
    sizes: list[int] = []

    def hook(_c: Any, cursor: Any, statement: str, _p: Any, _context: Any, _many: bool) -> None:  # noqa: ANN401
        if "newest" in statement:
            sizes.append(cursor.rowcount)

    event.listen(past.bench.engine.sync_engine, "after_cursor_execute", hook)
    await past.suggestions()
    await past.replay()

    assert len(sizes) == 2
    assert sizes[1] <= 1
