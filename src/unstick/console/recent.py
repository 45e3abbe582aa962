"""What was dear to find is told again for a short while, so that many who look cost the host's database little.

The dearer it was, the longer it is told: `TIMES` as long as it took, `LONGEST_SECONDS` at most. What was cheap is found
anew each time. Pages say when what they show was looked at; who asks under a key that names all that matters hears of a
change at once.
"""

import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

DEAR_SECONDS = 0.1
TIMES = 20
LONGEST_SECONDS = 30.0
_MOST = 64

Value = TypeVar("Value")


class _Kept(NamedTuple, Generic[Value]):
    until: float
    value: Value


class Recent(Generic[Value]):
    """A few dear answers; `now` tells seconds that only go on."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._kept: dict[Hashable, _Kept[Value]] = {}

    async def get(self, key: Hashable, find: Callable[[], Awaitable[Value]]) -> Value:
        """Return what is kept under a key, or else find it."""
        begun, kept = self._now(), self._kept.get(key)
        if kept is not None and begun < kept.until:
            return kept.value
        value = await find()
        took = self._now() - begun
        self._kept.pop(key, None)
        if took >= DEAR_SECONDS:
            self._kept[key] = _Kept(self._now() + min(LONGEST_SECONDS, TIMES * took), value)
            while len(self._kept) > _MOST:
                del self._kept[next(iter(self._kept))]
        return value
