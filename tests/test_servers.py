from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.servers import SERVED

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tests.servers import Database, Servers

VERSIONS = {
    "sqlite": r"3\.",
    "postgres18": r"18\.",
    "postgres18-asyncpg": r"18\.",
    "postgres15": r"15\.",
    "mariadb": r"(10\.([6-9]|\d\d)|1[1-9])\..*MariaDB",
}


async def test_each_database_answers_with_the_version_it_is_named_for(database: Database) -> None:
    question = {"sqlite": "SELECT sqlite_version()", "postgresql": "SHOW server_version"}
    engine = create_async_engine(database.url, poolclass=NullPool)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
        version = await connection.scalar(text(question.get(database.backend, "SELECT version()")))
    assert re.match(VERSIONS[database.name], version)
    assert engine.dialect.name == database.backend


@pytest.mark.parametrize("turn", ["first", "second"])
async def test_each_test_has_an_empty_database_to_itself(database: Database, turn: str) -> None:
    def tables(connection: Connection) -> list[str]:
        return inspect(connection).get_table_names()

    engine = create_async_engine(database.url, poolclass=NullPool)
    async with engine.begin() as connection:
        assert await connection.run_sync(tables) == []
        await connection.execute(text(f"CREATE TABLE made_by_the_{turn} (id INTEGER)"))


@pytest.mark.parametrize("database", SERVED, indirect=True)
async def test_a_connection_left_in_a_transaction_does_not_keep_its_database_from_being_dropped(
    database: Database, servers: Servers
) -> None:
    with servers.database(database.name) as another:
        engine = create_async_engine(another.url)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE busy (id INTEGER)"))
        connection = await engine.connect()
        await connection.execute(text("SELECT * FROM busy"))
    with pytest.raises(DBAPIError):
        await connection.execute(text("SELECT * FROM busy"))
    await connection.close()
    await engine.dispose()


@pytest.mark.parametrize("database", SERVED, indirect=True)
def test_a_run_that_is_killed_leaves_no_server_behind(database: Database) -> None:
    program = f"""
import os, signal
from tests.servers import Servers
with Servers.for_this_run() as servers, servers.database({database.name!r}):
    print(servers.run, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    run = Path(killed.stdout.strip())
    assert run.name.startswith("unstick-")
    deadline = time.monotonic() + 20
    while [path for path in run.iterdir() if path.is_dir()]:  # the guard removes it once its server has ended
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shutil.rmtree(run)


def test_a_skip_is_a_failure_in_ci(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_in_all_ways = """
import pytest
def test_in_the_body(): pytest.skip("no server")
@pytest.mark.skip(reason="no server")
def test_by_a_mark(): pass
@pytest.mark.xfail(strict=True)
def test_that_is_known_to_fail(): assert False
"""
    pytester.makeconftest("from tests.conftest import pytest_make_collect_report, pytest_runtest_makereport")
    pytester.makepyfile(
        test_skips=skip_in_all_ways, test_module="import pytest; pytest.skip('', allow_module_level=True)"
    )
    options = ("-p", "no:asyncio", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    monkeypatch.delenv("CI", raising=False)
    pytester.runpytest(*options).assert_outcomes(skipped=3, xfailed=1)
    monkeypatch.setenv("CI", "true")
    pytester.runpytest(*options).assert_outcomes(failed=1, errors=2, xfailed=1)
