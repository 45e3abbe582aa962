"""`unstick job`, `recover` and `snooze`, run as a person would in the middle of the night."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from rich.console import Console

from tests.test_cli import SECRET, USER, Run, _empty_directory, embedded, jobs, rows, run, sentence, sqlite
from unstick.api.auth import mint_token
from unstick.cli.job import render
from unstick.config import load_settings
from unstick.domain.access import Role
from unstick.wiring import create_service

__all__ = ["_empty_directory", "embedded", "jobs", "run"]  # the fixtures of the command line's other tests

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def states() -> dict[int, str]:
    return {row["id"]: row["status"] for row in rows("SELECT id, status FROM jobs")}


def orders() -> list[dict[str, Any]]:
    return rows("SELECT actor, call, outcome, job_id, json_extract(parameters, '$.reason') AS why FROM unstick_audit")


# The story


def test_a_story_says_first_how_the_job_stands_and_what_a_sweep_would_do(run: Run, jobs: dict[str, int]) -> None:
    ran = run("job", str(jobs["running"]))

    lines = ran.out.splitlines()
    stuck = f"Job {jobs['running']} is stuck in running for 45 minutes, where 30 minutes may pass: its last sign of"
    assert (ran.status, ran.err) == (0, "")
    assert re.fullmatch(f"{stuck} life was at {TIME} UTC\\.", lines[0])
    assert lines[1] == "A sweep would mark it failed."
    assert "policy    no rule: mark_failed after 5 minutes queued or 30 minutes silent" in lines
    assert re.search(f"^evidence  row.started_at {TIME} UTC \\(45 minutes ago\\)$", ran.out, re.MULTILINE)
    assert re.search(f"^{TIME}  45 minutes ago  It was started\\.$", ran.out, re.MULTILINE)
    assert re.fullmatch(f"Times are UTC, by the clock of main: it was {TIME} UTC\\.", lines[-1])


def test_a_story_of_a_healthy_job_says_that_it_is_not_stuck(run: Run, jobs: dict[str, int]) -> None:
    said = run("job", str(jobs["working"])).out.splitlines()[0]
    assert said == f"Job {jobs['working']} is running and was started 20 minutes ago; it isn't stuck."


def test_its_json_is_what_the_api_answers(run: Run, jobs: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    run("snooze", str(jobs["running"]), "--for", "2h", "--reason", "later")
    run("recover", str(jobs["running"]), "--action", "retry", "--reason", "now")

    said = run("job", str(jobs["running"]), "--json").document
    answered = asyncio.run(_answer(f"/api/v1/admin/jobs/main/{jobs['running']}"))

    assert [event["kind"] for event in said["events"]] == ["enqueued", "snoozed", "recovered", "due"]
    for each in (said, answered):
        each.pop("told_at")
        each["diagnosis"]["sentence"] = re.sub("in .*;", "in a moment;", each["diagnosis"]["sentence"])
    assert said == answered


async def _answer(path: str) -> Any:  # noqa: ANN401
    settings = load_settings()
    assert settings.secret_key is not None
    token = mint_token(
        settings.secret_key, role=Role.VIEWER, subject="ann", lifetime=timedelta(hours=1), auth=settings.auth
    )
    app = create_service(settings)

    @asynccontextmanager
    async def client() -> AsyncIterator[httpx.AsyncClient]:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://unstick.test") as opened,
        ):
            yield opened

    async with client() as caller:
        answer = await caller.get(path, headers={"Authorization": f"Bearer {token}"})
    return answer.raise_for_status().json()


@pytest.mark.parametrize("width", [40, 60, 95, 96, 200])
def test_a_story_fits_the_terminal_and_nothing_is_cut(run: Run, jobs: dict[str, int], width: int) -> None:
    """However narrow: every event has its exact time, how long ago that was, and its whole sentence."""
    run("snooze", str(jobs["running"]), "--for", "2h", "--reason", "the customer is asked whether it may run twice")
    run("sweep", "--action", "retry")
    shape = run("job", str(jobs["queued"]), "--json").document
    shape["events"] += run("job", str(jobs["running"]), "--json").document["events"]
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)

    said = render(shape, console)

    assert max(len(line) for line in said.splitlines()) <= width
    whole = " ".join(said.split())
    for event in shape["events"]:
        assert event["at"][:19].replace("T", " ") in whole
        assert event["sentence"] in whole or _without_blanks(event["sentence"]) in _without_blanks(said)


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def test_what_steers_a_terminal_is_not_printed(run: Run, jobs: dict[str, int]) -> None:
    assert run("snooze", str(jobs["running"]), "--for", "2h", "--reason", "\x1b[2Jgone\x07").status == 0
    said = run("job", str(jobs["running"])).out
    assert said.count("\N{REPLACEMENT CHARACTER}[2Jgone\N{REPLACEMENT CHARACTER}") == 3
    assert "\x1b" not in said


@pytest.mark.parametrize("command", [("job",), ("recover",), ("snooze", "--for", "2h", "--reason", "x")])
@pytest.mark.parametrize("job_id", ["99", "one", ""])
def test_a_job_that_isnt_there_is_told_in_a_sentence(
    run: Run, jobs: dict[str, int], command: tuple[str, ...], job_id: str
) -> None:
    assert sentence(run(*command, job_id)) == f"Source 'main' has no job {job_id}."


# Recovering


def test_a_job_is_recovered_and_no_other_with_who_and_why_in_the_audit_log(run: Run, jobs: dict[str, int]) -> None:
    before = states()
    ran = run("recover", str(jobs["running"]), "--action", "mark_failed", "--reason", "web-3 was shut down")

    assert ran.status == 0
    assert re.match(f"Job {jobs['running']} is marked failed: its last sign of life was at ", ran.out)
    assert ran.out.splitlines()[1] == "  audit log    operation 1"
    assert states() == before | {jobs["running"]: "failed"}
    said = {"actor": f"cli:{USER}", "call": "jobs.recover", "job_id": str(jobs["running"])}
    said["why"] = "web-3 was shut down"
    assert orders() == [said | {"outcome": "started"}, said | {"outcome": "done"}]


def test_a_job_that_isnt_stuck_is_refused_with_the_reason(run: Run, jobs: dict[str, int]) -> None:
    before = states()
    said = sentence(run("recover", str(jobs["working"])))
    assert said == f"Job {jobs['working']} is running and was started 20 minutes ago; it isn't stuck."
    assert states() == before


def test_leaving_alone_is_no_recovery(run: Run, jobs: dict[str, int]) -> None:
    assert "snooze it" in sentence(run("recover", str(jobs["running"]), "--action", "leave"))


def test_a_job_that_couldnt_be_changed_is_complained_of(run: Run, jobs: dict[str, int]) -> None:
    with sqlite() as connection:
        connection.execute("CREATE TRIGGER kept BEFORE UPDATE ON jobs BEGIN SELECT RAISE(ABORT, 'legal hold'); END")
    ran = run("recover", str(jobs["running"]), "--json")
    assert ran.status == 2
    assert ran.document["outcome"] == "failed"
    assert ran.err == f"unstick: Job {jobs['running']} could not be changed: legal hold.\n"


# Snoozing

WHY = "Say why the job is to be left alone: whoever finds it stuck will want to know."


def test_a_snoozed_job_is_left_alone_and_the_report_says_so(run: Run, jobs: dict[str, int]) -> None:
    ran = run("snooze", str(jobs["running"]), "--for", "2h", "--reason", "the customer is asked")
    stuck = run("stuck", "--json").document
    swept = run("sweep")

    assert re.fullmatch(f"Job {jobs['running']} is left alone until {TIME}\\+00:00\\.\n", ran.out)
    assert (stuck["stuck_jobs"]["total"], stuck["snoozed"]) == (1, 1)
    assert swept.status == 0
    assert states()[jobs["running"]] == "running"
    assert states()[jobs["queued"]] == "failed"
    assert "Snoozed, and not among them: 1." in run("stuck").out
    snoozed = run("job", str(jobs["running"])).out
    assert re.search(
        f"^snoozed   until {TIME} UTC \\(in 1 hour 59 minutes\\) by cli:{USER}: the customer", snoozed, re.MULTILINE
    )
    assert orders()[0] == {
        "actor": f"cli:{USER}",
        "call": "jobs.snooze",
        "outcome": "done",
        "job_id": str(jobs["running"]),
        "why": "the customer is asked",
    }


def test_off_ends_a_snooze(run: Run, jobs: dict[str, int]) -> None:
    run("snooze", str(jobs["running"]), "--for", "2h", "--reason", "x")
    assert run("snooze", str(jobs["running"]), "--off").out == f"Job {jobs['running']} is left alone no longer.\n"
    assert run("snooze", str(jobs["running"]), "--off").out == f"Job {jobs['running']} wasn't snoozed.\n"
    assert run("stuck", "--json").document["stuck_jobs"]["total"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Say either for how long, with --for 2h, or --off to end a snooze."),
        (("--for", "2h", "--off"), "Say either for how long, with --for 2h, or --off to end a snooze."),
        (("--for", "2h"), WHY),
        (("--for", "2h", "--reason", " "), WHY),
        (("--for", "soon", "--reason", "x"), "--for must be a number and a unit, such as 90s, 5m, 2h or 3d."),
        (("--for", "0s", "--reason", "x"), "--for must be more than nothing and at most 365d."),
    ],
)
def test_a_snooze_that_means_nothing_is_told_in_a_sentence(
    run: Run, jobs: dict[str, int], options: tuple[str, ...], said: str
) -> None:
    assert sentence(run("snooze", str(jobs["running"]), *options)) == said
    assert rows("SELECT * FROM unstick_snoozes") == []
