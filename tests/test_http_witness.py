"""An endpoint says which jobs its workers have; anything else that it does is UNKNOWN, with the reason."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.witnessing import word, words
from unstick.config import HttpSettings
from unstick.domain.evidence import Holding
from unstick.testing.witnesses import WitnessConformance, running_job
from unstick.witnesses.http import HttpWitness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from unstick.domain.evidence import Evidence
    from unstick.domain.job import Job, JobId

    Respond = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SOON = timedelta(milliseconds=200)
"""How long those are waited for who never answer."""
AMPLE = timedelta(seconds=20)
"""How long the others may take, on a machine that is busy with other tests."""
OK = b"HTTP/1.1 200 OK\r\n"


@dataclass
class Request:
    """What an endpoint was sent."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def ids(self) -> list[Any]:
        ids = json.loads(self.body)["jobs"]
        assert isinstance(ids, list)
        return ids


@dataclass(kw_only=True)
class Endpoint:
    """A server on this machine that answers as it is told to, well or badly."""

    respond: Respond
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = head.decode().strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Request(line, headers, body)
                self.requests.append(request)
                await self.respond(request, writer)
                await writer.drain()
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def witness(self, within: timedelta = AMPLE, **section: Any) -> HttpWitness:  # noqa: ANN401
        return HttpWitness(HttpSettings.model_validate({"url": self.url} | section), within)


@asynccontextmanager
async def serving(respond: Respond, tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(respond=respond)
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0, ssl=tls, limit=10_000_000)
    port = server.sockets[0].getsockname()[1]
    endpoint.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/held?by=unstick"
    try:
        yield endpoint
    finally:
        server.close()
        for task in endpoint.serving:
            task.cancel()
        await asyncio.gather(*endpoint.serving, return_exceptions=True)


def answer(body: object, *, status: str = "200 OK", headers: str = "") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(raw)}\r\n{headers}\r\n"
    return head.encode() + raw


def always(raw: bytes) -> Respond:
    async def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return respond


def jobs(*ids: JobId) -> list[Job]:
    return [running_job(each, NOW) for each in ids]


async def said(raw: bytes, *, of: JobId = 1) -> tuple[Holding, str | None]:
    """Return what is understood of an answer."""
    async with serving(always(raw)) as endpoint:
        return await word(endpoint.witness(), running_job(of, NOW))


@dataclass(kw_only=True)
class Stand:
    endpoint: Endpoint
    held_ids: set[str]
    released_ids: set[str]
    last: int = 0

    @property
    def witness(self) -> HttpWitness:
        return HttpWitness(HttpSettings(url=self.endpoint.url), AMPLE)

    async def clock(self) -> datetime:
        return NOW

    async def held(self) -> Job:
        return self._job(self.held_ids)

    async def released(self) -> Job:
        return self._job(self.released_ids)

    async def strange(self, number: int) -> Sequence[Job]:
        return jobs(*(f"strange-{each}" for each in range(number)))

    def _job(self, ids: set[str]) -> Job:
        self.last += 1
        ids.add(str(self.last))
        return running_job(self.last, NOW)


class TestHttpWitness(WitnessConformance):
    @pytest.fixture
    async def stand(self) -> AsyncIterator[Stand]:
        held: set[str] = set()
        released: set[str] = set()

        async def respond(request: Request, writer: asyncio.StreamWriter) -> None:
            asked = set(request.ids)
            writer.write(answer({"held": sorted(asked & held), "released": sorted(asked & released)}))

        async with serving(respond) as endpoint:
            yield Stand(endpoint=endpoint, held_ids=held, released_ids=released)


# What is asked


async def test_ids_are_asked_as_text_with_the_token() -> None:
    async with serving(always(answer({"held": [], "released": []}))) as endpoint:
        await endpoint.witness(token="s3cret").ask(jobs(1, "two", 2**63), NOW)

    (request,) = endpoint.requests
    assert request.line == "POST /held?by=unstick HTTP/1.1"
    assert request.ids == ["1", "two", str(2**63)]
    assert request.headers["authorization"] == "Bearer s3cret"
    assert request.headers["content-type"] == "application/json"


async def test_without_a_token_nobody_says_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a password file nor a proxy of this account's has a say."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with serving(always(answer({"held": [1], "released": []}))) as endpoint:
        assert await words(endpoint.witness(), jobs(1)) == [Holding.HELD]
    assert "authorization" not in endpoint.requests[0].headers


async def test_ten_thousand_jobs_are_ten_requests() -> None:
    async def respond(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer({"held": request.ids[::2], "released": request.ids[1::2]}))

    async with serving(respond) as endpoint:
        witness = HttpWitness(HttpSettings(url=endpoint.url), AMPLE)
        heard = await words(witness, jobs(*range(10_000)))

    assert heard == [Holding.HELD, Holding.RELEASED] * 5_000
    assert [len(request.ids) for request in endpoint.requests] == [1_000] * 10


async def test_one_request_that_fails_spoils_no_other() -> None:
    async def respond(request: Request, writer: asyncio.StreamWriter) -> None:
        failing = "0" in request.ids
        writer.write(answer(b"", status="503 Busy") if failing else answer({"held": request.ids, "released": []}))

    async with serving(respond) as endpoint:
        witness = HttpWitness(HttpSettings(url=endpoint.url), AMPLE)
        heard = await words(witness, jobs(*range(2_000)))

    assert heard == [Holding.UNKNOWN] * 1_000 + [Holding.HELD] * 1_000


async def test_nothing_is_asked_twice() -> None:
    async with serving(always(answer(b"", status="503 Busy"))) as endpoint:
        await words(endpoint.witness(), jobs(1))
    assert len(endpoint.requests) == 1


# What is understood


@pytest.mark.parametrize("of", [7, "7"])
@pytest.mark.parametrize("answered", [7, "7"])
async def test_ids_are_answered_as_text_or_as_numbers(of: JobId, answered: JobId) -> None:
    assert await said(answer({"held": [answered], "released": []}), of=of) == (Holding.HELD, "it says held")
    assert await said(answer({"held": [], "released": [answered]}), of=of) == (Holding.RELEASED, "it says released")


async def test_an_id_in_neither_list_is_unknown() -> None:
    value = "it says nothing of this job"
    assert await said(answer({"held": [2], "released": [3]})) == (Holding.UNKNOWN, value)


async def test_an_id_in_both_lists_is_unknown() -> None:
    value = "it says both held and released"
    assert await said(answer({"held": [1], "released": ["1"]})) == (Holding.UNKNOWN, value)


async def _heard(at: object, job: Job) -> Evidence:
    body = {"held": [], "released": [1]} | ({} if at is None else {"at": at})
    async with serving(always(answer(body))) as endpoint:
        return (await endpoint.witness().ask([job], NOW))[1]


async def test_its_word_is_of_now_unless_it_says_when() -> None:
    (job,) = jobs(1)
    assert (await _heard(None, job)).at == NOW
    assert (await _heard("2026-11-24T11:30:00Z", job)).at == NOW - timedelta(minutes=30)
    assert (await _heard("2026-11-24T12:30:00+01:00", job)).at == NOW - timedelta(minutes=30)


async def test_a_word_that_is_older_than_the_attempt_convicts_nobody() -> None:
    """L10: its list may be of a time when the job was in no worker's hands yet, or in another's."""
    heard = await _heard("2026-11-24T10:59:59Z", running_job(1, NOW, age=timedelta(hours=1)))
    assert heard.holding is Holding.UNKNOWN
    assert heard.value == "its word of 2026-11-24 10:59:59 UTC is older than the attempt"


# What is no answer

NO_IDS = "in its answer is no list of ids"
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (answer(b"", status="500 Oops"), "HTTP 500"),
        (answer({"held": [1], "released": []}, status="404 Not Found"), "HTTP 404"),
        (answer({"held": [1], "released": []}, status="304 Not Modified"), "HTTP 304"),
        (answer(b"", status="204 No Content"), "its answer is no JSON"),
        (answer(b"<html>"), "its answer is no JSON"),
        (answer(b'{"held": [1], "released": ['), "its answer is no JSON"),
        (answer(b'{"held": [], "released": [1], "held": [1]}'), "its answer is no JSON"),
        (answer(b"\xff\xfe\xff"), "its answer is no JSON"),
        (answer(DEEP), "its answer is no JSON"),
        (answer(b'{"held": [' + b"9" * 5_000 + b'], "released": []}'), "its answer is no JSON"),
        (answer([1]), "its answer is no JSON object"),
        (answer({}), f"`held` {NO_IDS}"),
        (answer({"held": [1]}), f"`released` {NO_IDS}"),
        (answer({"held": {"1": True}, "released": []}), f"`held` {NO_IDS}"),
        (answer({"held": "1", "released": []}), f"`held` {NO_IDS}"),
        (answer({"held": [1.0], "released": []}), f"`held` {NO_IDS}"),
        (answer({"held": [], "released": [True]}), f"`released` {NO_IDS}"),
        (answer({"held": [], "released": [None]}), f"`released` {NO_IDS}"),
        (answer({"held": [1], "released": [], "at": 7}), "`at` in its answer is no time with a zone"),
        (answer({"held": [1], "released": [], "at": "soon"}), "`at` in its answer is no time with a zone"),
        (
            answer({"held": [1], "released": [], "at": "2026-11-24T12:00:00"}),
            "`at` in its answer is no time with a zone",
        ),
        (
            answer(gzip.compress(b'{"held": [1], "released": []}'), headers="Content-Encoding: gzip\r\n"),
            "its answer is compressed, which was not asked for",
        ),
        (answer(b" " * 1_000_001), "its answer is longer than 1000000 bytes"),
    ],
)
async def test_anything_else_is_unknown_with_the_reason(raw: bytes, value: str) -> None:
    assert await said(raw) == (Holding.UNKNOWN, value)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        OK + b"Content-Length: 100\r\n\r\nshort",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_unknown(raw: bytes) -> None:
    async def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    async with serving(respond) as endpoint:
        holding, value = await word(endpoint.witness(), running_job(1, NOW))
    assert (holding, (value or "")[:11]) == (Holding.UNKNOWN, "no answer: ")
    assert len(value or "") <= 120


async def test_nobody_at_that_address_is_unknown() -> None:
    witness = HttpWitness(HttpSettings(url="http://127.0.0.1:1/held"), AMPLE)
    holding, value = await word(witness, running_job(1, NOW))
    assert (holding, (value or "")[:11]) == (Holding.UNKNOWN, "no answer: ")


async def test_one_that_hangs_is_unknown() -> None:
    async def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(respond) as endpoint:
        value = "no answer within 0.2 seconds"
        assert await word(endpoint.witness(SOON), running_job(1, NOW)) == (Holding.UNKNOWN, value)


async def test_one_that_drips_is_unknown() -> None:
    """Each byte comes in time, the answer never does."""

    async def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 900000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(respond) as endpoint:
        value = "no answer within 0.2 seconds"
        assert await word(endpoint.witness(SOON), running_job(1, NOW)) == (Holding.UNKNOWN, value)


async def test_one_that_never_ends_is_unknown() -> None:
    """X4: what is read is bounded, however fast it comes."""
    sent = 0

    async def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            sent += 0x10000
            await writer.drain()

    async with serving(respond) as endpoint:
        witness = HttpWitness(HttpSettings(url=endpoint.url), AMPLE)
        holding, value = await word(witness, running_job(1, NOW))
    assert (holding, value) == (Holding.UNKNOWN, "its answer is longer than 1000000 bytes")
    assert sent < 20_000_000


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_not_followed_nor_the_token_carried_on(status: str) -> None:
    async with serving(always(answer({"held": [1], "released": []}))) as elsewhere:
        redirect = answer(b"", status=status, headers=f"Location: {elsewhere.url}\r\n")
        async with serving(always(redirect)) as endpoint:
            heard = await word(endpoint.witness(token="s3cret"), running_job(1, NOW))
        assert elsewhere.requests == []
    assert heard == (Holding.UNKNOWN, f"HTTP {status[:3]}")


async def test_a_certificate_that_nobody_vouches_for_is_unknown_and_one_that_is_trusted_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with serving(always(answer({"held": [1], "released": []})), tls) as endpoint:
        holding, value = await word(HttpWitness(HttpSettings(url=endpoint.url), AMPLE), running_job(1, NOW))
        assert (holding, endpoint.requests) == (Holding.UNKNOWN, [])
        assert "CERTIFICATE_VERIFY_FAILED" in (value or "")

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusting = HttpWitness(HttpSettings(url=endpoint.url, token=None), AMPLE)
        assert await words(trusting, jobs(1)) == [Holding.HELD]


def make_certificate(key: Path, certificate: Path) -> None:
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=unstick",
            "-addext", "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip


async def test_no_reason_tells_the_token_or_the_address() -> None:
    """A finding is shown to whoever may look."""
    witness = HttpWitness(
        HttpSettings.model_validate({"url": "http://127.0.0.1:1/?key=s3cret", "token": "s3cret"}), AMPLE
    )
    _, value = await word(witness, running_job(1, NOW))
    assert "s3cret" not in (value or "")
