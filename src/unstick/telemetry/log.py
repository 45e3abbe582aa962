"""Events in the log: what changed something at info, what went wrong at warning, and all else at debug."""

import logging

from unstick.domain.alert import Happened
from unstick.domain.events import (
    AlertChanged,
    BrakeReleased,
    Delivered,
    JobRecovered,
    LeadershipChanged,
    Notified,
    ObservationFailed,
    Observed,
    PipelineEvent,
    SweepFailed,
    Swept,
    Undone,
)
from unstick.domain.recovery import Outcome
from unstick.domain.wording import say_instant

_log = logging.getLogger("unstick")


class LogListener:
    """Writes each event to the log; a trouble of a source once, until it is over or another one."""

    def __init__(self) -> None:
        self._troubles: dict[str, str] = {}
        self._silent: dict[str, str] = {}

    async def hear(self, event: PipelineEvent) -> None:
        """Write a line."""
        match event:
            case Observed():
                self._observed(event)
            case ObservationFailed():
                known = self._troubles.get(event.source) == event.problem
                self._troubles[event.source] = event.problem
                level = logging.DEBUG if known else logging.WARNING
                _log.log(level, "Source %r can't be observed: %s", event.source, event.problem)
            case Swept():
                _swept(event)
            case SweepFailed():
                _log.warning("The sweep of source %r failed: %s", event.source, event.problem)
            case JobRecovered():
                _log.info(
                    "Job %s of source %r: %s by %s, %s (operation %d)",
                    *(event.job_id, event.source, event.action.value, event.actor, event.outcome.value),
                    event.operation_id,
                )
            case Undone():
                said = ", ".join(f"{outcome.value} {number}" for outcome, number in event.outcomes.items() if number)
                _log.info("Undone by %s: operation %d of source %r, %s", event.actor, event.undoes, event.source, said)
            case BrakeReleased():
                _log.info("The brake of source %r was released by %s", event.source, event.actor)
            case LeadershipChanged():
                leads = "leads" if event.leads else "leads no more"
                why = f": {event.why}" if event.why else ""
                _log.info("This process %s source %r, term %d%s", leads, event.source, event.term, why)
            case AlertChanged() | Notified():
                self._alerted(event)

    def _observed(self, event: Observed) -> None:
        if self._troubles.pop(event.source, None) is not None:
            _log.info("Source %r can be observed again", event.source)
        _log.debug("Source %r: %d job(s) stuck", event.source, event.stuck_jobs)

    def _alerted(self, event: AlertChanged | Notified) -> None:
        if isinstance(event, AlertChanged):
            _alert_changed(event)
            return
        channel = event.channel
        if event.outcome is Delivered.DELIVERED:
            if self._silent.pop(channel, None) is not None:
                _log.info("Channel %r can be told again", channel)
            return
        level = logging.DEBUG if self._silent.get(channel) == event.problem else logging.WARNING
        self._silent[channel] = event.problem
        if event.outcome is Delivered.GAVE_UP:
            _log.error("Channel %r was never told of %d alert(s): %s", channel, event.alerts, event.problem)
        else:
            _log.log(level, "Channel %r could not be told of an alert, and is tried again: %s", channel, event.problem)


def _alert_changed(event: AlertChanged) -> None:
    source, queue, what = event.subject
    level = logging.WARNING if event.what in _ALARMING else logging.INFO
    where = f"source {source!r}" if queue is None else f"queue {queue!r} of source {source!r}"
    _log.log(level, "Alert %s: %s in %s, %d job(s)", event.what.value, what.value, where, event.jobs)


_ALARMING = frozenset({Happened.OPENED, Happened.AGAIN})


def _swept(event: Swept) -> None:
    if event.did_nothing:
        left = event.tally.of(outcome=Outcome.LEFT)
        _log.debug("Swept source %r: nothing to do, %d job(s) left for later or to a person", event.source, left)
        return
    if event.held is not None:
        _log.warning(
            "The sweep of source %r is held by its brake since %s, %d job(s) at once: %s. Release it with "
            "`unstick brake --release --source %s` when you know what happened.",
            *(event.source, say_instant(event.held.since), event.held.suspects, event.held.cause, event.source),
        )
        return
    counts = ((outcome, event.tally.of(outcome=outcome)) for outcome in Outcome)
    said = ", ".join(f"{outcome.value} {number}" for outcome, number in counts if number)
    late = f"; {event.late_finishes} recovered before finished after all" if event.late_finishes else ""
    _log.info("Swept source %r (operation %s): %s%s", event.source, event.operation_id, said or "nothing", late)
