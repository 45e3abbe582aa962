"""Events as metrics for Prometheus, kept in memory: a scrape asks no database.

Guarantee: what no longer holds isn't exported: neither the last figures of a source that can't be observed, nor those
of one that this process leads no more. Known weakness: what a sweep recovered before it failed is in the audit log
alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from unstick import __version__
from unstick.domain.events import (
    OTHERS,
    BrakeReleased,
    JobRecovered,
    LeadershipChanged,
    Notified,
    ObservationFailed,
    Observed,
    PipelineEvent,
    SweepFailed,
    Swept,
    Trigger,
    Undone,
)
from unstick.domain.recovery import Undo

MOST_QUEUES = 100
"""How many queues of a source have series of their own."""
SWEEP_OUTCOMES = ("done", "braked", "failed")

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Up to the interval between two sweeps, which is as long as one may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a source. It is replaced whole, so that a scrape by another thread never sees half of it."""

    leads: bool | None = None
    """None where nobody ever said who leads it."""
    up: bool | None = None
    observed: Observed | None = None
    braked: bool | None = None
    swept_at: datetime | None = None


class Metrics:
    """Listens to events, and is scraped through its `registry`, which is its own.

    Args:
        sources: those that are configured: their counters begin at 0, for `increase()` doesn't see one begin at 1.
    """

    def __init__(self, sources: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self._known: dict[str, _Known] = {}
        self._counted = _Counted()
        for source in sources:
            self._known[source] = _Known(leads=False)
            self._counted.begin(source)
        self.registry.register(self)

    async def hear(self, event: PipelineEvent) -> None:
        """Take note."""
        match event:
            case Observed() | ObservationFailed():
                self._observed(event)
            case Swept() | SweepFailed():
                self._swept(event)
            case JobRecovered():
                self._counted.recovered(event.source, event.action, event.outcome, Trigger.REQUESTED)
            case Undone():
                for outcome, number in event.outcomes.items():
                    self._counted.recovered(event.source, Undo.UNDO, outcome, Trigger.REQUESTED, number)
            case BrakeReleased():
                self._learn(event.source, lambda known: replace(known, braked=False))
            case LeadershipChanged():
                # What was known of it is another's to tell now, or isn't known any more.
                self._known[event.source] = _Known(leads=event.leads)
            case Notified():
                self._counted.notifications.labels(event.channel, event.outcome.value).inc()
            case _:
                pass  # a change of an alert, of which channels are told, and that is counted

    def collect(self) -> Iterator[Metric]:
        """Yield every metric as it stands; the registry calls this at each scrape."""
        known = dict(self._known)
        yield from _jobs(known)
        yield from _watch(known)
        yield from self._counted.collect()
        yield _gauge("build_info", "The version that runs.", ("version",), {(__version__,): 1})

    def _observed(self, event: Observed | ObservationFailed) -> None:
        if isinstance(event, ObservationFailed):
            self._learn(event.source, lambda known: replace(known, up=False, observed=None))
            return
        self._learn(
            event.source,
            lambda known: replace(
                known,
                up=True,
                observed=event,
                braked=event.held is not None,
                swept_at=_later(known.swept_at, event.swept_at),
            ),
        )

    def _swept(self, event: Swept | SweepFailed) -> None:
        if isinstance(event, SweepFailed):
            self._counted.sweep(event.source, "failed", event.took)
            return
        self._counted.sweep(event.source, "done" if event.held is None else "braked", event.took)
        self._counted.late_finishes.labels(event.source).inc(event.late_finishes)
        counts: Counter[tuple[str, str]] = Counter()
        for (_, action, _, outcome), number in event.tally.counts.items():
            counts[action, outcome] += number
        for (done, came_to), number in counts.items():
            self._counted.recovered(event.source, done, came_to, event.trigger, number)
        if event.trigger is Trigger.UNATTENDED:  # what a person has swept tells nothing of the brake, or of the sweeper
            ended, braked = event.at + event.took, event.held is not None
            self._learn(
                event.source,
                lambda known: replace(known, braked=braked, swept_at=_later(known.swept_at, ended)),
            )

    def _learn(self, source: str, change: Callable[[_Known], _Known]) -> None:
        """Change what is known of a source, unless another process leads it: that one tells."""
        known = self._known.get(source, _Known())
        if known.leads is not False:
            self._known[source] = change(known)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((each for each in (one, other) if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Counted:
    """What only ever grows, as long as the process lives."""

    recoveries: CounterMetric = field(
        default_factory=lambda: CounterMetric(
            "unstick_recoveries_total",
            "Decisions on jobs by what came of them, and who had them made; one that was left is counted each time.",
            ("source", "action", "outcome", "trigger"),
            registry=None,
        )
    )
    late_finishes: CounterMetric = field(
        default_factory=lambda: CounterMetric(
            "unstick_late_finishes_total",
            "Recovered jobs that sweeps found finished after all: false alarms.",
            ("source",),
            registry=None,
        )
    )
    sweeps: CounterMetric = field(
        default_factory=lambda: CounterMetric(
            "unstick_sweeps_total",
            "Sweeps, by how they ended: done, braked or failed.",
            ("source", "outcome"),
            registry=None,
        )
    )
    durations: Histogram = field(
        default_factory=lambda: Histogram(
            "unstick_sweep_duration_seconds", "How long sweeps took.", ("source",), buckets=_BUCKETS, registry=None
        )
    )
    notifications: CounterMetric = field(
        default_factory=lambda: CounterMetric(
            "unstick_notifications_total",
            "Notifications, by channel and what came of them.",
            ("channel", "outcome"),
            registry=None,
        )
    )

    def begin(self, source: str) -> None:
        """Begin at 0."""
        self.late_finishes.labels(source)
        self.durations.labels(source)
        for outcome in SWEEP_OUTCOMES:
            self.sweeps.labels(source, outcome)

    def sweep(self, source: str, outcome: str, took: timedelta) -> None:
        """Count a sweep."""
        self.sweeps.labels(source, outcome).inc()
        self.durations.labels(source).observe(took.total_seconds())

    def recovered(self, source: str, action: str, outcome: str, trigger: Trigger, number: int = 1) -> None:
        """Count decisions."""
        self.recoveries.labels(source, str(action), str(outcome), trigger.value).inc(number)

    def collect(self) -> Iterator[Metric]:
        """Yield them without the times since when each is counted, which would be series of other names."""
        for counted in (self.recoveries, self.late_finishes, self.sweeps, self.durations, self.notifications):
            for metric in counted.collect():
                metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
                yield metric


def _jobs(known: Mapping[str, _Known]) -> Iterator[Metric]:
    """Yield what the last observation of each source told of its jobs."""
    jobs: Counter[tuple[str, ...]] = Counter()
    stuck: Counter[tuple[str, ...]] = Counter()
    running: dict[str, float] = {}
    queued: dict[str, float] = {}
    for source, each in known.items():
        if (seen := each.observed) is None:
            continue
        named = _named_queues(seen)
        for (queue, state), number in seen.open_jobs.items():
            jobs[source, _label(queue, named), state.value] += number
        for (queue, reason), number in seen.stuck.items():
            stuck[source, _label(queue, named), reason.value] += number
        # A source in which nothing waits has no oldest job; 0 is what an alert on its age is to see.
        queued[source] = (seen.oldest_queued or timedelta(0)).total_seconds()
        running[source] = (seen.oldest_running or timedelta(0)).total_seconds()
    yield _gauge("jobs", "Jobs that aren't over.", ("source", "queue", "state"), jobs)
    yield _gauge("stuck_jobs", "Jobs that are stuck, and why.", ("source", "queue", "reason"), stuck)
    yield _of_sources("oldest_running_seconds", "For how long the quietest running job has been silent.", running)
    yield _of_sources("oldest_queued_seconds", "For how long the longest waiting queued job could be claimed.", queued)


def _named_queues(seen: Observed) -> frozenset[str]:
    """Return the queues with the most jobs, which are named; of those with as many, the first by name."""
    jobs: Counter[str] = Counter()
    stuck: Counter[str] = Counter()
    for (queue, _), number in seen.open_jobs.items():
        jobs[queue or ""] += number
    for (queue, _), number in seen.stuck.items():
        stuck[queue or ""] += number
    jobs |= stuck  # counted at another moment: a queue may be there alone
    del jobs[OTHERS]  # an observation calls those it doesn't tell apart so, too
    return frozenset(sorted(jobs, key=lambda queue: (-jobs[queue], queue))[:MOST_QUEUES])


def _label(queue: str | None, named: frozenset[str]) -> str:
    return (queue or "") if (queue or "") in named else OTHERS


def _watch(known: Mapping[str, _Known]) -> Iterator[Metric]:
    """Yield how the watch over each source goes."""
    swept = {source: each.swept_at.timestamp() for source, each in known.items() if each.swept_at is not None}
    leads = {source: each.leads for source, each in known.items() if each.leads is not None}
    up = {source: each.up for source, each in known.items() if each.up is not None}
    braked = {source: each.braked for source, each in known.items() if each.braked is not None}
    yield _of_sources(
        "sweep_last_success_timestamp_seconds",
        "When an unattended sweep last came to its end, though a brake held it, by the database's clock.",
        swept,
    )
    yield _of_sources("source_up", "Whether the last observation came to its end.", up)
    yield _of_sources("leader", "Whether this process is the one that observes and sweeps the source.", leads)
    yield _of_sources("brake_engaged", "Whether the brake holds unattended sweeps.", braked)


def _of_sources(name: str, says: str, values: Mapping[str, float]) -> Metric:
    return _gauge(name, says, ("source",), {(source,): float(value) for source, value in values.items()})


def _gauge(name: str, says: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> Metric:
    gauge = GaugeMetricFamily(f"unstick_{name}", says, labels=labels)
    for place, value in values.items():
        gauge.add_metric(place, value)
    return gauge
