"""The command line, run as a person or cron would: what it prints, what it changes, and how it ends."""

import asyncio
import json
import os
import pty
import pwd
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import httpx
import jwt
import pytest
from rich.console import Console
from sqlalchemy import make_url
from sqlalchemy.exc import ProgrammingError

import unstick
from tests.servers import SERVED, Database
from unstick.cli import main
from unstick.cli.stuck import render
from unstick.config import load_settings
from unstick.domain.diagnosis import diagnose
from unstick.domain.errors import SourceUnavailableError
from unstick.domain.job import Job, JobId, JobState
from unstick.domain.suspect import Look, StuckCounts
from unstick.pipeline.report import Finding, StuckReport
from unstick.pipeline.shapes import CleanupShape, JobShape, StuckShape
from unstick.sql.engine import open_engine

SECRET = "a secret of thirty-two bytes or more"
USER = pwd.getpwuid(os.getuid()).pw_name
COMMANDS = ("serve", "stuck", "sweep", "apply", "undo", "token", "inspect", "db", "demo")

MAPPED = """
    [sources.main]
    url = "sqlite:///app.db"
    table = "ai_jobs"
    columns = { id = "id", state = "status", started_at = "started_at", completed_at = "completed_at" }
    states = { queued = "queued", running = "running", failed = "failed" }
"""


@dataclass
class Ran:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:  # noqa: ANN401
        """The one JSON document on stdout."""
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("UNSTICK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["unstick", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        status = ended.value.code or 0
        assert isinstance(status, int)
        return Ran(status, said.out, said.err)

    return run


def sentence(ran: Ran) -> str:
    """Return what a command that failed said: one sentence on stderr, and nothing else anywhere."""
    assert ran.status == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("unstick: ")
    return ran.err.removeprefix("unstick: ").rstrip()


@contextmanager
def sqlite(file: str = "unstick.db") -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.row_factory = sqlite3.Row
        yield connection


def rows(query: str, file: str = "unstick.db") -> list[dict[str, Any]]:
    with sqlite(file) as connection:
        return [dict(row) for row in connection.execute(query)]


def ago(minutes: float) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).strftime("%Y-%m-%d %H:%M:%S.%f")


def enqueue(*, status: str = "queued", minutes: float, kind: str = "essay", started: bool = False) -> int:
    with sqlite() as connection:
        cursor = connection.execute(
            "INSERT INTO jobs (job_type, status, created_at, started_at) VALUES (?, ?, ?, ?)",
            (kind, status, ago(minutes), ago(minutes) if started else None),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid


@pytest.fixture
def embedded() -> None:
    """The embedded jobs table, and a file that says so."""
    configure("[sources.main]\n")


@pytest.fixture
def jobs(run: Run, embedded: None) -> dict[str, int]:
    """The embedded jobs table with two jobs that are stuck and three that aren't."""
    assert run("db", "upgrade").status == 0
    return {
        "queued": enqueue(minutes=12),
        "running": enqueue(status="running", minutes=45, started=True),
        "waiting": enqueue(minutes=2),
        "working": enqueue(status="running", minutes=20, started=True),
        "over": enqueue(status="completed", minutes=600, started=True),
    }


@pytest.fixture
def app_table() -> None:
    with sqlite("app.db") as connection:
        connection.execute(
            "CREATE TABLE ai_jobs (id TEXT PRIMARY KEY, status TEXT, started_at DATETIME, completed_at DATETIME)"
        )


def execute(database: Database, *statements: str) -> None:
    """Run statements as the administrator of a served database."""

    async def run_all() -> None:
        engine = open_engine(database.url)
        async with engine.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
        await engine.dispose()

    asyncio.run(run_all())


@contextmanager
def other_user(database: Database, grants: str) -> Iterator[str]:
    """A user who may do only this to the tables there are, by the URL they use."""
    url = make_url(database.url)
    user = f"ann_{url.database}"
    made = (f"CREATE ROLE {user} LOGIN PASSWORD 'hunter2'", f"GRANT {grants} ON ALL TABLES IN SCHEMA public TO {user}")
    gone: tuple[str, ...] = (f"DROP OWNED BY {user}", f"DROP ROLE {user}")
    if database.backend == "mysql":
        made = (f"CREATE USER {user} IDENTIFIED BY 'hunter2'", f"GRANT {grants} ON {url.database}.* TO {user}")
        gone = (f"DROP USER {user}",)
    execute(database, *made)
    try:
        yield url.set(username=user, password="hunter2").render_as_string(hide_password=False)
    finally:
        execute(database, *gone)


def configure(text: str = MAPPED) -> None:
    Path("unstick.toml").write_text(re.sub("^    ", "", text, flags=re.MULTILINE), encoding="utf-8")


# Looking


def test_with_nothing_configured_an_empty_directory_has_nothing_stuck(run: Run) -> None:
    ran = run("stuck")
    assert ran.status == 0
    assert ran.out.startswith("0 stuck at ")
    assert rows("SELECT * FROM jobs") == []


@pytest.mark.parametrize(
    "command", [("stuck",), ("sweep",), ("sweep", "--dry-run"), ("db", "upgrade"), ("db", "current"), ("db", "sql")]
)
def test_with_nothing_configured_a_command_says_which_jobs_it_is_about(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    ran = run(*command, "--json")
    assert ran.status == 0
    assert ran.document
    assert ran.err == (
        f"unstick: warning: No configuration found, using the embedded jobs table in {tmp_path / 'unstick.db'}; set "
        "UNSTICK_CONFIG, or run it in the folder of unstick.toml.\n"
    )


def test_whoever_configures_the_embedded_jobs_table_is_not_warned_of_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure('[policy]\nqueued_after = "7m"\n')
    assert run("stuck").err == ""
    Path("unstick.toml").rename("elsewhere.toml")
    monkeypatch.setenv("UNSTICK_CONFIG", "elsewhere.toml")
    assert run("stuck").err == ""
    monkeypatch.setenv("UNSTICK_CONFIG", "")
    monkeypatch.setenv("UNSTICK_POLICY__QUEUED_AFTER", "7m")
    assert run("stuck").err != ""
    monkeypatch.setenv("UNSTICK_SOURCES__MAIN__URL", "sqlite:///unstick.db")
    assert run("stuck").err == ""


@pytest.mark.parametrize("command", ["stuck", "sweep"])
def test_a_file_that_is_named_and_not_there_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("UNSTICK_CONFIG", "nowhere.toml")
    assert sentence(run(command)) == "There is no configuration file nowhere.toml."
    assert not Path("unstick.db").exists()


def test_stuck_jobs_are_a_table_with_the_reason_on_each_row_and_status_1(run: Run, jobs: dict[str, int]) -> None:
    ran = run("stuck")
    assert (ran.status, ran.err) == (1, "")
    header, queued, running, *_ = ran.out.splitlines()
    assert header.split() == ["ID", "STATE", "KIND", "STUCK", "FOR", "WHY"]
    assert queued.split()[:3] == [str(jobs["queued"]), "queued", "essay"]
    assert "no worker has claimed it since" in queued
    assert running.split()[:3] == [str(jobs["running"]), "running", "essay"]
    assert "its last sign of life was at" in running
    assert re.search(r"2 stuck at .*: 1 queued, 1 running\.\nLimits: queued 5 minutes, running 30 minutes\.", ran.out)


def test_sweep_says_which_jobs_could_not_be_changed_and_why_and_ends_with_2(run: Run, jobs: dict[str, int]) -> None:
    """A cron line must not look fine while rows are refused."""
    with sqlite() as connection:
        connection.execute(
            "CREATE TRIGGER kept BEFORE UPDATE ON jobs WHEN NEW.id = "
            f"{jobs['running']} BEGIN SELECT RAISE(ABORT, 'under legal hold'); END"
        )

    ran = run("sweep")
    again = run("sweep", "--json")

    assert (ran.status, again.status) == (2, 2)
    assert ran.err.splitlines()[-1] == f"unstick: job {jobs['running']} could not be changed: under legal hold"
    assert again.document["failures"] == [{"id": jobs["running"], "state": "running", "detail": "under legal hold"}]
    assert again.document["outcomes"]["failed"] == 1


def test_stuck_json_is_the_apis_shape(run: Run, jobs: dict[str, int]) -> None:
    ran = run("stuck", "--json")
    shape = ran.document
    assert (ran.status, ran.err) == (1, "")
    assert shape.keys() == StuckShape.__annotations__.keys()
    assert shape["stuck_jobs"] == {"total": 2, "queued_stuck": 1, "running_stuck": 1}
    assert [job["id"] for job in shape["queued_jobs"] + shape["running_jobs"]] == [jobs["queued"], jobs["running"]]
    assert all(job.keys() == JobShape.__annotations__.keys() for job in shape["queued_jobs"])


def test_the_threshold_changes_what_is_stuck(run: Run, jobs: dict[str, int]) -> None:
    assert run("stuck", "--threshold-minutes", "1", "--json").document["stuck_jobs"]["queued_stuck"] == 2
    assert run("stuck", "--threshold-minutes", "20", "--json").document["stuck_jobs"]["queued_stuck"] == 0
    assert run("stuck", "--threshold-minutes", "525600", "--json").status == 1


def test_the_limit_shortens_the_list_and_not_the_count(run: Run, jobs: dict[str, int]) -> None:
    oldest = enqueue(minutes=90)
    ran = run("stuck", "--limit", "1")
    assert ran.out.splitlines()[1].split()[0] == str(oldest)
    assert "3 stuck at " in ran.out
    assert "The 2 oldest are listed; --limit lists up to 1000 in each state." in ran.out


@pytest.mark.usefixtures("app_table")
def test_ids_are_whole_however_long(run: Run) -> None:
    configure()
    assert run("db", "upgrade").status == 0
    ids = ["9" * 400, "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "9007199254740993"]
    with sqlite("app.db") as connection:
        for job_id in ids:
            connection.execute("INSERT INTO ai_jobs VALUES (?, 'queued', ?, NULL)", (job_id, ago(30)))
    ran = run("stuck")
    assert ran.status == 1
    assert {line.split()[0] for line in ran.out.splitlines()[1:4]} == set(ids)


def test_text_from_the_jobs_table_can_not_steer_the_terminal(run: Run, jobs: dict[str, int]) -> None:
    enqueue(minutes=30, kind="\x1b[2Jcleared\r\nor\x07not")
    ran = run("stuck")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ran.out)
    assert "\N{REPLACEMENT CHARACTER}[2Jcleared or\N{REPLACEMENT CHARACTER}not" in ran.out


def finding(job_id: JobId, look: Look) -> Finding:
    since = look.taken_at - timedelta(hours=1)
    job = Job(id=job_id, state=JobState.QUEUED, status="queued", kind="thesis.chapter.with.a.long.name")
    diagnosis = diagnose(JobState.QUEUED, since)
    return Finding(job=job, since=since, age=timedelta(hours=1), diagnosis=diagnosis, evidence=())


@pytest.mark.parametrize("job_id", [7, 9_007_199_254_740_993, "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"])
def test_in_80_columns_every_line_fits_and_nothing_is_cut(job_id: JobId) -> None:
    look = Look(
        taken_at=datetime(2026, 11, 23, 21, tzinfo=UTC),
        queued_after=timedelta(minutes=5),
        running_after=timedelta(minutes=30),
    )
    found = finding(job_id, look)
    counts = StuckCounts(queued=1, running=0)
    report = StuckReport(look=look, counts=counts, queued=(found,), running=(), next_cursor=None)
    text = render(report, Console(width=80, force_terminal=False))
    assert max(map(len, text.splitlines())) <= 80
    assert str(job_id) in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert set(found.diagnosis.sentence.split()) <= set(text.split())


@pytest.mark.usefixtures("app_table")
@pytest.mark.parametrize("command", [("stuck",), ("sweep",), ("sweep", "--dry-run")])
def test_a_mistyped_state_word_is_told_wherever_it_would_hide_jobs(run: Run, command: tuple[str, ...]) -> None:
    configure(MAPPED.replace('"running"', '"runing"'))
    assert run("db", "upgrade").status == 0
    with sqlite("app.db") as connection:
        connection.execute("INSERT INTO ai_jobs VALUES ('a', 'completed', ?, ?)", (ago(99), ago(90)))
    assert run(*command, "--json").err == ""
    with sqlite("app.db") as connection:
        connection.execute("INSERT INTO ai_jobs VALUES ('b', 'running', ?, NULL)", (ago(45),))
    told = (
        "unstick: warning: `states` of source 'main' names 'runing' for running, which none of its newest jobs holds, "
        "and not 'running', which some do: correct it there, or name both.\n"
    )
    ran = run(*command, "--json")
    assert (ran.status, bool(ran.document), ran.err) == (0, True, told)
    assert run("inspect", "sqlite:///app.db", "--json").err == told
    with sqlite("app.db") as connection:
        connection.execute("UPDATE ai_jobs SET status = 'zorp' WHERE id = 'b'")
    assert run(*command, "--json").err == (
        "unstick: warning: Jobs of source 'main' are in the state 'zorp', which `states` doesn't name: they "
        "are never looked at. Name it there; what is named under `scheduled` is left alone.\n"
    )


# Sweeping


def test_a_sweep_marks_what_is_stuck_failed_and_records_who_asked(run: Run, jobs: dict[str, int]) -> None:
    before = {row["id"]: row for row in rows("SELECT * FROM jobs")}
    ran = run("sweep")
    after = {row["id"]: row for row in rows("SELECT * FROM jobs")}
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("Successfully cleaned up 2 stuck job(s).\n")
    for name in ("queued", "running"):
        job = after[jobs[name]]
        assert (job["status"], job["success"]) == ("failed", 0)
        assert job["completed_at"] is not None
        assert re.fullmatch(rf"Job stuck in {name} for .* Automatically cleaned up\.", job["error_message"])
    for name in ("waiting", "working", "over"):
        assert after[jobs[name]] == before[jobs[name]]
    assert {row["actor"] for row in rows("SELECT actor FROM unstick_audit")} == {f"cli:{USER}"}


def test_sweep_json_is_the_apis_shape(run: Run, jobs: dict[str, int]) -> None:
    ran = run("sweep", "--json")
    shape = ran.document
    assert (ran.status, ran.err) == (0, "")
    assert shape.keys() == CleanupShape.__annotations__.keys() - {"would_clean", "plan"}
    assert shape["cleaned_jobs"] == {"queued": 1, "running": 1, "total": 2}
    assert (shape["action"], shape["threshold_minutes"]) == ("mark_failed", 5)


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(run: Run, jobs: dict[str, int]) -> None:
    before = rows("SELECT * FROM jobs")
    shape = run("sweep", "--dry-run", "--json").document
    assert shape.keys() == CleanupShape.__annotations__.keys() - {"plan"}
    assert shape["would_clean"] == {"queued": 1, "running": 1, "total": 2}
    assert shape["cleaned_jobs"]["total"] == 0
    ran = run("sweep", "--dry-run")
    assert ran.status == 0
    assert "Would clean up 2 stuck job(s). Nothing was changed." in ran.out
    assert rows("SELECT * FROM jobs") == before


def test_a_retry_puts_the_jobs_back(run: Run, jobs: dict[str, int]) -> None:
    ran = run("sweep", "--action", "retry")
    assert ran.status == 0
    assert "mark_failed 0, retry 2" in ran.out
    states = {row["id"]: row["status"] for row in rows("SELECT id, status FROM jobs")}
    assert (states[jobs["queued"]], states[jobs["running"]]) == ("queued", "queued")


def test_only_the_named_source_is_swept(run: Run, jobs: dict[str, int]) -> None:
    configure('[sources.main]\n[sources.other]\nurl = "sqlite:///other.db"\n')
    assert run("sweep", "--source", "other", "--json").document["cleaned_jobs"]["total"] == 0
    assert run("stuck").status == 1
    assert run("sweep", "--source", "main", "--json").document["cleaned_jobs"]["total"] == 2


@pytest.mark.parametrize("command", ["stuck", "sweep"])
@pytest.mark.parametrize("threshold", ["0", "-1", "525601", "5.5", "abc", "", "1_0", "\u0665", "9" * 5000])
def test_a_threshold_out_of_range_is_refused_and_changes_nothing(
    run: Run, jobs: dict[str, int], command: str, threshold: str
) -> None:
    before = rows("SELECT * FROM jobs"), rows("SELECT * FROM unstick_audit")
    ran = run(command, f"--threshold-minutes={threshold}", "--json")
    assert (ran.status, ran.out) == (2, "")
    assert "A threshold is a whole number of minutes from 1 to 525600, not " in ran.err
    assert (rows("SELECT * FROM jobs"), rows("SELECT * FROM unstick_audit")) == before


def test_an_unknown_action_is_refused_and_changes_nothing(run: Run, jobs: dict[str, int]) -> None:
    ran = run("sweep", "--action", "delete")
    assert (ran.status, ran.out) == (2, "")
    assert "'mark_failed', 'retry'" in ran.err
    assert rows("SELECT * FROM unstick_audit") == []


def test_a_progress_bar_is_for_a_person_who_looks(run: Run, jobs: dict[str, int]) -> None:
    assert "2/2" in on_terminal("sweep", "--dry-run")
    assert on_terminal("sweep", "--dry-run", "--json") == ""


def on_terminal(*arguments: str) -> str:
    """Run a command whose stderr alone is a terminal, and return what it drew there."""
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "unstick", *arguments], stdout=subprocess.DEVNULL, stderr=slave, check=False
        )
        assert done.returncode == 0
        os.set_blocking(master, False)
        try:
            return os.read(master, 1_000_000).decode()
        except BlockingIOError:
            return ""
    finally:
        os.close(slave)
        os.close(master)


def states() -> dict[int, str]:
    return {row["id"]: row["status"] for row in rows("SELECT id, status FROM jobs")}


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_what_a_dry_run_planned_is_applied_and_what_got_stuck_since_is_not(
    run: Run, jobs: dict[str, int], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    how = ("--json",) if as_json else ()
    planned = run("sweep", "--dry-run", "--plan", *how)
    since = enqueue(minutes=30)
    before = states()
    plan_id = planned.document["plan"]["id"] if as_json else re.findall(r"unstick apply ([0-9a-f]{32})", planned.out)[0]

    done = run("apply", plan_id, *how)

    assert (planned.status, done.status, planned.err, done.err) == (0, 0, "", "")
    assert states() == before | {jobs["queued"]: "failed", jobs["running"]: "failed"}
    assert states()[since] == "queued"
    if as_json:
        assert (planned.document["plan"]["jobs"], planned.document["dry_run"]) == (2, True)
        assert done.document["cleaned_jobs"] == {"queued": 1, "running": 1, "total": 2}
        assert done.document.keys() <= CleanupShape.__annotations__.keys()
    else:
        assert "of 2 job(s), good until" in planned.out
        assert "Successfully cleaned up 2 stuck job(s)." in done.out
    began = rows("SELECT * FROM unstick_audit ORDER BY id")[0]
    assert (began["call"], began["actor"], json.loads(began["parameters"])["plan"]) == (
        "plans.apply",
        f"cli:{USER}",
        plan_id,
    )
    again = sentence(run("apply", plan_id))
    assert again.startswith(f"Plan {plan_id} was applied by cli:{USER} at ")


def test_a_plan_needs_a_dry_run_and_a_secret_key(run: Run, jobs: dict[str, int]) -> None:
    before = states()
    without_dry_run = run("sweep", "--plan")
    assert (without_dry_run.status, "--plan goes with --dry-run" in without_dry_run.err) == (2, True)
    assert "set UNSTICK_SECRET_KEY" in sentence(run("sweep", "--dry-run", "--plan"))
    assert sentence(run("apply", "nothing")).startswith("There is no plan 'nothing' for source 'main'")
    assert states() == before


def test_a_plan_is_good_for_as_long_as_is_configured_and_by_the_mapping_it_was_made_by(
    run: Run, app_table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    configure(MAPPED + '\n    [sweep]\n    plan_lifetime = "2h"\n')
    assert run("db", "upgrade").status == 0
    with sqlite("app.db") as connection:
        connection.execute("INSERT INTO ai_jobs VALUES ('a', 'queued', ?, NULL)", (ago(30),))
    planned = run("sweep", "--dry-run", "--plan", "--json").document
    kept = rows("SELECT made_at, expires_at FROM unstick_plans", "app.db")[0]
    lasts = datetime.fromisoformat(kept["expires_at"]) - datetime.fromisoformat(kept["made_at"])
    assert lasts == timedelta(hours=2)

    configure(MAPPED.replace('queued = "queued"', 'queued = ["queued", "new"]'))
    assert "another mapping" in sentence(run("apply", planned["plan"]["id"]))
    assert rows("SELECT status FROM ai_jobs", "app.db") == [{"status": "queued"}]


# What goes wrong


@pytest.mark.usefixtures("app_table")
@pytest.mark.parametrize("command", [("stuck",), ("sweep", "--json"), ("serve", "--port", "0")])
@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("colums", "columns", "unstick.toml: `[sources.main] colums` is no setting; did you mean `columns`?"),
        (
            '"started"',
            '"started_at"',
            "Table ai_jobs has no column 'started', which the mapping names for 'started_at'.",
        ),
        ("ai_job", "ai_jobs", "There is no table 'ai_job'"),
        (
            "sqlite:///nowhere/app.db",
            "sqlite:///app.db",
            "There is no SQLite file at nowhere/app.db",
        ),
        ("sqlserver:///app.db", "sqlite:///app.db", "There is no driver for sqlserver://"),
        ("[sources.main", "[sources.main]", "The configuration file unstick.toml is no TOML"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], wrong: str, right: str, said: str
) -> None:
    configure()
    assert run("db", "upgrade").status == 0
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    configure(MAPPED.replace(right, wrong))
    assert sentence(run(*command)).startswith(said)


@pytest.mark.usefixtures("app_table")
def test_missing_tables_of_ours_are_told_with_the_command_that_makes_them(run: Run) -> None:
    configure()
    assert "unstick db upgrade --source main" in sentence(run("stuck"))
    assert run("db", "upgrade", "--source", "main").status == 0
    assert run("stuck").status == 0


@pytest.mark.usefixtures("app_table")
def test_a_mistyped_path_makes_no_database_but_a_ledger_of_its_own_is_made(run: Run) -> None:
    configure(MAPPED.replace("app.db", "ap.db"))
    assert sentence(run("db", "upgrade")).startswith("There is no SQLite file at ap.db")
    assert not Path("ap.db").exists()
    configure(MAPPED + '[ledger]\nurl = "sqlite:///ledger.db"\n')
    assert run("db", "upgrade").status == 0
    assert Path("ledger.db").exists()


@pytest.mark.usefixtures("embedded")
@pytest.mark.parametrize("command", [("stuck",), ("sweep",), ("db", "upgrade"), ("db", "current"), ("db", "sql")])
def test_an_unknown_source_is_told_with_those_there_are(run: Run, command: tuple[str, ...]) -> None:
    assert sentence(run(*command, "--source", "mian")) == "There is no source 'mian'; configured are: main."


def test_a_configuration_file_can_be_named(run: Run) -> None:
    Path("other.toml").write_text('[sources.main]\nurl = "sqlite:///other.db"\n')
    assert run("--config", "other.toml", "stuck").status == 0
    assert Path("other.db").exists()
    assert sentence(run("--config", "none.toml", "stuck")) == "There is no configuration file none.toml."


@pytest.mark.usefixtures("embedded")
def test_a_limit_out_of_range_is_one_sentence(run: Run) -> None:
    assert sentence(run("stuck", "--limit", "0")) == "limit must be from 1 to 1000, not 0."


def _fail_to_open(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("unstick.wiring.open_watched", fail)


@pytest.mark.usefixtures("embedded")
def test_an_error_in_several_lines_becomes_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_to_open(monkeypatch, SourceUnavailableError("It doesn't answer:\n\tHINT: \x1b[1mstart it."))
    assert sentence(run("stuck")) == "It doesn't answer: HINT: \N{REPLACEMENT CHARACTER}[1mstart it."


def test_a_bug_ends_with_a_traceback_and_never_with_the_status_of_stuck_jobs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_to_open(monkeypatch, ZeroDivisionError("a bug"))
    ran = run("stuck", "--json")
    assert (ran.status, ran.out) == (2, "")
    assert "Traceback" in ran.err


@pytest.mark.usefixtures("embedded")
def test_what_a_database_refuses_is_one_sentence_that_names_the_statement_and_nothing_it_was_given(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Exception("permission denied for table unstick_audit\nLINE 1: INSERT")
    error = ProgrammingError("INSERT INTO unstick_audit\n(actor) VALUES (:actor)", {"actor": "s3cret"}, refused)
    _fail_to_open(monkeypatch, error)
    assert sentence(run("stuck")) == (
        "The database refused a statement: permission denied for table unstick_audit. "
        "It was: INSERT INTO unstick_audit (actor) VALUES (:actor)…"
    )


def test_a_command_that_is_interrupted_while_it_loads_ends_quietly() -> None:
    code = """
import builtins, sys
real = builtins.__import__
def interrupted(name, *given):
    if name == "unstick.cli.sweep":
        raise KeyboardInterrupt
    return real(name, *given)
builtins.__import__ = interrupted
from unstick.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.usefixtures("embedded")
def test_an_interrupted_command_ends_quietly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_to_open(monkeypatch, KeyboardInterrupt())
    assert run("sweep") == Ran(130, "", "")


def test_a_reader_that_goes_away_is_no_error_and_no_finding() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "unstick", "--version"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "unstick", "--version"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr == b"unstick: The result can't be written: No space left on device.\n"


# The command itself


def test_help_names_every_command(run: Run) -> None:
    ran = run("--help")
    assert ran.status == 0
    assert all(re.search(rf"^  {command} ", ran.out, re.MULTILINE) for command in COMMANDS)


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version") == Ran(0, f"unstick {unstick.__version__}\n", "")


@pytest.mark.parametrize("arguments", [("stick",), ("stuck", "--nonsense"), ("stuck", "main"), ("token", "sign")])
def test_a_command_line_that_means_nothing_ends_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "Usage: unstick" in ran.err


def test_the_command_line_loads_none_of_what_its_commands_need() -> None:
    heavy = "sqlalchemy alembic fastapi starlette uvicorn pydantic pydantic_settings structlog jwt asyncio rich"
    code = f"import sys, unstick.cli.app; print([name for name in {heavy.split()!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Tokens


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, SECRET, ["HS256"], audience="unstick", issuer="unstick")


def test_a_token_says_who_as_what_and_until_when(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    ran = run("token", "sign", "--role", "operator", "--subject", "ann", "--lifetime", "90m")
    said = claims(ran.out.strip())
    assert (ran.status, ran.err) == (0, "")
    assert (said["sub"], said["role"]) == ("ann", "operator")
    assert said["exp"] - said["iat"] == 90 * 60


def test_a_token_is_by_default_for_the_user_of_this_system_and_half_a_day(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    document = run("token", "sign", "--role", "admin", "--json").document
    said = claims(document.pop("token"))
    assert document == {"role": "admin", "subject": USER, "expires_in": 12 * 3600}
    assert (said["sub"], said["exp"] - said["iat"]) == (USER, 12 * 3600)


@pytest.mark.parametrize(
    ("key", "said"), [("", "has 0 bytes"), ("short", "has 5 bytes"), (None, "There is no secret key")]
)
def test_no_token_without_a_proper_key(run: Run, monkeypatch: pytest.MonkeyPatch, key: str | None, said: str) -> None:
    if key is not None:
        monkeypatch.setenv("UNSTICK_SECRET_KEY", key)
    assert said in sentence(run("token", "sign", "--role", "admin"))


@pytest.mark.parametrize("lifetime", ["12", "0h", "400d", "for ever"])
def test_a_lifetime_is_a_duration(run: Run, monkeypatch: pytest.MonkeyPatch, lifetime: str) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    assert sentence(run("token", "sign", "--role", "admin", "--lifetime", lifetime)).startswith("--lifetime must be ")


# Inspecting


@pytest.fixture
def known_table(app_table: None) -> None:
    with sqlite("app.db") as connection:
        connection.executemany(
            "INSERT INTO ai_jobs VALUES (?, ?, ?, ?)",
            [("1", "queued", ago(9), None), ("2", "running", ago(50), None), ("3", "completed", ago(60), ago(59)),
             ("4", "failed", ago(60), ago(59))],
        )  # fmt: skip


@pytest.mark.usefixtures("known_table")
def test_inspect_prints_a_file_that_works(run: Run) -> None:
    ran = run("inspect", "sqlite:///app.db")
    assert ran.status == 0
    assert tomllib.loads(ran.out)["sources"]["main"]["table"] == "ai_jobs"
    Path("unstick.toml").write_text(ran.out)
    assert run("db", "upgrade").status == 0
    assert run("stuck", "--json").document["stuck_jobs"] == {"total": 2, "queued_stuck": 1, "running_stuck": 1}


@pytest.mark.usefixtures("known_table")
def test_inspect_writes_the_file_and_tells_the_doubts(run: Run) -> None:
    ran = run("inspect", "sqlite:///app.db", "--table", "ai_jobs", "--write")
    assert (ran.status, ran.out) == (0, "Wrote unstick.toml.\n")
    assert "warning, timezone: " in ran.err
    assert load_settings().sources["main"].table == "ai_jobs"


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_password_that_is_not_written_is_told_with_where_it_belongs(
    run: Run, mariadb_database: Database, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    execute(mariadb_database, "CREATE TABLE jobs (id INT PRIMARY KEY, status VARCHAR(9), started_at DATETIME)")
    with other_user(mariadb_database, "ALL") as url:
        ran = run("inspect", url, "--write", *more)
        assert ran.status == 0
        assert ran.err.splitlines()[0] == (
            "unstick: warning: The password is left out: give the whole URL in UNSTICK_SOURCES__MAIN__URL."
        )
        assert "hunter2" not in ran.out + ran.err + Path("unstick.toml").read_text()
        assert "Access denied" in sentence(run("db", "upgrade"))
        monkeypatch.setenv("UNSTICK_SOURCES__MAIN__URL", url)
        assert run("db", "upgrade").status == 0
        assert run("stuck").status == 0


@pytest.mark.usefixtures("app_table")
def test_a_file_that_can_not_work_is_not_written_in_silence(run: Run) -> None:
    with sqlite("app.db") as connection:
        for job_id, word in enumerate(("completed", "failed")):
            connection.execute("INSERT INTO ai_jobs VALUES (?, ?, ?, ?)", (str(job_id), word, ago(60), ago(59)))
    for more, file in ((("--json",), "What is proposed"), (("--write",), "unstick.toml")):
        ran = run("inspect", "sqlite:///app.db", *more)
        assert ran.status == 2
        assert ran.err.splitlines()[-1] == (
            f"unstick: {file} can't work as it stands: settle in it what is called a blocker."
        )
    assert ran.out == "Wrote unstick.toml.\n"
    assert "blocker, states: ai_jobs.status has no known word for queued or for running" in ran.err


@pytest.mark.usefixtures("known_table")
def test_inspect_never_overwrites_a_file(run: Run) -> None:
    Path("unstick.toml").write_text("# mine\n")
    said = sentence(run("inspect", "sqlite:///app.db", "--write"))
    assert said.startswith("unstick.toml is already there and is not overwritten")
    assert Path("unstick.toml").read_text() == "# mine\n"
    assert run("--config", "new.toml", "inspect", "sqlite:///app.db", "--write").out == "Wrote new.toml.\n"
    assert "can't be written" in sentence(run("--config", "no/where.toml", "inspect", "sqlite:///app.db", "--write"))


@pytest.mark.usefixtures("known_table")
def test_inspect_says_what_is_wrong_with_the_configuration_there_is_and_looks_all_the_same(run: Run) -> None:
    configure(MAPPED.replace('"started_at",', '"begun_at",'))
    ran = run("inspect", "sqlite:///app.db")
    assert (ran.status, tomllib.loads(ran.out)["sources"]["main"]["table"]) == (0, "ai_jobs")
    assert ran.err.startswith(
        "unstick: warning: What is configured doesn't work: Table ai_jobs has no column 'begun_at'"
    )


@pytest.mark.usefixtures("known_table")
def test_inspect_json_tells_all_of_it(run: Run) -> None:
    ran = run("inspect", "sqlite:///app.db", "--json")
    found = ran.document
    assert (ran.status, ran.err) == (0, "")
    assert (found["table"], found["sampled"], found["blocked"]) == ("ai_jobs", 4, False)
    assert found["columns"]["state"] == "status"
    assert found["states"]["failed"] == ["failed"]
    assert {"severity", "key", "message"} == found["doubts"][0].keys()
    assert tomllib.loads(found["toml"])["sources"]["main"]["columns"] == found["columns"]
    assert found["written_to"] is None


@pytest.mark.usefixtures("known_table")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sqlite:///app.db", "--table", "ai_job"), "There is no table ai_job; did you mean ai_jobs?"),
        (("nonsense",), "The database URL can't be read"),
        (("postgresql://host:port/app",), "The database URL can't be read"),
        (("sqlserver://host/app",), "There is no driver for sqlserver://"),
    ],
)
def test_inspecting_what_is_not_there_is_one_sentence(run: Run, arguments: tuple[str, ...], said: str) -> None:
    assert sentence(run("inspect", *arguments)).startswith(said)


def test_a_password_is_never_repeated(run: Run) -> None:
    said = sentence(run("inspect", "postgresql://ann:hunter2@127.0.0.1:1/app"))
    assert "doesn't answer" in said
    assert "hunter2" not in said


# Tables of our own


@pytest.mark.usefixtures("embedded")
def test_the_tables_are_made_and_told(run: Run) -> None:
    assert run("db", "current", "--json") == Ran(0, '{\n  "revisions": []\n}\n', "")
    assert "not there yet" in run("db", "current").out
    made = run("db", "upgrade", "--json").document["revisions"]
    assert made
    assert run("db", "current", "--json").document["revisions"] == made
    assert run("db", "current").out.strip() == ", ".join(made)
    assert run("db", "upgrade").out.strip() == f"Unstick's own tables are at {', '.join(made)}."


def test_the_statements_are_printed_and_run_nothing(run: Run) -> None:
    printed = run("db", "sql").out
    assert "CREATE TABLE unstick_audit" in printed
    assert run("db", "sql", "--json").document["sql"].strip() == printed.strip()
    assert not Path("unstick.db").exists()


@pytest.mark.parametrize("database", SERVED, indirect=True)
def test_a_user_who_may_make_no_tables_is_told_in_one_sentence(
    run: Run, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database, "CREATE TABLE ai_jobs (id INT PRIMARY KEY)")
    configure()
    with other_user(database, "SELECT") as url:
        monkeypatch.setenv("UNSTICK_SOURCES__MAIN__URL", url)
        said = sentence(run("db", "upgrade"))
    assert said.startswith("Unstick's own tables can't be made in the database of source 'main': ")
    assert "denied" in said
    assert said.endswith(" (unstick db sql prints the statements, for whoever may run them).")


# The service and the demo


def test_the_service_answers_logs_json_and_stops_quietly(
    run: Run, jobs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    token = run("token", "sign", "--role", "viewer").out.strip()
    Path("unstick.toml").unlink()
    port = free_port()
    command = [sys.executable, "-m", "unstick", "serve", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as service:
        try:
            url = f"http://127.0.0.1:{port}/api/v1/admin/jobs/stuck"
            answer = answer_of(url, {"Authorization": f"Bearer {token}"})
            service.send_signal(signal.SIGINT)
            out, err = service.communicate(timeout=30)
        finally:
            service.kill()
    assert answer.json()["stuck_jobs"] == run("stuck", "--json").document["stuck_jobs"]
    assert (service.returncode, out) == (130, "")
    logged = [json.loads(line) for line in err.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in logged)
    [warned] = [line["event"] for line in logged if line["level"] != "info"]
    assert warned.startswith("No configuration found, using the embedded jobs table in ")


def answer_of(url: str, headers: dict[str, str]) -> httpx.Response:
    deadline = time.monotonic() + 60
    while True:
        try:
            return httpx.get(url, headers=headers).raise_for_status()
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_the_service_needs_a_secret_key(run: Run) -> None:
    assert "UNSTICK_SECRET_KEY" in sentence(run("serve"))


def test_a_port_that_is_taken_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = sentence(run("serve", "--port", port))
    assert said == f"Can't listen on 127.0.0.1 port {port}: Address already in use."


@pytest.mark.parametrize("arguments", [(), ("--once",)])
def test_the_demo_takes_this_process_over(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, command: started.append(command))
    run("demo", *arguments)
    assert started == [[sys.executable, "-m", "unstick.demo", *arguments]]


def test_watch_observes_and_sweeps_until_it_is_stopped(run: Run, jobs: dict[str, int]) -> None:
    """The runner without HTTP: it gives its leases back when it is asked to stop, and exits with 0."""
    with Path("unstick.toml").open("a", encoding="utf-8") as file:
        file.write('\n[sweep]\nobserve_every = "0.2s"\nclean_every = "0.3s"\n')
    command = [sys.executable, "-m", "unstick", "watch"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watching:
        try:
            deadline = time.monotonic() + 60
            while not _is_observed():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            watching.send_signal(signal.SIGTERM)
            out, err = watching.communicate(timeout=30)
        finally:
            watching.kill()
    assert (watching.returncode, out) == (0, "")
    said = [json.loads(line)["event"] for line in err.splitlines()]
    assert said[0] == "This process leads source 'main', term 1"
    assert said[-1] == "This process leads no more source 'main', term 1: it was given back"
    assert rows("SELECT holder, term FROM unstick_leaders") == [{"holder": None, "term": 1}]
    assert run("stuck", "--json").document["stuck_jobs"]["total"] == 2, "the first pass only observes"
    assert jobs


def _is_observed() -> bool:
    try:
        return rows("SELECT observed FROM unstick_watches WHERE swept_at IS NOT NULL") != []
    except sqlite3.OperationalError:
        return False


def test_db_prune_says_what_it_struck(run: Run, jobs: dict[str, int]) -> None:
    run("sweep")
    assert run("db", "prune").out == "Nothing is that old.\n"
    with sqlite() as connection:
        connection.execute("UPDATE unstick_events SET at = '2020-01-01 00:00:00'")
        connection.execute("UPDATE unstick_audit SET at = '2020-01-01 00:00:00'")
    assert run("db", "prune", "--json").document == {"pruned": {"unstick_events": 1}}
    assert run("db", "prune", "--audit", "30d").out.endswith("2 row(s) of unstick_audit\n")
    assert "at least 30d" in run("db", "prune", "--audit", "1d").err
    assert jobs


def test_policy_explain_tells_what_holds_for_a_kind_and_which_rule_says_so(run: Run) -> None:
    configure('[policy]\nlooks = 2\n[[policy.rules]]\nkind = "slow*"\nlooks = 3\naction = "retry"\n')
    slow, other = (run("policy", "explain", "--kind", kind, "--json").document for kind in ("slow.pdf", "mail"))
    assert (slow["rule"], slow["policy"]["looks"], slow["policy"]["action"]) == (1, 3, "retry")
    assert (other["rule"], other["policy"]["looks"], other["policy"]["action"]) == (None, 2, "mark_failed")
    assert "  looks            3\n" in run("policy", "explain", "--kind", "slow.pdf").out
