"""`unstick aftermath`, `suggest` and `replay`, run as a person would."""

import json
import tomllib
from datetime import UTC, datetime, timedelta

from tests.test_cli import Run, _empty_directory, run, sentence, sqlite  # noqa: F401 - fixtures

MAPPED = """
    [sources.main]
    url = "sqlite:///app.db"
    table = "ai_jobs"
    columns = { id = "id", state = "status", kind = "kind", started_at = "started_at", completed_at = "completed_at" }
    states = { queued = "queued", running = "running", succeeded = "done", failed = "failed" }
"""


def make_table(run: Run, *, ran_minutes: int, number: int) -> None:  # noqa: F811
    with open("unstick.toml", "w") as file:  # noqa: PTH123 - the working directory is the test's own
        file.write(MAPPED)
    with sqlite("app.db") as app:
        app.execute("CREATE TABLE ai_jobs (id INTEGER PRIMARY KEY, status TEXT NOT NULL, kind TEXT, "
                    "started_at TEXT, completed_at TEXT)")  # fmt: skip
        for _ in range(number):
            put(app, "done", ago(ran_minutes), ago(0))
    assert run("db", "upgrade").status == 0


def put(app: object, status: str, started: str, completed: str | None) -> None:
    app.execute(  # type: ignore[attr-defined]
        "INSERT INTO ai_jobs (status, kind, started_at, completed_at) VALUES (?, 'essay', ?, ?)",
        (status, started, completed),
    )


def ago(minutes: float) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).strftime("%Y-%m-%d %H:%M:%S")


def test_a_late_finish_is_found_shown_and_told_by_the_next_sweep(run: Run) -> None:  # noqa: F811
    make_table(run, ran_minutes=10, number=0)
    with sqlite("app.db") as app:
        put(app, "running", ago(50), None)
        put(app, "running", ago(50), None)
    assert run("sweep").status == 0
    with sqlite("app.db") as app:
        app.execute("UPDATE ai_jobs SET status = 'done' WHERE id = 1")

    first = run("sweep")
    assert "late         1 recovered before finished after all: unstick aftermath" in first.out
    with sqlite("app.db") as app:
        app.execute("UPDATE ai_jobs SET status = 'done' WHERE id = 2")
    shown = run("aftermath")
    again = run("aftermath", "--json").document

    assert "new on record: 1 late finish(es), 0 success(es)" in shown.out
    assert "2 late finish(es), 2 found and 0 refused." in shown.out
    assert "essay: 2" in shown.out
    assert again["follow_up"] == {"looked_at": 2, "late_finishes": 0, "succeeded": 0, "problem": None}
    assert again["late_finishes"]["by_kind"] == {"essay": 2}
    assert {each["job_id"] for each in again["newest"]} == {"1", "2"}


def test_a_follow_up_that_fails_warns_and_the_sweep_is_done(run: Run) -> None:  # noqa: F811
    make_table(run, ran_minutes=10, number=0)
    with sqlite("app.db") as app:
        put(app, "running", ago(50), None)
    assert run("sweep").status == 0
    with sqlite("app.db") as app:
        app.execute("UPDATE ai_jobs SET status = 'done' WHERE id = 1")
        app.execute("DROP TABLE unstick_successes")

    ran = run("sweep")

    assert ran.status == 0
    assert "warning: What became of jobs recovered before could not be looked up" in ran.err


def test_a_suggestion_can_be_pasted_as_it_is_printed(run: Run) -> None:  # noqa: F811
    make_table(run, ran_minutes=20, number=25)
    ran = run("suggest")
    assert tomllib.loads(ran.out) == {}
    assert "# essay: running_after 30m: p99 of 25 jobs is 20 minutes" in ran.out
    assert "# Nothing to change." in ran.out

    with sqlite("app.db") as app:
        app.execute("UPDATE ai_jobs SET started_at = datetime(completed_at, '-41 minutes')")
    assert tomllib.loads(run("suggest").out) == {
        "policy": {"rules": [{"kind": "essay", "running_after": "75m"}]}
    }  # fmt: skip
    document = run("suggest", "--json").document
    assert document["toml"] == '[[policy.rules]]\nkind = "essay"\nrunning_after = "75m"'


def test_too_few_jobs_are_said_to_be(run: Run) -> None:  # noqa: F811
    make_table(run, ran_minutes=20, number=0)
    assert "nothing to propose anything from" in run("suggest").out
    with sqlite("app.db") as app:
        put(app, "done", ago(20), ago(0))
    assert "# essay: no proposal: only 1 succeeded in the sample, too few" in run("suggest").out


def test_a_replay_is_a_table_and_a_sentence(run: Run) -> None:  # noqa: F811
    make_table(run, ran_minutes=20, number=3)
    ran = run("replay", "--running-after", "15m", "--days", "2")
    assert ran.out.splitlines()[1].split() == ["essay", "3", "3", "0", "3", "3"]
    assert "at most 3 would have been recovered with running_after 15m, and 3 of those succeeded" in ran.out
    assert run("replay", "--kind", "q*", "--running-after", "15m", "--json").document["total"]["ended"] == 0
    assert json.loads(run("replay", "--queued-after", "90s", "--json").out)["queued_after_seconds"] == 90


def test_a_replay_that_means_nothing_is_refused(run: Run) -> None:  # noqa: F811
    make_table(run, ran_minutes=20, number=1)
    assert "days must be from 1 to 365" in sentence(run("replay", "--days", "0"))
    ran = run("replay", "--running-after", "soon")
    assert ran.status == 2
    assert "must be a number and a unit" in ran.err
