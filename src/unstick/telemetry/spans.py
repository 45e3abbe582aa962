"""Events as spans of OpenTelemetry: one for each sweep, recovery of one job, and undo.

They are made of what events tell when all is over, so that the pipeline knows nothing of OpenTelemetry. Whoever had the
sweep made is the span's parent, a request for example. Where the application or the environment has configured no
provider, none are made.
"""

import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from unstick import __version__
from unstick.domain.events import JobRecovered, PipelineEvent, SweepFailed, Swept, Undone
from unstick.domain.recovery import Outcome


class SpanListener:
    """Makes spans by the provider in force, or by this one."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("unstick", __version__, provider)

    async def hear(self, event: PipelineEvent) -> None:
        """Make a span of it."""
        match event:
            case Swept():
                self._swept(event)
            case SweepFailed():
                who = {"unstick.trigger": event.trigger.value, "unstick.actor": event.actor}
                span = self._begun("unstick.sweep", event.source, event.took, who)
                span.set_status(trace.StatusCode.ERROR, event.problem)
                span.end()
            case JobRecovered():
                what: dict[str, AttributeValue] = {
                    "unstick.trigger": "requested",
                    "unstick.actor": event.actor,
                    "unstick.operation_id": event.operation_id,
                    "unstick.job_id": str(event.job_id),
                    "unstick.action": event.action.value,
                    "unstick.reason": event.reason.value,
                    "unstick.outcome": event.outcome.value,
                }
                self._begun("unstick.recover", event.source, timedelta(0), what).end()
            case Undone():
                undone: dict[str, AttributeValue] = {
                    "unstick.trigger": "requested",
                    "unstick.actor": event.actor,
                    "unstick.operation_id": event.operation_id,
                    "unstick.undoes": event.undoes,
                    **_counts(event.outcomes),
                }
                self._begun("unstick.undo", event.source, timedelta(0), undone).end()

    def _swept(self, event: Swept) -> None:
        attributes: dict[str, AttributeValue] = {
            "unstick.trigger": event.trigger.value,
            "unstick.actor": event.actor,
            "unstick.action": event.action.value,
            "unstick.braked": event.held is not None,
            "unstick.late_finishes": event.late_finishes,
            **_counts({outcome: event.tally.of(outcome=outcome) for outcome in Outcome}),
        }
        if event.operation_id is not None:
            attributes["unstick.operation_id"] = event.operation_id
        span = self._begun("unstick.sweep", event.source, event.took, attributes)
        recovered: Counter[tuple[str, str, str]] = Counter()
        for (_, action, reason, outcome), number in event.tally.counts.items():
            recovered[action.value, reason.value, outcome.value] += number
        for (done, why, came_to), number in recovered.items():
            told: dict[str, AttributeValue] = {
                "unstick.action": done,
                "unstick.reason": why,
                "unstick.outcome": came_to,
                "unstick.jobs": number,
            }
            span.add_event("unstick.recovered", told)
        span.end()

    def _begun(self, name: str, source: str, took: timedelta, attributes: Mapping[str, AttributeValue]) -> trace.Span:
        began = time.time_ns() - round(took / timedelta(microseconds=1)) * 1000
        return self._tracer.start_span(name, start_time=began, attributes={"unstick.source": source, **attributes})


def _counts(outcomes: Mapping[Outcome, int]) -> dict[str, int]:
    return {f"unstick.outcome.{outcome.value}": number for outcome, number in outcomes.items() if number}
