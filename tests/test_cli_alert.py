"""Alerts on the command line: what is open, whether channels can be told, and what cron's sweep tells of."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_cli import Ran, Run, enqueue, rows, run, sentence, sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run"]

SECRET = "a channel's secret of thirty-two bytes"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os  # noqa: PLC0415

    for name in os.environ:
        if name.upper().startswith("UNSTICK_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Receiver:
    """Somebody who is told, and answers with this status."""

    def __init__(self) -> None:
        self.status = 200
        self.told: list[dict[str, Any]] = []
        self.url = ""

    @property
    def changes(self) -> list[str]:
        return [alert["change"] for document in self.told for alert in document["alerts"]]


@contextmanager
def serving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(receiver.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configure(receiver: Receiver, more: str = "") -> None:
    Path("unstick.toml").write_text(
        dedent(f"""
            [alerts.channels.ops]
            url = "{receiver.url}?key=hidden"
            secret = "{SECRET}"
        """)
        + dedent(more),
        encoding="utf-8",
    )


def after_the_first_passes(run: Run) -> None:
    """Make the embedded database, and let the watch over it be no news: neither to alerts nor to the brake's grace."""
    assert run("sweep", "--unattended").status == 0
    with sqlite() as database:
        database.execute("UPDATE unstick_passes SET back_at = NULL")


def test_crons_sweep_tells_what_it_finds_before_it_recovers_it_and_that_it_is_over_after(run: Run) -> None:
    with serving() as receiver:
        configure(receiver)
        after_the_first_passes(run)
        enqueue(status="running", minutes=60, started=True)
        swept = run("sweep", "--unattended", "--json")
        assert (swept.status, swept.err) == (0, "")
        assert swept.document["cleaned_jobs"]["total"] == 1
        assert receiver.changes == ["opened"]
        assert run("sweep", "--unattended").status == 0
    assert receiver.changes == ["opened", "resolved"]
    assert [alert["what"] for document in receiver.told for alert in document["alerts"]] == ["silent", "silent"]


def test_what_a_person_sweeps_raises_no_alert(run: Run) -> None:
    with serving() as receiver:
        configure(receiver)
        after_the_first_passes(run)
        enqueue(status="running", minutes=60, started=True)
        assert run("sweep").status == 0
        assert run("sweep", "--dry-run").status == 0
    assert receiver.told == []


def test_a_channel_that_can_not_be_told_is_said_and_changes_no_exit_code(run: Run) -> None:
    with serving() as receiver:
        configure(receiver)
        after_the_first_passes(run)
        enqueue(status="running", minutes=60, started=True)
        receiver.status = 503
        swept = run("sweep", "--unattended", "--json")
    assert swept.status == 0
    assert swept.document["cleaned_jobs"]["total"] == 1
    assert swept.err == (
        "unstick: warning: channel 'ops' could not be told of an alert, and is tried again next time: "
        "the receiver answered HTTP 503\n"
    )


def test_a_sweep_that_fails_is_told_and_fails_all_the_same(run: Run) -> None:
    with serving() as receiver:
        configure(receiver)
        after_the_first_passes(run)
        enqueue(status="running", minutes=60, started=True)
        with sqlite() as database:
            database.execute("DROP TABLE unstick_recoveries")
        assert run("sweep", "--unattended").status == 2
        told = [alert["what"] for document in receiver.told for alert in document["alerts"]]
    assert "sweep_failed" in told


def test_open_alerts_are_listed_and_the_exit_code_says_that_there_are_some(run: Run) -> None:
    with serving() as receiver:
        configure(receiver)
        after_the_first_passes(run)
        nothing = run("alert", "list")
        assert (nothing.status, nothing.out) == (0, "No alert is open.\n")
        assert run("alert", "list", "--json").document == {"alerts": []}
        enqueue(status="running", minutes=60, started=True)
        run("sweep", "--unattended")
        listed, as_json = run("alert", "list"), run("alert", "list", "--json")
    assert listed.status == as_json.status == 1
    assert "silent  1 job of queue 'default' of source 'main' is stuck (silent: " in listed.out
    [alert] = as_json.document["alerts"]
    assert (alert["source"], alert["queue"], alert["what"], alert["jobs"]) == ("main", "default", "silent", 1)
    assert alert["notified_at"] is not None
    assert "hidden" not in listed.out + as_json.out
    assert SECRET not in listed.out + as_json.out


def test_each_channel_is_tried_and_what_came_of_it_told(run: Run) -> None:
    with serving() as receiver:
        configure(receiver, '[alerts.channels.away]\nurl = "http://127.0.0.1:1/?key=hidden"\nsecret = "' + SECRET + '"')
        both = run("alert", "test")
        one = run("alert", "test", "ops")
        as_json = run("alert", "test", "away", "--json")
    assert (one.status, one.out) == (0, "ops: delivered\n")
    assert both.status == as_json.status == 2
    assert both.out.startswith("ops: delivered\naway: not delivered: no connection")
    [told] = as_json.document["channels"]
    assert (told["channel"], told["delivered"]) == ("away", False)
    assert told["problem"].startswith("no connection")
    assert [document["test"] for document in receiver.told] == [True, True]
    for ran in (both, one, as_json):
        assert "hidden" not in ran.out + ran.err
        assert SECRET not in ran.out + ran.err


def test_to_try_a_channel_needs_one(run: Run) -> None:
    assert sentence(run("alert", "test")) == (
        "Nobody is told of alerts: there is no [alerts.channels.NAME] in the configuration."
    )
    with serving() as receiver:
        configure(receiver)
        assert sentence(run("alert", "test", "nobody")) == "There is no channel 'nobody'; configured are: ops."


def test_an_address_that_apprise_does_not_know_is_said_in_one_sentence(run: Run) -> None:
    Path("unstick.toml").write_text('[alerts.channels.mail]\napprise = "nonsense://me:hunter2hunter2@there"\n')
    said = sentence(run("alert", "test"))
    assert said.startswith("[alerts.channels.mail] `apprise` is no address that Apprise understands (nonsense://…).")
    assert "hunter2" not in said
    refused: Ran = run("sweep", "--unattended")
    assert sentence(refused) == said
    assert not Path("unstick.db").exists() or rows("SELECT * FROM unstick_alerts") == []
