"""The courier, with receivers that are away, slow, busy or wrong: each message arrives, and no sweep waits for it."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs import open_bench
from tests.servers import EACH_KIND
from tests.test_alerts import Desk, observed
from tests.test_http_witness import Endpoint, answer, serving
from tests.test_worker import until
from unstick.config import AlertSettings, Settings
from unstick.domain.events import Delivered, Notified, ObservationFailed
from unstick.pipeline import courier as courier_module
from unstick.pipeline.courier import Courier
from unstick.pipeline.sweep import SweepOrder, sweep
from unstick.sql.alerts import SqlAlerts
from unstick.sql.brakes import SqlBrakes
from unstick.sql.connections import EngineConnections, SessionConnections
from unstick.sql.tables import couriers, events, notifications
from unstick.telemetry.messages import Templates
from unstick.telemetry.webhook import Webhook
from unstick.wiring import keep_watch, with_alerts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.jobs import SqlBench
    from tests.servers import Database, MortalPostgres
    from tests.test_http_witness import Request, Respond
    from unstick.domain.alert import Delivery
    from unstick.domain.events import PipelineEvent
    from unstick.pipeline.watched import Watched
    from unstick.ports import Channel

DATABASES = EACH_KIND

SECRET = "a channel's secret of thirty-two bytes"
SETTINGS = Settings.model_validate(
    {"alerts": {"channels": {"ops": {"url": "https://receiver.example/", "secret": SECRET}}}}
)
DEADLINE = timedelta(seconds=20)
"""How long what must come is waited for, on a machine that is busy with other tests."""
SOON = timedelta(milliseconds=200)
"""How long those are waited for who never answer."""
OK = answer({})


@dataclass
class Ear:
    """A listener that keeps what it hears."""

    events: list[PipelineEvent] = field(default_factory=list)
    notified: asyncio.Queue[Notified] = field(default_factory=asyncio.Queue)

    async def hear(self, event: PipelineEvent) -> None:
        self.events.append(event)
        if isinstance(event, Notified):
            self.notified.put_nowait(event)

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(each.channel, each.outcome.value) for each in self.events if isinstance(each, Notified)]


@dataclass
class Post:
    """A watched source whose first observation is over, and everything that tells of its alerts."""

    bench: SqlBench
    ear: Ear

    @property
    def desk(self) -> Desk:
        return Desk(self.bench.engine)

    @property
    def watched(self) -> Watched:
        """As a process that just started sees it."""
        connections = EngineConnections(self.bench.engine)
        kept = replace(
            self.bench.watched(), alerts=SqlAlerts(connections), brakes=SqlBrakes(connections), listeners=(self.ear,)
        )
        return with_alerts(kept, SETTINGS)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Watched]:
        yield self.watched

    def courier(self, *channels: Channel, looks_every: timedelta = SOON, within: timedelta = DEADLINE) -> Courier:
        return Courier({"main": self.opened}, channels, looks_every=looks_every, within=within)

    async def deliver(self, *channels: Channel) -> None:
        await self.courier(*channels).deliver_due(DEADLINE)

    async def hear(self, *events: PipelineEvent) -> None:
        for event in events:
            await self.watched.listeners[-1].hear(event)

    async def later(self, by: timedelta = timedelta(hours=1)) -> None:
        """Let time pass by the database's clock, for what waits to be tried again."""
        await self.desk.back_then(notifications, by, "next_try_at")
        await self.desk.back_then(couriers, by, "expires_at")


@asynccontextmanager
async def open_post(database: Database) -> AsyncIterator[Post]:
    bench = await open_bench(database)
    post = Post(bench, Ear())
    await post.hear(observed())
    try:
        yield post
    finally:
        await bench.close()


def webhook(
    url: str, name: str = "ops", within: timedelta = DEADLINE, settings: AlertSettings | None = None
) -> Webhook:
    return Webhook(name, SecretStr(url), [SecretStr(SECRET)], Templates(settings or AlertSettings()), within)


def in_turn(*raws: bytes) -> Respond:
    """Answer each request with the next of these, and the last one ever after."""
    left = list(raws)

    async def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return respond


async def never(_: Request, writer: asyncio.StreamWriter) -> None:
    del writer
    await asyncio.Event().wait()


def documents(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in endpoint.requests]


def deliveries(endpoint: Endpoint) -> list[str]:
    return [document["delivery"] for document in documents(endpoint)]


def changes(endpoint: Endpoint) -> list[list[str]]:
    return [[alert["change"] for alert in document["alerts"]] for document in documents(endpoint)]


async def test_what_is_found_is_told_with_all_that_is_known_of_it_and_its_end_under_the_same_name(
    database: Database,
) -> None:
    async with open_post(database) as post, serving(in_turn(OK)) as receiver:
        await post.hear(observed(mail=3), observed(mail=3))
        await post.deliver(webhook(receiver.url))
        await post.hear(observed())
        await post.deliver(webhook(receiver.url))
        await post.deliver(webhook(receiver.url))

    opened, resolved = documents(receiver)
    [alert] = opened["alerts"]
    assert opened["title"] == "Alert: never_claimed in queue 'mail' of source 'main', 3 jobs"
    assert alert["sentence"] == opened["text"]
    assert {key: alert[key] for key in ("change", "source", "queue", "what", "jobs")} == {
        "change": "opened", "source": "main", "queue": "mail", "what": "never_claimed", "jobs": 3,
    }  # fmt: skip
    assert opened["test"] is False
    assert resolved["alerts"][0]["id"] == alert["id"]
    assert resolved["alerts"][0]["change"] == "resolved"
    assert resolved["text"].startswith("It is over since ")
    assert deliveries(receiver) == [request.headers["unstick-delivery"] for request in receiver.requests]
    assert len(set(deliveries(receiver))) == 2
    assert post.ear.outcomes == [("ops", "delivered")] * 2


async def test_a_receiver_that_is_down_is_told_when_it_is_up_again(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and nobody listens
            await post.hear(observed(mail=3))
            await post.deliver(webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/"))
        async with serving(in_turn(OK)) as receiver:
            await post.deliver(webhook(receiver.url))
            assert receiver.requests == []  # it isn't due yet
            await post.later()
            await post.deliver(webhook(receiver.url))

    assert post.ear.outcomes == [("ops", "failed"), ("ops", "delivered")]
    assert changes(receiver) == [["opened"]]


async def test_a_receiver_that_fails_is_told_again_in_the_same_message(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(answer({}, status="500 Oops"), OK)) as receiver:
        await post.hear(observed(mail=3))
        await post.deliver(webhook(receiver.url))
        await post.later()
        await post.deliver(webhook(receiver.url))

    first, second = documents(receiver)
    assert first == second
    assert post.ear.outcomes == [("ops", "failed"), ("ops", "delivered")]


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_receiver_that_says_for_how_long_is_left_alone_for_so_long(database: Database, as_date: bool) -> None:
    asked = timedelta(minutes=40)
    said = format_datetime(datetime.now(UTC) + asked, usegmt=True) if as_date else str(int(asked.total_seconds()))
    busy = answer({}, status="429 Too Many", headers=f"Retry-After: {said}\r\n")
    async with open_post(database) as post, serving(in_turn(busy, OK)) as receiver:
        await post.hear(observed(mail=3))
        await post.deliver(webhook(receiver.url))
        await post.later(asked - timedelta(minutes=2))
        await post.deliver(webhook(receiver.url))
        assert len(receiver.requests) == 1
        await post.later(timedelta(minutes=3))
        await post.deliver(webhook(receiver.url))
        assert len(receiver.requests) == 2


async def test_a_receiver_that_never_answers_keeps_no_other_waiting_and_may_have_been_told(
    sqlite_database: Database,
) -> None:
    """So its end is told it, too."""
    async with open_post(sqlite_database) as post, serving(never) as slow, serving(in_turn(OK)) as quick:
        settings = SETTINGS.alerts.channels | {"slow": SETTINGS.alerts.channels["ops"]}
        both = SETTINGS.model_copy(update={"alerts": SETTINGS.alerts.model_copy(update={"channels": settings})})
        watched = with_alerts(replace(post.watched, listeners=()), both)
        await watched.listeners[-1].hear(observed(mail=3))
        stuck = webhook(slow.url, "slow")
        async with running(post.courier(stuck, webhook(quick.url))):
            told = await asyncio.wait_for(post.ear.notified.get(), DEADLINE.total_seconds())
            assert (told.channel, told.outcome) == ("ops", Delivered.DELIVERED)

        await post.later()
        await post.deliver(webhook(slow.url, "slow", SOON))
        assert post.ear.outcomes[-1] == ("slow", "failed")
        await watched.listeners[-1].hear(observed())
        await post.later()
        async with serving(in_turn(OK)) as awake:
            await post.deliver(webhook(awake.url, "slow"))

    assert changes(awake) == [["resolved"]]
    assert len(set(deliveries(slow))) == 1


@asynccontextmanager
async def running(courier: Courier) -> AsyncIterator[None]:
    task = asyncio.create_task(courier.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_crash_after_sending_and_before_recording_repeats_the_message_under_the_same_id(
    database: Database,
) -> None:
    asked = asyncio.Event()

    async def takes_and_dies(request: Request, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await never(request, writer)

    async with open_post(database) as post, serving(takes_and_dies) as first, serving(in_turn(OK)) as second:
        await post.hear(observed(mail=3))
        async with running(post.courier(webhook(first.url))):
            await asyncio.wait_for(asked.wait(), DEADLINE.total_seconds())
        await post.deliver(webhook(second.url))
        assert second.requests == []  # the claim of the one that died still holds
        await post.later()
        await post.deliver(webhook(second.url))

    assert deliveries(first) == deliveries(second)
    assert len(deliveries(second)) == 1


async def test_a_sweep_waits_for_no_channel(database: Database) -> None:
    """The receiver has the message and doesn't answer before the sweep has come to its end."""
    order: list[str] = []
    asked, swept = asyncio.Event(), asyncio.Event()

    async def slow(_: Request, writer: asyncio.StreamWriter) -> None:
        order.append("asked")
        asked.set()
        await swept.wait()
        order.append("answers")
        writer.write(OK)

    async with open_post(database) as post, serving(slow) as receiver:
        await post.bench.put({})
        async with running(post.courier(webhook(receiver.url))):
            await post.hear(observed(mail=3))
            await asyncio.wait_for(asked.wait(), DEADLINE.total_seconds())
            await post.hear(observed(mail=3, web=1))
            await sweep(post.watched, SweepOrder(actor="runner", unattended=True))
            order.append("swept")
            swept.set()
            await asyncio.wait_for(post.ear.notified.get(), DEADLINE.total_seconds())

    assert order[:3] == ["asked", "swept", "answers"]


async def test_a_wake_has_it_look_at_once_and_without_one_it_looks_by_itself(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(OK)) as receiver:
        seldom = post.courier(webhook(receiver.url), looks_every=timedelta(hours=1))
        listener = with_alerts(replace(post.watched, listeners=()), SETTINGS, seldom.wake).listeners[-1]
        async with running(seldom):
            await listener.hear(observed(mail=3))
            await asyncio.wait_for(post.ear.notified.get(), DEADLINE.total_seconds())
        async with running(post.courier(webhook(receiver.url))):
            await post.hear(observed())
            await asyncio.wait_for(post.ear.notified.get(), DEADLINE.total_seconds())
    assert changes(receiver) == [["opened"], ["resolved"]]


async def test_several_couriers_tell_each_message_once(database: Database) -> None:
    async with open_post(database) as post, serving(in_turn(OK)) as receiver:
        await post.hear(observed(mail=3, web=1, pdf=2))
        replicas = [post.courier(webhook(receiver.url)) for _ in range(3)]
        await asyncio.gather(*(each.deliver_due(DEADLINE) for each in replicas))
        await replicas[0].deliver_due(DEADLINE)
    assert sorted(queue for [queue] in queues(receiver)) == ["mail", "pdf", "web"]


def queues(endpoint: Endpoint) -> list[list[str]]:
    return [[alert["queue"] for alert in document["alerts"]] for document in documents(endpoint)]


async def test_many_changes_come_in_one_message_that_names_all_and_lists_some(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(OK)) as receiver:
        await post.hear(observed({f"q{number}": 1 for number in range(100)}))
        await post.deliver(webhook(receiver.url))

    [digest] = documents(receiver)
    assert digest["title"] == "100 alerts: 100 new, 0 still there, 0 resolved"
    assert len(digest["alerts"]) == 100
    assert digest["text"].count("- Alert: ") == 20
    assert digest["text"].endswith("and 80 more: `unstick alert list`")


async def test_a_message_that_is_refused_keeps_no_other_back(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(answer({}, status="400 Bad"), OK)) as receiver:
        await post.hear(observed(mail=3, web=1))
        await post.deliver(webhook(receiver.url))
    assert post.ear.outcomes == [("ops", "failed"), ("ops", "delivered")]
    assert len(set(deliveries(receiver))) == 2


async def test_what_fails_for_an_hour_is_tried_again_and_what_fails_for_a_day_is_given_up_and_told_so(
    sqlite_database: Database,
) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(answer({}, status="500 Oops"))) as receiver:
        await post.hear(observed(mail=3))
        for passed in (timedelta(0), timedelta(hours=1), timedelta(hours=22), timedelta(hours=1), timedelta(hours=1)):
            await post.desk.back_then(notifications, passed, "at", "next_try_at")
            await post.deliver(webhook(receiver.url))
    assert post.ear.outcomes == [("ops", "failed")] * 3 + [("ops", "gave_up")]
    assert len(receiver.requests) == 4


async def test_a_redirect_is_not_followed(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(OK)) as elsewhere:
        moved = answer({}, status="307 Moved", headers=f"Location: {elsewhere.url}\r\n")
        async with serving(in_turn(moved)) as receiver:
            await post.hear(observed(mail=3))
            await post.deliver(webhook(receiver.url))
    assert elsewhere.requests == []
    [failed] = [event for event in post.ear.events if isinstance(event, Notified)]
    assert failed.problem == "the receiver answered HTTP 307, and redirects aren't followed"


async def test_it_works_on_a_host_apps_own_sessions(database: Database) -> None:
    async with open_post(database) as post, serving(in_turn(OK)) as receiver:

        @asynccontextmanager
        async def opened() -> AsyncIterator[Watched]:
            async with AsyncSession(post.bench.engine) as session:
                alerts = SqlAlerts(SessionConnections(session))
                yield with_alerts(replace(post.watched, alerts=alerts, listeners=(post.ear,)), SETTINGS)

        async with opened() as watched:
            await watched.listeners[-1].hear(observed(mail=3))
        await Courier({"main": opened}, [webhook(receiver.url)]).deliver_due(DEADLINE)
    assert changes(receiver) == [["opened"]]
    assert post.ear.outcomes == [("ops", "delivered")]


async def test_a_source_that_can_not_be_opened_keeps_no_other_from_being_told_of(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(OK)) as receiver:

        @asynccontextmanager
        async def broken() -> AsyncIterator[Watched]:
            raise RuntimeError("no such thing")
            yield post.watched

        await post.hear(observed(mail=3))
        await Courier({"broken": broken, "main": post.opened}, [webhook(receiver.url)]).deliver_due(DEADLINE)
    assert changes(receiver) == [["opened"]]


async def test_no_secret_is_in_a_log_an_event_or_the_ledger(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    hidden = "hidden-in-the-address"
    async with open_post(sqlite_database) as post:
        for raw in (answer({}, status="500 Oops"), b"nonsense\r\n\r\n", answer({}, status="302 Go")):
            async with serving(in_turn(raw)) as receiver:
                await post.hear(observed(mail=3))
                await post.deliver(webhook(f"{receiver.url}&key={hidden}"))
                await post.later()
        await post.deliver(webhook(f"http://127.0.0.1:1/?key={hidden}"))
        kept = str(await post.desk.outbox())
        assert len(post.ear.outcomes) == 4

    said = kept + str(post.ear.events) + "".join(record.getMessage() for record in caplog.records)
    assert hidden not in said
    assert SECRET not in said


class Deaf:
    """A channel that doesn't keep time."""

    name = "ops"

    async def send(self, delivery: Delivery) -> None:
        del delivery
        await asyncio.Event().wait()


class Broken:
    """A channel with an error of its own, which tells more than it should."""

    name = "ops"

    async def send(self, delivery: Delivery) -> None:
        raise RuntimeError(f"{SECRET} {delivery.id}")


@pytest.mark.parametrize(("channel", "problem"), [(Deaf(), "no answer within"), (Broken(), "RuntimeError")])
async def test_whatever_a_channel_does_it_is_a_failure_that_ends_in_time_and_tells_no_secret(
    sqlite_database: Database, channel: Channel, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_post(sqlite_database) as post:
        await post.hear(observed(mail=3))
        async with asyncio.timeout(DEADLINE.total_seconds()):
            await post.courier(channel, within=SOON).deliver_due(2 * DEADLINE)
    [failed] = [event for event in post.ear.events if isinstance(event, Notified)]
    assert failed.outcome is Delivered.FAILED
    assert problem in failed.problem
    assert SECRET not in failed.problem + caplog.text


async def test_a_courier_that_is_stopped_first_records_what_it_has_told(sqlite_database: Database) -> None:
    records, go_on = asyncio.Event(), asyncio.Event()
    async with open_post(sqlite_database) as post, serving(in_turn(OK)) as receiver:

        @asynccontextmanager
        async def opened() -> AsyncIterator[Watched]:
            if receiver.requests:
                records.set()
                await go_on.wait()
            yield post.watched

        await post.hear(observed(mail=3))
        courier = Courier({"main": opened}, [webhook(receiver.url)])
        task = asyncio.create_task(courier.run())
        await asyncio.wait_for(records.wait(), DEADLINE.total_seconds())
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, task.cancel)  # who asks twice waits no less
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        await asyncio.gather(task, return_exceptions=True)
        assert [row.outcome for row in await post.desk.outbox()] == ["delivered"]


# Everything together


def settings_for(database: Database, receiver: Endpoint, sources: Sequence[str] = ("main",)) -> Settings:
    section = {
        "url": database.url, "table": "ai_generation_jobs",
        "columns": {"id": "id", "state": "status", "started_at": "started_at", "completed_at": "completed_at"},
        "states": {"queued": "queued", "running": "running", "failed": "failed"},
    }  # fmt: skip
    return Settings.model_validate(
        {
            "sources": dict.fromkeys(sources, section),
            "sweep": {"observe_every": "0.7s", "clean_every": "1h"},
            "alerts": {"channels": {"ops": {"url": receiver.url, "secret": SECRET}}},
        }
    )


async def test_two_replicas_that_keep_the_watch_tell_of_a_stuck_job_once_and_once_that_it_is_over(
    database: Database,
) -> None:
    async def told(times: int) -> bool:
        async with bench.engine.connect() as connection:
            kinds = list(await connection.scalars(sa.select(events.c.kind)))
        return kinds.count("notified") == times

    bench = await open_bench(database)
    await bench.put({})
    async with serving(in_turn(OK)) as receiver:
        settings = settings_for(database, receiver)
        async with keep_watch(settings), keep_watch(settings):
            await until(lambda: told(1))
            async with bench.engine.begin() as connection:
                await connection.execute(sa.update(bench.table).values(status="completed"))
            await until(lambda: told(2))
    await bench.close()

    assert changes(receiver) == [["opened"], ["resolved"]]
    assert documents(receiver)[0]["alerts"][0]["what"] == "silent"


async def test_an_observation_that_fails_twice_is_told_and_its_end_too(sqlite_database: Database) -> None:
    async with open_post(sqlite_database) as post, serving(in_turn(OK)) as receiver:
        failed = ObservationFailed(source="main", problem="the mapping doesn't fit")
        await post.hear(failed)
        await post.deliver(webhook(receiver.url))
        assert receiver.requests == []
        await post.hear(failed)
        await post.deliver(webhook(receiver.url))
        await post.hear(observed())
        await post.deliver(webhook(receiver.url))
    assert changes(receiver) == [["opened"], ["resolved"]]
    assert documents(receiver)[0]["title"] == "Alert: unobserved in source 'main'"


# With a ledger that is silent: it accepts connections and answers nobody


async def test_a_ledger_that_is_silent_keeps_nobody_from_being_told_of_another_source(
    mortal: MortalPostgres,
    mortal_database: Database,
    sqlite_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(courier_module, "_END_WITHIN_SECONDS", 0.2)
    async with (
        open_post(mortal_database) as silent,
        open_post(sqlite_database) as post,
        serving(in_turn(OK)) as receiver,
    ):
        for each in (silent, post):
            await each.hear(observed(mail=3))
        courier = Courier({"silent": silent.opened, "main": post.opened}, [webhook(receiver.url)])
        async with mortal.silence():
            await courier.deliver_due(DEADLINE)
    assert changes(receiver) == [["opened"]]
    assert (silent.ear.outcomes, post.ear.outcomes) == ([], [("ops", "delivered")])
