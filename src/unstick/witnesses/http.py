"""An endpoint of the application's as a witness: it is asked about job ids, and says which its workers have.

    POST {"jobs": ["1", "2", "3"]}  →  {"held": ["1"], "released": [2], "at": "2026-11-24T12:00:00Z"}

`at` is when it knew that, now where it doesn't say; of ids in neither list nothing is known.
Guarantee: whatever else comes back, or doesn't, is UNKNOWN with the reason; nothing is followed, nothing asked twice,
and no more is read than such an answer can be long. A word that is older than the attempt is about another one.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import httpx

from unstick.config import HttpSettings
from unstick.domain.evidence import Evidence, Holding
from unstick.domain.job import Job, JobId
from unstick.domain.wording import Phrase

BATCH = 1_000
"""Ids a request."""
LONGEST_ANSWER = 1_000_000
"""Bytes: a thousand of the longest ids, twice."""
ANSWER_WITHIN = timedelta(seconds=1.5)
"""Sooner than the witnesses' deadline, so that what other requests were told isn't lost with a slow one."""
_AT_ONCE = 4
_LONGEST_REASON = 120


class HttpWitness:
    """An endpoint that knows which jobs its application's workers have.

    Args:
        settings: where it is, and the token it wants.
        within: how long a request may take in all.
    """

    name = "http"

    def __init__(self, settings: HttpSettings, within: timedelta = ANSWER_WITHIN) -> None:
        self._settings = settings
        self._within = within.total_seconds()

    async def ask(self, jobs: Sequence[Job], now: datetime) -> Mapping[JobId, Evidence]:
        """Ask in batches, a few at once; what one of them isn't told doesn't spoil the others."""
        batches = [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]
        turns = asyncio.Semaphore(_AT_ONCE)
        async with self._client() as client, asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(client, turns, batch, now)) for batch in batches]
        return {job_id: evidence for task in asked for job_id, evidence in task.result().items()}

    def _client(self) -> httpx.AsyncClient:
        """Return a client that goes only where it is told: no proxy, no password file, no other host."""
        return httpx.AsyncClient(
            verify=self._trusted,
            trust_env=False,
            follow_redirects=False,
            timeout=self._within,
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "unstick"},
        )

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        """The authorities that this system trusts, or that SSL_CERT_FILE names; slow to read, so once."""
        return ssl.create_default_context()

    async def _ask(
        self, client: httpx.AsyncClient, turns: asyncio.Semaphore, jobs: Sequence[Job], now: datetime
    ) -> Mapping[JobId, Evidence]:
        try:
            async with turns, asyncio.timeout(self._within):
                body = await self._body(client, [str(job.id) for job in jobs])
            answer = _Answer.read(body)
        except (TimeoutError, httpx.TimeoutException):
            reason = Phrase("no answer within %(seconds)s seconds", seconds=f"{self._within:g}")
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
            reason = Phrase("no answer: %(problem)s", problem=problem[:_LONGEST_REASON])
        except _NoAnswerError as error:
            reason = error.reason
        else:
            return {job.id: self._word(answer, job, now) for job in jobs}
        return {job.id: self._says(Holding.UNKNOWN, None, reason) for job in jobs}

    async def _body(self, client: httpx.AsyncClient, ids: Sequence[str]) -> bytes:
        token = self._settings.token
        headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        body = bytearray()
        async with client.stream("POST", self._settings.url, json={"jobs": ids}, headers=headers) as response:
            if not response.is_success:
                raise _NoAnswerError(Phrase("HTTP %(status)s", status=response.status_code))
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise _NoAnswerError(Phrase("its answer is compressed, which was not asked for"))
            async for part in response.aiter_raw():
                body += part
                if len(body) > LONGEST_ANSWER:
                    raise _NoAnswerError(Phrase("its answer is longer than %(bytes)s bytes", bytes=LONGEST_ANSWER))
        return bytes(body)

    def _word(self, answer: "_Answer", job: Job, now: datetime) -> Evidence:
        key, at = str(job.id), answer.at or now
        if key in answer.held and key in answer.released:
            return self._says(Holding.UNKNOWN, at, Phrase("it says both held and released"))
        if key not in answer.held and key not in answer.released:
            return self._says(Holding.UNKNOWN, None, Phrase("it says nothing of this job"))
        if job.started_at is not None and at < job.started_at:
            return self._says(Holding.UNKNOWN, at, Phrase("its word of %(at)s is older than the attempt", at=at))
        if key in answer.held:
            return self._says(Holding.HELD, at, Phrase("it says held"))
        return self._says(Holding.RELEASED, at, Phrase("it says released"))

    def _says(self, holding: Holding, at: datetime | None, value: str) -> Evidence:
        return Evidence(witness=self.name, holding=holding, at=at, value=value)


class _NoAnswerError(Exception):
    """What came back is no answer; `reason` says why."""

    def __init__(self, reason: Phrase) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Answer:
    held: frozenset[str]
    released: frozenset[str]
    at: datetime | None

    @classmethod
    def read(cls, body: bytes) -> "_Answer":
        """Read an answer; raise `_NoAnswerError` where it isn't one."""
        try:
            said = json.loads(body, object_pairs_hook=_once_each)
        except (ValueError, RecursionError):
            raise _NoAnswerError(Phrase("its answer is no JSON")) from None
        if not isinstance(said, dict):
            raise _NoAnswerError(Phrase("its answer is no JSON object"))
        return cls(_ids(said, "held"), _ids(said, "released"), _instant(said.get("at")))


def _once_each(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object that says something twice: of the two, only one would be heard."""
    said = dict(pairs)
    if len(said) < len(pairs):
        raise ValueError("a key stands twice")
    return said


def _ids(said: Mapping[str, object], key: str) -> frozenset[str]:
    ids = said.get(key)
    if not isinstance(ids, list) or not all(type(each) in {str, int} for each in ids):
        raise _NoAnswerError(Phrase("%(key)s in its answer is no list of ids", key=f"`{key}`"))
    return frozenset(str(each) for each in ids)


def _instant(said: object) -> datetime | None:
    if said is None:
        return None
    try:
        at = datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        at = None
    if at is None or at.utcoffset() is None:
        raise _NoAnswerError(Phrase("%(key)s in its answer is no time with a zone", key="`at`"))
    return at
