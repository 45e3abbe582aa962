"""The witnesses that a configuration names are built, asked together, and told where they can't be."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.jobs import AWARE, COLUMNS, STATES, jobs_table, make_tables
from tests.witnessing import statements_of
from unstick.config import Settings
from unstick.domain.errors import ConfigurationError
from unstick.domain.evidence import Holding
from unstick.pipeline.gather import gather
from unstick.sql.engine import open_engine
from unstick.testing.witnesses import running_job
from unstick.wiring import open_watched

if TYPE_CHECKING:
    from tests.servers import Database

ALL: dict[str, Any] = {
    "registry": {
        "table": "workers",
        "columns": {"id": "id", "heartbeat_at": "last_heartbeat"},
        "alive_for": "30s",
    },
    "backends": {"by": "pid", "worker": "{host}:{pid}"},
    "process": {"same_namespace": True},
    "http": {"url": "http://127.0.0.1:1/held"},
    "progress": {},
}


async def settings(database: Database, **witnesses: Any) -> Settings:  # noqa: ANN401
    """Make the tables of a platform that has workers, and the configuration for it."""
    table = jobs_table(sa.Column("worker", sa.String(100)), sa.Column("progress", sa.Integer))
    sa.Table(
        "workers", table.metadata, sa.Column("id", sa.String(100), primary_key=True), sa.Column("last_heartbeat", AWARE)
    )
    engine = open_engine(database.url, create=True)
    async with engine.begin() as connection:
        await connection.run_sync(table.metadata.create_all)
    await make_tables(engine)
    await engine.dispose()
    columns = COLUMNS | {"worker": "worker", "progress": "progress"}
    states = {state.value: words for state, words in STATES.items()}
    section = {"url": database.url, "table": table.name, "columns": columns, "states": states}
    return Settings.model_validate({"sources": {"main": section | witnesses}})


async def test_without_configuration_nobody_is_asked(database: Database) -> None:
    async with open_watched(await settings(database)) as watched:
        assert watched.witnesses == ()


async def test_all_are_asked_and_each_has_its_word_on_every_job(database: Database) -> None:
    """Ten thousand suspects are a handful of statements."""
    known = (
        ALL if database.backend == "postgresql" else {name: each for name, each in ALL.items() if name != "backends"}
    )
    async with open_watched(await settings(database, **known)) as watched:
        now = await watched.source.clock()
        first = running_job(1, now, worker="box:1", progress="40")
        jobs = [first, *(replace(first, id=number, worker=f"box:{number}") for number in range(2, 10_001))]
        engine = watched.witnesses[0]._connections._engine  # type: ignore[attr-defined]
        with statements_of(engine) as ran:
            words = await gather(watched.witnesses, jobs, now, timedelta(seconds=30))

    names = [{"backends": "backend"}.get(name, name) for name in known]
    assert [[word.witness for word in words[job.id]] for job in jobs] == [names] * 10_000
    assert {word.holding for word in words[1] if word.witness == "registry"} == {Holding.RELEASED}
    assert {word.holding for word in words[1] if word.witness in {"http", "progress", "process"}} == {Holding.UNKNOWN}
    assert len(ran) <= 14


async def test_a_registry_that_does_not_fit_is_told_at_the_start(database: Database) -> None:
    wrong = ALL["registry"] | {"table": "wrkers"}
    with pytest.raises(ConfigurationError, match="did you mean 'workers'"):
        async with open_watched(await settings(database, registry=wrong)):
            pass


async def test_backends_are_postgresqls(sqlite_database: Database) -> None:
    with pytest.raises(ConfigurationError, match="only PostgreSQL has"):
        async with open_watched(await settings(sqlite_database, backends=ALL["backends"])):
            pass


@pytest.mark.parametrize(("library", "witness"), [("psutil", "process"), ("httpx", "http")])
async def test_a_library_that_is_not_installed_is_named_with_what_to_install(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, library: str, witness: str
) -> None:
    chosen = await settings(sqlite_database, **{witness: ALL[witness]})
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"unstick.witnesses.{witness}", raising=False)
    with pytest.raises(ConfigurationError, match=rf"{library}, which isn't installed.*'unstick\[witnesses\]'"):
        async with open_watched(chosen):
            pass
