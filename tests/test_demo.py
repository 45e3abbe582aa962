import asyncio
import errno
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from sqlalchemy import update

from tests.servers import Database
from unstick.demo import faces, text
from unstick.demo.database import AIGenerationJob, opened
from unstick.demo.on_the_kit import leave_nothing_half_done, order_twice, see_late_result_refused, stop_in_the_middle
from unstick.demo.platform import create_app
from unstick.demo.scene import _environment, _platform, _ports, set_up
from unstick.demo.settings import BACKGROUND_TASKS_VARIABLE
from unstick.demo.steps import LONG
from unstick.demo.stuck_jobs import lose_a_task as lose_a_task_of
from unstick.demo.text import Draft, Kind, write
from unstick.demo.watch import NotSeenError, NotYetError, Watch
from unstick.sql import schema
from unstick.sql.engine import open_engine

PROMPT = "how generators yield values"

on_its_databases = pytest.mark.parametrize("database", ["sqlite", "postgres18"], indirect=True)


def finish(kind: Kind, size: int) -> tuple[list[int], Draft]:
    steps, progress = write(kind, PROMPT, size), []
    while True:
        try:
            progress.append(next(steps))
        except StopIteration as end:
            return progress, end.value


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_written_from_the_sentences_that_it_read(kind: Kind) -> None:
    _, draft = finish(kind, 120)
    assert any(sentence.text in draft.text for sentence in text.gather(PROMPT, 120, 0))
    assert draft.words > len(draft.text.split())


def test_the_work_is_the_same_in_every_process() -> None:
    program = (
        "from unstick.demo.text import Kind, write\n"
        f"steps = write(Kind.THESIS, {PROMPT!r}, 150)\n"
        "while True:\n"
        "    try: next(steps)\n"
        "    except StopIteration as end: print(end.value.text); break\n"
    )
    written = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1"},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert written == {finish(Kind.THESIS, 150)[1].text + "\n"}


def test_progress_rises_to_the_end_in_many_small_steps() -> None:
    progress, _ = finish(Kind.SUMMARY, 200)
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0, 99)
    assert len(progress) > 200


def test_the_work_grows_with_the_square_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    likeness = text._Space.likeness

    def counting(*given: Any) -> float:  # noqa: ANN401 - passed on as they come
        compared[-1] += 1
        return likeness(*given)

    monkeypatch.setattr(text._Space, "likeness", counting)
    for size in (50, 100, 200):
        compared.append(0)
        finish(Kind.SUMMARY, size)
    assert compared == [50 * 49, 100 * 99, 200 * 199]


def test_a_size_beyond_the_material_is_all_of_it() -> None:
    assert len(text.gather(PROMPT, 1_000_000, 0)) == sum(map(len, text.library())) > 1500


@asynccontextmanager
async def platform(database: Database, *, in_background_tasks: bool | None = True) -> AsyncIterator[httpx.AsyncClient]:
    """The platform in this process; a request returns when its background task has ended too."""
    app = create_app(database.url, in_background_tasks=in_background_tasks)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://demo") as client,
    ):
        yield client


async def make_our_tables(database: Database) -> None:
    engine = open_engine(database.url, create=True)
    await schema.upgrade(engine, schema.branches(own_jobs=False))
    await engine.dispose()


@asynccontextmanager
async def platform_on_kit(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    await make_our_tables(database)
    async with platform(database, in_background_tasks=False) as client:
        yield client


async def generate(client: httpx.AsyncClient, key: str | None = None, **order: object) -> httpx.Response:
    return await client.post(
        "/generate",
        json={"job_type": "summary.short", "prompt": PROMPT, "size": 100, **order},
        headers=None if key is None else {"Idempotency-Key": key},
    )


async def job(client: httpx.AsyncClient, job_id: int = 1) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get(f"/jobs/{job_id}")).raise_for_status().json()
    return answer


async def eventually(look: Callable[[], Awaitable[dict[str, Any]]], **wanted: object) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while not wanted.items() <= (seen := await look()).items():
        assert time.monotonic() < deadline, seen
        await asyncio.sleep(0.02)
    return seen


async def jobs(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = (await client.get("/jobs")).raise_for_status().json()
    return answer


async def fail_after_the_row(client: httpx.AsyncClient) -> None:
    assert (await generate(client, title="Generators \N{EM DASH} a summary")).status_code == 500


async def requeue(database: Database, job_id: int = 1) -> None:
    """What a retry leaves."""
    again = {"status": "queued", "started_at": None, "completed_at": None, "scheduled_at": datetime.now(UTC)}
    async with opened(database.url) as sessions, sessions.begin() as session:
        await session.execute(update(AIGenerationJob).where(AIGenerationJob.id == job_id).values(again))


@on_its_databases
async def test_a_job_is_run_after_its_request_was_answered(database: Database) -> None:
    async with platform(database) as client:
        ordered = (await generate(client)).json()
        assert (ordered["status"], ordered["result"]) == ("queued", None)
        done = await job(client)
    assert (done["status"], done["success"], done["progress"], done["attempt"]) == ("completed", True, 100, 0)
    assert done["result"] == finish(Kind.SUMMARY, 100)[1].text
    assert done["tokens_used"] > 0
    assert done["cost"] > 0
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] <= done["updated_at"]


@on_its_databases
async def test_a_request_that_fails_after_the_commit_leaves_a_queued_row_for_ever(database: Database) -> None:
    async with platform(database) as client:
        await fail_after_the_row(client)
        lost = await job(client)
    assert (lost["status"], lost["started_at"], lost["scheduled_at"]) == ("queued", None, None)
    async with platform(database) as client:  # neither a restart nor other jobs run it
        await generate(client)
        await requeue(database, 2)
        await eventually(lambda: job(client, 2), status="completed")
        assert await job(client) == lost


@on_its_databases
async def test_a_requeued_job_is_run_again(database: Database) -> None:
    async with platform(database) as client:
        await fail_after_the_row(client)
        await requeue(database)
        done = await eventually(lambda: job(client), status="completed")
    assert (done["success"], done["attempt"]) == (True, 0)


async def test_a_job_that_raises_is_failed_with_what_it_said(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no more paper")

    monkeypatch.setattr("unstick.demo.jobs_in_background_tasks.write", broken)
    async with platform(sqlite_database) as client:
        await generate(client)
        failed = await job(client)
    assert (failed["status"], failed["success"], failed["error_message"]) == ("failed", False, "no more paper")
    assert failed["completed_at"] is not None


@on_its_databases
async def test_on_the_kit_a_job_is_run_by_the_runner(database: Database) -> None:
    async with platform_on_kit(database) as client:
        ordered = (await generate(client, job_type="thesis.outline")).json()
        assert (ordered["status"], ordered["worker"], ordered["result"]) == ("queued", None, None)
        done = await eventually(lambda: job(client), status="completed")
    assert (done["success"], done["progress"], done["attempt"]) == (True, 100, 0)
    assert done["worker"].split(":")[1] == str(os.getpid())
    assert done["result"] == finish(Kind.OUTLINE, 100)[1].text
    assert done["tokens_used"] > 0
    assert done["cost"] > 0
    assert done["started_at"] <= done["completed_at"]


@on_its_databases
async def test_on_the_kit_a_request_that_fails_leaves_no_row(database: Database) -> None:
    async with platform_on_kit(database) as client:
        await fail_after_the_row(client)
        assert await jobs(client) == []


@on_its_databases
async def test_on_the_kit_an_order_repeated_under_its_key_is_one_job(database: Database) -> None:
    async with platform_on_kit(database) as client:
        answers = await asyncio.gather(*(generate(client, key="order-7") for _ in range(3)))
        assert {answer.raise_for_status().json()["id"] for answer in answers} == {1}
        other = (await generate(client, key="order-8")).json()["id"]
        assert [listed["id"] for listed in await jobs(client)] == [other, 1]


@on_its_databases
async def test_on_the_kit_a_row_that_lost_its_task_is_run(database: Database) -> None:
    async with platform(database) as client:
        await fail_after_the_row(client)
    async with platform_on_kit(database) as client:
        done = await eventually(lambda: job(client), status="completed")
    assert (done["success"], done["attempt"]) == (True, 0)


async def test_on_the_kit_a_job_that_raises_is_failed_with_what_it_said(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no more paper")

    monkeypatch.setattr("unstick.demo.jobs_on_kit.write", broken)
    async with platform_on_kit(sqlite_database) as client:
        await generate(client)
        failed = await eventually(lambda: job(client), status="failed")
    assert (failed["success"], failed["error_message"]) == (False, "RuntimeError: no more paper")
    assert failed["completed_at"] is not None


@pytest.mark.parametrize(("said", "rows"), [(None, 0), ("0", 0), ("1", 1)])
async def test_the_platform_is_on_the_kit_unless_the_environment_says_otherwise(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, said: str | None, rows: int
) -> None:
    monkeypatch.delenv(BACKGROUND_TASKS_VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(BACKGROUND_TASKS_VARIABLE, said)
    await make_our_tables(sqlite_database)
    async with platform(sqlite_database, in_background_tasks=None) as client:
        await fail_after_the_row(client)
        assert len(await jobs(client)) == rows


async def test_a_job_that_is_not_there_is_404(sqlite_database: Database) -> None:
    async with platform(sqlite_database) as client:
        assert (await client.get("/jobs/1")).status_code == 404


async def test_the_page_shows_the_jobs(sqlite_database: Database) -> None:
    async with platform(sqlite_database) as client:
        await generate(client)
        page = (await client.get("/")).raise_for_status().text
    assert "<td>summary.short</td><td>completed</td>" in page


def test_a_killed_process_leaves_its_job_running(tmp_path: Path) -> None:
    port, _ = _ports(None)
    database = tmp_path / "platform.db"
    watch, served = Watch(60), faces.Platform(port)

    def halfway() -> None:
        if not 0 < served.job(1)["progress"] < 50:
            raise NotYetError(str(served.job(1)))

    with _platform(
        port, tmp_path, _environment(f"sqlite+aiosqlite:///{database}"), in_background_tasks=True
    ) as process:
        watch.guard(process)
        watch.until("the platform answers", served.newest)
        served.generate("thesis.full", 2000, prompt=PROMPT, title="Generators")
        watch.until("progress", halfway)
        assert process.kill() == -signal.SIGKILL
        process.start()
        watch.until("the platform answers again", served.newest)
    with sqlite3.connect(database) as connection:
        left = connection.execute("SELECT status, result, completed_at FROM ai_generation_jobs").fetchall()
    connection.close()
    assert left == [("running", None, None)]


def test_a_child_ends_with_its_starter_even_when_that_is_killed() -> None:
    child = [sys.executable, "-m", "unstick.demo.leash", "http.server", "0", "--bind", "127.0.0.1"]
    program = f"import subprocess\nsubprocess.Popen({child}, stdin=subprocess.PIPE).wait()"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert b"Serving" in starter.stdout.readline()
        starter.kill()
        assert starter.stdout.read() == b""  # the end comes when the child, which holds the pipe too, has ended


def test_a_stopped_child_ends_with_its_starter_even_when_that_is_killed(tmp_path: Path) -> None:
    port, _ = _ports(None)
    program = (
        "import os\nfrom pathlib import Path\nfrom unstick.demo.children import Child\n"
        f"child = Child('web', ['http.server', '{port}', '--bind', '127.0.0.1'], Path({str(tmp_path)!r}), os.environ)\n"
        "child.start()\nprint(child.pid, flush=True)\ninput()\nchild.suspend()\nprint('stopped', flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        try:
            until_listening(port, listening=True)
            starter.stdin.write("\n")
            assert starter.stdout.readline() == "stopped\n"
            until_listening(port, listening=True)  # as the kernel does for it
            starter.kill()
            until_listening(port, listening=False)
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def until_listening(port: int, *, listening: bool) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as caller:
            caller.settimeout(1)
            if caller.connect_ex(("127.0.0.1", port)) == (0 if listening else errno.ECONNREFUSED):
                return
        assert time.monotonic() < deadline, f"{listening=} is awaited"
        time.sleep(0.02)


def demo(scratch: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "unstick.demo", *options],
        cwd=scratch.parent,
        env={**os.environ, "TMPDIR": str(scratch), "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


def test_the_demo_goes_once_from_stuck_to_finished(scratch: Path) -> None:
    with demo(scratch, "--once", "--patience", "90") as process:
        told, complaint = process.communicate()
    assert (process.returncode, complaint) == (0, ""), told
    for stage in (
        "stuck",
        "found",
        "explained, silent",
        "explained, never_claimed",
        "explained, lease_expired",
        "recovered",
        "run again",
        "finished",
        "no row was committed",
        "Ordered twice under one key",
        "late result refused, the worker said: Job 7 finished too late",
        "unstick_late_finishes holds it: job 7, attempt 0, succeeded",
        "Job 7 still holds the result of attempt 1",
    ):
        assert stage in told
    assert "healthy jobs are what they were" in told
    assert list(scratch.iterdir()) == []


def test_the_demo_claims_nothing_of_the_kit_that_it_does_not_see() -> None:
    with set_up(Console(quiet=True), Watch(90), None) as scene:  # where jobs run in background tasks
        with pytest.raises(NotSeenError, match="Not seen: no row of the request that failed"):
            leave_nothing_half_done(scene)
        with pytest.raises(NotSeenError, match="Not seen: one job of two orders"):
            order_twice(scene)
        lost = lose_a_task_of(scene, Kind.THESIS, LONG)
        with scene.deaf_worker(lost.job_id) as worker:
            case, name = stop_in_the_middle(scene, worker, lost.job_id)
            with pytest.raises(NotSeenError, match="done by another worker"):
                see_late_result_refused(scene, worker, case, name)
            with pytest.raises(NotSeenError, match="a late result refused"):  # nobody took its job
                see_late_result_refused(scene, worker, case, "another")


def test_the_demo_says_what_it_did_not_see(scratch: Path) -> None:
    with demo(scratch, "--once", "--patience", "0") as process:
        told, complaint = process.communicate()
    assert (process.returncode, told) == (1, "")
    assert complaint.startswith("Not seen: the platform answers. Instead: ")
    assert list(scratch.iterdir()) == []


def see_both_stuck_by_the_link(link: str) -> None:
    address, key = link.split("?key=")
    with httpx.Client(headers={"Sec-Fetch-Site": "same-origin"}, follow_redirects=True) as person:
        assert person.get(link).raise_for_status().url == link
        deadline = time.monotonic() + 20
        page = person.post(address, data={"key": key}).raise_for_status()
        assert page.url.path == "/console/"
        while not {"Silent", "Never claimed"} <= {each.strip() for each in re.findall(r"<h3>([^<]+)<", page.text)}:
            assert time.monotonic() < deadline, page.text
            page = person.get(str(page.url)).raise_for_status()
        assert person.post(address, data={"key": key}).status_code == 401


def test_the_demo_opens_on_the_console_prints_what_to_curl_and_ends_when_asked_to(scratch: Path) -> None:
    with demo(scratch, "--patience", "90") as process:
        assert process.stdout is not None
        told = ""
        while "Ctrl-C" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        see_both_stuck_by_the_link(re.findall(r"(http://\S+\?key=\S+)", told)[0])
        token, calls = re.findall(r"TOKEN=(\S+)", told)[0], re.findall(r'"(http://\S+/api/v1/admin/\S+)"', told)
        for call in calls:
            method = "POST" if "cleanup" in call else "GET"
            httpx.request(method, call, headers={"Authorization": f"Bearer {token}"}).raise_for_status()
        process.terminate()
        _, complaint = process.communicate()
    assert [call.rpartition("/")[2] for call in calls] == ["stuck", "cleanup?action=retry", "stats"]
    assert (process.returncode, complaint) == (0, "")
    assert list(scratch.iterdir()) == []
