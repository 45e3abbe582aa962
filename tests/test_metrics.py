"""What `/metrics` says after what really happened to a source, and what it no longer says."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client import generate_latest
from pydantic import SecretStr

from tests.api_support import AUTH, SECRET, World, assert_problem, client, service, token
from tests.jobs import COLUMNS, SqlBench, declared, jobs_table, open_bench
from unstick.api.auth import bearer_principal
from unstick.api.factory import create_app
from unstick.api.metrics import metrics_router
from unstick.config import Address, load_settings
from unstick.domain.access import Role
from unstick.domain.brake import BrakeLimits, Pass, Unattended
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import ConfigurationError
from unstick.domain.events import OTHERS, Delivered, Notified, Observed, QueueReason
from unstick.domain.recovery import Action
from unstick.domain.schedule import Every, Timetable
from unstick.pipeline.braking import release_brake
from unstick.pipeline.observing import observe
from unstick.pipeline.recovering import RecoverOrder, recover_job
from unstick.pipeline.runner import Runner
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.pipeline.undo import UndoOrder, undo
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections
from unstick.sql.leaders import SqlLeaders
from unstick.sql.watches import SqlWatches
from unstick.telemetry.metrics import MOST_QUEUES, Metrics
from unstick.telemetry.scraping import listening
from unstick.wiring import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.servers import Database
    from unstick.domain.events import PipelineEvent
    from unstick.pipeline.watched import OpenWatched, Watched

NAMES = {
    "unstick_jobs",
    "unstick_stuck_jobs",
    "unstick_oldest_running_seconds",
    "unstick_oldest_queued_seconds",
    "unstick_recoveries_total",
    "unstick_late_finishes_total",
    "unstick_sweeps_total",
    "unstick_sweep_duration_seconds_bucket",
    "unstick_sweep_duration_seconds_count",
    "unstick_sweep_duration_seconds_sum",
    "unstick_sweep_last_success_timestamp_seconds",
    "unstick_source_up",
    "unstick_leader",
    "unstick_brake_engaged",
    "unstick_notifications_total",
    "unstick_build_info",
}
OFTEN = Timetable(observe=Every(timedelta(milliseconds=50)), clean=Every(timedelta(hours=1)))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PLENTY = Unattended(brake=BrakeLimits(jobs=1_000))


@pytest.fixture
async def bench(sqlite_database: Database) -> AsyncIterator[SqlBench]:
    table = jobs_table(sa.Column("queue", sa.String(50)))
    bench = await open_bench(sqlite_database, table, declared(table, columns={**COLUMNS, "queue": "queue"}))
    yield bench
    await bench.close()


def watched(bench: SqlBench, *metrics: Metrics, unattended: Unattended = PLENTY) -> Watched:
    connections = EngineConnections(bench.engine)
    return replace(
        bench.watched(),
        brakes=SqlBrakes(connections),
        leaders=SqlLeaders(connections),
        watches=SqlWatches(connections),
        unattended=unattended,
        listeners=metrics,
    )


async def look(bench: SqlBench, metrics: Metrics) -> None:
    """Observe, as the runner does."""
    await metrics.hear(await observe(watched(bench, metrics)))


async def has_been_watched(bench: SqlBench) -> None:
    """A pass a minute ago, and no gap since days."""
    now = await bench.source.clock()
    this = Pass(at=now - timedelta(minutes=1), back_at=now - timedelta(days=9))
    await SqlBrakes(EngineConnections(bench.engine)).note_pass("main", this)


def said(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of this name, by the values of their labels but the source's, which is always the same."""
    return {
        tuple(value for label, value in sample.labels.items() if label != "source"): sample.value
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if sample.name == f"unstick_{name}"
    }


def one(metrics: Metrics, name: str) -> float | None:
    """Return the one sample of this name, None where there is none."""
    return said(metrics, name).get(())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is another task's, or another process's
            await asyncio.sleep(0.01)


def opening(this: Watched) -> OpenWatched:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Watched]:
        yield this

    return opened


def runner(this: Watched, holder: str, timetable: Timetable = OFTEN) -> Runner:
    return Runner({"main": opening(this)}, timetable, holder=holder, leads_for=timedelta(seconds=2))


# What a source holds


async def test_open_and_stuck_jobs_are_told_by_queue(bench: SqlBench) -> None:
    metrics = Metrics()
    await bench.put({"queue": "mail"}, {"queue": "mail"}, {"queue": "video"}, {"status": "queued", "queue": "video"})
    await bench.put({"queue": "video"}, started=timedelta(minutes=1))
    await look(bench, metrics)
    assert said(metrics, "jobs") == {("mail", "running"): 2, ("video", "running"): 2, ("video", "queued"): 1}
    assert said(metrics, "stuck_jobs") == {
        ("mail", "silent"): 2,
        ("video", "silent"): 1,
        ("video", "never_claimed"): 1,
    }


async def test_the_oldest_job_of_each_state_is_told_and_0_where_there_is_none(bench: SqlBench) -> None:
    metrics = Metrics()
    await bench.put({}, started=timedelta(minutes=7))
    await look(bench, metrics)
    assert one(metrics, "oldest_running_seconds") == pytest.approx(7 * 60, abs=20)
    assert one(metrics, "oldest_queued_seconds") == 0
    await bench.put({"status": "queued"}, started=timedelta(minutes=9))
    await look(bench, metrics)
    assert one(metrics, "oldest_queued_seconds") == pytest.approx(9 * 60, abs=20)


async def test_a_source_without_queues_has_an_empty_one(tmp_path: Path, sqlite_database: Database) -> None:
    bench = await open_bench(sqlite_database)
    metrics = Metrics()
    await bench.put({})
    await look(bench, metrics)
    assert said(metrics, "jobs") == {("", "running"): 1}
    assert said(metrics, "stuck_jobs") == {("", "silent"): 1}
    await bench.close()


async def test_a_queue_or_reason_that_is_gone_is_told_no_more(bench: SqlBench) -> None:
    metrics = Metrics()
    await bench.put({"queue": "mail"}, {"status": "queued", "queue": "video"})
    await look(bench, metrics)
    assert len(said(metrics, "jobs")) == len(said(metrics, "stuck_jobs")) == 2
    await bench.execute("DELETE FROM ai_generation_jobs WHERE queue = 'mail'")
    await look(bench, metrics)
    assert said(metrics, "jobs") == {("video", "queued"): 1}
    assert said(metrics, "stuck_jobs") == {("video", "never_claimed"): 1}


async def test_of_a_thousand_queues_the_largest_hundred_are_named_and_none_of_the_jobs_is_lost(bench: SqlBench) -> None:
    metrics = Metrics()
    queues = [f"q{number:04}" for number in range(1_000)]
    large = queues[450 : 450 + MOST_QUEUES]
    await bench.put(*({"queue": queue} for queue in queues), *({"queue": queue} for queue in large))
    await look(bench, metrics)
    for name, word in (("jobs", "running"), ("stuck_jobs", "silent")):
        told = said(metrics, name)
        assert told == {**{(queue, word): 2 for queue in large}, (OTHERS, word): 1_000 - MOST_QUEUES}
    assert len(generate_latest(metrics.registry).splitlines()) < 300


async def test_as_many_queues_as_are_named_need_no_others(bench: SqlBench) -> None:
    metrics = Metrics()
    await bench.put(*({"queue": f"q{number}"} for number in range(MOST_QUEUES)))
    await look(bench, metrics)
    assert len(said(metrics, "jobs")) == MOST_QUEUES
    assert (OTHERS, "running") not in said(metrics, "jobs")


async def test_a_queue_whose_jobs_came_between_two_counts_is_named_all_the_same() -> None:
    metrics = Metrics()
    await metrics.hear(observed(stuck={QueueReason("mail", Reason.SILENT): 1}))
    assert said(metrics, "stuck_jobs") == {("mail", "silent"): 1}


def observed(**told: Any) -> Observed:  # noqa: ANN401
    common: dict[str, Any] = {"source": "main", "at": NOON, "took": timedelta(0), "open_jobs": {}, "stuck": {}}
    return Observed(**{**common, **told})


# What was done


async def test_a_sweep_is_counted_with_what_came_of_each_job(bench: SqlBench) -> None:
    metrics = Metrics()
    await bench.put({}, {}, {"status": "queued"})
    report = await sweep(watched(bench, metrics), SweepOrder(actor="ada"))
    assert report.operation_id is not None
    assert said(metrics, "recoveries_total") == {("mark_failed", "applied", "requested"): 3}
    assert said(metrics, "sweeps_total") == {("done",): 1}
    assert one(metrics, "sweep_duration_seconds_count") == 1
    assert 0 < (one(metrics, "sweep_duration_seconds_sum") or 0) < 60
    await undo(watched(bench, metrics), UndoOrder(actor="ada", operation_id=report.operation_id))
    assert said(metrics, "recoveries_total")["undo", "applied", "requested"] == 3


async def test_a_dry_run_counts_nothing(bench: SqlBench) -> None:
    metrics = Metrics()
    await bench.put({})
    await sweep(watched(bench, metrics), SweepOrder(actor="ada", dry_run=True))
    assert said(metrics, "recoveries_total") == said(metrics, "sweeps_total") == {}


async def test_the_recovery_of_one_job_is_counted(bench: SqlBench) -> None:
    metrics = Metrics()
    await bench.put({}, {})
    order = RecoverOrder(actor="ada", job_id="1", action=Action.RETRY, reason="because")
    await recover_job(watched(bench, metrics), order)
    assert said(metrics, "recoveries_total") == {("retry", "applied", "requested"): 1}
    assert said(metrics, "sweeps_total") == {}


async def test_a_sweep_that_failed_is_counted_and_is_no_success(bench: SqlBench) -> None:
    metrics = Metrics()
    await has_been_watched(bench)
    await sweep(watched(bench, metrics), SweepOrder(actor="cron", unattended=True))
    before = one(metrics, "sweep_last_success_timestamp_seconds")
    await bench.execute("DROP TABLE ai_generation_jobs")
    with pytest.raises(sa.exc.OperationalError):
        await sweep(watched(bench, metrics), SweepOrder(actor="cron", unattended=True))
    assert said(metrics, "sweeps_total") == {("done",): 1, ("failed",): 1}
    assert one(metrics, "sweep_duration_seconds_count") == 2
    assert before is not None
    assert one(metrics, "sweep_last_success_timestamp_seconds") == before


async def test_only_a_sweep_that_nobody_watches_is_the_sweepers_success(bench: SqlBench) -> None:
    metrics = Metrics()
    await has_been_watched(bench)
    await bench.put({})
    await sweep(watched(bench, metrics), SweepOrder(actor="ada"))
    assert one(metrics, "sweep_last_success_timestamp_seconds") is None
    await sweep(watched(bench, metrics), SweepOrder(actor="cron", unattended=True))
    now = (await bench.source.clock()).timestamp()
    assert one(metrics, "sweep_last_success_timestamp_seconds") == pytest.approx(now, abs=20)


async def test_a_late_finish_that_a_sweep_finds_is_counted(bench: SqlBench) -> None:
    metrics = Metrics(["main"])
    await bench.put({})
    await sweep(watched(bench, metrics), SweepOrder(actor="ada"))
    assert one(metrics, "late_finishes_total") == 0
    await bench.execute("UPDATE ai_generation_jobs SET status = 'completed', success = true")
    await sweep(watched(bench, metrics), SweepOrder(actor="ada"))
    assert one(metrics, "late_finishes_total") == 1


async def test_a_brake_that_holds_is_told_until_somebody_releases_it(bench: SqlBench) -> None:
    metrics = Metrics()
    few = watched(bench, metrics, unattended=Unattended(brake=BrakeLimits(share=0, jobs=1)))
    await has_been_watched(bench)
    await bench.put({}, {}, {})
    await metrics.hear(await observe(few))
    assert one(metrics, "brake_engaged") == 0
    await sweep(few, SweepOrder(actor="cron", unattended=True))
    assert one(metrics, "brake_engaged") == 1
    assert said(metrics, "sweeps_total") == {("braked",): 1}
    assert said(metrics, "recoveries_total") == {("mark_failed", "braked", "unattended"): 3}
    await look(bench, metrics)
    assert one(metrics, "brake_engaged") == 1
    await sweep(watched(bench, metrics), SweepOrder(actor="ada", queued_after=timedelta(days=9)))
    assert one(metrics, "brake_engaged") == 1, "what a person has swept says nothing of the brake"
    await release_brake(few, "ada")
    assert one(metrics, "brake_engaged") == 0


async def test_a_listener_that_raises_stops_neither_the_sweep_nor_the_other_listeners(
    bench: SqlBench, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        async def hear(self, event: PipelineEvent) -> None:  # noqa: ARG002
            raise RuntimeError("no room left")

    metrics = Metrics()
    await bench.put({})
    this = replace(watched(bench), listeners=(Broken(), metrics))
    report = await sweep(this, SweepOrder(actor="ada"))
    assert report.tally.of() == 1
    assert said(metrics, "recoveries_total") == {("mark_failed", "applied", "requested"): 1}
    assert "Broken could not take note of Swept" in caplog.text


def notified(outcome: Delivered) -> Notified:
    return Notified(source="main", channel="ops", outcome=outcome, alerts=1)


async def test_notifications_are_counted_by_channel_and_what_came_of_them() -> None:
    metrics = Metrics()
    for outcome in (Delivered.DELIVERED, Delivered.FAILED, Delivered.DELIVERED):
        await metrics.hear(notified(outcome))
    assert said(metrics, "notifications_total") == {("ops", "delivered"): 2, ("ops", "failed"): 1}


# Who tells


async def test_a_source_that_can_not_be_observed_is_down_and_none_of_its_old_figures_are_told(bench: SqlBench) -> None:
    metrics = Metrics(["main"])
    await bench.put({"queue": "mail"})
    async with running(runner(watched(bench, metrics), "a")):
        await until(lambda: one(metrics, "source_up") == 1)
        assert said(metrics, "jobs") == {("mail", "running"): 1}
        await bench.execute("ALTER TABLE ai_generation_jobs RENAME TO elsewhere")
        await until(lambda: one(metrics, "source_up") == 0)
        for name in ("jobs", "stuck_jobs", "oldest_queued_seconds", "oldest_running_seconds"):
            assert said(metrics, name) == {}
        assert one(metrics, "leader") == 1
        assert one(metrics, "brake_engaged") == 0, "it is as it was, whether or not the source can be observed"
        await bench.execute("ALTER TABLE elsewhere RENAME TO ai_generation_jobs")
        await until(lambda: one(metrics, "source_up") == 1)
        assert said(metrics, "jobs") == {("mail", "running"): 1}


LEADERS_ALONE = (
    "jobs",
    "stuck_jobs",
    "oldest_queued_seconds",
    "oldest_running_seconds",
    "source_up",
    "brake_engaged",
    "sweep_last_success_timestamp_seconds",
)


async def test_of_two_replicas_the_leader_alone_tells_of_the_source(bench: SqlBench) -> None:
    first, second = Metrics(["main"]), Metrics(["main"])
    await bench.put({"queue": "mail"})
    assert one(first, "leader") == 0
    async with running(runner(watched(bench, first), "a")):
        await until(lambda: one(first, "sweep_last_success_timestamp_seconds") is not None)
        assert one(first, "leader") == 1
        await until(lambda: all(said(first, name) for name in LEADERS_ALONE))  # its two loops go side by side
        following = runner(watched(bench, second), "b")
        task = asyncio.create_task(following.run())
        assert one(second, "leader") == 0
    assert one(first, "leader") == 0
    assert [name for name in LEADERS_ALONE if said(first, name)] == []
    await until(lambda: one(second, "source_up") == 1)
    assert one(second, "leader") == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_leader_that_can_not_renew_its_lease_ceases_to_tell_of_the_source(bench: SqlBench) -> None:
    """As when the database that holds both is away: then nobody leads, which is what an alert can see."""
    metrics = Metrics(["main"])
    await bench.put({})
    async with running(runner(watched(bench, metrics), "a")):
        await until(lambda: one(metrics, "sweep_last_success_timestamp_seconds") is not None)
        await bench.execute("ALTER TABLE unstick_leaders RENAME TO unstick_nobody")
        await until(lambda: one(metrics, "leader") == 0)
        assert [name for name in LEADERS_ALONE if said(metrics, name)] == []


async def test_what_is_heard_late_of_a_source_that_another_leads_is_not_told(bench: SqlBench) -> None:
    """The observation was under way as the lease ran out."""
    metrics = Metrics(["main"])
    await bench.put({})
    async with running(runner(watched(bench, metrics), "a")):
        await until(lambda: one(metrics, "sweep_last_success_timestamp_seconds") is not None)
    await look(bench, metrics)
    await sweep(watched(bench, metrics), SweepOrder(actor="cron", unattended=True))
    assert [name for name in LEADERS_ALONE if said(metrics, name)] == []
    assert sum(said(metrics, "sweeps_total").values()) == 2, "what was done was done"


async def test_a_new_process_knows_when_the_last_one_swept(bench: SqlBench) -> None:
    first, second = Metrics(["main"]), Metrics(["main"])
    async with running(runner(watched(bench, first), "a")):
        await until(lambda: one(first, "sweep_last_success_timestamp_seconds") is not None)
    kept = await SqlWatches(EngineConnections(bench.engine)).find("main")
    assert kept is not None
    assert kept.swept_at is not None
    async with running(runner(watched(bench, second), "b")):
        await until(lambda: one(second, "source_up") == 1)
        assert one(second, "sweep_last_success_timestamp_seconds") == kept.swept_at.timestamp()
    assert said(second, "sweeps_total") == {("done",): 0, ("braked",): 0, ("failed",): 0}


async def test_the_last_success_never_goes_back() -> None:
    """An observation that began before a sweep ended knows of the one before."""
    metrics = Metrics()
    for minutes in (10, 0, 5):
        await metrics.hear(observed(swept_at=NOON + timedelta(minutes=minutes)))
    assert one(metrics, "sweep_last_success_timestamp_seconds") == (NOON + timedelta(minutes=10)).timestamp()


async def test_exactly_the_names_we_settled_on_are_told_and_no_job_by_its_id(bench: SqlBench) -> None:
    metrics = Metrics(["main"])
    await bench.put({"id": 730_451}, {"id": 730_452})
    await recover_job(watched(bench, metrics), RecoverOrder(actor="ada", job_id="730451"))
    async with running(runner(watched(bench, metrics), "a")):
        await until(lambda: one(metrics, "sweep_last_success_timestamp_seconds") is not None)
        await until(lambda: bool(said(metrics, "jobs")))
        await metrics.hear(notified(Delivered.DELIVERED))
        text = generate_latest(metrics.registry).decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert {line.partition("{")[0] for line in samples} == NAMES
    assert "73045" not in text


# Over HTTP


def scraped(world: World, secret: str | None = None) -> httpx.AsyncClient:
    metrics_token = None if secret is None else SecretStr(secret)
    app = create_app(
        watched={"main": world.open},
        principal=bearer_principal(SECRET, AUTH),
        metrics=metrics_router(Metrics(["main"]), metrics_token),
    )
    return client(app)


async def test_prometheus_needs_no_token_and_gets_the_format_it_asks_for() -> None:
    world = World()
    async with scraped(world) as prometheus:
        plain = await prometheus.get("/metrics")
        modern = await prometheus.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert plain.status_code == modern.status_code == 200
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'unstick_leader{source="main"} 0.0\n' in plain.text
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.text.endswith("# EOF\n")
    assert world.ledger.rows == [], "a scrape is no call to be recorded"


@pytest.mark.parametrize(
    "sent", [None, "Bearer wrong", "Bearer", "Basic s3cret", "s3cret", "Bearer s3cret2", "Bearer é"]
)
async def test_where_a_token_is_wanted_nothing_else_opens(sent: str | None) -> None:
    world = World()
    headers = {} if sent is None else {b"Authorization": sent.encode()}
    async with scraped(world, "s3cret") as prometheus:
        refused = await prometheus.get("/metrics", headers=headers)
        admin = await prometheus.get("/metrics", headers={"Authorization": f"Bearer {token(Role.ADMIN)}"})
        answer = await prometheus.get("/metrics", headers={"Authorization": "Bearer s3cret"})
    assert assert_problem(refused, 401)["detail"].startswith("Send the token")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert admin.status_code == 401
    assert answer.status_code == 200
    assert world.ledger.rows == []


async def test_metrics_are_no_part_of_the_admin_apis_schema() -> None:
    async with scraped(World()) as prometheus:
        document = (await prometheus.get("/openapi.json")).json()
    assert document == service(World()).openapi()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_without_the_service_metrics_have_a_port_of_their_own(host: str) -> None:
    address = Address(host, free_port())
    url = f"http://{f'[{host}]' if ':' in host else host}:{address.port}/metrics"
    with listening(Metrics(["main"]), address):
        answer = httpx.get(url)
    assert answer.status_code == 200
    assert 'unstick_leader{source="main"} 0.0\n' in answer.text
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_the_port_of_its_own_asks_for_the_token_too() -> None:
    address = Address("127.0.0.1", free_port())
    url = f"http://127.0.0.1:{address.port}/metrics"
    with listening(Metrics(["main"]), address, SecretStr("s3cret")):
        refused = httpx.get(url, headers={"Authorization": "Bearer wrong"})
        answer = httpx.get(url, headers={"Authorization": "Bearer s3cret"})
    assert refused.status_code == 401
    assert "unstick_" not in refused.text
    assert 'unstick_leader{source="main"} 0.0\n' in answer.text


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigurationError) as told, listening(Metrics(), address):
            pass
    assert str(told.value) == (
        f"`[metrics] listen`: can't listen on 127.0.0.1 port {address.port}: Address already in use."
    )


def test_watch_serves_what_it_keeps_watch_over(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "unstick.toml").write_text(f'[sources.main]\n[metrics]\nlisten = "127.0.0.1:{port}"\n')
    command = [sys.executable, "-m", "unstick", "watch"]
    deadline = time.monotonic() + 60
    text = ""
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            while 'unstick_source_up{source="main"} 1.0' not in text:
                assert time.monotonic() < deadline, text
                try:
                    text = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
                except httpx.TransportError:
                    time.sleep(0.05)
            process.terminate()
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0


def configured(tmp_path: Path, text: str) -> Any:  # noqa: ANN401
    file = tmp_path / "unstick.toml"
    file.write_text(f"[metrics]\n{text}\n")
    return load_settings(file).metrics


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:1", ("::1", 1)),
        ("metrics.internal:65535", ("metrics.internal", 65_535)),
    ],
)
def test_where_metrics_listen_is_an_address_and_a_port(tmp_path: Path, text: str, meant: tuple[str, int]) -> None:
    assert configured(tmp_path, f'listen = "{text}"').listen == meant


@pytest.mark.parametrize(
    "text", ["9464", ":9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:9464", "http://a:1"]
)
def test_anything_else_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        configured(tmp_path, f'listen = "{text}"')
    assert str(told.value) == (
        f"{tmp_path / 'unstick.toml'}: `[metrics] listen` must be an address and a port, such as 127.0.0.1:9464."
    )


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_token_is_refused_and_no_token_is_ever_shown(tmp_path: Path, empty: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        configured(tmp_path, f'token = "{empty}"')
    assert str(told.value) == f"{tmp_path / 'unstick.toml'}: `[metrics] token` must not be empty."
    assert "s3cret" not in str(configured(tmp_path, 'token = "s3cret"'))
