"""`/events`: what happens, as it happens, as server-sent events that go on where a client left off."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, params
from fastapi.responses import StreamingResponse

from unstick.api.call import Call, CurrentCall
from unstick.api.parameters import SourceQuery, no_repeats
from unstick.api.problems import RefusedError
from unstick.domain.access import Role
from unstick.domain.errors import UnstickError
from unstick.domain.events import EventRecord

EVERY_SECONDS = 1
ALIVE_SECONDS = 15
"""How often something is said where nothing happens: proxies cut what is silent, and a client that is gone shows."""
_LONGEST_SECONDS = 3_600
"""Then the client comes back, and shows again that it may."""
LONGEST_UNTOLD = timedelta(seconds=15)
"""A server that stops waits for its answers to end, and in a host's app nobody tells us that it stops."""
_AT_ONCE = 100
_LARGEST_ID = 2**63 - 1
_LONGEST_ID = len(str(_LARGEST_ID))


async def stream_events(
    longest_untold: timedelta,
    request: Request,
    call: CurrentCall,
    query: Annotated[SourceQuery, Query()],
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Stream what happens to a source: observations, sweeps, recoveries, alerts.

    Each event has an id. Who comes back with the last one in `Last-Event-ID`, as browsers do by themselves, misses
    none of the days for which events are kept.
    """
    async with call.open(query.source) as watched:
        log, source = watched.event_log, watched.source.name
        if log is None:
            raise RefusedError(409, f"Source {source!r} keeps no events.")
        last = await log.last(source) if last_event_id is None else _id(last_event_id)
    frames = _frames(request, call, query.source, last, longest_untold)
    return StreamingResponse(frames, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _id(said: str) -> int:
    if not (said.isascii() and said.isdigit() and len(said) <= _LONGEST_ID and int(said) <= _LARGEST_ID):
        raise RefusedError(
            422, "Last-Event-ID is not one this service gave out; leave it out to begin with what is new."
        )
    return int(said)


async def _frames(
    request: Request, call: Call, source: str | None, last: int, longest_untold: timedelta
) -> AsyncIterator[str]:
    begun = said = time.monotonic()
    yield f"retry: {EVERY_SECONDS * 3_000}\n\n"
    while time.monotonic() - begun < longest_seconds(request, longest_untold) and not is_stopping(request):
        records, last = await _next(call, source, last)
        for record in records:
            said = time.monotonic()
            yield _frame(record)
        if time.monotonic() - said > ALIVE_SECONDS:
            said = time.monotonic()
            yield ": nothing new\n\n"
        await asyncio.sleep(EVERY_SECONDS)


async def _next(call: Call, source: str | None, last: int) -> tuple[Sequence[EventRecord], int]:
    """Return the next events, and how far that is; where the ledger doesn't answer there are none yet."""
    try:
        async with call.open(source) as watched:
            log = watched.event_log
            return ((), last) if log is None else await log.after(watched.source.name, last, _AT_ONCE)
    except UnstickError:
        return (), last


def _frame(record: EventRecord) -> str:
    told = {"source": record.source, "kind": record.kind, "noted_at": record.at.isoformat(), **record.told}
    return f"id: {record.id}\nevent: {record.kind}\ndata: {json.dumps(told)}\n\n"


def longest_seconds(request: Request, longest_untold: timedelta = LONGEST_UNTOLD) -> float:
    """Return for how long a stream may go on; no longer than so where nobody tells that the server stops."""
    return _LONGEST_SECONDS if hasattr(request.app.state, "stopping") else longest_untold.total_seconds()


def is_stopping(request: Request) -> bool:
    """Tell whether the service is about to stop, which an endless answer would keep it from."""
    return bool(getattr(request.app.state, "stopping", False))


def add_events(router: APIRouter, needs: Callable[[Role], params.Depends], longest_untold: timedelta) -> None:
    """Add the call to a router."""
    router.add_api_route(
        "/events",
        partial(stream_events, longest_untold),
        name="events",
        operation_id="stream_events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        dependencies=[needs(Role.VIEWER), Depends(no_repeats)],
    )
