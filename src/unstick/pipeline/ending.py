"""Not waiting for a database that is silent: neither for its answer, nor for its driver to be done with it.

Drivers don't end when they are cancelled: they ask the server to cancel what it does, and wait for it to say so.
"""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

MOMENT_SECONDS = 2
"""How long whoever is cancelled may take to end in good order, before it is cancelled again."""

_Result = TypeVar("_Result")


async def end(tasks: Collection[asyncio.Task[Any]], moment: float = MOMENT_SECONDS) -> None:
    """Cancel tasks, those that don't end in a moment once more, and leave those that don't even then to themselves."""
    left = {task for task in tasks if not task.done()}
    for _ in range(2):
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=moment)


async def in_time(work: Coroutine[Any, Any, _Result], seconds: float) -> _Result:
    """Do something that takes at most so long, or little more.

    Raises:
        TimeoutError: it took longer, and was cancelled.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        await end([task])
    if not done:
        raise TimeoutError
    return task.result()
