"""The Grafana dashboard and the Prometheus rules that go with the metrics, made to fit how often sources are swept.

Whoever queries `unstick_*` has to know two things. Only the leader tells of a source's jobs, but for a moment after
another took over Prometheus knows both: `max by (…)` comes first. And what a process counts ends with it: `increase`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from unstick.domain.schedule import MISSED_AFTER, Timetable
from unstick.domain.wording import say_duration

DASHBOARD_FILE = "unstick-dashboard.json"
RULES_FILE = "unstick-rules.yml"

_SCHEMA_VERSION = 39
"""Of Grafana 10.4 and 11; later ones read it, too."""
_WIDTH = 24
"""Of Grafana's grid."""
_STILL_STUCK_AFTER = 2 * MISSED_AFTER
"""By how many sweeps stuck jobs should have been recovered, with the grace they have after a gap in the watch."""
_SHORTEST_OUTAGE = timedelta(minutes=2)
"""A source may be without a leader for as long as a lease lasts, when the one it had was killed."""
_SOME_TIME = timedelta(hours=1)
"""How long an alert on something that happened stays."""
_OF_IT = "--source {{ $labels.source }}"
"""The source that an alert is about, as every command takes it."""


def files(timetable: Timetable) -> Mapping[str, str]:
    """Return what is exported: each file's name and text."""
    return {
        DASHBOARD_FILE: json.dumps(dashboard(timetable), indent=2) + "\n",
        RULES_FILE: "# Made by `unstick dashboards export`, which makes it anew where [sweep] has changed.\n"
        + "\n".join(_yaml(rules(timetable)))
        + "\n",
    }


# Rules


def rules(timetable: Timetable) -> Mapping[str, object]:
    """Return the alerts, as a file of Prometheus rules says them."""
    dead_after = MISSED_AFTER * timetable.clean.apart
    return {
        "groups": [
            {
                "name": "unstick",
                "rules": [
                    _stuck_jobs(_STILL_STUCK_AFTER * timetable.clean.apart),
                    *_sweeper_dead(dead_after),
                    _source_down(max(MISSED_AFTER * timetable.observe.apart, _SHORTEST_OUTAGE)),
                    _brake_engaged(),
                    _late_finishes(),
                ],
            }
        ]
    }


def _stuck_jobs(lasting: timedelta) -> Mapping[str, object]:
    return _alert(
        "UnstickStuckJobs",
        "sum by (source, reason) (max by (source, queue, reason) (unstick_stuck_jobs)) > 0",
        severity="warning",
        lasting=lasting,
        summary="{{ $value }} job(s) of source {{ $labels.source }} stay stuck: {{ $labels.reason }}",
        description=(
            f"Such jobs have been there for {say_duration(lasting)}: sweeps don't recover them, or new ones come all "
            f"the time. Next: `unstick stuck {_OF_IT}` lists them with the reason of each, and `unstick job ID "
            f"{_OF_IT}` tells of one what a sweep would do and why it doesn't: the policy may leave it to a person, it "
            "may be snoozed, or its row may refuse the change. Then `unstick recover ID "
            f'{_OF_IT} --reason "…"` recovers one. Where the reason is unserved, start workers.'
        ),
    )


def _sweeper_dead(after: timedelta) -> Iterator[Mapping[str, object]]:
    # Looked back for twice as long: the last success of a process that is gone is known until the other two hold.
    last = f"max by (source) (max_over_time(unstick_sweep_last_success_timestamp_seconds[{_span(2 * after)}]))"
    said = say_duration(after)
    consequence = "Stuck jobs are not recovered meanwhile. "
    check = (
        "Next: is `unstick serve` or `unstick watch` running, and what does its log say? "
        f"`unstick stuck {_OF_IT}` tells whether the database answers; `unstick sweep {_OF_IT}` recovers what is stuck "
        "by hand."
    )
    yield _alert(
        "UnstickSweeperDead",
        f"time() - {last} > {math.ceil(after.total_seconds())}",
        severity="critical",
        cause="overdue",
        summary="Source {{ $labels.source }} was last swept {{ $value | humanizeDuration }} ago",
        description=f"No sweep came to its end for {said}, which is {MISSED_AFTER} intervals. {consequence}{check}",
    )
    yield _alert(
        "UnstickSweeperDead",
        f"max by (source) (unstick_leader) unless on (source) {last}",
        severity="critical",
        cause="no_success",
        lasting=after,
        summary="Source {{ $labels.source }} is not swept",
        description=(
            f"A process is there that should sweep it, and no sweep has come to its end for {said} or longer. "
            f"{consequence}{check}"
        ),
    )
    yield _alert(
        "UnstickSweeperDead",
        "absent(unstick_leader)",
        severity="critical",
        cause="no_process",
        lasting=after,
        summary="Nothing is swept: no process of Unstick's can be scraped",
        description=(
            f"For {said} Prometheus has had no metrics of Unstick's. {consequence}Next: is `unstick serve` or `unstick "
            "watch` running? If it is, look at its target in Prometheus: the address, and whether `[metrics] token` is "
            "the one that Prometheus sends."
        ),
    )


def _source_down(lasting: timedelta) -> Mapping[str, object]:
    return _alert(
        "UnstickSourceDown",
        # Where the ledger is in the same database, the lease can't be renewed either, and then nobody leads.
        "max by (source) (unstick_source_up) == 0 or max by (source) (unstick_leader) == 0",
        severity="critical",
        lasting=lasting,
        summary="Source {{ $labels.source }} can't be observed",
        description=(
            f"For {say_duration(lasting)} its database, or the one of the ledger, has not answered any process of "
            f"Unstick's. Its jobs are not looked at meanwhile; other sources are. Next: `unstick stuck {_OF_IT}` says "
            "in a sentence what is wrong, and so does the log. When the database is back, nothing needs to be done: "
            "Unstick goes on by itself, and gives jobs a grace."
        ),
    )


def _brake_engaged() -> Mapping[str, object]:
    return _alert(
        "UnstickBrakeEngaged",
        "max by (source) (unstick_brake_engaged) == 1",
        severity="critical",
        summary="A brake holds all unattended sweeps of source {{ $labels.source }}",
        description=(
            "Too many jobs were stuck at once: that is an outage rather than so many stuck jobs. Nothing is recovered "
            f"until a person has looked. Next: `unstick brake {_OF_IT}` says how many there are and what seems to have "
            "happened. Mend that first: workers that come back may finish the jobs. Then `unstick sweep "
            f"{_OF_IT} --dry-run` tells what would be recovered, and `unstick brake {_OF_IT} --release` lets the next "
            "sweep do it."
        ),
    )


def _late_finishes() -> Mapping[str, object]:
    return _alert(
        "UnstickLateFinishes",
        f"sum by (source) (increase(unstick_late_finishes_total[{_span(_SOME_TIME)}])) > 0",
        severity="warning",
        summary="Jobs of source {{ $labels.source }} finished after they had been recovered",
        description=(
            f"Within {say_duration(_SOME_TIME)}, jobs finished that Unstick had taken for stuck: a threshold is too "
            f"short for them. It can wait until morning. Next: `unstick aftermath {_OF_IT}` names the jobs and their "
            f"kinds, and `unstick suggest {_OF_IT}` proposes thresholds."
        ),
    )


def _alert(
    name: str,
    expression: str,
    *,
    severity: str,
    summary: str,
    description: str,
    lasting: timedelta | None = None,
    cause: str | None = None,
) -> Mapping[str, object]:
    """Return a rule; several of one name differ in their cause."""
    return {
        "alert": name,
        "expr": expression,
        **({} if lasting is None else {"for": _span(lasting)}),
        "labels": {"severity": severity, **({} if cause is None else {"cause": cause})},
        "annotations": {"summary": summary, "description": description},
    }


def _span(duration: timedelta) -> str:
    """Say a duration as Prometheus reads it, in whole seconds and at least one."""
    seconds = max(1, math.ceil(duration.total_seconds()))
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _yaml(value: object, indent: str = "") -> Iterator[str]:
    """Yield the lines of a document made of mappings, lists and text; JSON's text is YAML's, too."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if isinstance(each, str):
                yield f"{indent}{key}: {json.dumps(each, ensure_ascii=False)}"
            else:
                yield f"{indent}{key}:"
                yield from _yaml(each, indent + "  ")
    elif isinstance(value, Sequence):
        for each in value:
            first, *others = _yaml(each, indent + "  ")
            yield f"{indent}- {first.lstrip()}"
            yield from others


# The dashboard

Kind = Literal["stat", "timeseries"]
_OF = '{source=~"$source"}'
_YES_NO = [
    {
        "type": "value",
        "options": {"0": {"text": "no", "index": 0}, "1": {"text": "yes", "index": 1}},
    }
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """A panel, and what it queries: each expression with its legend."""

    title: str
    says: str
    queries: Mapping[str, str]
    kind: Kind = "timeseries"
    unit: str = "short"
    width: int = 12
    height: int = 8
    stacked: bool = False
    red_from: float | None = None
    red_below: float | None = None
    mappings: Sequence[Mapping[str, object]] = field(default=())


def _panels(dead_after: timedelta) -> tuple[_Panel, ...]:
    return (
        _Panel(
            title="Stuck jobs",
            says="How many jobs are stuck now. Nothing where the source can't be observed.",
            queries={
                f"sum by (source) (max by (source, queue, reason) (unstick_stuck_jobs{_OF}))"
                f" or 0 * (max by (source) (unstick_source_up{_OF}) == 1)": "{{source}}"
            },
            kind="stat",
            width=6,
            height=5,
            red_from=1,
        ),
        _Panel(
            title="Last sweep",
            says="How long ago an unattended sweep last came to its end.",
            queries={
                f"time() - max by (source) (unstick_sweep_last_success_timestamp_seconds{_OF})": "{{source}}",
            },
            kind="stat",
            unit="s",
            width=6,
            height=5,
            red_from=dead_after.total_seconds(),
        ),
        _Panel(
            title="Source up",
            says="Whether the last observation came to its end.",
            queries={f"max by (source) (unstick_source_up{_OF})": "{{source}}"},
            kind="stat",
            width=4,
            height=5,
            red_below=1,
            mappings=_YES_NO,
        ),
        _Panel(
            title="Brake",
            says="Whether a brake holds unattended sweeps until a person releases it.",
            queries={f"max by (source) (unstick_brake_engaged{_OF})": "{{source}}"},
            kind="stat",
            width=4,
            height=5,
            red_from=1,
            mappings=_YES_NO,
        ),
        _Panel(
            title="Version",
            says="How many processes run which version.",
            queries={"count by (version) (unstick_build_info)": "{{version}}"},
            kind="stat",
            width=4,
            height=5,
        ),
        _Panel(
            title="Stuck jobs by reason",
            says="See docs/explanation/reasons.md for what each reason means.",
            queries={
                f"sum by (source, reason) (max by (source, queue, reason) (unstick_stuck_jobs{_OF}))": (
                    "{{source}} {{reason}}"
                )
            },
            stacked=True,
        ),
        _Panel(
            title="Open jobs by queue",
            says="Jobs that aren't over: the queues with the most of them by name, the rest together.",
            queries={f"max by (source, queue, state) (unstick_jobs{_OF})": "{{source}} {{queue}} {{state}}"},
            stacked=True,
        ),
        _Panel(
            title="Oldest jobs",
            says="For how long the longest waiting job could be claimed, and the quietest running one has been silent.",
            queries={
                f"max by (source) (unstick_oldest_queued_seconds{_OF})": "{{source}} queued",
                f"max by (source) (unstick_oldest_running_seconds{_OF})": "{{source}} running",
            },
            unit="s",
        ),
        _Panel(
            title="Recoveries",
            says="Decisions by what came of them. A job that is left, or that a brake holds, counts at each sweep.",
            queries={
                "sum by (source, action, outcome, trigger) "
                f"(increase(unstick_recoveries_total{_OF}[$__rate_interval]))": (
                    "{{source}} {{action}} {{outcome}} {{trigger}}"
                )
            },
            stacked=True,
        ),
        _Panel(
            title="Sweeps",
            says="By how they ended, within an hour.",
            queries={f"sum by (source, outcome) (increase(unstick_sweeps_total{_OF}[1h]))": "{{source}} {{outcome}}"},
        ),
        _Panel(
            title="Duration of sweeps",
            says="The longest tenth and the average, of an hour.",
            queries={
                "histogram_quantile(0.9, sum by (source, le) "
                f"(rate(unstick_sweep_duration_seconds_bucket{_OF}[1h])))": "{{source}} 90 %",
                f"sum by (source) (rate(unstick_sweep_duration_seconds_sum{_OF}[1h]))"
                f" / sum by (source) (rate(unstick_sweep_duration_seconds_count{_OF}[1h]))": "{{source}} average",
            },
            unit="s",
        ),
        _Panel(
            title="Leader",
            says="Which process observes and sweeps a source; exactly one should.",
            queries={f"max by (source, instance) (unstick_leader{_OF})": "{{source}} {{instance}}"},
            mappings=_YES_NO,
        ),
        _Panel(
            title="Late finishes",
            says="Jobs that finished after all, within a day: Unstick's own false alarms. `unstick suggest` helps.",
            queries={f"sum by (source) (increase(unstick_late_finishes_total{_OF}[1d]))": "{{source}}"},
        ),
        _Panel(
            title="Notifications",
            says="By channel and what came of them, within an hour.",
            queries={
                "sum by (channel, outcome) (increase(unstick_notifications_total[1h]))": "{{channel}} {{outcome}}"
            },
        ),
    )


def dashboard(timetable: Timetable) -> Mapping[str, object]:
    """Return the dashboard, as Grafana imports it."""
    return {
        "uid": "unstick",
        "title": "Unstick",
        "description": "Stuck background jobs: what is stuck, what was done about it, and whether anybody looks.",
        "tags": ["unstick"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_DATASOURCES, _SOURCES]},
        "panels": list(_placed(_panels(MISSED_AFTER * timetable.clean.apart))),
    }


_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_DATASOURCES: Mapping[str, object] = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "hide": 0,
    "refresh": 1,
    "multi": False,
    "includeAll": False,
    "options": [],
}
_SOURCE_QUERY = "label_values(unstick_leader, source)"
_SOURCES: Mapping[str, object] = {
    "name": "source",
    "label": "Source",
    "type": "query",
    "datasource": _DATASOURCE,
    "definition": _SOURCE_QUERY,
    "query": {"query": _SOURCE_QUERY, "refId": "sources"},
    "hide": 0,
    "refresh": 2,
    "sort": 1,
    "multi": True,
    "includeAll": True,
    "allValue": ".*",
    "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    "options": [],
}


def _placed(panels: Sequence[_Panel]) -> Iterator[Mapping[str, object]]:
    """Yield the panels from left to right, a new row where one is full."""
    left = top = row = 0
    for number, panel in enumerate(panels, start=1):
        if left + panel.width > _WIDTH:
            left, top, row = 0, top + row, 0
        place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
        left, row = left + panel.width, max(row, panel.height)
        yield {
            "id": number,
            "type": panel.kind,
            "title": panel.title,
            "description": panel.says,
            "gridPos": place,
            "datasource": _DATASOURCE,
            "targets": [
                {
                    "refId": chr(ord("A") + which),
                    "datasource": _DATASOURCE,
                    "editorMode": "code",
                    "expr": expression,
                    "legendFormat": legend,
                    "instant": panel.kind == "stat",
                    "range": panel.kind != "stat",
                }
                for which, (expression, legend) in enumerate(panel.queries.items())
            ],
            "fieldConfig": {"defaults": _look(panel), "overrides": []},
            "options": _STAT_OPTIONS if panel.kind == "stat" else _SERIES_OPTIONS,
        }


_STAT_OPTIONS: Mapping[str, object] = {
    "colorMode": "background",
    "graphMode": "none",
    "justifyMode": "auto",
    "orientation": "auto",
    "textMode": "value_and_name",
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
}
_SERIES_OPTIONS: Mapping[str, object] = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}


def _look(panel: _Panel) -> Mapping[str, object]:
    steps: list[Mapping[str, object]] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    look: dict[str, object] = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": list(panel.mappings),
    }
    if panel.kind == "timeseries":
        look["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return look
