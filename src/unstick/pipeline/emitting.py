"""Events: each stage tells its listeners what it did, and no trouble of a listener's is the stage's."""

import logging
from collections.abc import Sequence

from unstick.domain.events import PipelineEvent
from unstick.pipeline.watched import Watched
from unstick.ports import Listener

_log = logging.getLogger("unstick.events")


async def emit(watched: Watched, event: PipelineEvent) -> None:
    """Tell every listener; one that fails is named in the log, and the others are told all the same."""
    await tell_all(watched.listeners, event)


async def tell_all(listeners: Sequence[Listener], event: PipelineEvent) -> None:
    """Tell listeners of an event."""
    for listener in listeners:
        try:
            await listener.hear(event)
        except Exception:  # noqa: BLE001 - whatever it is, it is the listener's
            _log.exception("%s could not take note of %s", type(listener).__name__, type(event).__name__)
