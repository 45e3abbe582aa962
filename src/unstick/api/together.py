"""Answers that callers share who ask the same at the same time.

Guarantee: nobody hears an answer that was begun before they asked: whoever asks while one is being worked out waits for
the next, together with all others who do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")


@dataclass(slots=True, kw_only=True)
class _Round(Generic[_Answer]):
    """Those who are answered together."""

    task: "asyncio.Task[_Answer]" = field(init=False)
    asked: int = 0
    waiting: int = 0


class Together(Generic[_Answer]):
    """Works out one answer at a time for each question, however many ask it."""

    def __init__(self) -> None:
        self._next: dict[Hashable, _Round[_Answer]] = {}
        self._under_way: dict[Hashable, asyncio.Task[_Answer]] = {}

    async def ask(self, question: Hashable, answer: Callable[[int], Awaitable[_Answer]]) -> _Answer:
        """Return what `answer` comes to, which is told how many ask; if it fails, it fails for all of them."""
        waiting = self._next.get(question)
        if waiting is None:
            waiting = self._next[question] = _Round()
            waiting.task = asyncio.create_task(self._work_out(question, waiting, answer))
        waiting.asked += 1
        waiting.waiting += 1
        try:
            return await asyncio.shield(waiting.task)
        finally:
            waiting.waiting -= 1
            if not waiting.waiting:
                waiting.task.cancel()  # of nobody's interest any more, unless it is done
                if self._next.get(question) is waiting:
                    del self._next[question]

    async def _work_out(
        self, question: Hashable, these: _Round[_Answer], answer: Callable[[int], Awaitable[_Answer]]
    ) -> _Answer:
        if question in self._under_way:
            await asyncio.wait([self._under_way[question]])
        del self._next[question]
        self._under_way[question] = these.task
        try:
            return await answer(these.asked)
        finally:
            del self._under_way[question]
