"""The alerts by promtool, and every query of the dashboard by a Prometheus that scrapes a service at work."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from unstick.config import Cron
from unstick.domain.leadership import LEADS_FOR
from unstick.domain.schedule import Every, Timetable
from unstick.telemetry.dashboards import DASHBOARD_FILE, RULES_FILE, dashboard, files, rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SECRET = "a secret of thirty-two bytes or more"


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"NOT TESTED: {name} is missing: apt-get install prometheus")
    return found


# The rules


def promtool(*arguments: str | Path) -> str:
    ran = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    file = tmp_path / RULES_FILE
    file.write_text(files(Timetable())[RULES_FILE], encoding="utf-8")
    return file


def test_prometheus_takes_the_rules(rules_file: Path) -> None:
    assert "SUCCESS: 7 rules found" in promtool("check", "rules", rules_file)


@dataclass(frozen=True)
class Fires:
    """An alert as it is to fire."""

    value: str = ""
    """As the text says it."""
    labels: Mapping[str, str] = field(default_factory=lambda: {"source": "main"})
    cause: str | None = None


@dataclass(frozen=True)
class Case:
    """What an alert does at a minute, given how series went until then, one value a minute."""

    alert: str
    series: Mapping[str, str]
    at: int
    fires: tuple[Fires, ...] = ()

    def as_promtool(self) -> Mapping[str, object]:
        series = [{"series": f"unstick_{name}", "values": values} for name, values in self.series.items()]
        alerts = [_expected(self.alert, each) for each in self.fires]
        judged = {"eval_time": f"{self.at}m", "alertname": self.alert, "exp_alerts": alerts}
        return {"interval": "1m", "input_series": series, "alert_rule_test": [judged]}


def _expected(alert: str, fires: Fires) -> Mapping[str, object]:
    groups: Any = rules(Timetable())["groups"]
    [rule] = [
        each for each in groups[0]["rules"] if each["alert"] == alert and each["labels"].get("cause") == fires.cause
    ]
    filled = {**{f"$labels.{name}": word for name, word in fires.labels.items()}, "$value": fires.value}

    def fill(text: str) -> str:
        for name, word in filled.items():
            text = text.replace(f"{{{{ {name} }}}}", word).replace(f"{{{{ {name} | humanizeDuration }}}}", word)
        return text

    annotations = {name: fill(text) for name, text in rule["annotations"].items()}
    assert "{{" not in str(annotations)
    return {"exp_labels": {**fires.labels, **rule["labels"]}, "exp_annotations": annotations}


STUCK = 'stuck_jobs{{source="main",queue="{queue}",reason="silent",instance="{instance}"}}'
SUCCESS = 'sweep_last_success_timestamp_seconds{{source="main",instance="{}"}}'
LEADER = 'leader{{source="main",instance="{}"}}'
UP = 'source_up{{source="main",instance="{}"}}'
BRAKE = 'brake_engaged{{source="main",instance="{}"}}'
LATE = 'late_finishes_total{{source="main",instance="{}"}}'
SILENT = {"source": "main", "reason": "silent"}
FRESH = "0+60x200"
"""A time that is always now: a minute is 60 seconds."""
NEW = "0x200"
"""A time that stays where it was: at the beginning."""

CASES = {
    "stuck jobs that six sweeps have left": Case(
        "UnstickStuckJobs",
        {STUCK.format(queue="mail", instance="a"): "3x90", STUCK.format(queue="video", instance="a"): "1x90"},
        60,
        (Fires("4", SILENT),),
    ),
    "stuck jobs that sweeps may yet recover": Case(
        "UnstickStuckJobs", {STUCK.format(queue="mail", instance="a"): "3x90"}, 59
    ),
    "stuck jobs that were gone meanwhile": Case(
        "UnstickStuckJobs", {STUCK.format(queue="mail", instance="a"): "3x30 stale 3x60"}, 80
    ),
    "stuck jobs that two replicas told of for a while are counted once": Case(
        "UnstickStuckJobs",
        {STUCK.format(queue="mail", instance="a"): "3x90", STUCK.format(queue="mail", instance="b"): "3x90"},
        60,
        (Fires("3", SILENT),),
    ),
    "a sweep every minute": Case("UnstickSweeperDead", {SUCCESS.format("a"): FRESH, LEADER.format("a"): "1x200"}, 120),
    "a last success half an hour ago": Case(
        "UnstickSweeperDead", {SUCCESS.format("a"): NEW, LEADER.format("a"): "1x200"}, 30
    ),
    "a last success longer ago": Case(
        "UnstickSweeperDead",
        {SUCCESS.format("a"): NEW, LEADER.format("a"): "1x200"},
        31,
        (Fires("31m 0s", cause="overdue"),),
    ),
    "a last success that was long ago, by one of two replicas": Case(
        "UnstickSweeperDead",
        {
            SUCCESS.format("a"): NEW,
            LEADER.format("a"): "0x200",
            SUCCESS.format("b"): FRESH,
            LEADER.format("b"): "1x200",
        },
        120,
    ),
    "a replica that followed, and took over from one that is gone": Case(
        "UnstickSweeperDead",
        {
            SUCCESS.format("a"): "0+60x10 stale",
            LEADER.format("a"): "1x10 stale",
            SUCCESS.format("b"): "_x10 660+60x190",
            LEADER.format("b"): "0x10 1x190",
        },
        120,
    ),
    "a process that never came to the end of a sweep": Case(
        "UnstickSweeperDead",
        {LEADER.format("a"): "1x200"},
        31,
        (Fires(cause="no_success"),),
    ),
    "a process that has just begun": Case("UnstickSweeperDead", {LEADER.format("a"): "1x200"}, 29),
    "a process that is gone, after half an hour": Case(
        "UnstickSweeperDead",
        {SUCCESS.format("a"): "0 stale", LEADER.format("a"): "1 stale"},
        30,
    ),
    "a process that is gone": Case(
        "UnstickSweeperDead",
        {SUCCESS.format("a"): "0 stale", LEADER.format("a"): "1 stale"},
        31,
        (Fires("31m 0s", cause="overdue"), Fires(labels={}, cause="no_process")),
    ),
    "a process that is long gone": Case(
        "UnstickSweeperDead",
        {SUCCESS.format("a"): "0 stale", LEADER.format("a"): "1 stale"},
        180,
        (Fires(labels={}, cause="no_process"),),
    ),
    "no process at all": Case("UnstickSweeperDead", {}, 30, (Fires(labels={}, cause="no_process"),)),
    "a source that is observed": Case("UnstickSourceDown", {UP.format("a"): "1x9", LEADER.format("a"): "1x9"}, 9),
    "a source that can't be observed": Case(
        "UnstickSourceDown", {UP.format("a"): "1 0x9", LEADER.format("a"): "1x9"}, 4, (Fires(),)
    ),
    "a source that could not be observed twice": Case(
        "UnstickSourceDown", {UP.format("a"): "1 0x9", LEADER.format("a"): "1x9"}, 3
    ),
    "a source that another replica can observe": Case(
        "UnstickSourceDown",
        {UP.format("a"): "0x9", UP.format("b"): "1x9", LEADER.format("a"): "0x9", LEADER.format("b"): "1x9"},
        9,
    ),
    "a source that nobody leads, for its ledger is away too": Case(
        "UnstickSourceDown",
        {UP.format("a"): "1 stale", LEADER.format("a"): "1 0x9", LEADER.format("b"): "0x9"},
        4,
        (Fires(),),
    ),
    "a source that one replica takes over from another": Case(
        "UnstickSourceDown", {LEADER.format("a"): "1x3 0x9", LEADER.format("b"): "0x4 1x9"}, 9
    ),
    "a brake": Case("UnstickBrakeEngaged", {BRAKE.format("a"): "0 1"}, 1, (Fires(),)),
    "a brake that was released": Case("UnstickBrakeEngaged", {BRAKE.format("a"): "1 0"}, 1),
    "a late finish": Case("UnstickLateFinishes", {LATE.format("a"): "0x5 1x90"}, 20, (Fires(),)),
    "a late finish an hour ago": Case("UnstickLateFinishes", {LATE.format("a"): "0x5 1x90"}, 70),
    "late finishes that were counted before": Case("UnstickLateFinishes", {LATE.format("a"): "7x90"}, 20),
    "a process that counts from 0 again": Case("UnstickLateFinishes", {LATE.format("a"): "7x5 0x90"}, 20),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_alert_fires_when_it_should_and_never_else(rules_file: Path, tmp_path: Path, case: Case) -> None:
    file = tmp_path / "test.yml"
    document = {"rule_files": [str(rules_file)], "evaluation_interval": "1m", "tests": [case.as_promtool()]}
    file.write_text(json.dumps(document))
    promtool("test", "rules", file)


def test_each_alert_is_seen_to_fire_and_not_to_fire() -> None:
    groups: Any = rules(Timetable())["groups"]
    alerts = {(rule["alert"], rule["labels"].get("cause")) for rule in groups[0]["rules"]}
    assert alerts == {(case.alert, each.cause) for case in CASES.values() for each in case.fires}
    assert {name for name, _ in alerts} == {case.alert for case in CASES.values() if not case.fires}


def test_alerts_say_how_grave_they_are_and_what_to_do_next() -> None:
    groups: Any = rules(Timetable())["groups"]
    for rule in groups[0]["rules"]:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert "Next: " in rule["annotations"]["description"]
        assert "`unstick " in rule["annotations"]["description"]


@pytest.mark.parametrize(
    ("timetable", "dead", "lookback"),
    [
        (Timetable(), 1800, "[1h]"),
        (Timetable(clean=Every(timedelta(minutes=1))), 180, "[6m]"),
        (Timetable(clean=Every(timedelta(seconds=7.5))), 23, "[45s]"),
        (Timetable(clean=Cron("0 */2 * * *")), 21_600, "[12h]"),
    ],
)
def test_the_sweeper_is_dead_after_three_of_the_configured_intervals(
    timetable: Timetable, dead: int, lookback: str, tmp_path: Path
) -> None:
    groups: Any = rules(timetable)["groups"]
    overdue = groups[0]["rules"][1]["expr"]
    assert overdue.endswith(f"> {dead}")
    assert lookback in overdue
    file = tmp_path / RULES_FILE
    file.write_text(files(timetable)[RULES_FILE], encoding="utf-8")
    promtool("check", "rules", file)


def test_a_source_is_not_down_while_another_replica_may_still_take_its_lease() -> None:
    groups: Any = rules(Timetable(observe=Every(timedelta(seconds=1))))["groups"]
    [down] = [rule for rule in groups[0]["rules"] if rule["alert"] == "UnstickSourceDown"]
    assert down["for"] == "2m"
    assert timedelta(minutes=2) > LEADS_FOR


# The guide

GUIDE = (Path(__file__).parents[1] / "docs" / "how-to" / "monitoring.md").read_text(encoding="utf-8")


def test_the_guide_tells_of_every_metric_and_every_alert() -> None:
    told = set(re.findall(r"^\| `(unstick_\w+)", GUIDE, re.MULTILINE))
    queried = {name for target in targets() for name in re.findall(r"unstick_\w+", target["expr"])}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in queried} == told
    advised = re.findall(r"^\| `(Unstick\w+)` \((\w+)\)", GUIDE, re.MULTILINE)
    groups: Any = rules(Timetable())["groups"]
    assert set(advised) == {(rule["alert"], rule["labels"]["severity"]) for rule in groups[0]["rules"]}


def test_prometheus_takes_the_guides_configuration(rules_file: Path) -> None:
    [configuration] = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    file = rules_file.parent / "prometheus.yml"
    file.write_text(configuration, encoding="utf-8")
    assert "1 rule files found" in promtool("check", "config", file)


# The dashboard


def panels() -> list[Any]:
    found: Any = dashboard(Timetable())["panels"]
    assert isinstance(found, list)
    return found


def test_the_last_sweep_is_red_from_when_its_alert_fires() -> None:
    for timetable, seconds in ((Timetable(), 1800), (Timetable(clean=Every(timedelta(minutes=1))), 180)):
        found: Any = dashboard(timetable)["panels"]
        [last] = [panel for panel in found if panel["title"] == "Last sweep"]
        steps = last["fieldConfig"]["defaults"]["thresholds"]["steps"]
        assert steps == [{"color": "green", "value": None}, {"color": "red", "value": seconds}]


def targets() -> list[Any]:
    return [target for panel in panels() for target in panel["targets"]]


def test_no_panel_lies_over_another_or_beyond_the_edge() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_query_asks_the_chosen_data_source_about_the_chosen_sources() -> None:
    for panel in panels():
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            without = ("unstick_build_info", "unstick_notifications_total")
            assert 'source=~"$source"' in target["expr"] or any(name in target["expr"] for name in without)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until(condition: Callable[[], object], seconds: float = 60) -> Any:  # noqa: ANN401
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := condition():
                return found
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@contextmanager
def process(log: Path, directory: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program meanwhile; what it says is in the log."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("UNSTICK_")}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=directory, env=known | environment, stdout=output, stderr=output) as started,
    ):
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(20)
            finally:
                started.kill()


def unstick(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("UNSTICK_")}
    command = [sys.executable, "-m", "unstick", *arguments]
    environment = known | {"UNSTICK_SECRET_KEY": SECRET}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Watched:
    """A service at work, and the Prometheus that scrapes it."""

    service: str
    prometheus: str
    token: str

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401
        answer = httpx.get(f"{self.prometheus}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service with two queues of stuck jobs, some of which a person has recovered."""
    prometheus, directory = program("prometheus"), tmp_path_factory.mktemp("service")
    sweep = '[sweep]\nobserve_every = "0.5s"\nclean_every = "0.5s"\n'
    (directory / "unstick.toml").write_text(f'[sources.main]\n[metrics]\ntoken = "s3cret"\n{sweep}')
    assert unstick(directory, "db", "upgrade").returncode == 0
    put_stuck(directory / "unstick.db", "mail", "video")
    exported = unstick(directory, "dashboards", "export", "monitoring")
    assert exported.returncode == 0, exported.stderr
    token = unstick(directory, "token", "sign", "--role", "operator").stdout.strip()
    service, port = free_port(), free_port()
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(directory / "monitoring" / RULES_FILE)],
        "scrape_configs": [
            {
                "job_name": "unstick",
                "authorization": {"credentials": "s3cret"},
                "static_configs": [{"targets": [f"127.0.0.1:{service}"]}],
            }
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration))
    serving = (sys.executable, "-m", "unstick", "serve", "--port", str(service))
    scraping = (
        prometheus,
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (
        process(directory / "service.log", directory, *serving, UNSTICK_SECRET_KEY=SECRET),
        process(directory / "prometheus.log", directory, *scraping),
    ):
        watched = Watched(f"http://127.0.0.1:{service}", f"http://127.0.0.1:{port}", token)
        until(lambda: httpx.get(f"{watched.service}/health/live").is_success)
        recover(watched)
        put_stuck(directory / "unstick.db", "mail", "video")
        until(lambda: httpx.get(f"{watched.prometheus}/-/ready").is_success)
        yield watched


def put_stuck(file: Path, *queues: str) -> None:
    long_ago = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with closing(sqlite3.connect(file, timeout=20)) as connection, connection:
        for queue in queues:
            for status, started in (("queued", None), ("running", long_ago)):
                connection.execute(
                    "INSERT INTO jobs (job_type, status, queue, created_at, started_at) VALUES ('essay', ?, ?, ?, ?)",
                    (status, queue, long_ago, started),
                )


def recover(watched: Watched) -> None:
    url = f"{watched.service}/api/v1/admin/jobs/cleanup"
    answer = httpx.post(url, headers={"Authorization": f"Bearer {watched.token}"}, timeout=30)
    assert answer.json()["cleaned_jobs"]["total"] == 4


QUERIES: dict[str, str] = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]
}
NEEDS_AN_EVENT = {"Notifications A"}
"""Nobody is notified of anything here."""


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_of_the_dashboard_is_answered(at_work: Watched, name: str) -> None:
    expression = QUERIES[name].replace("$source", ".*").replace("$__rate_interval", "1m")
    assert "$" not in expression
    if name in NEEDS_AN_EVENT:
        assert at_work.query(expression) == []
        return
    found = until(lambda: numbers(at_work, expression))
    assert all(series["metric"].get("source", "main") == "main" for series in found)


def numbers(watched: Watched, expression: str) -> list[Any]:
    """Return what is answered as soon as that is a number: the average of nothing isn't yet."""
    found = watched.query(expression)
    return found if all(series["value"][1] != "NaN" for series in found) else []


def test_the_dashboards_figures_are_what_is_in_the_table(at_work: Watched) -> None:
    def told(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        found = at_work.query(QUERIES[name].replace("$source", "main"))
        return {tuple(each["metric"].get(label, "") for label in labels): float(each["value"][1]) for each in found}

    expected = {("mail", "queued"): 1, ("mail", "running"): 1, ("video", "queued"): 1, ("video", "running"): 1}
    until(lambda: told("Open jobs by queue A", "queue", "state") == expected)
    until(lambda: told("Stuck jobs A") == {(): 4})
    until(lambda: told("Stuck jobs by reason A", "reason") == {("never_claimed",): 2, ("silent",): 2})
    until(lambda: told("Leader A") == {(): 1} and told("Source up A") == {(): 1} and told("Brake A") == {(): 0})
    assert at_work.query('unstick_recoveries_total{action="mark_failed",outcome="applied",trigger="requested"}')
    assert 0 <= told("Last sweep A")[()] < 60


def test_the_service_lets_nobody_scrape_it_without_the_configured_token(at_work: Watched) -> None:
    assert httpx.get(f"{at_work.service}/metrics").status_code == 401


def test_the_source_variable_offers_the_sources(at_work: Watched) -> None:
    variables: Any = dashboard(Timetable())["templating"]["list"]  # type: ignore[index]
    [chosen] = [each for each in variables if each["name"] == "source"]
    assert chosen["query"]["query"] == "label_values(unstick_leader, source)"
    until(lambda: at_work.ask("label/source/values", **{"match[]": "unstick_leader"}) == ["main"])


def test_prometheus_evaluates_the_exported_rules_and_none_of_them_is_in_error(at_work: Watched) -> None:
    def evaluated() -> list[Any]:
        [group] = at_work.ask("rules")["groups"]
        found: list[Any] = group["rules"]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = until(evaluated)
    assert len(found) == 7
    assert {(rule["health"], rule.get("lastError", "")) for rule in found} == {("ok", "")}
    # The jobs that stay stuck, for their grace isn't over, become an alert after six of the half seconds.
    until(lambda: "UnstickStuckJobs" in {each["labels"]["alertname"] for each in at_work.ask("alerts")["alerts"]})


# The command


def test_export_writes_both_files_and_leaves_them_when_they_are_the_same(tmp_path: Path) -> None:
    first = unstick(tmp_path, "dashboards", "export", "a/b")
    again = unstick(tmp_path, "dashboards", "export", "a/b", "--json")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"Wrote a/b/{DASHBOARD_FILE}.\nWrote a/b/{RULES_FILE}.\n"
    written = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "a" / "b").iterdir()}
    assert written == files(Timetable())
    assert json.loads(written[DASHBOARD_FILE]) == dashboard(Timetable())
    assert json.loads(again.stdout) == {
        "written": [],
        "unchanged": [f"a/b/{DASHBOARD_FILE}", f"a/b/{RULES_FILE}"],
    }


def test_export_overwrites_what_differs_only_when_told_to(tmp_path: Path) -> None:
    mine = tmp_path / RULES_FILE
    mine.write_text("groups: []\n")
    refused = unstick(tmp_path, "dashboards", "export", ".")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"unstick: {RULES_FILE} would be overwritten, and what stands there differs: add --force, or name another "
        "directory.\n"
    )
    assert mine.read_text() == "groups: []\n"
    assert not (tmp_path / DASHBOARD_FILE).exists(), "nothing is written where something is refused"
    forced = unstick(tmp_path, "dashboards", "export", ".", "--force", "--json")
    assert json.loads(forced.stdout)["written"] == [DASHBOARD_FILE, RULES_FILE]
    assert mine.read_text(encoding="utf-8") == files(Timetable())[RULES_FILE]


def test_export_to_a_place_where_nothing_can_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = unstick(tmp_path, "dashboards", "export", "file")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("unstick: file")
