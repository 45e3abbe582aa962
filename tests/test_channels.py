"""Channels: what a receiver can hold a webhook against, what e-mail arrives, and what templates may and may not do."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
import tracemalloc
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from aiosmtpd.controller import Controller
from pydantic import SecretStr

from tests.test_http_witness import answer, serving
from unstick.config import AlertSettings, Settings
from unstick.domain.alert import Alert, Change, Delivery, Happened, Subject, Trouble, sample
from unstick.domain.diagnosis import Reason
from unstick.domain.errors import ConfigurationError, NotDeliveredError
from unstick.telemetry.apprise import AppriseChannel
from unstick.telemetry.messages import LONGEST_BODY, MOST_ROUNDS, Templates
from unstick.telemetry.webhook import Webhook
from unstick.wiring import open_channels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiosmtpd.smtp import Envelope, Session

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECRET, NEXT_SECRET = "the secret of today, of thirty-two bytes", "the secret of tomorrow, of as many bytes"
HOW_TO = Path(__file__).parent.parent / "docs" / "how-to" / "alerts.md"
DEFAULTS = Templates(AlertSettings())


def change(what: Happened = Happened.OPENED, queue: str | None = "mail", **more: Any) -> Change:  # noqa: ANN401
    facts: dict[str, Any] = {
        "id": "a" * 32, "subject": Subject("main", queue, Reason.SILENT), "opened_at": NOON, "seen_at": NOON, "jobs": 3,
        "sentence": "3 jobs are stuck.", "notified_at": NOON, "notified_jobs": 3,
    }  # fmt: skip
    return Change(what, Alert(**facts | more))


def delivery(*changes: Change) -> Delivery:
    return Delivery(id="d" * 32, changes=changes or (change(),), at=NOON)


def webhook(url: str, *secrets: str, within: timedelta = timedelta(seconds=20)) -> Webhook:
    return Webhook("ops", SecretStr(url), [SecretStr(each) for each in secrets or (SECRET,)], DEFAULTS, within)


# A webhook, and the receiver that the documentation shows


def shown_receiver() -> dict[str, Any]:
    [code] = re.findall(r"```python\n(import hashlib.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "receiver"}
    exec(compile(code, str(HOW_TO), "exec"), names)  # noqa: S102 - it is ours
    names["SECRET"] = SECRET.encode()
    return names


@asynccontextmanager
async def receiver() -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Run what the documentation shows; yields where it listens, and what it has seen."""
    names = shown_receiver()
    server = uvicorn.Server(uvicorn.Config(names["app"], log_config=None, lifespan="off"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/unstick", names["seen"]
        finally:
            server.should_exit = True
            await serving


def signed(body: bytes, *, at: float, secret: str = SECRET) -> dict[str, str]:
    timestamp = str(int(at))
    mac = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {"Unstick-Timestamp": timestamp, "Unstick-Signature": f"v1={mac}"}


async def test_the_receiver_that_is_shown_takes_what_is_sent_and_a_repetition_as_well_but_heeds_it_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with receiver() as (url, seen):
        await webhook(url).send(delivery())
        await webhook(url).send(delivery())
    assert list(seen) == ["d" * 32]
    assert capsys.readouterr().out == f"opened main mail silent 3 {'a' * 32}\n"


async def test_the_receiver_that_is_shown_refuses_another_secret_another_body_and_an_old_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = json.dumps({"delivery": "x", "title": "t", "alerts": []}).encode()
    now = time.time()
    async with receiver() as (url, seen), httpx.AsyncClient() as client:

        async def status(headers: dict[str, str], sent: bytes = body) -> int:
            return (await client.post(url, content=sent, headers=headers)).status_code

        assert await status({}) == 401
        assert await status(signed(body, at=now, secret=NEXT_SECRET)) == 401
        assert await status(signed(body, at=now), body + b" ") == 401
        assert await status(signed(body, at=now) | {"Unstick-Timestamp": str(int(now) + 1)}) == 401
        assert await status(signed(body, at=now - 400)) == 401
        assert await status(signed(body, at=now + 400)) == 401
        assert seen == {}
        assert await status(signed(body, at=now)) == 200
        assert list(seen) == ["x"]
    assert capsys.readouterr().out == ""


async def test_the_receiver_that_is_shown_refuses_what_another_secret_signed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with receiver() as (url, seen):
        with pytest.raises(NotDeliveredError, match="the receiver answered HTTP 401"):
            await webhook(url, NEXT_SECRET).send(delivery())
        assert seen == {}
        await webhook(url, NEXT_SECRET, SECRET).send(delivery())  # while it goes from one to the other
        assert list(seen) == ["d" * 32]
    assert capsys.readouterr().out.count("\n") == 1


async def test_each_secret_signs_the_time_of_sending_and_the_body() -> None:
    async with serving(respond_ok) as endpoint:
        before = int(time.time())
        await webhook(endpoint.url, SECRET, NEXT_SECRET).send(delivery())
    [request] = endpoint.requests
    timestamp = request.headers["unstick-timestamp"]
    expected = [signed(request.body, at=int(timestamp), secret=each) for each in (SECRET, NEXT_SECRET)]
    assert request.headers["unstick-signature"] == ",".join(each["Unstick-Signature"] for each in expected)
    assert before <= int(timestamp) <= time.time()
    assert request.headers["unstick-delivery"] == "d" * 32
    assert request.headers["content-type"] == "application/json"


async def respond_ok(_: object, writer: asyncio.StreamWriter) -> None:
    writer.write(answer({}))


@pytest.mark.parametrize(
    ("raw", "arrived", "others"),
    [
        (answer({}, status="500 Oops"), False, True),
        (answer({}, status="502 Bad gateway"), True, True),
        (answer({}, status="404 Where"), False, True),
        (answer({}, status="422 What"), False, False),
        (b"HTTP/1.1 200", True, True),
        (b"nonsense\r\n\r\n", True, True),
    ],
)
async def test_a_failure_tells_whether_it_may_have_arrived_and_whether_others_would_fail(
    raw: bytes, arrived: bool, others: bool
) -> None:
    async def respond(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async with serving(respond) as endpoint:
        with pytest.raises(NotDeliveredError) as caught:
            await webhook(endpoint.url).send(delivery())
    assert (caught.value.may_have_arrived, caught.value.others_too) == (arrived, others)


async def test_a_receiver_that_nobody_reaches_was_told_nothing() -> None:
    with pytest.raises(NotDeliveredError, match="no connection") as caught:
        await webhook("http://127.0.0.1:1/").send(delivery())
    assert not caught.value.may_have_arrived


async def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(respond_ok) as endpoint:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        await webhook(endpoint.url).send(delivery())
    assert len(endpoint.requests) == 1


# E-mail, by Apprise


class Mailbox:
    """What an SMTP server is told to do with a message."""

    def __init__(self, answers: str = "250 OK") -> None:
        self.messages: list[str] = []
        self.answers = answers

    async def handle_DATA(self, _server: object, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.messages.append(envelope.content.decode())
        return self.answers


@contextmanager
def mail_server(mailbox: Mailbox) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def by_mail(port: int, password: str = "", within: timedelta = timedelta(seconds=20)) -> AppriseChannel:
    login = f"someone:{password}@" if password else ""
    address = f"mailto://{login}127.0.0.1:{port}/?to=ops@example.org&from=unstick@example.org&mode=insecure"
    return AppriseChannel("mail", SecretStr(address), DEFAULTS, within)


async def test_an_alert_arrives_as_an_e_mail() -> None:
    mailbox = Mailbox()
    with mail_server(mailbox) as port:
        await by_mail(port).send(delivery())
    [message] = mailbox.messages
    assert "Alert: silent in queue 'mail' of source 'main', 3 jobs" in message.replace("\r\n ", " ")
    assert "3 jobs are stuck." in message


async def test_a_mail_server_that_refuses_it_is_a_failure() -> None:
    mailbox = Mailbox("554 no")
    with mail_server(mailbox) as port, pytest.raises(NotDeliveredError, match="didn't take it"):
        await by_mail(port).send(delivery())
    assert len(mailbox.messages) == 1


async def test_a_mail_server_that_says_nothing_is_given_up_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(NotDeliveredError) as caught:
            await by_mail(silent.getsockname()[1], within=timedelta(milliseconds=300)).send(delivery())
    assert caught.value.may_have_arrived


@pytest.mark.parametrize(
    "address", ["mailto://someone:hunter2hunter2@", "nonsense://a:hunter2hunter2@b", "hunter2hunter2"]
)
def test_an_address_that_means_nothing_is_named_by_its_channel_and_never_shown(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    caplog.set_level(1, "apprise")
    with pytest.raises(ConfigurationError) as caught:
        AppriseChannel("mail", SecretStr(address), DEFAULTS)
    said = str(caught.value) + caplog.text
    assert "[alerts.channels.mail]" in said
    assert "hunter2" not in said
    assert "h...2" not in said


async def test_no_password_of_an_address_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    caplog.set_level(1, "apprise")
    caplog.set_level(1, "apprise.retry")
    with mail_server(Mailbox()) as port:
        channel = by_mail(port, "hunter2hunter2")
        with pytest.raises(NotDeliveredError):
            await channel.send(delivery())  # it takes no log-in
    assert [record for record in caplog.records if record.name.startswith("apprise")]
    assert "hunter2" not in caplog.text


async def test_no_token_of_an_address_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Apprise writes some addresses in full where somebody logs that much."""
    caplog.set_level(1)
    caplog.set_level(1, "apprise")
    channel = AppriseChannel("chat", SecretStr("mmost://127.0.0.1:1/hunter2hunter2hunter2hunt"), DEFAULTS)
    with pytest.raises(NotDeliveredError):
        await channel.send(delivery())
    assert [record for record in caplog.records if record.name.startswith("apprise")]
    assert "hunter2" not in caplog.text


# Templates


def test_words_say_what_began_what_lasts_and_what_is_over() -> None:
    for what, title, body in [
        (Happened.OPENED, "Alert: silent in queue 'mail' of source 'main', 3 jobs", "3 jobs are stuck."),
        (
            Happened.AGAIN, "Still there: silent in queue 'mail' of source 'main', 3 jobs",
            "3 jobs are stuck.\nIt is still there, since 2026-01-01 12:00:00 UTC.",
        ),
        (
            Happened.RESOLVED, "Resolved: silent in queue 'mail' of source 'main', 3 jobs",
            "It is over since 2026-01-01 12:05:00 UTC, after 5 minutes. It was: 3 jobs are stuck.",
        ),
    ]:  # fmt: skip
        over = NOON + timedelta(minutes=5) if what is Happened.RESOLVED else None
        assert DEFAULTS.message(delivery(change(what, resolved_at=over))) == (title, body)
    brake = change(subject=Subject("main", None, Trouble.BRAKE), jobs=1)
    assert DEFAULTS.message(delivery(brake)).title == "Alert: brake in source 'main', 1 job"


def templates(**said: object) -> Templates:
    return Templates(AlertSettings.model_validate(said))


def test_templates_can_be_overridden_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    numbered = "{% for each in changes %}{{ loop.index }}={{ each.queue }}{{ '' if loop.last else ',' }}{% endfor %}"
    own = templates(title="{{ change|upper }} {{ queue }}", digest={"body": numbered})
    assert own.message(delivery()) == ("OPENED mail", "3 jobs are stuck.")
    both = own.message(delivery(change(), change(queue="web")))
    assert both == ("2 alerts: 2 new, 0 still there, 0 resolved", "1=mail,2=web")
    assert caplog.records == []


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ sentence.upper() }}",
        "{{ sentence.format }}",
        "{{ (sentence|list).append }}",
        "{{ nothing_of_that_name }}",
        "{{ 1/0 }}",
        "{{ sentence",
        "{% set x = 1 %}{{ x }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ range(10) }}",
        "{{ sentence|attr('__class__') }}",
        "{{ sentence|center(100000) }}",
        "{% include 'x' %}",
        "{% for a in sentence recursive %}{{ loop(sentence) }}{% endfor %}",
        "{% for a in sentence %}" * 8 + "{% endfor %}" * 8,
        "{{ sentence + 1 }}",
        "{{ changes[0] }}",
        "{{ '1'|int('x', base=99) + none }}",
        "{{ loop }}",
    ],
)
def test_a_template_that_fails_or_reaches_for_more_is_named_and_the_default_taken(
    template: str, caplog: pytest.LogCaptureFixture
) -> None:
    long = change(sentence="a sentence that is long enough for loops over it to go round many times")
    began = time.monotonic()
    assert templates(body=template).message(delivery(long)).body == long.alert.sentence
    assert time.monotonic() - began < 5
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "The template `body` of [alerts] fails, and the default is taken: " in record.getMessage()


def test_loops_may_go_round_often_enough_for_every_digest_and_no_oftener() -> None:
    often, rounds = change(sentence="x" * MOST_ROUNDS), "{% for a in sentence %}{% endfor %}fine"
    assert templates(body=rounds).message(delivery(often)).body == "fine"
    oftener = change(sentence="x" * (MOST_ROUNDS + 1))
    assert templates(body=rounds).message(delivery(oftener)).body == oftener.alert.sentence


def test_a_title_is_one_short_line_and_a_body_is_bounded() -> None:
    words = templates(title="a\nb\x07{{ sentence }}", body="{{ sentence }}{{ sentence }}").message(
        delivery(change(sentence="x" * LONGEST_BODY))
    )
    assert words.title.startswith("a bxxx")
    assert len(words.title) == 200
    assert len(words.body) == LONGEST_BODY


def test_what_is_cut_off_of_a_body_is_never_made() -> None:
    long = change(sentence="x" * MOST_ROUNDS)
    twice = templates(body="{% for a in sentence %}{{ sentence }}{% endfor %}")
    tracemalloc.start()
    try:
        assert len(twice.message(delivery(long)).body) == LONGEST_BODY
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000  # in whole it would be 25 million


def test_a_queues_name_is_text_and_no_template() -> None:
    words = DEFAULTS.message(delivery(change(queue="{{ 7 * 6 }}")))
    assert "{{ 7 * 6 }}" in words.title


async def test_a_template_is_worked_out_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes its time keeps nobody else waiting."""
    threads: list[int] = []

    class Noting(Templates):
        def message(self, delivery: Delivery) -> Any:  # noqa: ANN401
            threads.append(threading.get_ident())
            return super().message(delivery)

    async with serving(respond_ok) as endpoint:
        await Webhook("ops", SecretStr(endpoint.url), [SecretStr(SECRET)], Noting(AlertSettings())).send(delivery())
    assert threads
    assert threading.get_ident() not in threads


# From the settings


def test_channels_are_those_of_the_settings() -> None:
    settings = Settings.model_validate(
        {
            "alerts": {
                "channels": {
                    "pager": {"url": "https://example.org/", "secret": [SECRET, NEXT_SECRET]},
                    "mail": {"apprise": "json://127.0.0.1:1/"},
                }
            }
        }
    )
    opened = [(each.name, type(each)) for each in open_channels(settings)]
    assert opened == [("pager", Webhook), ("mail", AppriseChannel)]
    assert open_channels(Settings()) == ()


@pytest.mark.parametrize(
    ("library", "channel"),
    [("apprise", {"apprise": "json://127.0.0.1:1/"}), ("httpx", {"url": "https://example.org/", "secret": SECRET})],
)
def test_a_channel_whose_library_is_not_installed_says_what_to_install(
    library: str, channel: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys  # noqa: PLC0415

    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in list(sys.modules):
        if name.partition(".")[0] == library or name in {"unstick.telemetry.apprise", "unstick.telemetry.webhook"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    settings = Settings.model_validate({"alerts": {"channels": {"ops": channel}}})
    with pytest.raises(ConfigurationError) as caught:
        open_channels(settings)
    assert str(caught.value) == (
        f"The channel 'ops' needs {library}, which isn't installed. Install it with: pip install 'unstick[alerts]'"
    )


def test_a_test_message_says_that_it_is_one() -> None:
    words = DEFAULTS.message(sample(NOON))
    assert words.title.startswith("Test of Unstick's alerts: Alert: never_claimed")
