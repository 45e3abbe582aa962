"""One answer for all who ask the same at the same time, and for nobody a time before their call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.api_support import CLEANUP, STUCK, MemorySource, World, client, job, service
from tests.jobs import open_bench
from tests.servers import EACH_KIND
from unstick.api.together import Together
from unstick.domain.access import Role
from unstick.domain.audit import AuditEntry, AuditOutcome
from unstick.domain.job import JobState

if TYPE_CHECKING:
    from tests.servers import Database

DATABASES = EACH_KIND


class Slow:
    """An answer that is found when it is let."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def find(self, size: int) -> int:
        self.sizes.append(size)
        self.begun.set()
        await self.let.wait()
        return len(self.sizes)


async def test_all_who_ask_at_once_share_one_answer_and_others_have_their_own() -> None:
    together, one, other = Together(), Slow(), Slow()
    one.let.set()
    other.let.set()

    same = [together.get("a", one.find) for _ in range(5)]
    answers = await asyncio.gather(*same, together.get("b", other.find))

    assert answers == [1, 1, 1, 1, 1, 1]
    assert (one.sizes, other.sizes) == ([5], [1])
    assert await together.get("a", one.find) == 2  # nothing is kept


async def test_who_asks_while_an_answer_is_found_shares_the_next_one() -> None:
    """What they did before they asked must be in it."""
    together, slow = Together(), Slow()
    first = asyncio.create_task(together.get("a", slow.find))
    await slow.begun.wait()
    late = [asyncio.create_task(together.get("a", slow.find)) for _ in range(3)]
    await asyncio.sleep(0)
    assert slow.sizes == [1]
    slow.let.set()

    assert await asyncio.gather(first, *late) == [1, 2, 2, 2]
    assert slow.sizes == [1, 3]


async def test_who_is_cut_off_takes_the_answer_from_nobody_else() -> None:
    together, slow = Together(), Slow()
    begun = asyncio.create_task(together.get("a", slow.find))
    stays = asyncio.create_task(together.get("a", slow.find))
    await slow.begun.wait()
    begun.cancel()
    slow.let.set()

    assert await stays == 1
    with pytest.raises(asyncio.CancelledError):
        await begun


async def test_a_failure_is_told_to_all_who_shared_it_and_to_nobody_after() -> None:
    together = Together()
    times = 0

    async def fails_once(_: int) -> str:
        nonlocal times
        times += 1
        if times == 1:
            raise ValueError("no")
        return "yes"

    told = await asyncio.gather(*(together.get("a", fails_once) for _ in range(2)), return_exceptions=True)

    assert [type(each) for each in told] == [ValueError, ValueError]
    assert await together.get("a", fails_once) == "yes"


async def moved_on() -> None:
    """Let everybody come as far as they do by themselves."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_reads_are_counted_together_in_one_row(database: Database) -> None:
    bench = await open_bench(database)
    read = AuditEntry(actor="ada", call="jobs.stuck", outcome=AuditOutcome.DONE)
    for times in (3, 2):
        await bench.ledger.count_read(read, times)
    counted = [row.repeats for row in await bench.audit()]
    await bench.close()
    assert counted in ([5], [3, 2])  # a minute may have passed between them


def counting(source: MemorySource) -> list[int]:
    """Count the looks that are taken, each of which now lasts a few turns of the loop."""
    looks: list[int] = []
    clock = source.clock

    async def slow_clock() -> Any:  # noqa: ANN401
        looks.append(1)
        await moved_on()
        return await clock()

    source.clock = slow_clock  # type: ignore[method-assign]
    return looks


@pytest.fixture
def world() -> World:
    world = World()
    world.source.jobs = {2: job(2, JobState.RUNNING, 90)}
    return world


async def test_calls_at_once_share_looks_and_each_is_in_the_audit_log(world: World) -> None:
    looks = counting(world.source)
    async with client(service(world), Role.ADMIN) as caller:
        answers = await asyncio.gather(*(caller.get(STUCK) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["stuck_jobs"]["total"] for answer in answers} == {1}
    assert len(looks) < 10
    assert sum(count for _, count in world.ledger.reads.values()) == 40


async def test_who_cleaned_up_sees_it_however_many_ask_at_the_same_time(world: World) -> None:
    counting(world.source)

    async def ask_on() -> None:
        while True:
            await caller.get(STUCK)

    async with client(service(world), Role.ADMIN) as caller:
        others = [asyncio.create_task(ask_on()) for _ in range(5)]
        await moved_on()
        assert (await caller.post(CLEANUP)).json()["cleaned_jobs"]["total"] == 1
        assert (await caller.get(STUCK)).json()["stuck_jobs"]["total"] == 0
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
