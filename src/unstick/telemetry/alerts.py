"""Events become alerts: what each one says of a source is written to the ledger, and who is to be told of it as well.

Guarantee: nobody is told anything here, so that a channel's trouble is never a sweep's; the courier does that. Known
weakness: where the ledger is in the source's own database, that this database is away can't be written anywhere.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from unstick.domain.alert import AlertRules, Change
from unstick.domain.errors import UnstickError
from unstick.domain.events import AlertChanged, PipelineEvent
from unstick.domain.hearing import heard
from unstick.ports import Alerts

_log = logging.getLogger("unstick")


class AlertListener:
    """Raises and resolves the alerts of a source.

    Args:
        alerts: where they are kept.
        rules: when one is told again.
        channels: who is told, by name.
        tell: tells the others what happened to an alert.
        wake: called when there is something to deliver.
    """

    def __init__(
        self,
        alerts: Alerts,
        rules: AlertRules,
        channels: Sequence[str],
        *,
        tell: Callable[[PipelineEvent], Awaitable[None]],
        wake: Callable[[], None],
    ) -> None:
        self._alerts = alerts
        self._rules = rules
        self._channels = channels
        self._tell = tell
        self._wake = wake

    async def hear(self, event: PipelineEvent) -> None:
        """Write down what an event makes of the alerts; what can't be written is made up for by the next one."""
        said = heard(event)
        if said is None:
            return
        try:
            changes = await self._alerts.take_in(said, self._rules, self._channels)
        except UnstickError as error:
            _log.warning("No alert of source %r could be kept: %s", said.source, error)
            return
        for change in changes:
            await self._tell(_event(change))
        if any(change.is_told for change in changes):
            self._wake()


def _event(change: Change) -> AlertChanged:
    return AlertChanged(subject=change.alert.subject, what=change.what, jobs=change.alert.jobs)
