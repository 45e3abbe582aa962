"""Events: each stage tells its listeners what it did, and no trouble of a listener's is the stage's."""

import logging

from unstick.domain.events import PipelineEvent
from unstick.pipeline.watched import Watched

_log = logging.getLogger("unstick.events")


async def emit(watched: Watched, event: PipelineEvent) -> None:
    """Tell every listener; one that fails is named in the log, and the others are told all the same."""
    for listener in watched.listeners:
        try:
            await listener.hear(event)
        except Exception:  # noqa: BLE001 - whatever it is, it is the listener's
            _log.exception("%s could not take note of %s", type(listener).__name__, type(event).__name__)
