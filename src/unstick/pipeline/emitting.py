"""Events: each stage tells its listeners what it did, and no trouble of a listener's is the stage's."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from unstick.domain.errors import SourceUnavailableError
from unstick.domain.events import PipelineEvent, Swept
from unstick.pipeline.event_shapes import event_shape
from unstick.pipeline.watched import Watched

_log = logging.getLogger("unstick.events")


async def emit(watched: Watched, event: PipelineEvent) -> None:
    """Keep an event for the stream of events, and tell every listener.

    One that fails is named in the log, and the others are told all the same. A sweep that did nothing isn't kept.
    """
    if watched.event_log is not None and not (isinstance(event, Swept) and event.did_nothing):
        kind, told = event_shape(event)
        async with _untroubled("The stream of events", event):
            await watched.event_log.append(event.source, kind, told)
    for listener in watched.listeners:
        async with _untroubled(type(listener).__name__, event):
            await listener.hear(event)


@asynccontextmanager
async def _untroubled(listener: str, event: PipelineEvent) -> AsyncIterator[None]:
    try:
        yield
    except SourceUnavailableError as error:
        # Of which whoever has the trouble tells, once.
        _log.debug("%s could not take note of %s: %s", listener, type(event).__name__, error)
    except Exception:  # noqa: BLE001 - whatever it is, it is the listener's
        _log.exception("%s could not take note of %s", listener, type(event).__name__)
