"""`/events`: that something happened to a source, so that pages read themselves anew and tell what."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable

from fastapi import APIRouter, Request, params
from fastapi.responses import StreamingResponse

from unstick.api.call import Call, CurrentCall
from unstick.api.events import ALIVE_SECONDS, EVERY_SECONDS, is_stopping, longest_seconds
from unstick.domain.access import Role
from unstick.domain.errors import UnstickError


async def stream(request: Request, call: CurrentCall) -> StreamingResponse:
    """Tell of each source whenever an event of its is on record."""
    frames = _frames(request, call)
    return StreamingResponse(frames, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _frames(request: Request, call: Call) -> AsyncIterator[str]:
    begun = said = time.monotonic()
    seen = await _newest(call)
    yield f"retry: {EVERY_SECONDS * 3_000}\n\n"
    while time.monotonic() - begun < longest_seconds(request) and not is_stopping(request):
        await asyncio.sleep(EVERY_SECONDS)
        now = await _newest(call)
        changed = [name for name, number in now.items() if number != seen.get(name, number)]
        seen |= now
        if changed:
            said = time.monotonic()
            yield f"data: {json.dumps(changed)}\n\n"
        elif time.monotonic() - said > ALIVE_SECONDS:
            said = time.monotonic()
            yield ": nothing new\n\n"


async def _newest(call: Call) -> dict[str, int]:
    """Return the newest event of each source; one that doesn't answer is left out, and asked again."""
    found = {}
    for name in call.sources.names:
        try:
            async with call.open(name) as watched:
                if watched.event_log is not None:
                    found[name] = await watched.event_log.last(name)
        except UnstickError:
            continue
    return found


def add_live(router: APIRouter, needs: Callable[[Role], params.Depends]) -> None:
    """Add the call to a router."""
    router.add_api_route(
        "/events",
        stream,
        name="console.events",
        response_class=StreamingResponse,
        dependencies=[needs(Role.VIEWER)],
    )
