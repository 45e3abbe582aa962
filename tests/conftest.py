from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers import SERVED, SHARED_SERVERS, Database, MissingServerError, MortalPostgres, Servers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytest_plugins = ["pytester"]
SERVERS = pytest.StashKey[Servers]()


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[SERVERS] = Servers(Path(worker["servers"]))
        return
    if shared := os.environ.get(SHARED_SERVERS):
        config.stash[SERVERS] = Servers(Path(shared))
        return
    stack = ExitStack()
    config.add_cleanup(stack.close)
    config.stash[SERVERS] = stack.enter_context(Servers.for_this_run())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401  # xdist has no types
    node.workerinput["servers"] = str(node.config.stash[SERVERS].run)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped_in_ci(report)
    return report


def _fail_if_skipped_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        report.longrepr = f"Nothing may be skipped in CI: {reason}"


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Servers:
    return request.config.stash[SERVERS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on every database, unless it names some, or its module does by `DATABASES`."""
    if "database" not in metafunc.fixturenames:
        return
    named = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if any("database" in (re.split(r"[,\s]+", names) if isinstance(names, str) else names) for names in named):
        return
    names = getattr(metafunc.module, "DATABASES", ("sqlite", *SERVED))
    metafunc.parametrize("database", names, indirect=True)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind that Unstick supports."""
    yield from _database(request, request.param, tmp_path)


@pytest.fixture
def sqlite_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    yield from _database(request, "sqlite", tmp_path)


@pytest.fixture
def postgres_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    yield from _database(request, "postgres18", tmp_path)


@pytest.fixture
def mariadb_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    yield from _database(request, "mariadb", tmp_path)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty broker, by its address."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(request.config.stash[SERVERS].broker())
        except MissingServerError as missing:
            pytest.skip(f"NOT TESTED ON a broker: {missing}")
        yield address


@pytest.fixture
def mortal() -> Iterator[MortalPostgres]:
    """A PostgreSQL server of this test's own, which can be killed, halted and started again."""
    directory = Path(tempfile.mkdtemp(prefix="unstick-mortal-"))
    directory.chmod(0o755)
    server = MortalPostgres(directory, "postgres")
    try:
        server.make()
        server.begin()
        yield server
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED WITH A DATABASE THAT DIES: {missing}")
    finally:
        server.die()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def mortal_database(mortal: MortalPostgres) -> Database:
    mortal.create("mortal")
    return Database("mortal", mortal.url("psycopg", "mortal"), mortal.backend)


def _database(request: pytest.FixtureRequest, name: str, directory: Path) -> Iterator[Database]:
    if name == "sqlite":
        yield Database(name, f"sqlite+aiosqlite:///{directory / 'test.db'}", "sqlite")
        return
    with ExitStack() as stack:
        try:
            database = stack.enter_context(request.config.stash[SERVERS].database(name))
        except MissingServerError as missing:
            pytest.skip(f"NOT TESTED ON {name}: {missing}")
        yield database
