"""The loop: each source is observed and swept again and again, by one replica of several, with nobody watching.

Guarantee: a source that is dead, slow or broken delays no other; what went wrong in one round is told, and the next
one comes all the same. Rounds of a source never overlap, and those that were missed are made up for by one. Known
weakness: whoever stops the process while a database is silent waits for it, a dozen seconds at most, and its lease
runs out by itself.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from unstick.domain.errors import UnstickError
from unstick.domain.events import SweepFailed, Trigger
from unstick.domain.leadership import LEADS_FOR
from unstick.domain.schedule import ROUND_MAY_TAKE, Schedule, Timetable
from unstick.domain.wording import say_duration
from unstick.pipeline.emitting import emit
from unstick.pipeline.ending import MOMENT_SECONDS, end, in_time
from unstick.pipeline.leadership import Lead
from unstick.pipeline.pruning import prune
from unstick.pipeline.rounds import observe_and_tell, trace
from unstick.pipeline.sweep import SweepOrder, note_problem, sweep
from unstick.pipeline.watched import OpenWatched, Watched

ACTOR = "runner"
"""Who sweeps, in the audit log."""
_PRUNED_FIRST = timedelta(hours=1)
_PRUNED_EVERY = timedelta(days=1)
_LONGEST_DEADLINE = timedelta(hours=1)
_MOST_JITTER = timedelta(seconds=30)
_JITTER = 0.1
_ENDS_WITHIN_SECONDS = 5
"""How long a sweep that is stopped may take to record its end, and a lease to be given back, until they are cut off."""

_log = logging.getLogger("unstick.runner")


class Runner:
    """Keeps the watch over several sources until it is stopped.

    Args:
        sources: how each is opened, by name.
        timetable: how often each is observed and swept.
        holder: the name of this process, which no other bears.
        leads_for: how long a source is this process's after it last said that it lives.
    """

    def __init__(
        self,
        sources: Mapping[str, OpenWatched],
        timetable: Timetable,
        *,
        holder: str,
        leads_for: timedelta = LEADS_FOR,
    ) -> None:
        self._watches = [_Watch(name, opened, timetable, holder, leads_for) for name, opened in sources.items()]

    async def run(self) -> None:
        """Keep watch until this is cancelled; leases are given back and sweeps under way record their end first."""
        tasks = [
            asyncio.create_task(watch.keep(), name=f"unstick watch over {watch.source}") for watch in self._watches
        ]
        try:
            await asyncio.wait(tasks)
        finally:
            for watch in self._watches:
                watch.stop()
            try:
                # A statement that is cut off costs its connection: what is nearly done is let come to its end.
                await asyncio.wait(tasks, timeout=MOMENT_SECONDS)
            finally:
                await end(tasks, _ENDS_WITHIN_SECONDS)


class _Watch:
    """The watch that this process keeps over one source."""

    def __init__(
        self, source: str, opened: OpenWatched, timetable: Timetable, holder: str, leads_for: timedelta
    ) -> None:
        self.source = source
        self._opened = opened
        self._timetable = timetable
        self._lead = Lead(source, holder, leads_for)
        self._leads = asyncio.Event()
        self._stopped = asyncio.Event()
        self._observe_at = self._clean_at = 0.0
        self._prune_at = time.monotonic() + _PRUNED_FIRST.total_seconds()
        self._problem: str | None = None

    async def keep(self) -> None:
        """Lead the source whenever nobody else does, and then observe and sweep it on time, neither after the other."""
        loops = [
            asyncio.create_task(loop) for loop in (self._renew(), self._again(self._look), self._again(self._clean))
        ]
        try:
            await asyncio.wait(loops)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            with contextlib.suppress(UnstickError):  # a database that is away lets it run out
                async with self._opened() as watched:
                    await self._lead.give_back(watched)

    async def _again(self, doing: Callable[[], Awaitable[float]]) -> None:
        """Do something whenever it is due and this process leads; it returns when it is due next."""
        while not self._stopped.is_set():
            await self._leads.wait()
            if not self._may_go_on:
                self._leads.clear()  # the lease ran out, and was not renewed yet
                continue
            try:
                due = await doing()
            except Exception as error:  # noqa: BLE001 - a watch that ends in silence is what nobody wants
                self._complain(error)
                due = time.monotonic() + self._timetable.observe.apart.total_seconds()
            await self._pause(due - time.monotonic())

    def stop(self) -> None:
        """Have it come to its end when what it is doing is done."""
        self._stopped.set()
        self._leads.set()  # which it may wait for

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stopped.wait()

    async def _renew(self) -> None:
        """Renew the lease three times before it runs out, and try as often to get one that another holds."""
        while not self._stopped.is_set():
            try:
                await in_time(self._claim(), self._lead.lasting.total_seconds())
            except Exception as error:  # noqa: BLE001 - whatever it is, the watch goes on
                self._complain(error)
            if self._lead.leads:
                self._leads.set()
            await self._pause(self._lead.lasting.total_seconds() / 3 * random.uniform(0.8, 1.0))  # noqa: S311

    async def _claim(self) -> None:
        led = self._lead.term
        async with self._opened() as watched:
            await self._lead.keep(watched)
            if self._lead.term is not None and self._lead.term != led:
                await self._begin(watched)

    async def _begin(self, watched: Watched) -> None:
        """Observe at once, and sweep when the last sweep's successor is due, whoever made that one."""
        now = await watched.source.clock()
        last = None if watched.brakes is None else await watched.brakes.last_pass(self.source)
        self._observe_at = time.monotonic()
        due = now if last is None else self._timetable.clean.after(last.at)
        self._clean_at = time.monotonic() + max(0.0, (due - now).total_seconds())

    @property
    def _may_go_on(self) -> bool:
        return self._lead.leads and not self._stopped.is_set()

    async def _look(self) -> float:
        if time.monotonic() >= self._observe_at:
            begun = time.monotonic()
            at = await self._within(self._timetable.observe.apart, self._observe)
            self._observe_at = begun + self._wait(self._timetable.observe, at)
        return self._observe_at

    async def _clean(self) -> float:
        if time.monotonic() >= self._clean_at:
            begun = time.monotonic()
            at = await self._within(self._timetable.clean.apart, self._sweep)
            self._clean_at = begun + self._wait(self._timetable.clean, at)
        if self._may_go_on and time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + _PRUNED_EVERY.total_seconds()
            await self._within(ROUND_MAY_TAKE, self._prune)
        return self._clean_at

    async def _within(
        self, deadline: timedelta, doing: Callable[[Watched, timedelta], Awaitable[datetime | None]]
    ) -> datetime | None:
        """Do something to the source, and return when that was by its clock; None where it failed."""
        try:
            async with self._opened() as watched:
                return await doing(watched, min(max(deadline, ROUND_MAY_TAKE), _LONGEST_DEADLINE))
        except Exception as error:  # noqa: BLE001 - whatever it is, the watch goes on
            self._complain(error)
            return None

    async def _observe(self, watched: Watched, deadline: timedelta) -> datetime | None:
        observed = await observe_and_tell(watched, deadline)
        if observed is None:
            return None
        self._problem = None
        return observed.at

    async def _sweep(self, watched: Watched, deadline: timedelta) -> datetime | None:
        order, begun = SweepOrder(actor=ACTOR, unattended=True), time.monotonic()
        try:
            async with asyncio.timeout(deadline.total_seconds()):
                report = await sweep(watched, order, leads=lambda: self._lead.leads)
        except TimeoutError:
            problem = f"it took longer than {say_duration(deadline)}; the next one goes on with what is left"
            took = timedelta(seconds=time.monotonic() - begun)
            failed = SweepFailed(
                source=self.source, took=took, trigger=Trigger.UNATTENDED, actor=ACTOR, problem=problem
            )
            await emit(watched, failed)
            await note_problem(watched, problem)
            return None
        except Exception as error:  # noqa: BLE001 - the sweep has told its listeners, and the watch goes on
            trace(error)
            return None
        return report.look.taken_at

    async def _prune(self, watched: Watched, deadline: timedelta) -> None:
        if watched.pruner is None:
            return
        try:
            async with asyncio.timeout(deadline.total_seconds()):
                await prune(watched, ACTOR)
        except TimeoutError:
            self._prune_at = self._clean_at  # it goes on where it was cut off, and has delayed nothing for long

    def _wait(self, schedule: Schedule, at: datetime | None) -> float:
        """Return how long it is from when something was done until it is due again.

        What failed is tried again as soon as the source is observed again. It is spread a little, so that many
        sources don't meet.
        """
        again = min(schedule.apart, self._timetable.observe.apart)
        seconds = (again if at is None else schedule.after(at) - at).total_seconds()
        return seconds + random.uniform(0, min(_JITTER * seconds, _MOST_JITTER.total_seconds()))  # noqa: S311

    def _complain(self, error: Exception) -> None:
        """Say once, in the log alone, what kept the source from being opened, for nobody else can be told."""
        problem = str(error) or type(error).__name__
        if problem != self._problem:
            _log.warning("Source %r can't be watched: %s", self.source, problem)
        trace(error)
        self._problem = problem
