"""`unstick user`, `unstick token` and the link that `unstick serve` prints, run as an operator would."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.test_cli import SECRET, USER, Run, _empty_directory, embedded, free_port, rows, run, sentence

__all__ = ["_empty_directory", "embedded", "run"]  # the fixtures of the command line's other tests

PASSWORD = "correct horse battery"
KEPT = ("unstick_audit", "unstick_credentials", "unstick_users", "unstick_sign_in_failures")


def given(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))


def test_users_are_added_listed_and_removed(run: Run, embedded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, f"{PASSWORD}\n")
    added = run("user", "add", "grace", "--role", "admin")
    assert (added.status, added.out, added.err) == (0, "grace signs in as admin from now on.\n", "")
    [listed] = run("user", "list", "--json").document["users"]
    assert (listed["name"], listed["role"], listed["made_by"]) == ("grace", "admin", f"cli:{USER}")

    given(monkeypatch, f"{PASSWORD}\n")
    assert sentence(run("user", "add", "grace", "--role", "viewer")).startswith("There is a user 'grace' already")
    assert run("user", "remove", "grace").out == "grace can't sign in any more.\n"
    assert sentence(run("user", "remove", "grace")) == "There is no user 'grace'."
    assert run("user", "list").out == "There is no user.\n"
    calls = rows("SELECT call, actor FROM unstick_audit ORDER BY id")
    assert calls == [{"call": call, "actor": f"cli:{USER}"} for call in ("users.add", "users.remove")]


@pytest.mark.parametrize(
    ("said", "why"),
    [("", "There is no password on stdin"), ("too short\n", "A password has 12 to 1024 characters; this one has 9.")],
)
def test_a_password_that_is_none_is_refused(
    run: Run, embedded: None, monkeypatch: pytest.MonkeyPatch, said: str, why: str
) -> None:
    given(monkeypatch, said)
    assert sentence(run("user", "add", "grace", "--role", "admin")).startswith(why)
    assert run("user", "list", "--json").document == {"users": []}


def test_tokens_are_made_once_shown_listed_and_revoked(run: Run, embedded: None) -> None:
    made = run("token", "make", "ci", "--role", "operator", "--for", "3d").out.strip()
    assert re.fullmatch(r"unstick_[0-9a-f]{16}[\w-]{43}", made)
    [listed] = run("token", "list", "--json").document["tokens"]
    assert (listed["name"], listed["role"], listed["used_at"]) == ("token:ci", "operator", None)
    assert made[-43:] not in run("token", "list").out
    assert run("token", "revoke", listed["id"]).out == f"Token {listed['id']} is revoked.\n"
    assert sentence(run("token", "revoke", listed["id"])).startswith("There is no token")
    assert run("token", "list").out == "There is no token.\n"
    assert sentence(run("token", "make", "ci", "--role", "operator", "--for", "366d")).startswith("--for must be")


@contextmanager
def served(stderr: int) -> Iterator[str]:
    """Run the service until the block ends, and yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "unstick", "serve", "--port", str(port)]
    with subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL) as service:
        try:
            _await(f"http://127.0.0.1:{port}/health/live")
            yield f"http://127.0.0.1:{port}"
            service.send_signal(signal.SIGTERM)
            service.wait(timeout=30)
        finally:
            service.kill()


def _await(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(url)
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


def test_on_a_terminal_the_service_offers_a_link_that_signs_in_once_and_is_logged_nowhere(
    run: Run, embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    terminal, slave = pty.openpty()
    os.set_blocking(terminal, False)
    with served(slave) as address:
        said = os.read(terminal, 1_000_000).decode()
        [link] = re.findall(r"Sign in once, within 10 minutes: (\S+)", said)
        assert link.startswith(f"{address}/console/sign-in/link?key=")
        key = link.partition("=")[2]
        with httpx.Client(headers={"Origin": address}) as browser:
            assert browser.get(link).status_code == 200
            signed_in = browser.post(link.partition("?")[0], data={"key": key})
            assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/console/")
            home = browser.get(f"{address}/console/")
            assert (home.status_code, f"cli:{USER}" in home.text) == (200, True)
            assert browser.post(link.partition("?")[0], data={"key": key}).status_code == 401
            cookie = browser.cookies["unstick_session"]
    logged = os.read(terminal, 1_000_000).decode()
    os.close(slave)
    os.close(terminal)
    assert "/console/sign-in/link" in logged
    kept = [str(row) for table in KEPT for row in rows(f"SELECT * FROM {table}")]
    for secret in (key[16:], cookie[16:]):
        assert secret not in logged
        assert [row for row in kept if secret in row] == []


def test_without_a_terminal_the_service_says_where_it_listens_and_offers_nobody_a_link(
    run: Run, embedded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSTICK_SECRET_KEY", SECRET)
    with Path("log").open("wb") as log, served(log.fileno()) as address:
        pass
    events = [json.loads(line)["event"] for line in Path("log").read_text().splitlines()]
    assert f"Listening on {address}; the console is at {address}/console/." in events
    assert rows("SELECT * FROM unstick_credentials") == []
