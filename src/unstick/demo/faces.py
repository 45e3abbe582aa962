"""The two programs as anybody sees them: over HTTP."""

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, TypedDict
from urllib.parse import urlencode

HOST = "127.0.0.1"
_TIMEOUT = 10


class PlatformJob(TypedDict):
    """The part of the platform's job that the demo reads."""

    id: int
    status: str
    progress: int
    attempt: int
    worker: str | None
    job_type: str
    result: str | None
    success: bool | None
    scheduled_at: str | None
    started_at: str | None
    completed_at: str | None


class Finding(TypedDict):
    """The part of Unstick's stuck job that the demo reads."""

    id: int | str
    reason: str
    sentence: str


class StuckJobs(TypedDict):
    """What Unstick answers when asked what is stuck."""

    queued_jobs: list[Finding]
    running_jobs: list[Finding]


class Cleaned(TypedDict):
    """How many jobs a cleanup recovered."""

    queued: int
    running: int
    total: int


class AnswerError(Exception):
    """A program answered, but with an error."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"it answered {status}: {said[:300]}")
        self.status = status


class NoAnswerError(Exception):
    """A program didn't answer; it may not be up yet."""


class Platform:
    """The demo platform."""

    def __init__(self, port: int) -> None:
        self.url = f"http://{HOST}:{port}"
        self._port = port

    def generate(self, job_type: str, size: int, *, prompt: str, title: str, key: str | None = None) -> PlatformJob:
        """Order a text; on the kit an order repeated under its key is the same job."""
        order = {"job_type": job_type, "size": size, "prompt": prompt, "title": title}
        headers = None if key is None else {"Idempotency-Key": key}
        job: PlatformJob = _call(self._port, "POST", "/generate", headers, body=order)
        return job

    def job(self, job_id: int) -> PlatformJob:
        """Return one job's row."""
        job: PlatformJob = _call(self._port, "GET", f"/jobs/{job_id}")
        return job

    def newest(self) -> PlatformJob | None:
        """Return the newest job's row."""
        jobs: list[PlatformJob] = _call(self._port, "GET", "/jobs?limit=1")
        return jobs[0] if jobs else None


class Service:
    """Unstick's service."""

    def __init__(self, port: int, token: str) -> None:
        self.url = f"http://{HOST}:{port}"
        self.token = token
        self._port = port

    def stuck(self) -> StuckJobs:
        """Ask what is stuck, and why."""
        answer: StuckJobs = self._call("GET", "/jobs/stuck")
        return answer

    def cleanup(self, action: str) -> Cleaned:
        """Have what is stuck recovered."""
        answer: Cleaned = self._call("POST", f"/jobs/cleanup?{urlencode({'action': action})}")["cleaned_jobs"]
        return answer

    def _call(self, method: str, path: str) -> Any:  # noqa: ANN401 - JSON
        return _call(self._port, method, f"/api/v1/admin{path}", {"Authorization": f"Bearer {self.token}"})


def _call(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, object] | None = None,
) -> Any:  # noqa: ANN401 - JSON
    """Call a program on this machine, past any proxy that the environment names."""
    sent = None if body is None else json.dumps(body).encode()
    connection = HTTPConnection(HOST, port, timeout=_TIMEOUT)
    try:
        connection.request(method, path, sent, {"Content-Type": "application/json", **(headers or {})})
        return _content(connection.getresponse())
    except (OSError, HTTPException) as error:
        raise NoAnswerError(f"port {port} doesn't answer: {error!r}") from error
    finally:
        connection.close()


def _content(response: HTTPResponse) -> Any:  # noqa: ANN401 - JSON
    said = response.read().decode(errors="replace")
    if not 200 <= response.status < 300:  # noqa: PLR2004 - HTTP's successes
        raise AnswerError(response.status, said)
    return json.loads(said)
