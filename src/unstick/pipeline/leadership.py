"""One replica of several sweeps a source: whoever holds its lease, by the ledger's clock.

Guarantee: nobody leads by its own word alone: a leader that couldn't renew its lease in time, or slept through its
end, knows by a clock that never stands still that it leads no more, before it does anything else. Known weakness: a
batch that is being written in that moment is written; the guard of each row makes it harmless.
"""

import logging
import time
from datetime import timedelta

from unstick.domain.errors import UnstickError
from unstick.domain.events import LeadershipChanged
from unstick.domain.leadership import Leadership
from unstick.pipeline.emitting import emit
from unstick.pipeline.watched import Watched
from unstick.ports import Leaders

_log = logging.getLogger("unstick")


class Lead:
    """What one process knows of its leadership of one source."""

    def __init__(self, source: str, holder: str, lasting: timedelta) -> None:
        self.source = source
        self.lasting = lasting
        self._holder = holder
        self._held: Leadership | None = None
        self._until = 0.0

    @property
    def leads(self) -> bool:
        """Tell whether this process leads now, without asking anybody."""
        return self._held is not None and time.monotonic() < self._until

    @property
    def term(self) -> int | None:
        """The term in which it leads, None where it doesn't."""
        return self._held.term if self._held is not None and self.leads else None

    async def keep(self, watched: Watched) -> bool:
        """Take the lease or renew it, and tell whether this process leads.

        Raises:
            UnstickError: the ledger doesn't answer.
        """
        asked, before = time.monotonic(), self._held
        if before is not None and not self.leads:
            await self._lost(watched, "its lease ran out")
        held = await _leaders(watched).claim(self.source, self._holder, self.lasting)
        # Counted from before it was asked for: the ledger's clock began to count later.
        self._until = asked + self.lasting.total_seconds()
        if held is None:
            if self._held is not None:
                await self._lost(watched, "another took its lease")
            return False
        if self._held is None or held.term != self._held.term:
            self._held = held
            await emit(watched, LeadershipChanged(source=held.source, holder=held.holder, term=held.term, leads=True))
        return self.leads

    async def give_back(self, watched: Watched) -> None:
        """Let another take the lease at once; a ledger that doesn't answer lets it run out."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            await _leaders(watched).release(held)
        except UnstickError as error:
            _log.warning("The lease of source %r could not be given back, and runs out: %s", self.source, error)
        await emit(watched, _ended(held, "it was given back"))

    async def _lost(self, watched: Watched, why: str) -> None:
        held, self._held = self._held, None
        if held is not None:
            await emit(watched, _ended(held, why))


def _ended(held: Leadership, why: str) -> LeadershipChanged:
    return LeadershipChanged(source=held.source, holder=held.holder, term=held.term, leads=False, why=why)


def _leaders(watched: Watched) -> Leaders:
    if watched.leaders is None:
        raise RuntimeError(f"Source {watched.source.name!r} has nowhere to keep who leads it.")
    return watched.leaders
