"""Benchmarks beside other systems, of heartbeats, and of what grows; and the model, for what can't be tried here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from benchmarks import child, model
from benchmarks.heartbeats import heartbeats
from benchmarks.measures import QUICK
from benchmarks.model import Constants, Scale
from benchmarks.others import measure
from benchmarks.others.systems import IN_TABLES
from benchmarks.postgres import PostgresSite
from benchmarks.report import Report, Section
from benchmarks.scale import scale

from tests.servers import MissingServerError, PackagedPostgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.databases import Site

    from tests.servers import Servers

ROOT = Path(__file__).parents[1]
TINY = replace(QUICK, finished=50, histories=(24, 240), stuck=20, fewer_stuck=20)
CONSTANTS = Constants(
    look=0.004,
    look_at_a_partition=0.0001,
    asking=0.0005,
    beat=0.0004,
    update=0.0001,
    recovery=0.00005,
    recovery_kept=700,
    recovery_written=800,
    sweep_kept=1_500,
    scan_of_a_million=0.1,
)


@pytest.fixture
def site(servers: Servers, tmp_path: Path) -> Iterator[Site]:
    server = PackagedPostgres(servers.run, "postgres18")
    try:
        server.start()
    except MissingServerError as missing:
        pytest.skip(f"NOT TESTED ON postgres18: {missing}")
    site = PostgresSite(tmp_path, server)
    yield site
    site.forget_all()


def test_another_system_recovers_its_jobs_and_unstick_does_so_in_the_same_tables(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "run_task", lambda _task, config: child.sweep(config))  # starting one is most of it
    (pgqueuer,) = (each for each in IN_TABLES if each.name == "pgqueuer")
    figures = measure.others(site, TINY, [pgqueuer])
    named = {figure.name: figure for figure in figures}
    contract = {f"Unstick, contract's table, 20 {done}" for done in ("queued again", "marked failed")}
    assert {"PgQueuer 1.6 itself, 20", "Unstick over it, 20", *contract} <= named.keys()
    assert all(figure.value > 0 for figure in figures)


def test_each_system_says_how_its_jobs_get_stuck_and_has_a_program_that_recovers_them() -> None:
    for each in IN_TABLES:
        assert each.command[-1].rsplit(".", 1)[-1] in ("py", "mjs")
        for statement in (*each.finished, *each.stuck):
            statement.format(rows=1)
        assert any("{rows}" in statement for statement in each.stuck)


def test_the_page_tells_what_the_model_makes_of_a_run_and_leaves_what_was_written_by_hand(site: Site) -> None:
    sections = [Section(name=each.__name__, about="", figures=each(site, TINY)) for each in (heartbeats, scale)]
    report = Report.from_json(json.loads(json.dumps(Report(facts={}, sections=sections).as_json())))
    told = model.page("By hand.\n<!-- model -->\nold\n<!-- /model -->\nBy hand, too.\n", report)

    assert told.startswith("By hand.\n<!-- model -->\n| measured here |")
    assert told.endswith("|\n<!-- /model -->\nBy hand, too.\n")
    assert "old\n" not in told
    assert model.page(told, report) == told
    written = {figure.name: figure.value for figure in report.figures if figure.measure.endswith("WAL")}
    by_lease, by_worker, one_by_one = written.values()
    assert by_lease < by_worker / 10
    assert by_lease < one_by_one / 10


def test_a_run_that_did_not_measure_what_the_model_needs_is_told_so() -> None:
    with pytest.raises(model.NotMeasuredError, match="scale"):
        model.constants_of(Report(facts={}, sections=[]))


def test_the_page_has_a_place_for_the_tables() -> None:
    assert model.PLACE.search((ROOT / model.PAGE).read_text())


# The model alone.


def shares(size: Scale) -> dict[str, float]:
    return {load.name: load.share for load in model.loads(CONSTANTS, size)}


def test_the_rows_cost_nothing_where_the_partial_index_is() -> None:
    assert shares(Scale(rows=1e9)) == shares(Scale(rows=1e6))
    without = [model.avoided(CONSTANTS, Scale(rows=rows))[0].share for rows in (1e6, 1e9)]
    assert without[1] == pytest.approx(1_000 * without[0])


@pytest.mark.parametrize(
    ("name", "twice"),
    [
        ("looks of sweeps", Scale(sweeps=20_000)),
        ("askings for the lease", Scale(replicas=200)),
        ("heartbeats by lease", Scale(workers=20_000)),
        ("recoveries", Scale(stuck=200_000)),
    ],
)
def test_each_cost_grows_with_what_is_said_of_it_and_with_nothing_else(name: str, twice: Scale) -> None:
    before, after = shares(Scale()), shares(twice)
    assert {each: after[each] / before[each] for each in before} == pytest.approx(
        {each: 2 if each == name else 1 for each in before}
    )


def test_each_partition_adds_to_a_look_and_the_dearest_cost_comes_first() -> None:
    few, many = shares(Scale(partitions=12)), shares(Scale(partitions=1_200))
    assert few["looks of sweeps"] == pytest.approx(10_000 * 0.004 / 86_400)
    assert many["looks of sweeps"] == pytest.approx(10_000 * (0.004 + 1_188 * 0.0001) / 86_400)
    loads = model.loads(CONSTANTS, Scale())
    assert [load.share for load in loads] == sorted((load.share for load in loads), reverse=True)
    assert loads[0].headroom == pytest.approx(1 / loads[0].share)
