"""How a command that changes jobs runs: whoever stops it, by SIGINT or SIGTERM, lets it record its end."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

_TERMINATED = 128 + signal.SIGTERM
"""What a shell reports of a command that SIGTERM ended."""

_Result = TypeVar("_Result")


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run to the end; SIGTERM cancels the work as SIGINT does, and the command then ends with 143."""
    stopped = asyncio.Event()
    try:
        return asyncio.run(_cancellable(work, stopped))
    except asyncio.CancelledError:
        if stopped.is_set():
            raise typer.Exit(_TERMINATED) from None
        raise


async def _cancellable(work: Coroutine[Any, Any, _Result], stopped: asyncio.Event) -> _Result:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def stop() -> None:
        # A second signal would cut off the record of the end.
        if task is not None and not stopped.is_set():
            stopped.set()
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop)
    return await work
