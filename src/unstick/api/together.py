"""Who asks the same while one answer is still being found shares the next one.

Guarantee: an answer is begun only after everyone who gets it has asked, so that nobody hears of a time before their own
call: what they did before it is in there. Nothing is kept: without others at the same time each call finds its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class _Party:
    """Those who wait for one answer."""

    after: asyncio.Task[Any] | None
    """The answer before, which these came too late for."""
    size: int = 0
    task: asyncio.Task[Any] | None = None


class Together:
    """Answers that are found once for all who wait for them."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Party] = {}
        self._found: dict[Hashable, asyncio.Task[Any]] = {}

    async def get(self, asked: Hashable, find: Callable[[int], Awaitable[Answer]]) -> Answer:
        """Return what `find` answers, which is told how many it answers; who is cut off takes it from nobody else."""
        key = (asyncio.get_running_loop(), asked)
        party = self._waiting.get(key)
        if party is None:
            party = self._waiting[key] = _Party(self._found.get(key))
            party.task = asyncio.create_task(self._find(key, party, find))
            party.task.add_done_callback(_noticed)
        party.size += 1
        return cast("Answer", await asyncio.shield(cast("asyncio.Task[Any]", party.task)))

    async def _find(self, key: Hashable, party: _Party, find: Callable[[int], Awaitable[Answer]]) -> Answer:
        if party.after is not None:
            await asyncio.wait([party.after])
        del self._waiting[key]
        self._found[key] = cast("asyncio.Task[Any]", party.task)
        try:
            return await find(party.size)
        finally:
            if self._found[key] is party.task:
                del self._found[key]


def _noticed(task: asyncio.Task[Any]) -> None:
    """Take note of a failure that all who waited for it have not waited to hear."""
    if not task.cancelled():
        task.exception()
