from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from benchmarks import child, document, measures
from benchmarks.__main__ import MEASURES, main
from benchmarks.filling import Filling, Placement
from benchmarks.mariadb import MariaSite
from benchmarks.measures import QUICK
from benchmarks.postgres import PostgresSite
from benchmarks.report import Figure, Goal, Report, Section
from benchmarks.sqlite import SqliteSite

from tests.servers import MariaDB, MissingServerError, PackagedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.databases import Site

    from tests.servers import Servers

BESIDE = ("others", "heartbeats", "scale")
"""Those that tests/test_benchmarks_beside.py has."""
EVERYWHERE = ("recovery", "writes")
"""What differs by the database; the others are run on one."""


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def site(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Site]:
    if request.param == "sqlite":
        yield SqliteSite(tmp_path)
        return
    postgres, mariadb = PackagedPostgres(servers.run, "postgres18"), MariaDB(servers.run, "mariadb")
    try:
        (postgres if request.param == "postgresql" else mariadb).start()
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON {request.param}: {missing}")
    site = PostgresSite(tmp_path, postgres) if request.param == "postgresql" else MariaSite(tmp_path, mariadb)
    yield site
    site.forget_all()


@pytest.mark.parametrize(
    ("site", "measure"),
    [
        *(("postgresql", measure) for measure in MEASURES if measure not in BESIDE),
        *((kind, measure) for kind in ("sqlite", "mariadb") for measure in EVERYWHERE),
        ("mariadb", "detection"),
    ],
    indirect=["site"],
)
def test_each_measure_gives_figures(site: Site, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(task: str, *arguments: str) -> dict[str, Any]:
        return child.TASKS[task](*arguments)

    monkeypatch.setattr(measures, "run_task", run_here)  # starting processes is most of the time
    monkeypatch.setattr(child, "WRITES_A_SECOND", 2_000)
    figures = MEASURES[measure](site, QUICK.on(site.backend))
    assert figures
    assert all(figure.value >= 0 for figure in figures)
    assert any(figure.value > 0 for figure in figures)
    assert any(figure.verdict for figure in figures) or site.backend == "mariadb"


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


MISSED = Figure(
    measure="m", database="sqlite", name="n", values=[1], unit="ms", ratios=[9], against="o", goal=Goal(bound=2)
)


def test_the_report_is_a_table_and_json_and_never_fails_for_a_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MEASURES, "memory", lambda _site, _sizes: [MISSED])
    file = tmp_path / "figures.json"
    assert main(["memory", "--on", "sqlite", "--quick", "--json", str(file), "--directory", str(tmp_path)]) == 0
    assert "missed" in capsys.readouterr().out
    assert Report.from_json(json.loads(file.read_text())).figures == [MISSED]
    assert list(tmp_path.iterdir()) == [file]


def test_a_measure_that_fails_stops_no_other_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list[Figure]:
        raise RuntimeError("no figures today")

    monkeypatch.setitem(MEASURES, "memory", fails)
    monkeypatch.setitem(MEASURES, "writes", lambda _site, _sizes: [MISSED])
    assert main(["memory", "writes", "--on", "sqlite", "--quick", "--directory", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "no figures today" in said.err
    assert "missed" in said.out


def test_a_page_tells_what_is_missed_by_how_much_and_what_was_remarked(tmp_path: Path) -> None:
    for place in (document.RESULTS, document.IMAGES, document.PAGE.parent):
        (tmp_path / place).mkdir(parents=True)
    report = Report(facts={"Machine": "an abacus"}, sections=[Section(name="memory", about="Beads.", figures=[MISSED])])
    (tmp_path / document.RESULTS / "2026-11-24.json").write_text(document.as_text(report))
    (tmp_path / document.REMARKS).write_text('memory = "It is an abacus."')
    page = document.pages(tmp_path)[document.PAGE]
    assert "0 of 1 are reached" in page
    assert "| m, sqlite, n | 9.00 of o | ≤ 2 | **missed** by 350 % |" in page
    assert "*It is an abacus.*" in page


def test_the_page_is_what_the_newest_record_and_the_remarks_say() -> None:
    """After a change by hand: `python -m benchmarks --document`."""
    pages = document.pages(document.ROOT)
    assert (document.PAGE in pages) is (document.ROOT / document.PAGE).exists()
    for path, text in pages.items():
        assert (document.ROOT / path).read_text() == text, path


def test_a_task_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    with SqliteSite(tmp_path).fresh(Filling(finished=10, stuck=3, healthy=1)) as database:
        said = measures.run_task("sweep", str(database.config))
    assert said["jobs"] == 3
    assert said["memory"] > 10
