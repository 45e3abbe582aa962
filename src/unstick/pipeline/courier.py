"""The courier: delivers to each channel what it is to be told, beside the runner and never in its way.

Guarantee: channels don't wait for each other, nor sources for any of them; of several replicas one delivers to a
channel at a time. What doesn't arrive is tried again, ever more rarely, for a day. Known weakness: whoever stops the
process while a message is on its way has it delivered once more, under the same id, when the claim has run out.
"""

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from unstick.domain.alert import Delivery, retry_after
from unstick.domain.errors import NotDeliveredError, UnstickError
from unstick.domain.events import Delivered, Notified
from unstick.domain.wording import say_duration
from unstick.pipeline.course import surely
from unstick.pipeline.emitting import emit
from unstick.pipeline.ending import in_time
from unstick.pipeline.watched import OpenWatched
from unstick.ports import Channel, Claim

LOOKS_EVERY = timedelta(seconds=15)
"""How often it is looked for what another replica wrote, or what is due again."""
SEND_WITHIN = timedelta(seconds=15)
_CLAIM_MARGIN = timedelta(seconds=30)
_TIDY_EVERY = timedelta(hours=1)

_END_WITHIN_SECONDS = 5
_Result = TypeVar("_Result")

_log = logging.getLogger("unstick.alerts")


class Courier:
    """Delivers to channels what the ledgers of several sources have for them.

    Args:
        sources: how each is opened, by name.
        channels: who is told.
        looks_every: how often it is looked for something that is due.
        within: how long a channel may take to be told.
    """

    def __init__(
        self,
        sources: Mapping[str, OpenWatched],
        channels: Sequence[Channel],
        *,
        looks_every: timedelta = LOOKS_EVERY,
        within: timedelta = SEND_WITHIN,
    ) -> None:
        self._sources = sources
        self._channels = channels
        self._looks_every = looks_every.total_seconds()
        self._within = within
        self._news: dict[str, asyncio.Event] = {}
        self._holder = uuid.uuid4().hex

    def wake(self) -> None:
        """Have it look at once."""
        for news in self._news.values():
            news.set()

    async def run(self) -> None:
        """Deliver until this is cancelled."""
        self._news = {channel.name: asyncio.Event() for channel in self._channels}
        tasks = [asyncio.create_task(self._serve(each), name=f"unstick channel {each.name}") for each in self._channels]
        tasks.append(asyncio.create_task(self._keep_tidy(), name="unstick outbox"))
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def deliver_due(self, within: timedelta) -> None:
        """Deliver what is due now, and no longer than that: the rest is left to whoever comes next."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within.total_seconds()):
                await asyncio.gather(*(self._round(channel) for channel in self._channels))

    async def _serve(self, channel: Channel) -> None:
        news = self._news[channel.name]
        while True:
            news.clear()
            await self._round(channel)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._looks_every * random.uniform(0.8, 1.2)):  # noqa: S311
                    await news.wait()

    async def _round(self, channel: Channel) -> None:
        """Deliver all that a channel is to be told, source by source: those that share a ledger are told as one."""
        for name, opened in self._sources.items():
            try:
                while await self._deliver_next(channel, opened):
                    pass
            except (UnstickError, TimeoutError) as error:
                _log.debug("What channel %r is to be told of source %r can't be read: %s", channel.name, name, error)
            except Exception:  # noqa: BLE001 - whatever it is, the next source and the next round come
                _log.exception("Nothing of source %r could be delivered to channel %r", name, channel.name)

    async def _deliver_next(self, channel: Channel, opened: OpenWatched) -> bool:
        """Deliver one message, and tell whether another may be due; no connection is held meanwhile."""
        claim = await _to_the_end(self._claim(channel, opened))
        if claim is None:
            return False
        failure = await send(channel, claim.delivery, self._within)
        await _to_the_end(_record(opened, claim, failure))
        return failure is None or not failure.others_too

    async def _claim(self, channel: Channel, opened: OpenWatched) -> Claim | None:
        async with opened() as watched:
            if watched.alerts is None:
                return None
            lasting = self._within + _CLAIM_MARGIN
            return await watched.alerts.claim(channel.name, tuple(self._sources), self._holder, lasting)

    async def _keep_tidy(self) -> None:
        done: dict[str, float] = {}
        while True:
            for name, opened in self._sources.items():
                if time.monotonic() < done.get(name, 0.0):
                    continue
                try:
                    await _to_the_end(self._tidy(opened))
                except Exception:  # noqa: BLE001 - whatever it is, the next round comes
                    _log.debug("The outbox of source %r could not be tidied", name, exc_info=True)
                else:
                    done[name] = time.monotonic() + _TIDY_EVERY.total_seconds()
            await asyncio.sleep(self._looks_every)

    async def _tidy(self, opened: OpenWatched) -> None:
        async with opened() as watched:
            if watched.alerts is not None:
                await watched.alerts.tidy(tuple(self._sources))


async def _to_the_end(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Let what is short come to its end where it is cancelled, for so long: what was told is on record then.

    A ledger that doesn't answer is not waited for, so that it keeps no channel from telling of another's sources.
    """
    return await surely(in_time(work, _END_WITHIN_SECONDS))


async def send(channel: Channel, delivery: Delivery, within: timedelta = SEND_WITHIN) -> NotDeliveredError | None:
    """Tell a channel, and return why it couldn't be told, whatever went wrong."""
    try:
        async with asyncio.timeout(within.total_seconds()):
            await channel.send(delivery)
    except NotDeliveredError as error:
        return error
    except TimeoutError:
        return NotDeliveredError(f"no answer within {say_duration(within)}", may_have_arrived=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
        # Neither its text nor its traceback is said: it is a library's, and may hold the channel's secret.
        return NotDeliveredError(f"an error of its own, {type(error).__name__}", may_have_arrived=True)
    return None


async def _record(opened: OpenWatched, claim: Claim, failure: NotDeliveredError | None) -> None:
    """Write down what came of a message, and tell the listeners."""
    outcome, problem = Delivered.DELIVERED, ""
    async with opened() as watched:
        if watched.alerts is None:
            return
        if failure is None:
            await watched.alerts.delivered(claim)
        else:
            wait = retry_after(claim.attempts, failure.retry_after, random.random())  # noqa: S311
            gave_up = await watched.alerts.failed(
                claim,
                wait,
                str(failure),
                may_have_arrived=failure.may_have_arrived,
                others_wait=failure.others_too,
            )
            outcome, problem = Delivered.GAVE_UP if gave_up else Delivered.FAILED, str(failure)
        event = Notified(
            source=watched.source.name,
            channel=claim.channel,
            outcome=outcome,
            alerts=len(claim.delivery.changes),
            problem=problem,
        )
        await emit(watched, event)
