"""Events: each stage tells its listeners what it did, and no trouble of a listener's is the stage's."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from unstick.domain.errors import SourceUnavailableError
from unstick.domain.events import PipelineEvent, Swept
from unstick.pipeline.event_shapes import event_shape
from unstick.pipeline.watched import Watched

TAKES_AT_MOST_SECONDS = 5
"""How long a stage waits for one listener."""

_log = logging.getLogger("unstick.events")


async def emit(watched: Watched, event: PipelineEvent) -> None:
    """Tell every listener in turn, those that need no database first, and keep the event for the stream of events.

    One that fails or takes long is named in the log, and the others are told all the same. A sweep that did nothing
    isn't kept.
    """
    for listener in watched.listeners:
        async with _untroubled(type(listener).__name__, event):
            await listener.hear(event)
    if watched.event_log is not None and not (isinstance(event, Swept) and event.did_nothing):
        kind, told = event_shape(event)
        async with _untroubled("The stream of events", event):
            await watched.event_log.append(event.source, kind, told)


@asynccontextmanager
async def _untroubled(listener: str, event: PipelineEvent) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(TAKES_AT_MOST_SECONDS):
            yield
    except TimeoutError:
        _log.warning("%s took too long to take note of %s", listener, type(event).__name__)
    except SourceUnavailableError as error:
        # Of which whoever has the trouble tells, once.
        _log.debug("%s could not take note of %s: %s", listener, type(event).__name__, error)
    except Exception:  # noqa: BLE001 - whatever it is, it is the listener's
        _log.exception("%s could not take note of %s", listener, type(event).__name__)
