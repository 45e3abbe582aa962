from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks import child, measures
from benchmarks.__main__ import MEASURES, main
from benchmarks.databases import PostgresSite, Site, SqliteSite
from benchmarks.filling import Filling, Placement
from benchmarks.measures import Sizes
from benchmarks.report import Figure, Goal

from tests.servers import MissingServerError, PackagedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Servers

TINY = Sizes(
    finished=200,
    fewer_finished=20,
    stuck=30,
    memory_stuck=(5, 30),
    orm_stuck=10,
    detected=10,
    rounds=1,
    calls=2,
    baseline_seconds=0.2,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Site]:
    if request.param == "sqlite":
        yield SqliteSite(tmp_path)
        return
    server = PackagedPostgres(servers.run, "postgres18")
    try:
        server.start()
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON postgres18: {missing}")
    site = PostgresSite(tmp_path, server)
    yield site
    site.forget_all()


@pytest.mark.parametrize("measure", MEASURES)
def test_each_measure_gives_figures(site: Site, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(task: str, *arguments: str) -> dict[str, Any]:
        return child.TASKS[task](*arguments)

    monkeypatch.setattr(measures, "run_task", run_here)  # starting processes is most of the time
    monkeypatch.setattr(child, "WRITES_A_SECOND", 2_000)
    figures = MEASURES[measure](site, TINY)
    assert figures
    assert all(figure.value > 0 for figure in figures)
    assert any(figure.verdict for figure in figures)


@pytest.mark.parametrize("placement", ["even", "end"])
def test_a_filled_database_holds_what_was_asked_for(site: Site, placement: Placement) -> None:
    with site.fresh(Filling(finished=70, stuck=9, healthy=3, placement=placement)) as database:
        open_jobs = "SELECT count(*) FROM ai_generation_jobs WHERE completed_at IS NULL"
        assert database.count("SELECT count(*) FROM ai_generation_jobs") == 82
        assert database.count(open_jobs) == 12
        assert database.count(f"{open_jobs} AND id <= 40") == {"even": 4, "end": 0}[placement]
        assert run_sweep(database.config) == 9


def run_sweep(config: Path) -> int:
    jobs: int = child.sweep(str(config))["jobs"]
    return jobs


def test_the_report_is_a_table_and_json_and_never_fails_for_a_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = Figure(measure="m", database="sqlite", name="n", values=[1], unit="ms", ratios=[9], goal=Goal(bound=2))
    monkeypatch.setitem(MEASURES, "memory", lambda _site, _sizes: [missed])
    file = tmp_path / "figures.json"
    assert main(["memory", "--on", "sqlite", "--quick", "--json", str(file), "--directory", str(tmp_path)]) == 0
    assert "missed" in capsys.readouterr().out
    (figure,) = json.loads(file.read_text())["figures"]
    assert (figure["ratio"], figure["verdict"]) == (9, "missed")
    assert list(tmp_path.iterdir()) == [file]


def test_a_task_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    with SqliteSite(tmp_path).fresh(Filling(finished=10, stuck=3, healthy=1)) as database:
        said = measures.run_task("sweep", str(database.config))
    assert said["jobs"] == 3
    assert said["memory"] > 10
